"""A scrape of very many markets leaves the loop to other tasks, and has the same text as in one pass."""

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest

from candled.ingest_side import ShardedIngest
from candled.metrics.collector import _encode
from candled.metrics.ingest import collect_symbols
from candled.metrics.samples import Samples
from candled.model import Symbol
from candled.tasks import Pace
from tests.status.test_market_rows import CountingClock, ManyMarkets, market

SYMBOLS = [Symbol(f"COIN{number:04}", "USDT") for number in range(1000)]


class RemovingClock(CountingClock):
    """Removes a market in the first pass of the loop that is left to other tasks."""

    def __init__(self, running: ManyMarkets) -> None:
        super().__init__()
        self._running = running

    async def sleep(self, seconds: float) -> None:
        self._running.symbols.pop(SYMBOLS[-1], None)
        await super().sleep(seconds)


@pytest.fixture(scope="module")
def markets() -> dict[Symbol, Any]:
    return {symbol: market(symbol) for symbol in SYMBOLS}


async def test_markets_are_measured_in_slices_and_one_that_is_removed_meanwhile_is_left_out(markets: Any) -> None:
    running = ManyMarkets(dict(markets))
    ingest: Any = SimpleNamespace(running=[running])
    clock = CountingClock()
    measures = await ShardedIngest.measure(ingest, Pace(clock))
    assert measures["virtual"].states.states == {"live": 1000}
    assert clock.passes >= 10
    measures = await ShardedIngest.measure(ingest, Pace(RemovingClock(running)))
    assert measures["virtual"].states.states == {"live": 999}
    assert not measures["virtual"].states.unhealthy


async def test_series_of_symbols_are_added_in_slices() -> None:
    measured = [SimpleNamespace(symbol=one, state="live", missing=0, revisions=1, pushed_ms=1000) for one in SYMBOLS]
    ingest: Any = SimpleNamespace(measure_symbols=lambda: (("virtual", one) for one in measured))
    samples, clock = Samples(), CountingClock()
    await collect_symbols(samples, ingest, Pace(clock))
    assert [len(family.samples) for family in samples.families()] == [1000] * 4
    assert clock.passes >= 10


def test_the_text_of_a_family_is_the_same_in_slices() -> None:
    samples = Samples()
    for number, symbol in enumerate(SYMBOLS):
        samples.add("symbol_revisions", number, "virtual", str(symbol))
    samples.add("feed_events_total", 7, "virtual")
    for family in samples.families():
        registry = SimpleNamespace(collect=lambda family=family: [family])
        slices = list(_encode(family))
        assert b"".join(text for text, _ in slices) == generate_latest(registry)  # type: ignore[arg-type]
        assert max(count for _, count in slices) <= 200
