"""A connection that the exchange is about to close is replaced by another one that is opened first."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from candled.clock import SystemClock
from candled.exchange import Candles, ClosingSoon, ConnectionLimits, Event, Exchange, Feed, SocketFeed
from candled.ingest.context import IngestContext
from candled.ingest.counts import IngestCounts
from candled.ingest.feed_pool import FeedPool
from candled.ingest.http import HttpClient
from candled.ingest.ingest_clock import IngestClock
from candled.model import Symbol
from candled.settings import Settings
from tests import deadlines
from tests.plugins.local import socket_server
from tests.rows import minute

BTC, ETH = Symbol("BTC", "USDT"), Symbol("ETH", "USDT")


class LaterClock(SystemClock):
    """A clock that a test sets forward."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class PlainFeed(SocketFeed):
    def subscribe(self, symbols):
        return [f"+{symbol}" for symbol in symbols]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        word, _, rest = str(frame).partition(" ")
        if word == "bye":
            return [ClosingSoon("the server restarts")]
        return [Candles(Symbol.parse(word), (minute(0, volume=rest),))]


class Server:
    """An exchange that notes subscriptions by connection, and sends what a test says."""

    def __init__(self) -> None:
        self.peers: list = []
        self.subscribed: list[set[str]] = []
        self.changed = asyncio.Event()

    async def handle(self, peer) -> None:
        self.peers.append(peer)
        mine: set[str] = set()
        self.subscribed.append(mine)
        async for frame in peer:
            mine.add(frame)
            self.changed.set()

    async def until(self, condition) -> None:
        async with deadlines.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)


class Sink:
    def __init__(self) -> None:
        self.connected: list[Feed] = []
        self.interrupted: list[str] = []
        self.volumes: list[str] = []

    def on_feed_connected(self, feed: Feed) -> None:
        self.connected.append(feed)

    def on_feed_event(self, event: Event) -> None:
        assert isinstance(event, Candles)
        self.volumes.append(str(event.candles[0].volume))

    def on_feed_interrupted(self, feed: Feed, reason: str) -> None:
        self.interrupted.append(reason)


@contextlib.asynccontextmanager
async def reading(clock: LaterClock) -> AsyncIterator[tuple[Server, FeedPool, Sink]]:
    server, sink = Server(), Sink()
    async with socket_server(server.handle) as url:

        class Plain(Exchange):
            name = "plain"
            limits = ConnectionLimits(frames_per_s=100.0)

            def make_feed(self, symbols):
                return PlainFeed(url, symbols)

            async def fetch_markets(self, http):
                return []

            async def fetch_history(self, http, symbol, start_ms, end_ms):
                return []

        http = HttpClient(clock, 100.0)
        plain, store = Plain(Settings(), clock), None
        context = IngestContext("plain", plain, clock, IngestClock("plain", plain, clock), store, http, IngestCounts())
        pool = FeedPool(context, sink, is_behind=lambda: False, proxies=None, shards=1)
        pool.add_symbols([BTC])
        await server.until(lambda: server.subscribed and server.subscribed[0] == {"+BTC/USDT"})
        try:
            yield server, pool, sink
        finally:
            await pool.stop()
            http.close()


@pytest.fixture
def clock(monkeypatch) -> LaterClock:
    monkeypatch.setattr("candled.ingest.feed_pool._OVERLAP_S", 0.2)
    return LaterClock()


async def test_another_connection_is_subscribed_before_the_announced_end_and_nothing_is_interrupted(clock):
    async with reading(clock) as (server, pool, sink):
        clock.ahead_s = 60.0
        await server.peers[0].send("bye")
        await server.peers[0].send("bye")
        await server.until(lambda: len(server.subscribed) == 2 and server.subscribed[1] == {"+BTC/USDT"})
        await server.peers[0].send("BTC/USDT 1")
        await server.until(lambda: sink.volumes == ["1"])
        await server.peers[1].send("BTC/USDT 2")
        await deadlines.wait_for(server.peers[0].wait_closed(), 10)
        await server.peers[1].send("BTC/USDT 3")
        await server.until(lambda: sink.volumes == ["1", "2", "3"])
        (runner,) = pool.runners
        assert pool.runner_of(BTC) is runner
        assert sink.connected[1] is runner.feed
    assert len(server.peers) == 2
    assert sink.interrupted == []


async def test_an_end_right_after_the_handover_is_no_interruption(clock):
    async with reading(clock) as (server, _, sink):
        clock.ahead_s = 60.0
        await server.peers[0].send("bye")
        await server.until(lambda: len(sink.connected) == 2)
        await server.peers[0].close()
        await server.peers[1].send("BTC/USDT 2")
        await server.until(lambda: sink.volumes == ["2"])
        await asyncio.sleep(0.05)
    assert len(server.peers) == 2
    assert sink.interrupted == []


@pytest.mark.slow
async def test_symbols_that_change_meanwhile_are_those_of_the_new_connection(clock, monkeypatch):
    async with reading(clock) as (server, pool, _):
        clock.ahead_s = 60.0
        waiting, taken_over = [], pool.on_connected
        monkeypatch.setattr(pool, "on_connected", waiting.append)
        await server.peers[0].send("bye")
        await server.until(lambda: waiting)
        pool.add_symbols([ETH])
        pool.remove_symbols([BTC])
        taken_over(waiting[0])
        await server.until(lambda: "+ETH/USDT" in server.subscribed[1])
        (runner,) = pool.runners
        assert runner.symbols == {ETH}
        assert pool.runner_of(ETH) is runner
        assert pool.runner_of(BTC) is None


async def test_a_connection_that_no_symbol_needs_any_more_is_not_replaced(clock):
    async with reading(clock) as (server, pool, _):
        clock.ahead_s = 60.0
        await server.peers[0].send("bye")
        await server.until(lambda: len(server.peers) == 2)
        pool.remove_symbols([BTC])
        for peer in server.peers:
            await deadlines.wait_for(peer.wait_closed(), 10)
        assert list(pool.runners) == []


async def test_a_new_connection_is_not_replaced_again(clock):
    async with reading(clock) as (server, _, sink):
        await server.peers[0].send("bye")
        await server.peers[0].send("BTC/USDT 1")
        await server.until(lambda: sink.volumes == ["1"])
        await asyncio.sleep(0.05)
        assert len(server.peers) == 1
        await server.peers[0].close()  # as announced
        await server.until(lambda: len(sink.interrupted) == 1)
