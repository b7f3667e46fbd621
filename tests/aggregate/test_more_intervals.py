"""Intervals that are added to bars in memory: the same bars as if they had been there from the start."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from candled.aggregate.aggregator import Aggregator
from candled.aggregate.live_bars import LiveBars
from candled.bus import FeedMetadata, MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS, Candle, Interval, MarketKey, Symbol, fold, sources
from tests.clocks import ManualClock
from tests.rooms.stage import Stored
from tests.rows import MONDAY_MS, minute

CAPACITY = 130  # parts of the longest interval
BTC = MarketKey("replay", Symbol("BTC", "USDT"))
INTERVALS = [Interval.parse(text) for text in ("1m", "2m", "5m", "10m", "15m", "1h", "2h")]
some = st.lists(st.sampled_from(INTERVALS), unique=True, min_size=1)


def bars_of(minutes: list[Candle], interval: Interval) -> list[Candle]:
    if interval == MINUTE:
        return minutes
    groups: dict[int, list[Candle]] = {}
    for candle in minutes:
        groups.setdefault(interval.floor(candle.open_ms), []).append(candle)
    return [fold(parts, open_ms, final=True) for open_ms, parts in groups.items()]


def seen(bars: list[Candle]) -> list[tuple]:
    return [bar[:7] for bar in bars]


@pytest.mark.slow
@settings(max_examples=150)
@given(some, some, st.sets(st.integers(0, 400), min_size=1), st.data())
def test_added_intervals_have_the_bars_of_all_minutes(first, more, numbers, data):
    """The store may have fewer minutes than memory."""
    minutes = [minute(number, str(10 + number % 7), final=True) for number in sorted(numbers)]
    before = data.draw(st.integers(0, len(minutes)))
    stored = minutes[: data.draw(st.integers(max(0, before - 2), before))]
    aggregator = Aggregator(first, CAPACITY)
    for candle in minutes[:before]:
        aggregator.apply_minute(candle)
    wanted = sorted({*first, *more})
    new = [interval for interval in sources(wanted) if interval not in aggregator.levels]
    rows = {}
    for interval in new:
        bars = bars_of(stored, interval)[-CAPACITY:]
        rows[interval] = (bars[0].open_ms if len(bars) >= CAPACITY else 0), bars
    aggregator = aggregator.with_intervals(wanted, CAPACITY, rows)
    for candle in minutes[before:]:
        assert aggregator.apply_minute(candle) is not None or aggregator.series_of(MINUTE).since_ms > candle.open_ms
    for interval in wanted:
        series = aggregator.series_of(interval)
        expected = [bar for bar in bars_of(minutes, interval) if bar.open_ms >= series.since_ms]
        assert seen(series.newest_bars(1000, 0)) == seen(expected)


@pytest.fixture
async def harness():
    clock, stored = ManualClock(MONDAY_MS + 300 * MINUTE_MS), Stored(minute(n, final=True) for n in range(300))
    bars = LiveBars([BTC], INTERVALS[:1], stored, clock)
    bus = MemoryBus()
    bus.add_listener(bars)
    await bars.start()
    yield clock, stored, bars, bus
    await bars.stop()


def push(bus: MemoryBus, number: int) -> None:
    candle = minute(number, final=True)
    bus.publish(MinuteChanged(BTC, candle, FeedMetadata(candle.open_ms + MINUTE_MS)))


async def test_live_bars_of_a_new_interval_follow_the_feed(harness):
    clock, _, bars, bus = harness
    adding = asyncio.create_task(bars.add_intervals(INTERVALS[:4]))
    push(bus, 300)  # not in the store
    await clock.advance(1)
    await adding
    push(bus, 301)
    truth = [minute(n, final=True) for n in range(302)]
    for interval in INTERVALS[:4]:
        count = len(bars.newest_bars(BTC, interval, 1000))
        assert count >= 30
        assert seen(bars.newest_bars(BTC, interval, 1000)) == seen(bars_of(truth, interval)[-count:])
    # a market that is added later has them too
    assert bars.newest_bars(MarketKey("replay", Symbol("ETH", "USDT")), INTERVALS[3], 5) == []


async def test_bars_that_are_repaired_meanwhile_are_read_again(harness):
    clock, stored, bars, _ = harness
    read = stored.read_bars_between

    async def read_slowly(market, interval, start_ms, end_ms):
        rows = await read(market, interval, start_ms, end_ms)
        if interval == INTERVALS[1] and end_ms == END_OF_TIME_MS and not repaired:
            repaired.append(1)
            stored.minutes[minute(101).open_ms] = minute(101, "20", final=True)
            bars._reader.reread_range(bars._markets[BTC], minute(101).open_ms, minute(102).open_ms)
        return rows

    repaired: list[int] = []
    stored.read_bars_between = read_slowly
    adding = asyncio.create_task(bars.add_intervals(INTERVALS[:2]))
    for _ in range(8):
        await clock.advance(0.5)
    await adding
    assert repaired
    (bar,) = bars.bars_between(BTC, INTERVALS[1], minute(100).open_ms, minute(102).open_ms)
    assert bar.high == 20
