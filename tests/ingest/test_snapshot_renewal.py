"""While the store is behind, snapshots are shortened if REST has their minutes too. If it has not, they come again."""

import asyncio
from typing import Any

import pytest

from candled.errors import Unavailable
from candled.ingest.feeds import FeedRunner
from candled.model import MINUTE, MINUTE_MS, Candle, Symbol
from tests.ingest.many_markets import SYMBOLS, run_without_socket
from tests.ingest.test_changing_markets import Harness
from tests.rows import MONDAY_MS

BTC = SYMBOLS[0]


@pytest.fixture
async def harness(monkeypatch):
    monkeypatch.setattr(FeedRunner, "_run_socket", run_without_socket)
    harness = Harness()
    harness.world.snapshot_minutes = 30
    harness.store.is_behind = True
    starting = asyncio.ensure_future(harness.ingest.start())
    yield harness
    await harness.ingest.stop()
    await starting


def missing(harness: Harness, first_ms: int) -> int:
    """The number of completed minutes since a time that are not stored."""
    until_ms = MINUTE.floor(harness.clock.now_ms()) - MINUTE_MS
    return sum(at not in harness.store[BTC].rows for at in range(first_ms, until_ms, MINUTE_MS))


async def test_rest_fills_in_the_minutes_that_were_left_out_in_one_request(harness):
    await harness.do("add", [BTC])
    await harness.clock.advance(60.0)
    assert missing(harness, MONDAY_MS) == 0
    assert harness.world.subscriptions[BTC] == 1
    assert harness.world.history_reads[BTC] == 2  # the second one confirms the newest minute


async def test_if_rest_is_unavailable_the_whole_snapshot_is_requested_again(harness, monkeypatch):
    async def fail(*_: Any) -> list[Candle]:
        raise Unavailable("REST is down")

    monkeypatch.setattr(harness.exchange, "fetch_history", fail)
    await harness.do("add", [BTC])
    snapshot_ms = MINUTE.floor(harness.clock.now_ms()) - 29 * MINUTE_MS
    await harness.clock.advance(5.0)
    assert missing(harness, snapshot_ms) > 20
    await harness.clock.advance(60.0)
    assert harness.world.subscriptions[BTC] == 2
    assert missing(harness, snapshot_ms + 2 * MINUTE_MS) == 0  # the snapshot's own first minutes


async def test_if_rest_lacks_minutes_of_the_snapshot_it_is_requested_again(harness, monkeypatch):
    fetch = harness.exchange.fetch_history
    lacks_ms = MINUTE.floor(harness.clock.now_ms()) - 10 * MINUTE_MS

    async def fetch_some(http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle]:
        return [row for row in await fetch(http, symbol, start_ms, end_ms) if row.open_ms != lacks_ms]

    monkeypatch.setattr(harness.exchange, "fetch_history", fetch_some)
    await harness.do("add", [BTC])
    await harness.clock.advance(5.0)
    assert missing(harness, MONDAY_MS) == 1
    await harness.clock.advance(60.0)
    assert (harness.world.subscriptions[BTC], missing(harness, MONDAY_MS)) == (2, 0)
