"""The feeds of an exchange, which follow its symbols."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from candled.exchange import Event, Feed, SocketFeed
from candled.model import Symbol
from candled.proxies import Proxies
from candled.tasks import TaskSet
from candled.token_bucket import TokenBucket

from .context import IngestContext
from .distribution import distribute
from .feeds import FeedRunner, LoopBudget
from .snapshot_places import SnapshotPlaces

logger = logging.getLogger(__name__)

_OVERLAP_S = 10.0  # how long a replaced connection stays open, because the other one may not deliver yet
_ATTEMPTS_AT_ONCE = 2 / 3  # the share of a minute's attempts that may follow each other without a pause


class PoolSink(Protocol):
    """A receiver of the events of all feeds of an exchange, such as `candled.ingest.exchange_ingest.ExchangeIngest`."""

    def on_feed_connected(self, feed: Feed) -> None:
        """Handle the start of a feed."""

    def on_feed_event(self, event: Event) -> None:
        """Handle an event of a feed."""

    def on_feed_interrupted(self, feed: Feed, reason: str) -> None:
        """Handle the interruption of a feed, which will be restarted."""


class FeedPool:
    """As many feeds as the exchange's limits require, for the symbols of one of its `shards`.

    Symbols are added to open connections up to the exchange's limit before another one is opened, and a connection
    without symbols is closed. No other connection is interrupted. If the exchange announces that it will close a
    connection, another one is opened first.

    `sink` gets the events of all feeds. While the store `is_behind`, fewer snapshots are requested.
    """

    def __init__(
        self,
        context: IngestContext,
        sink: PoolSink,
        *,
        is_behind: Callable[[], bool],
        proxies: Proxies | None,
        shards: int,
    ) -> None:
        self._name = context.name
        self._exchange = context.exchange
        self._sink = sink
        self._clock = context.clock
        self._http = context.http
        self._proxies = proxies
        self._shards = shards
        self._counts = context.counts
        per_minute = self._exchange.limits.attempts_per_minute / shards
        self._attempts = TokenBucket(per_minute / 60, per_minute * _ATTEMPTS_AT_ONCE)
        self._turns, self._places = LoopBudget(), SnapshotPlaces(is_behind=is_behind)
        self._feeds: dict[FeedRunner, asyncio.Task[None]] = {}
        self._by_symbol: dict[Symbol, FeedRunner] = {}
        #: Feeds that the exchange will close, with those that will replace them as soon as they are connected.
        self._successors: dict[FeedRunner, tuple[FeedRunner, asyncio.Task[None]]] = {}
        #: Replaced feeds whose connections are still open.
        self._replaced: dict[Feed, asyncio.Task[None]] = {}
        self._opened = 0  # feeds so far, for their names
        self._tasks = TaskSet()
        #: The symbols for which no connection is left, in order. They are read over REST.
        self.surplus: tuple[Symbol, ...] = ()

    @property
    def runners(self) -> Collection[FeedRunner]:
        """The feeds that are open or being opened."""
        return self._feeds.keys()

    def runner_of(self, symbol: Symbol) -> FeedRunner | None:
        """Return the feed that carries a symbol, or None."""
        return self._by_symbol.get(symbol)

    def add_symbols(self, symbols: Sequence[Symbol], *, is_urgent: bool = False) -> None:
        """Carry more symbols. Clients wait for urgent ones: open connections subscribe to these first."""
        limits, runners, before = self._exchange.limits, list(self._feeds), len(self.surplus)
        loads = [len(one.symbols) if isinstance(one.feed, SocketFeed) else None for one in runners]
        groups, self.surplus = distribute((*self.surplus, *symbols), limits, self._shards, loads)
        if len(self.surplus) > before:
            logger.error("%s: %s; reading %d symbols over REST", self._name, self.limit_problem, len(self.surplus))
        for runner, added in zip(runners, groups[: len(runners)], strict=True):
            if added:
                runner.add_symbols(added, is_urgent=is_urgent)
                self._by_symbol |= dict.fromkeys(added, runner)
        for added in groups[len(runners) :]:
            runner = self._make_runner(added)
            self._feeds[runner] = self._tasks.start(runner.run())
            self._by_symbol |= dict.fromkeys(runner.feed.symbols, runner)

    def remove_symbols(self, symbols: Iterable[Symbol]) -> None:
        """Stop carrying some symbols. Their places go to the symbols for which no connection was left."""
        removed = set(symbols)
        self.surplus = tuple(symbol for symbol in self.surplus if symbol not in removed)
        by_runner: dict[FeedRunner, list[Symbol]] = {}
        for symbol in removed & self._by_symbol.keys():
            by_runner.setdefault(self._by_symbol.pop(symbol), []).append(symbol)
        for runner, gone in by_runner.items():
            runner.remove_symbols(gone)
            if not runner.symbols:
                self._feeds.pop(runner).cancel()
                if runner in self._successors:
                    self._successors.pop(runner)[1].cancel()
        if self.surplus:
            self.add_symbols(())

    async def stop(self) -> None:
        """Close all connections."""
        await self._tasks.cancel()

    def _make_runner(self, symbols: Sequence[Symbol]) -> FeedRunner:
        self._opened += 1
        return FeedRunner(
            f"{self._name} feed {self._opened}",
            self._exchange.make_feed(symbols),
            self,
            self._clock,
            self._attempts,
            self._turns,
            self._proxies,
            self._exchange.limits,
            self._http,
            self._counts,
            self._open_successor,
            places=self._places,
        )

    # ------------------------------------------------------------ connections that the exchange will close

    def _open_successor(self, runner: FeedRunner) -> None:
        """Open a connection that will replace the one of `runner`."""
        if runner in self._feeds and runner not in self._successors:
            successor = self._make_runner(tuple(runner.symbols))
            self._successors[runner] = successor, self._tasks.start(successor.run())

    def _take_over(self, runner: FeedRunner) -> None:
        """Replace `runner` by its successor, which is connected. Both deliver for a while."""
        successor, task = self._successors.pop(runner)
        before, now = successor.symbols, runner.symbols
        self._replaced[runner.feed] = self._feeds.pop(runner)
        self._feeds[successor] = task
        self._by_symbol |= dict.fromkeys(now, successor)
        if now - before:
            successor.add_symbols(tuple(now - before))
        if before - now:
            successor.remove_symbols(before - now)
        self._tasks.start(self._close_replaced(runner.feed))

    async def _close_replaced(self, feed: Feed) -> None:
        await self._clock.sleep(_OVERLAP_S)
        if not any(runner.is_connected for runner in self._feeds):
            self._places.restart()
        if feed in self._replaced:
            self._replaced.pop(feed).cancel()

    # ------------------------------------------------------------ FeedSink

    def on_connected(self, feed: Feed) -> None:
        """Let a new connection take over from the one that it replaces, and pass the start on."""
        for runner, (successor, _) in list(self._successors.items()):
            if successor.feed is feed:
                self._take_over(runner)
        self._sink.on_feed_connected(feed)

    def on_event(self, event: Event) -> None:
        """Pass an event on."""
        self._sink.on_feed_event(event)

    def on_interrupted(self, feed: Feed, reason: str) -> None:
        """Pass the interruption on, unless another connection delivers the feed's symbols."""
        if feed in self._replaced:
            self._replaced.pop(feed).cancel()
        elif all(successor.feed is not feed for successor, _ in self._successors.values()):
            self._sink.on_feed_interrupted(feed, reason)

    @property
    def limit_problem(self) -> str:
        """The exchange's limit, in words."""
        limits = self._exchange.limits
        shared = f", shared by {self._shards} shards" if self._shards > 1 else ""
        return (
            f"the exchange allows {limits.connections} connections of {limits.symbols_per_connection} symbols{shared},"
            " and none is left"
        )
