import asyncio

import pytest

from candled.aggregate.live_bars import LiveBars
from candled.bus import MinuteChanged, StateChanged
from candled.bus.memory_bus import MemoryBus
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Gap, Interval, MarketKey, Symbol
from tests.clocks import ManualClock
from tests.rooms.stage import Stored
from tests.rows import MONDAY_MS, minute

BTC = MarketKey("replay", Symbol("BTC", "USDT"))
FIVE = Interval.parse("5m")
MINUTES = 4000


class Market:
    """Live bars of one market: each minute is stored and published at its end."""

    def __init__(self) -> None:
        self.stored = Stored()
        self.bars = LiveBars([BTC], DEFAULT_INTERVALS, self.stored, ManualClock(MONDAY_MS))
        self.bus = MemoryBus("one")
        self.bus.add_listener(self.bars)
        self.minutes = 0

    async def run(self, minutes: int) -> None:
        for number in range(self.minutes, self.minutes + minutes):
            candle = minute(number, final=True)
            self.stored.minutes[candle.open_ms] = candle
            self.bus.publish(MinuteChanged(BTC, candle))
        self.minutes += minutes

    async def ask(self, interval: Interval, count: int) -> list[int]:
        """The opening times that a client gets."""
        if not self.bars.is_loaded(BTC, interval, count):
            await self.bars.load_bars(BTC, interval, count, 0.0)
        return [bar.open_ms for bar in self.bars.newest_bars(BTC, interval, count)]

    def newest(self, interval: Interval, count: int) -> list[int]:
        last_ms = interval.floor(MONDAY_MS + (self.minutes - 1) * MINUTE_MS)
        return list(range(last_ms - (count - 1) * interval.ms, last_ms + 1, interval.ms))


async def market() -> Market:
    started = Market()
    await started.bars.start()
    await started.run(MINUTES)
    return started


async def waited_s(absent: tuple[Gap, ...]) -> float:
    """How long a client waits for 50 bars, if the first minute of a market that the store has is the 1000th."""
    clock, stored = ManualClock(MONDAY_MS + 1010 * MINUTE_MS), Stored(complete_from=MONDAY_MS + 1000 * MINUTE_MS)
    stored.minutes = {one.open_ms: one for one in (minute(number, final=True) for number in range(1000, 1010))}
    stored.absent = absent
    bars = LiveBars([BTC], DEFAULT_INTERVALS, stored, clock)
    await bars.start()
    waiting = asyncio.create_task(bars.load_bars(BTC, MINUTE, 50, 10.0))
    while not waiting.done():
        await clock.advance(0.1)
    assert len(bars.newest_bars(BTC, MINUTE, 50)) == 10
    return clock.monotonic()


async def test_a_client_waits_for_minutes_only_until_the_exchange_was_asked_for_them():
    def gap(minutes: int) -> Gap:
        return Gap(start_ms=MONDAY_MS, end_ms=MONDAY_MS + minutes * MINUTE_MS, reason="unconfirmed")

    assert await waited_s((gap(1000),)) < 1.0
    assert await waited_s((gap(999),)) >= 10.0
    assert await waited_s(()) >= 10.0


@pytest.mark.slow
async def test_few_unrequested_bars_are_in_memory():
    started = await market()
    before = started.stored.queries
    assert await started.ask(FIVE, 120) == started.newest(FIVE, 120)
    assert started.stored.queries == before
    assert not started.bars.is_loaded(BTC, FIVE, 300)


@pytest.mark.slow
async def test_more_bars_than_memory_has_are_read_and_come_whole():
    started = await market()
    for interval, count in ((MINUTE, 1000), (FIVE, 700)):
        assert await started.ask(interval, count) == started.newest(interval, count)


@pytest.mark.slow
async def test_bars_that_were_asked_for_stay_in_memory():
    started = await market()
    await started.ask(FIVE, 700)
    before = started.stored.queries
    for _ in range(5):
        await started.run(137)
        assert await started.ask(FIVE, 700) == started.newest(FIVE, 700)
    assert started.stored.queries == before


@pytest.mark.slow
async def test_bars_between_memory_and_the_present_are_not_shown_as_all():
    started = await market()
    for count in range(115, 165):
        assert started.bars.is_loaded(BTC, FIVE, count) == (count <= 120)
        assert await started.ask(FIVE, count) == started.newest(FIVE, count)
        await started.run(31)


@pytest.mark.slow
async def test_why_a_market_is_not_well_is_among_the_facts_of_its_feed_until_it_is_well():
    started = await market()
    for state, reason, problem in (("stale", "rest_unavailable", "no route to host"), ("live", "", "")):
        started.bus.publish(StateChanged(BTC, state, MONDAY_MS, reason, problem))
        metadata = dict(started.bars.describe_feeds())[BTC]
        assert (metadata["state"], metadata["reason"], metadata["trouble"]) == (state, reason or None, problem or None)
