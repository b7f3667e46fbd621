"""Live bars over a real store: what a storm of subscribers costs it, and what is left of it when they leave."""

import asyncio
import threading

import pytest

from candled.aggregate.live_bars import LiveBars
from candled.model import DEFAULT_INTERVALS
from candled.store.history import HistoryReader
from candled.store.sqlite.store import SqliteStore
from candled.store.threads import StoreThreads
from tests.clocks import ManualClock
from tests.store.contract import ALWAYS_MS
from tests.store.rows import BTC, MONDAY_MS, minute

MINUTES = 30_000
CLIENTS = 1000
ASKED = 1000  # bars; more than are in memory before somebody asks


class CountingStore(SqliteStore):
    """Counts the queries for bars, which wait for a gate."""

    def __init__(self, path, intervals):
        super().__init__(path, intervals)
        self.barrier = threading.Event()
        self.barrier.set()
        self.queries = 0

    def read_bars(self, market, interval, *, before_ms, limit):
        self.queries += 1
        assert self.barrier.wait(30)
        return super().read_bars(market, interval, before_ms=before_ms, limit=limit)


@pytest.fixture
async def store(tmp_path):
    store = CountingStore(tmp_path / "candled.db", DEFAULT_INTERVALS)
    store.open()
    store.write_minutes([(BTC, minute(at)) for at in range(MINUTES)])
    store.set_complete_from(BTC, MONDAY_MS)
    yield store
    store.barrier.set()
    store.close()


@pytest.fixture
async def bars(store):
    threads = StoreThreads(store)
    bars = LiveBars([BTC], DEFAULT_INTERVALS, HistoryReader(store, threads), ManualClock(MONDAY_MS + MINUTES * 60_000))
    await bars.start()
    store.queries = 0
    yield bars
    store.barrier.set()
    await bars.stop()
    await threads.close()


def subscribe(bars: LiveBars) -> list[asyncio.Task[None]]:
    """Each client wants every room; a room that memory has is no task, as in the server."""
    return [
        asyncio.create_task(bars.load_bars(BTC, interval, ASKED, 0.0))
        for _ in range(CLIENTS)
        for interval in DEFAULT_INTERVALS
        if not bars.is_loaded(BTC, interval, ASKED)
    ]


@pytest.mark.slow
async def test_a_thousand_subscribers_of_seven_rooms_cost_at_most_seven_queries(bars, store):
    await asyncio.gather(*subscribe(bars))
    assert 0 < store.queries <= len(DEFAULT_INTERVALS) == 7
    for interval in DEFAULT_INTERVALS:
        assert bars.newest_bars(BTC, interval, ASKED) == store.read_bars(
            BTC, interval, before_ms=ALWAYS_MS, limit=ASKED
        )


@pytest.mark.slow
async def test_reads_that_all_subscribers_left_are_not_done(bars, store):
    store.barrier.clear()
    clients = subscribe(bars)
    while store.queries < 2:  # as many as there are threads
        await asyncio.sleep(0.01)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    store.barrier.set()
    await asyncio.sleep(0.1)
    assert store.queries == 2
    await asyncio.gather(*subscribe(bars))
    assert store.queries <= 2 + len(DEFAULT_INTERVALS)
