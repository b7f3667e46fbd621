"""One WebSocket client: its requests to the hub, and the hub's deliveries to its socket."""

import asyncio
import logging
from datetime import timedelta
from typing import Protocol as Interface

from candled.errors import ClientError, Unavailable
from candled.exchange import Clock
from candled.model import Candle, Interval, MarketKey
from candled.rooms import protocol
from candled.rooms.hub import Hub
from candled.rooms.protocol import Ping, Subscribe, Topic
from candled.token_bucket import TokenBucket

from .outbox import Outbox

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


class Wire(Interface):
    """The socket, as far as a client needs it."""

    def send(self, text: str) -> "asyncio.Future[None]": ...
    def close(self, code: int, reason: str) -> None: ...


class Bars(Interface):
    """`candled.aggregate.live_bars.LiveBars`."""

    def ready(self, key: MarketKey, interval: Interval, count: int) -> bool: ...
    def is_warm(self, key: MarketKey, interval: Interval, count: int) -> bool: ...
    async def prepare(self, key: MarketKey, interval: Interval, count: int, patience_s: float) -> None: ...
    def tail(self, key: MarketKey, interval: Interval, count: int) -> list[Candle]: ...


class ClientLimits(Interface):
    """The settings that concern one client."""

    @property
    def max_rooms_per_connection(self) -> int: ...
    @property
    def max_messages_per_second(self) -> int: ...
    @property
    def warmup_wait(self) -> timedelta: ...


class Client:
    """A member of rooms. One write is under way at a time; what comes meanwhile waits in the outbox."""

    def __init__(
        self, wire: Wire, hub: Hub, bars: Bars, codec: protocol.Protocol, clock: Clock, limits: ClientLimits
    ) -> None:
        self._wire = wire
        self._hub = hub
        self._bars = bars
        self._codec = codec
        self._clock = clock
        self._limits = limits
        self._outbox = Outbox()
        self._topics: set[Topic] = set()
        self._fresh: set[Topic] = set()  # had no `initial` yet, so that a better one may be waited for
        self._preparing: dict[Topic, asyncio.Task[None]] = {}
        rate = limits.max_messages_per_second
        self._budget = TokenBucket(rate, 2 * rate) if rate else None
        self._writing_since: float | None = None
        self._closed = False

    # ------------------------------------------------------------ from the socket

    def received(self, message: str | bytes) -> None:
        """Handle one message; every mistake is answered and the socket stays open."""
        try:
            self._spend()
            request = self._codec.decode(message)
            if isinstance(request, Ping):
                self._reply(protocol.PONG)
            elif isinstance(request, Subscribe):
                self._subscribe(request)
            else:
                self._unsubscribe(request.topic)
        except ClientError as error:
            self._reply(protocol.error(str(error)))

    def closed(self) -> None:
        """The socket is gone."""
        self._closed = True
        for task in self._preparing.values():
            task.cancel()
        for topic in self._topics:
            self._hub.leave(self, topic)
        self._topics.clear()

    def stuck_for(self, now: float) -> float:
        """Seconds since the write that is under way began; 0.0 when none is."""
        return 0.0 if self._writing_since is None else now - self._writing_since

    # ------------------------------------------------------------ from the hub (Member)

    def send_update(self, topic: Topic, open_ms: int, text: str) -> None:
        if self._writing_since is None and not self._outbox:
            self._write(text)
        elif not self._outbox.update(topic, open_ms, text):
            self._outbox.initial(topic)
            self._hub.fell_behind(self, topic)

    def want_initial(self, topic: Topic) -> None:
        count = self._hub.wanted(self, topic)
        if count is None:
            return
        may_wait = topic in self._fresh and not self._bars.is_warm(topic.market, topic.interval, count)
        if not may_wait and self._bars.ready(topic.market, topic.interval, count):
            self._fresh.discard(topic)
            self._outbox.initial(topic)
            self._pump()
        elif topic not in self._preparing:
            task = self._preparing[topic] = asyncio.ensure_future(self._prepare(topic))
            task.add_done_callback(lambda _: self._preparing.pop(topic, None))

    # ------------------------------------------------------------ inside

    def _spend(self) -> None:
        if self._budget is not None and self._budget.take(self._clock.monotonic()):
            raise ClientError(f"Too many messages: at most {self._limits.max_messages_per_second} per second")

    def _subscribe(self, request: Subscribe) -> None:
        most = self._limits.max_rooms_per_connection
        if most and request.topic not in self._topics and len(self._topics) >= most:
            raise ClientError(f"Too many subscriptions: at most {most} per connection")
        self._topics.add(request.topic)
        self._fresh.add(request.topic)
        self._outbox.forget(request.topic)
        self._hub.join(self, request.topic, request.bars)

    def _unsubscribe(self, topic: Topic) -> None:
        self._topics.discard(topic)
        self._fresh.discard(topic)
        self._outbox.forget(topic)
        self._hub.leave(self, topic)

    async def _prepare(self, topic: Topic) -> None:
        """Have the bars read that memory lacks, then send `initial`; a failure is told once, and tried again."""
        patience_s = self._limits.warmup_wait.total_seconds() if topic in self._fresh else 0.0
        failures = 0
        while (count := self._hub.wanted(self, topic)) is not None:
            try:
                await self._bars.prepare(topic.market, topic.interval, count, patience_s)
            except Unavailable as error:
                if not failures:
                    logger.warning("%s %s: bars cannot be read: %s", *topic, error)
                    self._reply(protocol.error(protocol.FAILED_TO_SUBSCRIBE))
                failures += 1
                await self._clock.sleep(_RETRY_S)
                continue
            finally:
                patience_s = 0.0
            if count == self._hub.wanted(self, topic):  # not asked for anew meanwhile
                self._fresh.discard(topic)
                self._outbox.initial(topic)
                self._pump()
                return

    def _reply(self, text: str) -> None:
        if not self._outbox.reply(text):
            self._wire.close(1013, "too many answers are waiting to be read")
            return
        self._pump()

    def _pump(self) -> None:
        while self._writing_since is None and not self._closed:
            item = self._outbox.pop()
            if item is None:
                return
            text = item if isinstance(item, str) else self._hub.initial(self, item)
            if text is not None:
                self._write(text)

    def _write(self, text: str) -> None:
        future = self._wire.send(text)
        if future.done():
            return
        self._writing_since = self._clock.monotonic()
        future.add_done_callback(self._written)

    def _written(self, future: "asyncio.Future[None]") -> None:
        self._writing_since = None
        if not future.cancelled() and future.exception() is None:
            self._pump()
