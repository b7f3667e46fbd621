"""A WebSocket client's session: its requests, its subscriptions and the replies to it."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from candled.errors import Unavailable
from candled.model import Interval, MarketKey, PatternTopic, Position, Symbol, Topic
from candled.protocol import messages
from candled.protocol.frames import Frame
from candled.protocol.messages import PLAIN, RequestId
from candled.protocol.requests import (
    INTERNAL,
    LIMIT,
    NOT_AVAILABLE,
    TOO_MANY,
    GetHistory,
    ListSubscriptions,
    Ping,
    Request,
    RequestError,
    Subscribe,
    SubscribeMany,
    SubscribePattern,
    UnknownMarket,
    Unsubscribe,
    invalid_pattern,
    market_removed,
)
from candled.rooms.hub import Membership, PatternMembership, RecipientConnection
from candled.tasks import TaskSet
from candled.token_bucket import TokenBucket
from candled.transport.connection import ConnectionListener
from candled.transport.work_budget import SUBSCRIBE, initial_cost, page_cost, pattern_cost

from .market_starts import about, start_market
from .pager import TURN, Pager, SessionContext
from .request_checks import charge_work, check_room_count, check_topic, message_budget

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
# Subscriptions of one message that are handled together. The others wait for turns of the connection, and so do the
# messages after them, at most `_MOST_WAITING`. A turn is requested as a snapshot of the topic `_BACKLOG`.
_TOGETHER = 16
_MOST_WAITING = 100
_BACKLOG = Topic(MarketKey("", Symbol("", "")), Interval(0, "backlog"))

# The names of requests in metrics.
_TYPES: Mapping[type[Request], str] = {
    Subscribe: "subscribe",
    SubscribeMany: "subscribe",
    SubscribePattern: "subscribe",
    Unsubscribe: "unsubscribe",
    Ping: "ping",
    ListSubscriptions: "list",
    GetHistory: "history",
}

_tasks = TaskSet()  # of all sessions; each cancels its own


class ClientSession(ConnectionListener):
    """The session of one connected client, a member of rooms.

    There may be very many sessions, so parts that only few of them need are created on first use.
    """

    __slots__ = (
        "_backlog",
        "_budget",
        "_connection",
        "_context",
        "_is_extended",
        "_memberships",
        "_pager",
        "_patterns",
        "_preparing",
        "_starting",
        "_watched",
    )

    def __init__(self, connection: RecipientConnection, context: SessionContext) -> None:
        self._connection = connection
        self._context = context
        # tasks that wait for markets on demand, with the topics of their requests
        self._starting: dict[asyncio.Task[None] | None, Topic] | None = None
        self._memberships: dict[Topic, Membership] = {}
        self._patterns: dict[PatternTopic, PatternMembership] | None = None
        self._budget: TokenBucket | None = None
        # the rest of a message with many subscriptions, and the messages after it
        self._backlog: deque[str | bytes | Iterator[Subscribe | SubscribePattern | RequestError]] | None = None
        # tasks that load the bars of an `initial`
        self._preparing: dict[Topic, asyncio.Task[None]] | None = None
        # by market: the watcher of its state, and the topics that it was requested with
        self._watched: dict[MarketKey, tuple[Any, set[Topic]]] | None = None
        self._pager: Pager | None = None
        # True once the client has used an extension of the protocol
        self._is_extended = False

    # ------------------------------------------------------------ calls from the connection

    def on_client_message(self, message: str | bytes) -> None:
        """Handle one message, after those before it. An invalid one gets an error reply, and the socket stays open."""
        if not self._spend_budget(message):
            return
        if not self._backlog:
            self._handle_message(message)
        elif len(self._backlog) < _MOST_WAITING:
            self._backlog.append(message)
        else:
            self._connection.disconnect(3013, "too many messages")

    def _handle_message(self, message: str | bytes) -> None:
        kind = "invalid"
        try:
            request = self._context.codec.decode_request(message)
            kind = _TYPES[type(request)]
            self.handle_request(request)
        except RequestError as error:
            self._refuse(error)
        self._context.hub.counts.received[kind] += 1

    def subscribe_by_query(self, fields: Mapping[str, Any]) -> None:
        """Subscribe to a topic, given the fields of a `subscribe` message.

        Raises:
            RequestError: a field is invalid, or a limit refuses the subscription.
        """
        self._handle_subscription(self._context.codec.read_subscription(fields))

    def handle_request(self, request: Request) -> None:
        """Handle a decoded request.

        Raises:
            RequestError: a limit refuses it.
        """
        if request.id is not None:
            self._is_extended = True
        if isinstance(request, Subscribe | SubscribePattern):
            self._handle_subscription(request)
        elif isinstance(request, SubscribeMany):
            self._is_extended = True
            if self._backlog is None:
                self._backlog = deque()
            self._backlog.appendleft(request.wanted)
            if len(self._backlog) == 1:
                self._run_backlog()
        elif isinstance(request, Ping):
            self._send_reply(messages.pong(request.id))
        elif isinstance(request, ListSubscriptions):
            self._is_extended = True
            heads = [
                *map(self._context.codec.topic_head, self._memberships),
                *map(self._context.codec.request_head, self._patterns or ()),
            ]
            self._send_reply(messages.listing(heads, request.id))
        elif isinstance(request, GetHistory):
            self._request_page(request)
        else:
            self._unsubscribe(request)

    def make_initial(self, topic: Topic) -> Frame | None:
        """Return the requested `initial` now that the socket can take it, or use a turn for history or the backlog."""
        membership = self._memberships.get(topic)
        if membership is not None and self._context.hub.prepare_snapshot(membership):
            return self._context.hub.render_snapshot(membership)
        if membership is not None:
            self._connection.request_snapshot(topic)
        elif topic == TURN and self._pager is not None:
            self._pager.start_next_page()
        elif topic == _BACKLOG:
            self._run_backlog()
        return None

    def on_fell_behind(self, topic: Topic) -> None:
        """Request a new `initial`: the client reads so slowly that updates of a topic were dropped."""
        membership = self._memberships.get(topic)
        if membership is not None:
            self._context.hub.counts.fell_behind += 1
            self._context.hub.on_fell_behind(membership)
            self.request_initial(membership)
            return
        for pattern in list((self._patterns or {}).values()):
            if pattern.room.frame_topic(topic.market) == topic:
                self._end_pattern(pattern)

    def notify_shutdown(self, reconnect_after_ms: int) -> None:
        """Send `bye` before the server closes the connection, if the client uses extensions."""
        if self._is_extended:
            self._send_reply(messages.bye(reconnect_after_ms))

    def on_close(self) -> None:
        """Leave all rooms: the socket is closed."""
        for task in [*(self._preparing or {}).values(), *(self._starting or ())]:
            _ = task and task.cancel()
        if self._pager is not None:
            self._pager.close()
        for watcher, _ in (self._watched or {}).values():
            self._context.hub.unwatch_state(watcher)
        for membership in self._memberships.values():
            self._context.hub.leave_room(membership)
        for pattern in (self._patterns or {}).values():
            self._context.hub.leave_pattern(pattern)
        self._watched = self._patterns = self._backlog = None
        self._memberships.clear()

    # ------------------------------------------------------------ calls from the hub (Member)

    def request_initial(self, membership: Membership, delay_s: float = 0.0) -> None:
        """Have the `initial` sent after a delay, as soon as the bars are in memory and the socket can take it."""
        topic = membership.topic
        if self._memberships.get(topic) is not membership or (self._preparing and topic in self._preparing):
            return
        may_wait = membership.is_new and not self._context.bars.is_warm(*topic, membership.bars_needed)
        is_loaded = self._context.bars.is_loaded(*topic, membership.bars_needed)
        if membership.resume is None and not may_wait and not delay_s and is_loaded:
            self._connection.request_snapshot(topic)
            return
        if self._preparing is None:
            self._preparing = {}
        self._preparing[topic] = _tasks.start(self._prepare_initial(topic, may_wait, delay_s))

    def on_market_removed(self, membership: Membership) -> None:
        """End a subscription with an error, because its market is not served any more."""
        if self._memberships.get(membership.topic) is membership:
            self._unsubscribe_topic(membership.topic)
            error = market_removed(membership.topic.market, self._context.codec.new_symbol(membership.topic.market))
            self._send_error(error, membership.request_id)

    # ------------------------------------------------------------ requests

    def _spend_budget(self, message: str | bytes) -> bool:
        """Count a message; return False if there are too many of them. The client then gets an error."""
        self._budget = budget = message_budget(self._budget, self._context.limits, self._connection)
        if budget is None or not budget.try_take(self._context.clock.monotonic()):
            return True
        self._connection.charge_refusal()
        error = RequestError(f"Too many messages: at most {budget.rate} per second", code=TOO_MANY, temporary=True)
        self._send_error(error, self._context.codec.name_of(message))
        self._context.hub.counts.received["refused"] += 1
        return False

    def _run_backlog(self) -> None:
        """Handle some of the waiting subscriptions and messages, and request another turn for the rest."""
        for _ in range(_TOGETHER):
            if not self._backlog:
                return
            first = self._backlog[0]
            if isinstance(first, str | bytes):
                self._backlog.popleft()
                self._handle_message(first)
            elif (one := next(first, None)) is not None:
                self._subscribe_one(one)
            else:
                self._backlog.popleft()
        if self._backlog:
            self._connection.request_snapshot(_BACKLOG)

    def _subscribe_one(self, one: Subscribe | SubscribePattern | RequestError) -> None:
        """Handle one of several subscriptions. An invalid one does not affect the others."""
        try:
            if isinstance(one, RequestError):
                raise one
            self._handle_subscription(one)
        except RequestError as error:
            self._refuse(error)

    # ------------------------------------------------------------ markets on demand

    def _refuse(self, error: RequestError) -> None:
        """Send the error of a request, unless its market can be started on demand."""
        try:
            if isinstance(error, UnknownMarket) and self._start_later(error):
                return
        except RequestError as refusal:
            error = about(error, refusal)
        self._send_error(error)

    async def start_market(self, error: UnknownMarket) -> None:
        """Start the market of a refused request on demand.

        Raises:
            RequestError: it cannot be started. This is `error` if the exchange does not list it.
        """
        await start_market(self._context.demand, self._connection, error)

    def _start_later(self, error: UnknownMarket) -> bool:
        """Answer a refused request once its market runs; return False if it gets its error now.

        An `unsubscribe` ends the wait.
        """
        demand = self._context.demand
        market = None if demand is None else demand.find_candidate(error.exchange, error.symbol)
        if market is None or error.interval is None:
            return False
        topic = Topic(market, error.interval)
        if error.read_again is None:
            return self._stop_starting(topic, error)
        self._check_room_count()
        if self._starting is None:
            self._starting = {}
        self._starting[_tasks.start(self._answer_later(error))] = topic
        return True

    def _stop_starting(self, topic: Topic, error: UnknownMarket) -> bool:
        waiting = [task for task, one in (self._starting or {}).items() if one == topic and task and task.cancel()]
        if waiting and error.request_id is not None:
            self._is_extended = True
            head = self._context.codec.topic_head(topic)
            self._send_reply(messages.unsubscribed(head, error.request_id, existed=True))
        return bool(waiting)

    async def _answer_later(self, error: UnknownMarket) -> None:
        assert error.read_again is not None, "checked before"
        try:
            try:
                await self.start_market(error)
            finally:  # before its subscription is counted
                (self._starting or {}).pop(asyncio.current_task(), None)
            self.handle_request(error.read_again())
        except RequestError as refusal:
            self._send_error(about(error, refusal))

    def _handle_subscription(self, request: Subscribe | SubscribePattern) -> None:
        try:
            if isinstance(request, SubscribePattern):
                self._subscribe_pattern(request)
            else:
                self._join_room(request)
        except RequestError as error:
            error.request_id = request.id
            raise

    @property
    def _room_count(self) -> int:
        return len(self._memberships) + len(self._patterns or ())

    def _check_room_count(self) -> None:
        count = self._room_count + len(self._starting or ())
        check_room_count(self._connection.grant, self._context.limits.max_rooms_per_connection, count)

    def _join_room(self, request: Subscribe) -> None:
        topic = request.topic
        check_topic(self._connection.grant, topic)
        former = self._memberships.get(topic)
        if former is None:
            self._check_room_count()
        # a room with members has its bars loaded
        is_loaded = self._context.hub.has_room(topic) or self._context.bars.is_loaded(*topic, request.bars)
        cost = initial_cost(request.bars, is_loaded=is_loaded, resumes=request.resume is not None)
        delay_s = charge_work(self._connection, cost)
        if request.options != PLAIN or request.status or request.resume is not None:
            self._is_extended = True
        self._connection.cancel_topic(topic)
        membership = self._context.hub.join_room(self, self._connection, topic, request.bars, request.options)
        membership.resume, membership.request_id = request.resume, request.id
        self._memberships[topic] = membership
        if former is not None:
            self._context.hub.leave_room(former)
        if self._room_count > 1:
            self._connection.cork(many=True)
        if request.id is not None:
            self._send_reply(messages.subscribed(membership.group.room.head, request.id))
        self._watch_state(topic, request.status)
        self.request_initial(membership, delay_s)

    def _unsubscribe_topic(self, topic: Topic) -> bool:
        membership = self._memberships.pop(topic, None)
        if membership is None:
            return False
        self._connection.cancel_topic(topic)
        self._context.hub.leave_room(membership)
        self._watch_state(topic, wanted=False)
        self._update_cork()
        return True

    def _subscribe_pattern(self, request: SubscribePattern) -> None:
        """Enter a pattern room. There is no `initial`: its bars begin with the next ones that close."""
        topic, patterns = request.topic, self._patterns or {}
        check_topic(self._connection.grant, topic)
        former = patterns.get(topic)
        if former is None:
            self._check_room_count()
        exists = self._context.hub.has_room(topic)
        if not exists and not self._context.hub.has_space_for_patterns:
            raise RequestError(
                "Too many patterns: this server has no space for another one", code=LIMIT, temporary=True
            )
        markets = sum(1 for _ in self._context.codec.symbols(topic.exchange))
        charge_work(self._connection, SUBSCRIBE if exists else pattern_cost(markets))
        self._is_extended = True
        try:
            membership = self._context.hub.join_pattern(self._connection, topic, request.options)
        except ValueError as error:
            raise invalid_pattern(topic.pattern, str(error)) from None
        membership.request_id = request.id
        if former is not None:
            self._context.hub.leave_pattern(former)
        self._patterns = patterns | {topic: membership}
        self._connection.cork(many=True)
        if request.id is not None:
            self._send_reply(messages.subscribed(self._context.codec.request_head(topic), request.id))
        if request.markets:
            self._context.hub.watch_markets(membership)

    def _unsubscribe_pattern(self, topic: PatternTopic) -> bool:
        membership = None if self._patterns is None else self._patterns.pop(topic, None)
        if membership is None:
            return False
        for symbol in membership.room.symbols:
            self._connection.cancel_topic(membership.room.frame_topic(MarketKey(topic.exchange, symbol)))
        self._context.hub.leave_pattern(membership)
        self._update_cork()
        return True

    def _unsubscribe(self, request: Unsubscribe) -> None:
        topic = request.topic
        if isinstance(topic, PatternTopic):
            existed, head = self._unsubscribe_pattern(topic), self._context.codec.request_head(topic)
        else:
            existed, head = self._unsubscribe_topic(topic), self._context.codec.topic_head(topic)
        if request.id is not None:
            self._send_reply(messages.unsubscribed(head, request.id, existed=existed))

    def _update_cork(self) -> None:
        if not self._patterns and len(self._memberships) == 1:
            self._connection.cork(many=False)

    def _end_pattern(self, membership: PatternMembership) -> None:
        """End a subscription of a client that reads so slowly that bars were dropped. It must load them elsewhere."""
        self._unsubscribe_pattern(membership.room.topic)
        name = membership.room.topic.pattern
        error = RequestError(f"Subscription ended: bars of {name} were not read", code=NOT_AVAILABLE, temporary=True)
        self._send_error(error, membership.request_id)

    def _watch_state(self, topic: Topic, wanted: bool) -> None:
        """Start or stop sending the state of a topic's market. A market is watched once for all its topics."""
        if self._watched is None:
            if not wanted:
                return
            self._watched = {}
        watcher, topics = self._watched.get(topic.market, (None, set()))
        if wanted:
            topics.add(topic)
            if watcher is None:
                self._watched[topic.market] = self._context.hub.watch_state(self._connection, topic.market), topics
        elif watcher is not None:
            topics.discard(topic)
            if not topics:
                del self._watched[topic.market]
                self._context.hub.unwatch_state(watcher)

    def _request_page(self, request: GetHistory) -> None:
        self._is_extended = True
        if self._pager is None:
            self._pager = Pager(self._connection, self._send_reply, self._context)
        try:
            check_topic(self._connection.grant, request.topic)
            delay_s = charge_work(self._connection, page_cost(request.limit))
            self._pager.enqueue_request(request, delay_s)
        except RequestError as error:
            error.request_id = request.id
            raise

    # ------------------------------------------------------------ inside

    async def _prepare_initial(self, topic: Topic, may_wait: bool, delay_s: float) -> None:
        """Load the bars that are not in memory, then request the `initial`."""
        try:
            if delay_s:
                await self._context.clock.sleep(delay_s)
            await self._load_bars(topic, self._context.limits.warmup_wait.total_seconds() if may_wait else 0.0)
        finally:
            if self._preparing is not None:
                del self._preparing[topic]
        if topic in self._memberships:
            self._connection.request_snapshot(topic)

    async def _load_bars(self, topic: Topic, timeout_s: float) -> None:
        """Load the bars for a member. If loading fails, try again, and send one error for each request."""
        notified: Membership | None = None
        while (membership := self._memberships.get(topic)) is not None:
            try:
                await self._context.bars.load_bars(*topic, membership.bars_needed, timeout_s)
                await self._find_missed(membership)
            except Exception as error:
                if notified is not membership:
                    is_known = isinstance(error, Unavailable)
                    logger.warning("%s %s: bars cannot be read: %s", *topic, error, exc_info=not is_known)
                    failure = RequestError(messages.FAILED_TO_SUBSCRIBE, code=INTERNAL, temporary=True)
                    self._send_error(failure, membership.request_id if membership.is_new else None)
                notified = membership
                await self._context.clock.sleep(_RETRY_S)
                continue
            finally:
                timeout_s = 0.0
            if self._memberships.get(topic) is membership:  # not replaced by a new subscription
                return

    async def _find_missed(self, membership: Membership) -> None:
        """Find the changes that a returning member missed. If that fails, it gets a complete `initial`."""
        resume = membership.resume
        if resume is None:
            return
        try:
            membership.prepared = await self._context.bars.prepare_resume(
                *membership.topic, Position(resume.epoch, resume.seq), resume.time_ms
            )
        except Unavailable as error:
            logger.warning("%s %s: missed changes cannot be read, sending all bars: %s", *membership.topic, error)
        except Exception:  # sending all bars is the safe answer
            logger.exception("%s %s: missed changes cannot be computed, sending all bars", *membership.topic)

    def _send_error(self, error: RequestError, request_id: RequestId = None) -> None:
        """Send an error. The id is that of its request, by default the one that the error has."""
        request_id = error.request_id if request_id is None else request_id
        if request_id is not None:
            self._is_extended = True
        self._send_reply(messages.error(str(error), request_id, code=error.code, temporary=error.temporary))

    def _send_reply(self, text: str) -> None:
        self._context.hub.counts.sent[messages.type_of(text)] += 1
        self._connection.send_reply(Frame.from_text(text))
