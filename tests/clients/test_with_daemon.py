"""Both clients against the real daemon: what they hold is what the daemon's REST API says."""

import asyncio
import itertools
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.parse import urljoin

import pytest

from candled.client import Client
from candled.model import decimal_text, iso_ms
from candled.tasks import Backoff
from tests import deadlines
from tests.clients.node import JsClient, arguments
from tests.system.daemon import Daemon

pytestmark = pytest.mark.usefixtures("daemon")

ROOT = Path(__file__).parents[2]
WS = ROOT / ".pytest_cache" / "npm" / "node_modules" / "ws" / "wrapper.mjs"
INSTALL_WS = "npm install --prefix .pytest_cache/npm --no-save ws@8"
KEYS = ("open", "high", "low", "close", "volume", "quoteVolume")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "exchanges": {"replay": {"symbols": ["BTC/USDT", "ETH/USDT"], "speed": 60}},
        "ingest": {"backfill": "2d"},
        "store": {"url": f"sqlite:///{tmp_path_factory.mktemp('clients') / 'candled.db'}"},
        "limits": {"api_requests": 100_000},
    }


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        daemon.start(config)
        yield daemon


@pytest.fixture(params=["global", "ws"])
async def javascript(request: pytest.FixtureRequest, daemon: Daemon) -> AsyncIterator[JsClient]:
    if request.param == "ws":
        install_ws()
    library = str(WS) if request.param == "ws" else ""
    async with JsClient(daemon.ws_url, library=library) as client:
        yield client


def install_ws() -> None:
    """The package `ws`, from npm, if it is not there yet."""
    npm = shutil.which("npm")
    if not WS.exists() and npm is not None:
        command = [npm, *INSTALL_WS.split()[1:]]
        subprocess.run(command, cwd=ROOT, capture_output=True, timeout=240, check=False)
    if not WS.exists():
        pytest.skip(f"needs the package ws: {INSTALL_WS}")


async def synced(daemon: Daemon) -> None:
    """Wait until history is complete as far back as it is wanted."""
    async with deadlines.timeout(30):
        while any(one.get("missingMinutes", 1) or not one["completeFrom"] for one in symbols(daemon)):
            await asyncio.sleep(0.1)


def symbols(daemon: Daemon) -> list[dict[str, Any]]:
    return [
        one for exchange in daemon.get("/health?verbose")["exchanges"].values() for one in exchange["symbols"].values()
    ]


def candles(daemon: Daemon, symbol: str, interval: str) -> list[dict[str, Any]]:
    """The final bars by HTTP, oldest first."""
    path: str | None = f"/api/candles?symbol={symbol}&interval={interval}&from=0&limit=1000"
    bars: list[dict[str, Any]] = []
    while path:
        page = daemon.get(path)
        bars += page["bars"]
        path = page["next"] and urljoin(path, page["next"])
    return [values(bar) for bar in bars if bar["final"]]


def values(bar: dict[str, Any]) -> dict[str, Any]:
    return {key: bar[key] for key in ("time", *KEYS) if key in bar}


def is_part(bars: list[dict[str, Any]], known: list[dict[str, Any]]) -> bool:
    """Whether bars are a stretch of those known, without a hole in it."""
    times = [bar["time"] for bar in known]
    if not bars or bars[0]["time"] not in times:
        return False
    at = times.index(bars[0]["time"])
    return bars == known[at : at + len(bars)]


async def test_what_javascript_holds_in_the_end_is_what_rest_says(javascript: JsClient, daemon: Daemon) -> None:
    await synced(daemon)
    request = {"symbol": "BTC/USDT", "interval": "1m", "bars": 50}
    javascript.send_command("subscribe", "a", request=request)
    await javascript.until("onBars")
    await javascript.until("onFinal", 1, within_s=30)
    while not (await javascript.ask("older", "older", limit=1000))["end"]:
        pass
    report = await javascript.report()
    kept = [values(bar) for bar in report["bars"] if bar["final"]]
    assert report["status"]["state"] == "live"
    assert is_part(kept, candles(daemon, "BTC/USDT", "1m"))
    assert kept[0] == candles(daemon, "BTC/USDT", "1m")[0]
    (final,) = javascript.events("onFinal")[0]
    assert values(final) in kept


async def test_what_python_holds_in_the_end_is_what_rest_says(daemon: Daemon) -> None:
    await synced(daemon)
    async with Client(daemon.ws_url) as client:
        finals = []
        async for bar in client.bars("ETH/USDT", "1m", initial_bars=5, final_only=True):
            finals.append(bar)
            if len(finals) == 7:
                break
        everything = await client.history("ETH/USDT", "1m")
    known = candles(daemon, "ETH/USDT", "1m")
    assert is_part([plain(bar) for bar in everything if bar.final], known)
    assert plain(everything[0]) == known[0]
    assert is_part([plain(bar) for bar in finals], known)


def plain(bar: Any) -> dict[str, Any]:
    """A bar of the Python client in the form of the wire; texts to see that no digit is lost."""
    numbers = dict(zip(KEYS, (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.quote_volume), strict=True))
    assert all("e" not in decimal_text(number) for number in numbers.values() if number is not None)
    present = {key: float(number) for key, number in numbers.items() if number is not None}
    return {"time": iso_ms(int(bar.time.timestamp() * 1000)), **present}


async def test_a_killed_daemon_is_survived_by_both_without_a_hole(daemon: Daemon, config: dict[str, Any]) -> None:
    await synced(daemon)
    backoff = Backoff(first_s=0.05, most_s=0.5)
    async with Client(daemon.ws_url, backoff=backoff) as client, JsClient(daemon.ws_url) as javascript:
        javascript.send_command("subscribe", "a", request={"symbol": "BTC/USDT", "interval": "1m", "bars": 100})
        stream = client.bars("BTC/USDT", "1m", final_only=True)
        first = await anext(stream)
        await javascript.until("onBars")
        daemon.stop(signal.SIGKILL)
        daemon.start(config)
        await javascript.until("onBars", 2, within_s=20)
        before = len(javascript.events("onFinal"))
        await javascript.until("onFinal", before + 2, within_s=20)
        given = [first]
        async with deadlines.timeout(20):
            while len(given) < 102:
                given.append(await anext(stream))
        kept = [values(bar) for bar in (await javascript.report())["bars"] if bar["final"]]
    known = candles(daemon, "BTC/USDT", "1m")
    assert is_part(kept, known)
    assert is_part([plain(bar) for bar in given], known)


def test_the_daemon_serves_the_files_of_the_repository(daemon: Daemon) -> None:
    sources = [path for path in (ROOT / "clients" / "js").iterdir() if path.suffix in (".js", ".ts")]
    assert {"candled.js", "candled.d.ts"} <= {path.name for path in sources}
    for source in sources:
        with urllib.request.urlopen(f"{daemon.url}/clients/{source.name}") as answer:
            assert answer.read() == source.read_bytes()
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert ("javascript" if source.suffix == ".js" else "typescript") in answer.headers["Content-Type"]


# ---------------------------------------------------------------- the examples of the README


def example(language: str, daemon: Daemon) -> str:
    """The first example in a language, with the daemon's address."""
    code = (ROOT / "README.md").read_text("utf-8").split(f"```{language}\n")[1].split("```")[0]
    assert "localhost:7000" in code
    return code.replace("localhost:7000", f"127.0.0.1:{daemon.port}")


def lines_of(command: list[str], count: int) -> list[str]:
    """The first lines that a program prints, and no more of it."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        assert program.stdout is not None
        timer = Timer(30, program.kill)
        timer.start()
        lines = list(itertools.islice(program.stdout, count))
        timer.cancel()
        program.kill()
    return lines


async def test_the_python_example_runs(daemon: Daemon, tmp_path: Path) -> None:
    await synced(daemon)
    file = tmp_path / "example.py"
    file.write_text(example("python", daemon), "utf-8")
    first, second = lines_of([sys.executable, "-u", str(file)], 2)
    assert re.match(r"<\d+ bars, 20\d\d-\d\d-\d\d \d\d:00 to 20", first)
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:00\+00:00 \d+(\.\d+)? final", second)


async def test_the_javascript_example_runs(daemon: Daemon, tmp_path: Path) -> None:
    await synced(daemon)
    script = example("html", daemon).split('<script type="module">')[1].split("</script>")[0]
    script = script.replace(f"http://127.0.0.1:{daemon.port}/clients", str(ROOT / "clients" / "js"))
    file = tmp_path / "example.mjs"
    file.write_text(script, "utf-8")
    lines = lines_of([*arguments(), str(file)], 6)
    assert lines[:2] == ["connecting\n", "loading\n"]
    assert "100 bars\n" in lines
    assert any(re.match("(next|moved) {", line) for line in lines)
