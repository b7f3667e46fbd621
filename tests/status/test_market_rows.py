"""A thousand markets are read without holding the loop, and in few bytes."""

import json
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from candled.aggregate.live_bars import LiveBars
from candled.bus.memory_bus import MemoryBus
from candled.ingest.coverage import Coverage
from candled.ingest.market import MarketIngest
from candled.ingest.market_status import Rules
from candled.ingest.measures import IngestMeasures
from candled.model import DAY_MS, MINUTE_MS, Gap, MarketKey, Range, Symbol
from candled.status.market_rows import MarketRows
from candled.tasks import Pace
from tests.clocks import START_MS, ManualClock

RULES = Rules(
    grace_period_ms=6_000,
    quiet_after_ms=60_000,
    confirm=True,
    max_history_minutes=1000,
    opens_at_previous_close=False,
    publishes_empty_candles=False,
)
FROM_MS = START_MS - 92 * DAY_MS


class CountingClock(ManualClock):
    """Counts the passes of the loop that were left to other tasks."""

    passes = 0

    async def sleep(self, seconds: float) -> None:
        self.passes += 1
        await super().sleep(seconds)


class ManyMarkets:
    """The ingest of an exchange whose markets were read before."""

    name = "virtual"
    now_ms = START_MS
    silent_symbols: Collection[Symbol] = ()

    def __init__(self, markets: dict[Symbol, MarketIngest | None]) -> None:
        self.symbols = markets

    def measure_feeds(self, measures: IngestMeasures) -> None:
        measures.feeds += 1
        measures.connected_feeds += 1

    def measure_market(
        self, symbol: Symbol, measures: IngestMeasures, silent: Collection[Symbol]
    ) -> MarketIngest | None:
        market = self.symbols[symbol]
        if market is not None:
            measures.count_market(market, START_MS, is_silent=symbol in silent)
        return market


class Ingest:
    def __init__(self, *running: ManyMarkets) -> None:
        self.running = running


def market(symbol: Symbol, gaps: Collection[Range] = ()) -> MarketIngest:
    present = [Range(FROM_MS, START_MS)]
    known = [Gap(start_ms=gap.start_ms, end_ms=gap.end_ms, reason="no_trades") for gap in gaps]
    if gaps:
        ends = [FROM_MS, *(gap.end_ms for gap in gaps)]
        present = [
            Range(start, end) for start, end in zip(ends, [*(gap.start_ms for gap in gaps), START_MS], strict=True)
        ]
    coverage = Coverage(present=present, known_gaps=known, since_ms=FROM_MS, from_ms=FROM_MS, absence="no_trades")
    made = MarketIngest(MarketKey("virtual", symbol), coverage, RULES)
    made.presence.connected = True
    made.presence.record_push(START_MS - 250)
    return made


def rows_of(ingest: Any, clock: ManualClock) -> MarketRows:
    bars = LiveBars([], [], None, clock)  # type: ignore[arg-type]
    return MarketRows(SimpleNamespace(ingest=ingest, bus=MemoryBus(), bars=bars, clock=clock))  # type: ignore[arg-type]


@pytest.mark.slow
async def test_a_thousand_markets_take_fifty_bytes_each_beside_their_names_and_many_passes_of_the_loop():
    symbols = [Symbol(f"COIN{number:04}", "USDT") for number in range(1000)]
    clock = CountingClock()
    rows = rows_of(Ingest(ManyMarkets({symbol: market(symbol) for symbol in symbols})), clock)
    first, measures = await rows.read(shows_details=False)
    document = [json.loads(row) for row in first]
    assert document[7] == {
        "exchange": "virtual",
        "symbol": "COIN0007/USDT",
        "state": "live",
        "lagMs": 250,
        "days": "f92",
    }
    assert measures["virtual"].states.states == {"live": 1000}
    assert sum(map(len, first)) < 1000 * 110
    whole = clock.passes
    assert whole > 50  # 20 markets in a pass, with their days
    assert (await rows.read(shows_details=False))[0] == first
    assert 30 < clock.passes - whole < whole  # the days were kept


@pytest.mark.slow
async def test_markets_with_very_many_gaps_are_read_in_slices_too():
    gaps = [Range(at_ms, at_ms + MINUTE_MS) for at_ms in range(FROM_MS + MINUTE_MS, START_MS, 4 * MINUTE_MS)]
    clock = CountingClock()
    symbols = [Symbol(f"RARE{number}", "USDT") for number in range(3)]
    rows = rows_of(Ingest(ManyMarkets({symbol: market(symbol, gaps) for symbol in symbols})), clock)
    found, _ = await rows.read(shows_details=False)
    assert [json.loads(row)["days"] for row in found] == ["q92"] * 3
    assert [json.loads(row)["gaps"] for row in found] == [{"no_trades": len(gaps)}] * 3
    assert clock.passes >= 4


async def test_the_days_are_read_again_within_a_minute_and_forgotten_with_the_market():
    symbol, clock = Symbol("BTC", "USDT"), ManualClock()
    one = market(symbol)
    running = ManyMarkets({symbol: one})
    rows = rows_of(Ingest(running), clock)

    async def days() -> list[str]:
        return [json.loads(row)["days"] for row in (await rows.read(shows_details=False))[0]]

    assert await days() == ["f92"]
    one.coverage.mark_not_stored(FROM_MS, FROM_MS + 2 * DAY_MS)
    assert await days() == ["f92"]
    await clock.advance(60)
    assert await days() == ["m1s1f90"]
    running.symbols = {}
    assert await days() == []
    running.symbols = {symbol: market(symbol)}
    assert await days() == ["f92"]


async def test_a_market_that_is_not_loaded_yet_and_one_that_only_the_bus_knows():
    clock = ManualClock()
    loading, remote = Symbol("NEW", "USDT"), MarketKey("virtual", Symbol("FAR", "USDT"))
    bars = LiveBars([remote], [], None, clock)  # type: ignore[arg-type]
    ingest = Ingest(ManyMarkets({loading: None}))
    rows = MarketRows(SimpleNamespace(ingest=ingest, bus=MemoryBus(), bars=bars, clock=clock))  # type: ignore[arg-type]
    first, second = [json.loads(row) for row in (await rows.read(shows_details=True))[0]]
    assert first == {"exchange": "virtual", "symbol": "NEW/USDT", "state": "warming", "reason": "starting"}
    assert second.keys() == {"exchange", "symbol", "state", "reason"}


async def test_work_is_left_to_the_next_pass_once_it_adds_up():
    clock = CountingClock()
    pace = Pace(clock)
    for _ in range(299):
        await pace.spend(10)
    assert clock.passes == 0
    await pace.spend(10)
    assert clock.passes == 1
