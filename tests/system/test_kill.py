"""kill -9 at random moments under load: nothing final that was stored is lost, and the next start repairs the rest."""

import asyncio
import csv
import gzip
import json
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import yaml
from websockets.sync.client import connect

from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Symbol, fold, parse_iso_ms
from candled.store.sqlite.store import SqliteStore
from tests import deadlines, tiers
from tests.clocks import ScaledClock
from tests.fakes.bitget import SNAPSHOT_ROWS, FakeBitget, FakeMarket
from tests.fakes.tapes import Recorded, Synthetic
from tests.system.daemon import ROOT, Daemon
from tests.system.rig import MONDAY_MORNING_MS

pytestmark = pytest.mark.usefixtures("daemon")

SHORT = pytest.mark.timeout(900)
LONG = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
]
REPAIRED_WITHIN_S = 60.0
VALUES = ("open", "high", "low", "close", "volume")

Minutes = dict[tuple[str, int], tuple[Decimal, ...]]
"""Open, high, low, close and volume by symbol and opening time."""


# ---------------------------------------------------------------- the store as a crash left it


@contextmanager
def crashed(directory: Path) -> Iterator[Path]:
    """A copy of the store's files as they lie there, so that it is the next start that recovers the real ones."""
    folder = directory / "copy"
    folder.mkdir()
    for name in ("candled.db", "candled.db-wal"):
        if (directory / name).exists():
            shutil.copy(directory / name, folder / name)
    try:
        yield folder / "candled.db"
    finally:
        shutil.rmtree(folder)


def minutes(path: Path) -> Minutes:
    """Every final minute that another process would see in the store's file now."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as file:
        rows = file.execute(
            "SELECT symbol, time_ms, open, high, low, close, volume FROM candles JOIN markets ON markets.id = market"
        )
        return {(symbol, open_ms): tuple(map(Decimal, values)) for symbol, open_ms, *values in rows}
    return {}  # no file yet, or no tables in it


def check_integrity(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def check_folds(path: Path, market: MarketKey) -> int:
    """Prove that every stored longer bar is the fold of the stored minutes; return how many bars were compared."""
    store = SqliteStore(path, DEFAULT_INTERVALS)
    store.open()
    try:
        rows = store.read_bars_between(market, MINUTE, 0, 2**62)
        compared = 0
        for interval in DEFAULT_INTERVALS[1:]:
            stored = store.read_bars_between(market, interval, 0, 2**62)
            assert [(bar.open_ms, bar.values) for bar in stored] == folded(rows, interval)
            compared += len(stored)
        return compared
    finally:
        store.close()


def folded(rows: list[Candle], interval: Interval) -> list[tuple[int, tuple[Any, ...]]]:
    buckets: dict[int, list[Candle]] = {}
    for row in rows:
        buckets.setdefault(interval.floor(row.open_ms), []).append(row)
    return [(open_ms, fold(parts, open_ms).values) for open_ms, parts in sorted(buckets.items())]


# ---------------------------------------------------------------- many symbols on replay

SYMBOLS = [f"S{number}/USDT" for number in (range(12) if tiers.LONG else (0, 3, 7, 11))]
DAYS = 3
ROOMS = [("S0/USDT", "1m"), ("S0/USDT", "5m"), ("S7/USDT", "1h"), ("S11/USDT", "1D")]
RECORDING = ROOT / "plugins" / "replay" / "recordings" / "binance-spot-btcusdt.csv.gz"


def replay_settings(directory: Path) -> dict[str, Any]:
    return {
        "exchanges": {
            "replay": {"symbols": SYMBOLS, "speed": 300, "files": {"*": "bundled:binance-spot-btcusdt"}},
        },
        "ingest": {"backfill": f"{DAYS}d"},
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
        "log": {"level": "warning"},
    }


class Tape:
    """What the recording has, read without the plugin: two whole weeks that repeat."""

    def __init__(self) -> None:
        with gzip.open(RECORDING, "rt", newline="") as lines:
            rows = list(csv.DictReader(lines))
        self._base_ms = int(rows[0]["time_ms"])
        self._rows = [tuple(Decimal(row[key]) for key in VALUES) for row in rows]
        assert len(rows) == 2 * 7 * 1440

    def wrong(self, stored: Minutes) -> list[tuple[str, int]]:
        """The rows that are not as recorded."""
        return [key for key, values in stored.items() if values != self.at(key[1])]

    def at(self, open_ms: int) -> tuple[Decimal, ...]:
        return self._rows[(open_ms - self._base_ms) // MINUTE_MS % len(self._rows)]


def initials(daemon: Daemon, bars: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What new subscribers are shown."""
    shown = {}
    with connect(daemon.ws_url, max_size=None) as socket:
        for symbol, interval in ROOMS:
            socket.send(json.dumps({"type": "subscribe", "symbol": symbol, "interval": interval, "initialBars": bars}))
        while len(shown) < len(ROOMS):
            message = json.loads(socket.recv(timeout=60), parse_float=Decimal)
            if message["type"] == "initial":
                shown[message["symbol"], message["interval"]] = message["bars"]
    return shown


def is_whole(health: dict[str, Any]) -> bool:
    """Whether every market is live, nothing is missing, and what was fetched is in the store."""
    markets = health["exchanges"]["replay"]["symbols"].values()
    is_fetched = all(one["state"] == "live" and not one["missingMinutes"] for one in markets)
    return is_fetched and health["store"]["waiting"] < 10 * len(SYMBOLS)


def wait_until_made(daemon: Daemon, path: Path) -> None:
    """Wait until the daemon has made the file of its store; nothing is lost before."""
    while not path.exists():
        assert daemon.running, daemon.output
        time.sleep(0.02)


def wait_until_whole(daemon: Daemon) -> None:
    """Wait until all is repaired, `HEALED_WITHIN_S` at most."""
    begun = deadlines.now()
    while True:
        with suppress(URLError):  # it is only just starting
            if is_whole(daemon.get("/health?verbose")):
                return
        assert deadlines.now() < begun + REPAIRED_WITHIN_S, daemon.output
        time.sleep(0.1)


@pytest.mark.parametrize("kills", [pytest.param(2, marks=SHORT), pytest.param(100, marks=LONG)])
def test_kill_9_at_random_moments_loses_nothing_that_was_stored(tmp_path, kills):
    """Promise 17. The first half of the kills hits the filling of a fresh store, the second the live feed."""
    draw, tape, settings = random.Random(17), Tape(), replay_settings(tmp_path)
    known: dict[tuple[str, str, str], dict[str, Any]] = {}  # bars that were over when a client was shown them
    shown = stored_at_kills = 0
    path = tmp_path / "candled.db"
    with Daemon(tmp_path) as daemon:
        for number in range(kills):
            daemon.launch(settings)
            wait_until_made(daemon, path)
            time.sleep(draw.uniform(0.3, 1.2) if number < kills // 2 else draw.uniform(0.3, 3.0))
            if number >= kills // 2 and number % 2:
                wait_until_whole(daemon)
                shown += remember(initials(daemon, 100), known)
                time.sleep(draw.uniform(0.0, 2.0))
            before = minutes(path)
            daemon.stop(signal.SIGKILL)
            with crashed(tmp_path) as copy:
                after = minutes(copy)
                assert before.keys() <= after.keys()
                assert tape.wrong(after) == []
                check_integrity(copy)
                if after:
                    check_folds(copy, MarketKey("replay", Symbol.parse(draw.choice(SYMBOLS))))
            stored_at_kills = max(stored_at_kills, len(after))
        daemon.start(settings)
        wait_until_whole(daemon)
        shown += remember(initials(daemon, 1000), known)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.output
    check_all(path, tape, known)
    assert stored_at_kills > len(SYMBOLS) * DAYS * 1440, "no kill came after the store was filled"
    assert shown > len(known), "no bar was shown both before and after a kill"


def remember(shown: dict[tuple[str, str], list[dict[str, Any]]], known: dict[tuple[str, str, str], Any]) -> int:
    """Compare the closed bars with how earlier ones were shown, and note them; return how many they are."""
    count = 0
    for (symbol, interval), bars in shown.items():
        for bar in bars[:-1]:
            assert known.setdefault((symbol, interval, bar["time"]), bar) == bar
            count += 1
    return count


def check_all(path: Path, tape: Tape, known: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    """Prove that the store has every minute of whole weeks, as recorded, and what clients were shown."""
    stored = minutes(path)
    assert tape.wrong(stored) == []
    for symbol in SYMBOLS:
        times = sorted(open_ms for name, open_ms in stored if name == symbol)
        assert times[0] == Interval.parse("1W").floor(times[0])
        assert times == list(range(times[0], times[-1] + MINUTE_MS, MINUTE_MS))
        assert check_folds(path, MarketKey("replay", Symbol.parse(symbol))) > 1000
    newest_ms = {symbol: max(open_ms for name, open_ms in stored if name == symbol) for symbol in SYMBOLS}
    for (symbol, interval, at), bar in known.items():
        if interval == "1m" and parse_iso_ms(at) <= newest_ms[symbol]:  # the one after it was over, but not final yet
            values = stored[symbol, parse_iso_ms(at)]
            assert tuple(bar[key] for key in VALUES) == values


# ---------------------------------------------------------------- the fake Bitget, which goes on meanwhile

SPEED = 40.0
BTC, ETH = Symbol.parse("BTC/USDT"), Symbol.parse("ETH/USDT")

# The daemon's own `run`, on a clock that agrees with the fake exchange's: monotonic time is the machine's.
CHILD = """
import sys, time
from pathlib import Path
from candled import app, config
from candled.plugins import discover
from tests.clocks import ScaledClock
speed, start_ms, started = map(float, sys.argv[2:])
plugins = discover()
clock = ScaledClock(speed, int(start_ms + (time.monotonic() - started) * speed * 1000))
sys.exit(app.run(lambda: config.load(Path(sys.argv[1]), {}, plugins), plugins, clock))
"""


@asynccontextmanager
async def running(config: Path, clock: ScaledClock, output: Path, how: int):
    """The daemon in a process of its own; `how` is the signal that ends it."""
    numbers = map(str, (clock.speed, clock.now_ms(), time.monotonic()))
    with output.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, str(config), *numbers, cwd=ROOT, stdout=log, stderr=log
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(how)
        await deadlines.wait_for(process.wait(), 20)


def bitget_settings(directory: Path, fake: FakeBitget) -> Path:
    path = directory / "candled.yaml"
    exchange = {"symbols": [str(BTC), str(ETH)], "ws_url": fake.ws_url, "rest_url": fake.rest_url}
    document = {
        "server": {"host": "127.0.0.1", "port": 0},
        "exchanges": {"bitget": exchange},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
    }
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


def truth(fake: FakeBitget, until_ms: int, *, lead_ms: int = 0) -> Minutes:
    """What the exchange had since the week began, or `lead_ms` before that."""
    week_ms = Interval.parse("1W").floor(MONDAY_MORNING_MS) - lead_ms
    return {
        (str(symbol), candle.open_ms): candle.values[:5]
        for symbol in (BTC, ETH)
        for candle in fake.truth(symbol, week_ms, until_ms)
    }


@pytest.mark.parametrize("kills", [pytest.param(2, marks=SHORT), pytest.param(100, marks=LONG)])
async def test_what_an_exchange_said_while_the_daemon_was_dead_is_there_afterwards(tmp_path, kills):
    """Promise 17: after each kill the exchange goes on; the next start finds the hole and has it repaired."""
    draw, clock = random.Random(4), ScaledClock(SPEED, MONDAY_MORNING_MS)
    markets = [
        FakeMarket(symbol=BTC, tape=Synthetic(7)),
        FakeMarket(symbol=ETH, tape=Recorded.load("bitget-usdt-futures-ethusdt")),
    ]
    path = tmp_path / "candled.db"
    async with FakeBitget(clock, markets, push_interval_s=1.0) as fake:
        fake.enforce_limits = False  # limits per second mean nothing on a fast clock
        config = bitget_settings(tmp_path, fake)
        for _ in range(kills):
            async with running(config, clock, tmp_path / "log", signal.SIGKILL):
                await asyncio.sleep(draw.uniform(0.8, 5.0))
                before = await asyncio.to_thread(minutes, path)
            with crashed(tmp_path) as copy:
                after = await asyncio.to_thread(minutes, copy)
                check_integrity(copy)
            assert before.keys() <= after.keys()
            assert wrong(after, truth(fake, clock.now_ms(), lead_ms=SNAPSHOT_ROWS * MINUTE_MS)) == []
            await asyncio.sleep(draw.uniform(0.0, 4.0))
        await clock.sleep(240)
        assert missing(after, truth(fake, over_ms(clock)))
        async with running(config, clock, tmp_path / "log", signal.SIGTERM) as process:
            begun = deadlines.now()
            while missing(stored := await asyncio.to_thread(minutes, path), truth(fake, over_ms(clock))):
                assert deadlines.now() < begun + REPAIRED_WITHIN_S
                assert process.returncode is None, (tmp_path / "log").read_text()
                await asyncio.sleep(0.2)
        assert process.returncode == 0
        assert wrong(stored, truth(fake, clock.now_ms(), lead_ms=SNAPSHOT_ROWS * MINUTE_MS)) == []
        assert len(stored) > 2 * 360
        for symbol in (BTC, ETH):
            assert check_folds(path, MarketKey("bitget", symbol)) > 100


def wrong(stored: Minutes, real: Minutes) -> list[Any]:
    return [(key, values, real.get(key)) for key, values in stored.items() if values != real.get(key)]


def missing(stored: Minutes, real: Minutes) -> bool:
    return not real.keys() <= stored.keys()


def over_ms(clock: ScaledClock) -> int:
    """Minutes before this are over for long enough to be stored."""
    return MINUTE.floor(clock.now_ms()) - 3 * MINUTE_MS
