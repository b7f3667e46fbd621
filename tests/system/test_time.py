"""Bars lie where the candles' own times put them, whatever this machine's clock does."""

import asyncio
import json
import random
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import websockets
import yaml

from candled import config
from candled.aggregate.aggregator import Aggregator
from candled.app import Daemon
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Interval, MarketKey, Symbol, parse_iso_ms
from candled.store.sqlite.store import SqliteStore
from tests import deadlines
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget
from tests.passes import run_through
from tests.rows import minute
from tests.system.rig import MONDAY_MORNING_MS, PLUGINS, Chart, Rig
from tests.system.test_bitget_faults import BTC, ETH, SPEED, live, markets

pytestmark = pytest.mark.usefixtures("daemon")

HOUR_MS = 3_600_000
LONG = [
    pytest.mark.long,
    pytest.mark.timeout(900),
]


class SteppingClock(FairScaledClock):
    """A wall clock that somebody sets while it runs; `monotonic` and `sleep` know nothing of that."""

    def __init__(self, speed: float, start_ms: int | None = None) -> None:
        super().__init__(speed, start_ms)
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


# ---------------------------------------------------------------- a real exchange's clock goes on


@asynccontextmanager
async def stepped_rig(tmp_path):
    """A rig whose daemon has a clock of its own, which can be set; proofs go by the exchange's clock."""
    clock = FairScaledClock(SPEED, MONDAY_MORNING_MS)
    async with FakeBitget(clock, markets(), push_interval_s=1.0) as fake:
        fake.enforce_limits = False  # limits per second mean nothing on a fast clock
        steps = SteppingClock(SPEED, clock.now_ms())
        one = Rig(tmp_path, fake, steps, [BTC, ETH])
        try:
            await one.start()
            one.clock = clock
            yield one, steps
        finally:
            await one.stop()


def step(by_ms: int):
    async def at_once(one: Rig, clock: SteppingClock) -> None:
        clock.ahead_ms += by_ms

    return at_once


async def slew(one: Rig, clock: SteppingClock) -> None:
    """As NTP does: half a second, in small parts over two minutes."""
    for _ in range(50):
        clock.ahead_ms += 10
        await one.minutes(2 / 50)


async def there_and_back(one: Rig, clock: SteppingClock) -> None:
    for by_ms in (2 * HOUR_MS, -4 * HOUR_MS, 2 * HOUR_MS):
        clock.ahead_ms += by_ms
        await one.minutes(1.5)


CHANGES = [
    pytest.param(step(2 * HOUR_MS), id="2 h ahead", marks=LONG),  # and so is it in the last
    pytest.param(step(-2 * HOUR_MS), id="2 h back", marks=LONG),
    pytest.param(slew, id="slew"),
    pytest.param(there_and_back, id="there and back"),
]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_clock_that_is_set_misplaces_no_bar_and_moves_no_chart_back(tmp_path, change):
    """Promise 28. `Chart` asserts that no update is older than the last; `check` compares with the exchange's truth."""
    async with stepped_rig(tmp_path) as (one, clock):
        charts = [one.open_chart(BTC, interval, 20) for interval in ("1m", "5m", "1h", "1D", "1W")]
        one.open_chart(ETH)
        await live(one)
        await one.minutes(1)
        await change(one, clock)
        await one.minutes(4)
        assert await one.check() > 700
        for chart in charts:
            interval = Interval.parse(chart.request["interval"])
            times = [parse_iso_ms(bar["time"]) for bar in chart.bars]
            assert times == [interval.floor(open_ms) for open_ms in sorted(set(times))]
            assert times[-1] == interval.floor(newest(one))
        assert charts[-1].bars[-1]["time"] == "2025-10-06T00:00:00.000Z"
        await one.until(lambda: one.health(BTC)["state"] == "live")
        assert one.health(BTC)["holes"]["count"] == 0, "a minute of the future was reported as a gap"


def newest(one: Rig) -> int:
    return parse_iso_ms(one.health(BTC)["newestMinute"])


async def test_a_restart_with_a_clock_two_hours_behind_shows_the_running_bars_as_they_are(tmp_path):
    async with stepped_rig(tmp_path) as (one, clock):
        await live(one)
        await one.minutes(1)
        await one.stop()
        clock.ahead_ms -= 2 * HOUR_MS
        exchange, one.clock = one.clock, clock
        await one.start()
        one.clock = exchange
        chart = one.open_chart(BTC, "1m", 20)
        await live(one)
        await one.minutes(2)
        assert await one.check() > 700
        assert MINUTE.floor(exchange.now_ms()) - parse_iso_ms(chart.bars[-1]["time"]) <= MINUTE_MS


# ---------------------------------------------------------------- replay's market time is this machine's


@asynccontextmanager
async def replayed(directory: Path, clock: SteppingClock):
    """A daemon that plays a minute in a second, and what a client is shown of it."""
    path = directory / "candled.yaml"
    document = {
        "server": {"host": "127.0.0.1", "port": 0},
        "exchanges": {"replay": {"symbols": ["BTC/USDT"], "speed": 60}},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
    }
    path.write_text(yaml.safe_dump(document), "utf-8")
    daemon = Daemon(config.load(path, {}, PLUGINS), PLUGINS, clock)
    await daemon.start()
    chart = Chart("BTC/USDT", "1m", 1000)
    reader = asyncio.ensure_future(follow(daemon, chart))
    try:
        yield daemon, chart
        assert not reader.done(), reader.exception()
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await daemon.stop()


async def follow(daemon: Daemon, chart: Chart) -> None:
    async with websockets.connect(f"ws://127.0.0.1:{daemon.port}/", max_size=None) as ws:
        await ws.send(json.dumps(chart.request))
        async for text in ws:
            chart.take(json.loads(text))


async def until(condition, within_s: float = 20.0) -> None:
    async with deadlines.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


def has_every_minute(chart: Chart) -> bool:
    times = [parse_iso_ms(bar["time"]) for bar in chart.bars]
    return times == list(range(times[0], times[-1] + MINUTE_MS, MINUTE_MS))


def stored_bars(directory: Path, interval: Interval) -> dict[int, Any]:
    store = SqliteStore(directory / "candled.db", DEFAULT_INTERVALS)
    store.open()
    try:
        rows = store.read_bars_between(MarketKey("replay", Symbol.parse("BTC/USDT")), interval, 0, 2**62)
        return {row.open_ms: row.values for row in rows}
    finally:
        store.close()


@pytest.mark.parametrize("by_ms", [2 * HOUR_MS, -2 * HOUR_MS], ids=["2 h ahead", "2 h back"])
async def test_replay_on_a_clock_that_is_set_plays_every_minute_in_its_place(tmp_path, by_ms):
    clock = SteppingClock(1.0, MONDAY_MORNING_MS)
    recording = PLUGINS.exchanges["replay"](PLUGINS.exchanges["replay"].Settings(), clock).recording_of(BTC)
    async with replayed(tmp_path, clock) as (daemon, chart):
        await until(lambda: run_through(daemon.health.report())["status"] == "pass" and chart.bars)
        await clock.sleep(1.5)
        before = chart.bars[-1]["time"]
        clock.ahead_ms += by_ms
        await clock.sleep(1.5)
        if by_ms < 0:
            clock.ahead_ms += 2 * HOUR_MS + 2_000  # the market stood still and goes on when the clock has caught up
        await until(lambda: chart.bars[-1]["time"] > before)
        await clock.sleep(2.0)
        await until(lambda: has_every_minute(chart))  # a repaired past is shown within 5 s
    minutes = stored_bars(tmp_path, MINUTE)
    assert len(minutes) > 360
    assert list(minutes) == list(range(min(minutes), max(minutes) + MINUTE_MS, MINUTE_MS))
    for open_ms, values in minutes.items():
        assert values == recording.minute_at(open_ms, open_ms + MINUTE_MS).values
    assert all(
        datetime.fromtimestamp(ms / 1000, UTC).weekday() == 0 for ms in stored_bars(tmp_path, Interval.parse("1W"))
    )


# ---------------------------------------------------------------- a leap year


def calendar_floor(interval: Interval, open_ms: int) -> int:
    """The start of a bar by the calendar of Python's own library."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=open_ms)
    day = at.replace(hour=0, minute=0)
    if str(interval) == "1W":
        start = day - timedelta(days=day.weekday())
    else:
        start = day + (at - day) // timedelta(milliseconds=interval.ms) * timedelta(milliseconds=interval.ms)
    return round(start.timestamp() * 1000)


def minutes_of_a_year(every: int) -> list[int]:
    """Minute numbers of 366 days: the first and the last of every day, and about one in `every`."""
    draw = random.Random(2028)
    return [
        number for number in range(366 * 1440) if number % 1440 in (0, 1439) or every == 1 or draw.random() < 1 / every
    ]


@pytest.mark.parametrize("every", [60, pytest.param(1, marks=LONG)])
def test_in_366_days_every_bar_opens_where_the_calendar_says(every):
    """Promise 28, in virtual time: 2028 has a 29th of February, and both changes of daylight saving time."""
    start_ms = round(datetime(2028, 1, 1, tzinfo=UTC).timestamp() * 1000)
    bars = Aggregator(DEFAULT_INTERVALS, 1001)
    weeks: set[int] = set()
    for number in minutes_of_a_year(every):
        changes = bars.apply_minute(minute(number, start=start_ms))
        assert changes is not None
        assert len(changes) == len(DEFAULT_INTERVALS)
        for change in changes:
            assert change.bar.open_ms == calendar_floor(change.interval, start_ms + number * MINUTE_MS)
        weeks.add(changes[-1].bar.open_ms)
    assert len(weeks) == 53
    assert all(datetime.fromtimestamp(open_ms / 1000, UTC).strftime("%a %H:%M") == "Mon 00:00" for open_ms in weeks)
