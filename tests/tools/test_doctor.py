"""`candled doctor` for a healthy candled, and for one in which everything is wrong."""

from dataclasses import replace

import pytest

from candled.cli import main
from candled.clock import SystemClock
from candled.config import Config, ExchangeConfig
from candled.config.sections import BusSettings, ServerSettings, StoreSettings
from candled.model import Symbol
from candled.plugins import Plugins, PluginStatus
from candled.tools.doctor import Doctor, questionable_settings
from candled_plugins.bitget.exchange import Bitget, BitgetSettings
from candled_plugins.replay.exchange import Replay
from tests.bundled import PLUGINS
from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.tools.command import prepare, settings

BTC = Symbol("BTC", "USDT")
LATE_MS = 1_759_881_600_000


def bitget(rest_url: str, ws_url: str = "ws://127.0.0.1:1/", symbol: Symbol = BTC) -> ExchangeConfig:
    settings = BitgetSettings(rest_url=rest_url, ws_url=ws_url)
    return ExchangeConfig(name="bitget", plugin=Bitget, symbols=(symbol,), settings=settings)


async def page(config: Config, clock=None, plugins: Plugins = PLUGINS) -> tuple[int, list[str]]:
    lines: list[str] = []
    status = await Doctor(plugins, clock or SystemClock(), lines.append).examine(lambda: config, None)
    return status, lines


async def test_a_healthy_one_is_a_page_without_a_problem(tmp_path):
    async with FakeBitget(SystemClock(), [FakeMarket(symbol=BTC, tape=Synthetic(7))]) as fake:
        config = settings(f"sqlite:///{tmp_path}/candled.db", bitget(fake.rest_url, fake.ws_url))
        config = config.model_copy(update={"server": ServerSettings(max_connections=10)})
        _, missing = await page(config)
        prepare(config)
        status, lines = await page(config)
    assert [line for line in missing if line.startswith("store")] == [
        f"store            {tmp_path}/candled.db does not exist yet; the daemon creates it"
    ]
    assert (status, lines[-1]) == (0, "problems: none")
    found = {line.partition(" ")[0]: line for line in reversed(lines)}
    assert "sqlite, schema" in found["store"]
    assert found["exchanges.bitget"].endswith("answers, 1 markets; proxy: direct, from the settings")
    assert any("its stream answered a subscription to BTC/USDT in" in line for line in lines)
    assert found["bus"] == "bus              inside the process"
    assert {"candled", "system", "libraries", "clock", "variables", "settings", "open", "free"} <= found.keys()


async def test_a_plugin_whose_constructor_fails_is_one_problem(tmp_path):
    class Fails(Bitget):
        def __init__(self, settings, clock):
            raise KeyError("key")

    one = replace(bitget("http://127.0.0.1:1"), plugin=Fails)
    status, lines = await page(settings(f"sqlite:///{tmp_path}/candled.db", one))
    assert status == 1
    assert [line for line in lines if "exchanges.bitget" in line] == ["exchanges.bitget PROBLEM: KeyError: 'key'"]


async def test_each_problem_is_named_and_no_secret_is_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("CANDLED_STORE__URL", "postgresql://me:hunter2@127.0.0.1:1/x")
    config = Config(
        store=StoreSettings(url="postgresql://me:hunter2@127.0.0.1:1/x", journal=""),
        bus=BusSettings(url="redis://me:hunter2@127.0.0.1:1/0"),
        exchanges=(bitget("http://127.0.0.1:1"),),
    )
    broken = PluginStatus(name="bad", distribution="x", version="1", ok=False, error="ValueError: token=hunter2")
    status, lines = await page(config, plugins=Plugins(PLUGINS.exchanges, [broken]))
    problems = [line.partition("  ")[0] for line in lines if "PROBLEM" in line]
    assert status == 1
    assert {"plugin bad", "settings", "store", "bus"} <= set(problems)
    assert any(line.startswith("exchanges.bitget PROBLEM: cannot reach 127.0.0.1") for line in lines)
    assert "hunter2" not in "\n".join(lines)
    assert "CANDLED_STORE__URL" in "\n".join(lines)


@pytest.mark.parametrize(
    ("symbol", "breaks", "problem"),
    [
        ("NOCOIN/USDT", False, "the stream refuses NOCOIN/USDT: "),
        ("BTC/USDT", True, "the stream was interrupted: "),
    ],
)
async def test_a_stream_that_does_not_deliver_is_a_problem(symbol, breaks, problem, tmp_path):
    async with FakeBitget(SystemClock(), [FakeMarket(symbol=BTC, tape=Synthetic(7))]) as fake:
        fake.refuse_connections = breaks
        exchange = bitget(fake.rest_url, fake.ws_url, Symbol.parse(symbol))
        status, lines = await page(settings(f"sqlite:///{tmp_path}/candled.db", exchange))
    assert status == 1
    assert any(line.startswith(f"exchanges.bitget PROBLEM: {problem}") for line in lines)
    assert any("answers, 1 markets" in line for line in lines)


async def test_a_wrong_clock_is_a_problem(tmp_path):
    async with FakeBitget(SystemClock(), [FakeMarket(symbol=BTC, tape=Synthetic(7))]) as fake:
        config = settings(f"sqlite:///{tmp_path}/candled.db", bitget(fake.rest_url))
        _, lines = await page(config, ScaledClock(1.0, LATE_MS))
    assert [line for line in lines if line.startswith("clock            PROBLEM: -")]


def test_mistakes_in_the_settings_are_on_the_page(tmp_path, capsys):
    (tmp_path / "candled.yaml").write_text("server: {prot: 1}\nroles: []", "utf-8")
    assert main(["doctor", "--config", str(tmp_path / "candled.yaml")]) == 1
    printed = capsys.readouterr().out
    assert "server.prot: unknown setting, did you mean port?" in printed
    assert "roles: bus.url memory:// stays inside one process" in printed


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"server": ServerSettings(internal_port=9, internal_host="0.0.0.0")}, "server.internal_host"),
        ({"server": ServerSettings(health_details=True, host="0.0.0.0")}, "server.health_details"),
        ({"server": ServerSettings(prefix="/x")}, "server.trusted_proxies"),
        ({"store": StoreSettings(url="postgresql://h/d", journal="")}, "store.journal"),
        ({"bus": BusSettings(url="redis://h")}, "store.url"),
        (
            {
                "exchanges": (
                    bitget("http://x"),
                    ExchangeConfig(name="replay", plugin=Replay, symbols=(), settings=None),
                )
            },
            "exchanges.replay",
        ),
    ],
)
def test_a_questionable_setting_is_named(changes, key):
    config = Config(exchanges=(bitget("http://x"),))
    assert list(questionable_settings(config)) == []
    assert [text.partition(":")[0] for text in questionable_settings(config.model_copy(update=changes))] == [key]
