"""The daemon as an operator meets it: mistakes, an exchange out of reach, `/health`, its log, a restart."""

import json
import re
import signal
import sqlite3
import time
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.sync.client import connect

from candled import __version__
from candled.bus.memory_bus import MemoryBus
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.http import HttpClient
from candled.ingest.market_loader import IngestOptions
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Interval, MarketKey, parse_iso_ms
from candled.protocol.messages import bar_text
from candled.store.history import HistoryReader
from candled.store.ingest_store import IngestStore
from candled.store.sqlite.store import SqliteStore
from candled.store.threads import StoreThreads
from candled.store.writer import Writer
from tests import deadlines
from tests.clocks import ManualClock
from tests.ports import free_port
from tests.rows import minute
from tests.system.daemon import Daemon
from tests.system.rig import PLUGINS
from tests.system.test_bitget_faults import BTC, live, rig

pytestmark = pytest.mark.usefixtures("daemon")

REPLAY = {"replay": {"symbols": ["BTC/USDT"]}}
QUICK = {"backfill": "0s"}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def store_url(directory: Path) -> dict[str, str]:
    return {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")}


def initial(daemon: Daemon, symbol: str = "BTC/USDT", interval: str = "1m", bars: int = 10) -> list[dict[str, Any]]:
    """The bars that a new client is shown first."""
    with connect(daemon.ws_url) as socket:
        socket.send(json.dumps({"type": "subscribe", "symbol": symbol, "interval": interval, "initialBars": bars}))
        message = json.loads(socket.recv(timeout=60), parse_float=Decimal)
    assert message["type"] == "initial"
    shown: list[dict[str, Any]] = message["bars"]
    return shown


# ---------------------------------------------------------------- mistakes


def newer_schema(directory: Path) -> None:
    store = SqliteStore(directory / "candled.db", DEFAULT_INTERVALS)
    store.open()
    store.close()
    with closing(sqlite3.connect(directory / "candled.db")) as file:
        file.execute("PRAGMA user_version = 99")


def another_program(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "candled.db")) as file:
        file.execute("CREATE TABLE recipes (name TEXT)")


def no_database(directory: Path) -> None:
    (directory / "candled.db").write_bytes(b"this is a letter to my aunt " * 100)


def bad_recordings(directory: Path) -> None:
    header = "time_ms,open,high,low,close,volume\n"
    (directory / "letters.csv").write_text(f"{header}60000,1,1,1,1,1\n120000,a,b,c,d,e\n60000,1,1,1,1,1\n", "utf-8")
    (directory / "short.csv").write_text(f"{header}60000,1,1,1,1,1\n", "utf-8")


def nothing(directory: Path) -> None:
    pass


MISTAKES = [
    pytest.param(
        nothing, {"exchanges": {"bitgte": None, "nowhere": {"symbols": ["X"]}}},
        [
            r".*candled\.yaml:2: exchanges\.bitgte: no plugin offers this exchange, did you mean bitget\?.*",
            r".*candled\.yaml:5: exchanges\.nowhere\.symbols\[0\]: .*",
            r".*candled\.yaml:3: exchanges\.nowhere: no plugin offers this exchange.*",
        ],
        id="unknown exchanges",
    ),
    pytest.param(
        bad_recordings, {"exchanges": {"replay": {"files": {"A/B": "letters.csv", "C/D": "short.csv", "E/F": "none"}}}},
        [
            r"letters\.csv: line 3: expected a time and decimal numbers, .*",
            r"letters\.csv: line 4: expected a time after 60000, got 60000",
            r"short\.csv: expected an hour or more to loop over, got 1 minutes",
            r"none: cannot be read: No such file or directory",
        ],
        id="bad recordings",
    ),
    pytest.param(
        nothing, {"exchanges": REPLAY, "store": {"url": "sqlite:///nowhere/candled.db"}},
        [r"store\.url: nowhere/candled\.db: .*"],
        id="a directory that is missing",
    ),
    pytest.param(
        lambda directory: (directory / "candled.db").mkdir(), {"exchanges": REPLAY},
        [r"store\.url: candled\.db: cannot be opened for writing \(unable to open database file\)"],
        id="a directory for a database",
    ),
    pytest.param(
        newer_schema, {"exchanges": REPLAY},
        [r"store\.url: candled\.db: written by a newer candled \(schema 99; this one knows up to \d+\)"],
        id="a newer schema",
    ),
    pytest.param(
        another_program, {"exchanges": REPLAY},
        [r"store\.url: candled\.db: this SQLite file belongs to another program"],
        id="another program's database",
    ),
    pytest.param(
        no_database, {"exchanges": REPLAY},
        [r"store\.url: candled\.db: file is not a database"],
        id="no database",
    ),
    pytest.param(
        nothing, {"exchanges": REPLAY, "server": {"host": "203.0.113.1"}},
        [r"server: cannot listen on 203\.0\.113\.1:\d+: .+"],
        id="an address of another machine",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "settings", "problems"), MISTAKES)
def test_a_mistake_is_a_clear_line_each_and_status_2(tmp_path, prepare, settings, problems):
    prepare(tmp_path)
    with Daemon(tmp_path) as daemon:
        daemon.launch(settings)
        assert daemon.process.wait(60) == 2
        lines = daemon.output.splitlines()
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert re.fullmatch(f"candled: {problem}", line), line


def test_a_database_that_could_not_be_used_is_left_as_it_was(tmp_path):
    no_database(tmp_path)
    before = (tmp_path / "candled.db").read_bytes()
    with Daemon(tmp_path) as daemon:
        daemon.launch({"exchanges": REPLAY})
        assert daemon.process.wait(60) == 2
    assert (tmp_path / "candled.db").read_bytes() == before


# ---------------------------------------------------------------- some seconds of two daemons

WATCHED_S = 3.0


def fill(directory: Path, market: MarketKey, first_ms: int, count: int) -> list[dict[str, Any]]:
    """Store minutes as an earlier run would have; return the bars a client should see."""
    rows = [minute(number, final=True, start=first_ms) for number in range(count)]
    store = SqliteStore(directory / "candled.db", DEFAULT_INTERVALS)
    store.open()
    store.write_minutes([(market, row) for row in rows])
    store.set_complete_from(market, Interval.parse("1W").floor(first_ms))
    store.close()
    return [json.loads(bar_text(row), parse_float=Decimal) for row in rows]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The answers of a daemon whose exchange is out of reach and of a busy one with a client, after `WATCHED_S`.

    Both have ended then: the busy one would slow the tests that follow.
    """
    cut_off, busy = (tmp_path_factory.mktemp(name) for name in ("cut-off", "busy"))
    closed = free_port()
    urls = {"ws_url": f"ws://127.0.0.1:{closed}/v2/ws/public", "rest_url": f"http://127.0.0.1:{closed}"}
    bitget = {"exchanges": {"bitget": {"symbols": ["BTC/USDT"], **urls}}, "store": store_url(cut_off)}
    symbols = [f"S{number}/USDT" for number in range(4)]
    replay = {"symbols": symbols, "speed": 200, "files": {"*": "bundled:binance-spot-btcusdt"}}
    stored = fill(cut_off, MarketKey("bitget", BTC), MINUTE.floor(now_ms()) - 180 * MINUTE_MS, 60)
    begun = time.monotonic()
    with Daemon(cut_off) as one, Daemon(busy) as other:
        one.start(bitget)
        other.start({"exchanges": {"replay": replay}, "ingest": QUICK, "store": store_url(busy)})
        wait_until_live(other)
        with connect(other.ws_url, max_size=None, close_timeout=1) as socket:
            for symbol in symbols:
                socket.send(json.dumps({"type": "subscribe", "symbol": symbol, "interval": "1m"}))
            deadline = deadlines.now() + WATCHED_S
            updates = 0
            while (left_s := deadline - deadlines.now()) > 0:
                updates += json.loads(socket.recv(timeout=left_s + 5))["type"] == "update"
            statistics = other.get("/health/ws-stats")
            log = other.output.splitlines()
            health = wait_until_live(other)  # a market may be fetching for a moment
            answers = SimpleNamespace(
                stored=stored,
                updates=updates,
                statistics=statistics,
                log=log,
                health=health,
                ran_s=time.monotonic() - begun,
                at_ms=now_ms(),
                cut_off_is_running=one.running,
                cut_off_log=one.output.splitlines(),
                cut_off_health=one.get("/health?verbose"),
                cut_off_minutes=initial(one, bars=60),
                cut_off_hours=initial(one, interval="1h"),
            )
    return answers


def wait_until_live(daemon: Daemon) -> dict[str, Any]:
    """Return its health."""
    deadline = deadlines.now() + 30.0
    while (health := daemon.get("/health?verbose"))["status"] != "pass":
        assert deadlines.now() < deadline, health
        time.sleep(0.05)
    return health


def test_an_exchange_out_of_reach_does_not_end_the_daemon_and_what_is_stored_is_served(watched):
    assert watched.cut_off_is_running
    assert watched.cut_off_minutes == watched.stored
    assert sum(bar["volume"] for bar in watched.cut_off_hours) == len(watched.stored)


def test_an_exchange_out_of_reach_is_named_in_health_with_the_reason(watched):
    health = watched.cut_off_health
    assert health["status"] == "warn"
    exchange = health["exchanges"]["bitget"]
    market = exchange["symbols"]["BTC/USDT"]
    assert (market["state"], market["connected"], market["lastMessageAgeMs"]) == ("stale", False, None)
    assert "Connection refused" in market["trouble"]
    assert "Connection refused" in exchange["historyTrouble"]
    assert market["missingMinutes"] > 100


def test_an_exchange_out_of_reach_is_a_few_lines_in_the_log(watched):
    lines = watched.cut_off_log
    assert 2 <= len(lines) <= 12, lines
    assert any("WARNING" in line and "Connection refused" in line for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_candles_and_seconds_are_not_logged(watched):
    """Fault 10 in the whole daemon: four symbols, ten minutes, many updates and not a line for any."""
    assert watched.updates > 2 * WATCHED_S
    assert [line for line in watched.log if "chart on http://" not in line] == []


def test_health_over_http_has_the_documented_keys(watched):
    health = watched.health
    assert health.keys() >= {"status", "version", "uptimeSeconds", "exchanges", "store", "bus", "plugins"}
    assert health["version"] == __version__
    assert WATCHED_S <= health["uptimeSeconds"] <= watched.ran_s
    assert health["exchanges"]["replay"].keys() >= {"clockSkewMs", "historyTrouble", "hosts", "symbols"}
    market = health["exchanges"]["replay"]["symbols"]["S3/USDT"]
    assert market.keys() >= {
        "state", "connected", "lastMessageAgeMs", "newestMinute", "completeFrom", "missingMinutes", "holes",
        "revisions", "invalidCandles", "trouble",
    }  # fmt: skip
    assert (market["state"], market["connected"], market["trouble"]) == ("live", True, None)
    assert 0 <= market["lastMessageAgeMs"] < 60_000
    assert parse_iso_ms(market["newestMinute"]) >= watched.at_ms - MINUTE_MS
    assert market["holes"] == {"count": 0, "minutes": 0, "newest": []}
    assert {"kind", "schema", "state", "waiting", "lastError"} <= health["store"].keys()
    assert health["bus"] == {"kind": "memory", "connected": True}
    assert health["bars"] == {"healed": 0, "catchingUp": 0}
    assert health["roles"] == ["ingest", "serve"]
    assert health["plugins"]["replay"] == {"status": "ok", "error": None}


def test_statistics_over_http_have_exactly_the_specified_keys(watched):
    facts = watched.statistics
    assert list(facts) == ["connections", "broadcaster", "aggregator"]
    assert facts["connections"] == 1
    broadcaster = facts["broadcaster"]
    assert list(broadcaster) == ["totalRooms", "totalClients", "rooms"]
    assert (broadcaster["totalRooms"], broadcaster["totalClients"], len(broadcaster["rooms"])) == (4, 1, 4)
    for room in broadcaster["rooms"]:
        assert list(room) == ["key", "clientCount", "hasCandle", "lastBroadcast"]
        assert (room["clientCount"], room["hasCandle"]) == (1, True)
        assert watched.at_ms - 60_000 < room["lastBroadcast"] <= watched.at_ms
    assert {room["key"] for room in broadcaster["rooms"]} == {f"S{number}/USDT:1m" for number in range(4)}
    assert list(facts["aggregator"]) == ["oneMinuteCandlesCount"]
    assert facts["aggregator"]["oneMinuteCandlesCount"] >= 4 * 60  # there may be no more early in a week


# ---------------------------------------------------------------- the first subscription


def test_a_subscription_on_a_fresh_store_waits_for_the_running_week(tmp_path):
    with Daemon(tmp_path) as daemon:
        daemon.start({"exchanges": REPLAY, "ingest": QUICK, "store": store_url(tmp_path)})
        (week,) = initial(daemon, interval="1W", bars=1)
        assert parse_iso_ms(week["time"]) == Interval.parse("1W").floor(now_ms())


def test_a_subscription_that_waits_in_vain_gets_what_is_there(tmp_path):
    closed = free_port()
    urls = {"ws_url": f"ws://127.0.0.1:{closed}/", "rest_url": f"http://127.0.0.1:{closed}"}
    with Daemon(tmp_path) as daemon:
        settings = {"exchanges": {"bitget": {"symbols": ["BTC/USDT"], **urls}}, "server": {"warmup_wait": "1500ms"}}
        daemon.start({**settings, "store": store_url(tmp_path)})
        asked_at, wall_s = deadlines.now(), time.monotonic()
        assert initial(daemon) == []
        assert time.monotonic() - wall_s > 1.4
        assert deadlines.now() - asked_at < 5.0


# ---------------------------------------------------------------- a restart


async def test_the_running_minute_survives_a_restart_even_if_the_exchange_is_away(tmp_path):
    """Within the same minute the last bar is what it was, for every interval, and not cut or gone."""
    async with rig(tmp_path, speed=5.0) as one:
        await live(one)
        await one.until(lambda: 10_000 < one.clock.now_ms() % MINUTE_MS < 15_000)
        charts = [one.open_chart(BTC, interval, 5) for interval in ("1m", "5m", "1W")]
        await one.until(lambda: all(chart.bars for chart in charts))
        before = [chart.bars[-1] for chart in charts]
        one.fake.refuse_connections = one.fake.rest_down = True
        await one.stop()
        opened_ms = MINUTE.floor(one.clock.now_ms())
        await one.start()
        after = [(await one.reload(chart))[-1] for chart in charts]
        assert MINUTE.floor(one.clock.now_ms()) == opened_ms, "this machine was too slow for the test"
        assert parse_iso_ms(after[0]["time"]) == opened_ms
        for old, new in zip(before, after, strict=True):
            assert (new["time"], new["open"]) == (old["time"], old["open"])
            assert new["volume"] >= old["volume"]
            assert new["high"] >= old["high"]
            assert new["low"] <= old["low"]


def test_a_kill_within_a_minute_keeps_the_running_minute_up_to_its_last_checkpoint(tmp_path):
    settings = {"exchanges": REPLAY, "ingest": {"checkpoint": "100ms", **QUICK}, "store": store_url(tmp_path)}
    market = MarketKey("replay", BTC)
    with Daemon(tmp_path) as daemon:
        daemon.start(settings)
        while daemon.get("/health?verbose")["status"] != "pass":
            time.sleep(0.1)
        before = initial(daemon)[-1]
        time.sleep(1.0)
        daemon.stop(signal.SIGKILL)
    store = SqliteStore(tmp_path / "candled.db", DEFAULT_INTERVALS)
    store.open()
    running = store.read_forming(market)[-1]
    store.close()
    assert running.open_ms >= parse_iso_ms(before["time"])
    assert running.open_ms > parse_iso_ms(before["time"]) or running.volume >= before["volume"]


async def test_a_fast_replay_goes_on_where_its_running_minute_was(tmp_path):
    """Else the clock goes back behind a minute that clients were shown, and its half is shown as a closed bar."""
    clock = ManualClock()
    market = MarketKey("replay", BTC)
    ahead_ms = MINUTE.floor(clock.now_ms()) + 60 * MINUTE_MS
    store = SqliteStore(tmp_path / "candled.db", DEFAULT_INTERVALS)
    store.open()
    store.write_minutes(
        [(market, minute(0, final=True, start=ahead_ms)), (market, minute(2, as_of=500, start=ahead_ms))]
    )
    threads = StoreThreads(store)
    writer = Writer(store, threads, clock, flush_interval_s=0.25)
    keeper = IngestStore(store, threads, writer, HistoryReader(store, threads))
    exchange = PLUGINS.exchanges["replay"](PLUGINS.exchanges["replay"].Settings(speed=30.0), clock)
    options = IngestOptions(
        backfill_ms=0, grace_period_ms=2_000, quiet_after_ms=60_000, checkpoint_ms=5_000, confirm=True
    )
    bus, http = MemoryBus("one"), HttpClient(clock, 1.0)
    ingest = ExchangeIngest("replay", exchange, [BTC], clock=clock, bus=bus, store=keeper, http=http, options=options)
    try:
        await ingest.start()
        assert exchange.now_ms() == ahead_ms + 2 * MINUTE_MS
    finally:
        await ingest.stop()
        await writer.close()
        await threads.close()
