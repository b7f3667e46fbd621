"""The sixteen faults found in real candle backends: each has a test that says so, and four have theirs here."""

import ast
import json
import re
import urllib.request
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from websockets.sync.client import connect

from candled.bus import HistoryChanged, MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Interval, Symbol, iso_ms
from candled.store.sqlite.store import SqliteStore
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget
from tests.rooms.stage import BTC as STAGED
from tests.rooms.stage import Stage, Stored
from tests.rows import MONDAY_MS, minute
from tests.system.daemon import Daemon
from tests.system.rig import MONDAY_MORNING_MS, Rig
from tests.system.test_bitget_faults import BTC, SPEED, markets

TESTS = Path(__file__).parent
ROOT = TESTS.parent
WEEK = Interval.parse("1W")
DAY_MS = 86_400_000


# ---------------------------------------------------------------- the index


@cache
def found_tests() -> dict[int, list[str]]:
    """Which tests say in their docstring that they are about which fault."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source if "Fault " in source else "")):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for number in re.findall(r"\bFault (\d+):", ast.get_docstring(node) or ""):
                    found.setdefault(int(number), []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 17))
def test_every_fault_has_a_test_that_names_it(number):
    assert found_tests().get(number)


@pytest.mark.slow
def test_no_test_names_a_fault_that_is_none():
    assert set(found_tests()) == set(range(1, 17))


# ---------------------------------------------------------------- fault 2


@pytest.mark.parametrize("interval", ["1D", "1W"])
async def test_initial_update_and_store_agree_on_where_a_week_begins(tmp_path, interval):
    """Fault 2: initial and update that disagree on where a week begins."""
    last_of_sunday = [minute(number, final=True) for number in range(-30, 0)]
    one = await Stage(Stored(last_of_sunday, complete_from=MONDAY_MS - 7 * DAY_MS)).start()
    chart = one.join(interval)
    before = chart.bars[-1]["time"]
    for number in range(3):
        one.push(minute(number, volume="2", final=True))
        await one.wait(1.5)
    assert [bar["time"] for bar in chart.bars] == [before, iso_ms(MONDAY_MS)]
    assert chart.updates[-1]["volume"] == 6
    assert chart.bars == one.join(interval).bars
    assert datetime.fromisoformat(chart.bars[-1]["time"]).astimezone(UTC).strftime("%a %H:%M:%S") == "Mon 00:00:00"
    assert [bar["time"] for bar in chart.bars] == stored_times(tmp_path, Interval.parse(interval), last_of_sunday)


def stored_times(directory: Path, interval: Interval, sunday: list) -> list[str]:
    """Where the store, which folds by itself, has the bars of the same minutes."""
    store = SqliteStore(directory / "candled.db", DEFAULT_INTERVALS)
    store.open()
    try:
        store.write_minutes([(STAGED, row) for row in [*sunday, *(minute(number, final=True) for number in range(3))]])
        return [iso_ms(bar.open_ms) for bar in store.read_bars(STAGED, interval, before_ms=2**62, limit=10)]
    finally:
        store.close()


# ---------------------------------------------------------------- fault 13


@pytest.mark.usefixtures("daemon")
async def test_a_warm_up_that_fails_shows_no_part_of_a_bar_gives_the_reason_and_is_repeated(tmp_path):
    """Fault 13: a failed warm-up that leaves half bars and only a log line."""
    thursday_ms = MONDAY_MORNING_MS + 3 * DAY_MS
    clock = FairScaledClock(SPEED, thursday_ms)
    async with FakeBitget(clock, markets(), push_interval_s=1.0) as fake:
        fake.enforce_limits = False  # limits per second mean nothing on a fast clock
        fake.rest_down = True
        one = Rig(tmp_path, fake, clock, [BTC])
        try:
            await one.start()
            day, week = one.open_chart(BTC, "1D", 10), one.open_chart(BTC, "1W", 10)
            await one.until(lambda: day.initials and week.initials)
            await one.minutes(2)  # the stream brings the last 500 minutes, REST would bring the rest of the week
            health, exchange = one.health(BTC), (await one.daemon.health.report())["exchanges"]["bitget"]
            assert (await one.daemon.health.report())["status"] == "warn"
            assert (health["state"], health["connected"]) == ("warming", True)
            assert "127.0.0.1" in health["trouble"]
            assert exchange["historyTrouble"]
            assert week.bars == []
            assert [bar["time"] for bar in day.bars] == [iso_ms(thursday_ms - 6 * 3_600_000)]  # no half Wednesday
            seen = week.initials
            fake.rest_down = False
            await one.until(lambda: week.initials > seen and week.bars)
            assert await one.check() > 3 * 1440
            assert [bar["time"] for bar in week.bars] == [iso_ms(WEEK.floor(thursday_ms))]
            assert [bar["time"][8:10] for bar in day.bars] == ["06", "07", "08", "09"]
            await one.until(lambda: one.health(BTC)["trouble"] is None)
        finally:
            await one.stop()


# ---------------------------------------------------------------- fault 14

# A text that is a symbol or a coin, and not merely an example within a help text.
SYMBOL = re.compile(r"BTC|ETH|[A-Z]{2,10}[/-]?(?:USDT|USDC|USD|EUR)")
# The only places where one is a value: defaults, which settings replace.
DEFAULTS = {"candled/config/sections.py", "plugins/replay/exchange.py"}
# Kraken has other names for two coins.
RENAMED_COINS = {"plugins/kraken/messages.py", "plugins/kucoin/messages.py"}


@pytest.mark.slow
def test_no_symbol_is_written_into_the_code():
    """Fault 14: one hard-coded symbol anywhere."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / "candled").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SYMBOL.fullmatch(node.value)
    }
    assert found == DEFAULTS | RENAMED_COINS


def test_no_symbol_is_written_into_the_page():
    """Fault 14: one hard-coded symbol anywhere. Comments are not code."""
    files = [path for path in (ROOT / "candled" / "serve" / "static").iterdir() if path.is_file()]
    assert {"index.html", "page.js"} <= {path.name for path in files}
    for path in files:
        code = re.sub(r"/\*.*?\*/|//[^\n]*|<!--.*?-->", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"BTC|USDT", code)


@pytest.mark.usefixtures("daemon")
def test_a_daemon_that_serves_another_symbol_knows_of_no_other(tmp_path):
    """Fault 14: one hard-coded symbol anywhere. Health, page, rooms, errors and store are about the configured one."""
    replay = {"symbols": ["DOGE/EUR"], "files": {"*": "bundled:binance-spot-btcusdt"}}
    settings = {
        "exchanges": {"replay": replay},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
    }
    with Daemon(tmp_path) as daemon:
        daemon.start(settings)
        with connect(daemon.ws_url) as socket:
            socket.send('{"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m"}')
            answer = json.loads(socket.recv(timeout=60))
            assert answer["message"] == "Invalid symbol: BTC/USDT. Only DOGE/EUR is supported."
            socket.send('{"type": "subscribe", "symbol": "DOGE/EUR", "interval": "1m", "initialBars": 5}')
            initial = json.loads(socket.recv(timeout=60))
            assert (initial["type"], initial["symbol"], len(initial["bars"])) == ("initial", "DOGE/EUR", 5)
        assert list(daemon.get("/health?verbose")["exchanges"]["replay"]["symbols"]) == ["DOGE/EUR"]
        with urllib.request.urlopen(f"{daemon.url}/", timeout=60) as answer:
            page = answer.read().decode()
        assert "DOGE/EUR" in page
        assert "BTC" not in page
        assert daemon.stop() == 0
        assert "BTC" not in daemon.output
    store = SqliteStore(tmp_path / "candled.db", DEFAULT_INTERVALS)
    store.open()
    assert list(store.newest_minutes("replay")) == [Symbol("DOGE", "EUR")]
    store.close()


# ---------------------------------------------------------------- fault 15


def test_a_listener_that_fails_keeps_no_message_from_the_others_nor_from_itself(caplog):
    """Fault 15: a lost message that nobody notices. In one process a message is a call, and a failing one is told."""
    bus, received = MemoryBus("one"), []
    attempts = []

    class FailsOnce:
        def on_feed_message(self, message, position):
            attempts.append(message)
            if len(attempts) == 1:
                raise ValueError("not today")

    class Receives:
        def on_feed_message(self, message, position):
            received.append(message)

    bus.add_listener(FailsOnce())
    bus.add_listener(Receives())
    messages = [MinuteChanged(STAGED, minute(number)) for number in range(3)]
    for message in messages:
        bus.publish(message)
    assert received == attempts == messages
    (record,) = caplog.records
    assert record.exc_info
    assert "a listener failed on" in record.getMessage()


async def test_a_message_that_was_missed_is_made_good_from_the_store():
    """Fault 15: a lost message that goes unnoticed. With `HistoryChanged`, a missed minute is read from the store."""
    one = await Stage(Stored(minute(number, final=True) for number in range(60))).start()
    chart, hours = one.join("1m"), one.join("1h")
    one.push(minute(60, volume="4", final=True))
    one.push(minute(62, volume="4", final=True))  # nobody heard of 61
    await one.wait(2)
    assert iso_ms(minute(61).open_ms) not in {bar["time"] for bar in chart.bars}
    one.heal([minute(60, volume="4", final=True), minute(61, volume="7", final=True)])
    await one.wait(6)
    assert [bar["volume"] for bar in chart.bars[-3:]] == [4, 7, 4]
    assert hours.bars[-1]["volume"] == 15
    assert (chart.bars, hours.bars) == (one.join("1m").bars, one.join("1h").bars)


async def test_a_message_that_changes_no_past_changes_no_chart():
    """Fault 15: a lost message that nobody notices. Asking the store once too often costs a read and moves nothing."""
    one = await Stage(Stored(minute(number, final=True) for number in range(60))).start()
    chart = one.join("1m")
    before = list(chart.bars)
    one.bus.publish(HistoryChanged(STAGED, MONDAY_MS, MONDAY_MS + 60 * MINUTE_MS, MONDAY_MS))
    await one.wait(6)
    assert chart.bars == before
    assert chart.updates == []
