"""The bus between who reads the exchange and who serves, as Redis would be: it refuses, loses, repeats, and is away."""

from candled.bus import FeedListener, Message, MessagesLost, MinuteChanged, StateChanged
from candled.bus.codec import Heartbeat, Newest, epoch_of
from candled.bus.redis.feed_tracker import FeedTracker, MessageOrder
from candled.bus.redis.outbound import OutboundQueue
from candled.model import MarketKey, Position
from tests.simulation.faults import Weather
from tests.simulation.virtual_time import Machine

_CHANNEL = "channel"


class Wire:
    """One market's way from a leader to a process that serves; each leader begins a feed of its own.

    `OutboundQueue` numbers what is published, `FeedTracker` judges what comes, as with Redis; between them, where
    Redis would be, is the weather, and a key with the newest state.
    """

    def __init__(self, market: MarketKey, clock: Machine, weather: Weather, token: int) -> None:
        self._market = market
        self._clock = clock
        self._weather = weather
        self._epoch = epoch_of(0, token)
        self._outgoing = OutboundQueue()
        self._tracker = FeedTracker({0: [market]}, clock.monotonic())
        self._tracker.expect_heartbeats(clock.monotonic())
        self._listener: FeedListener | None = None
        self._kept: Newest | None = None  # beside the channel
        self._published: StateChanged | None = None  # by the leader
        self._shown: str | None = None  # in place of that

    # ------------------------------------------------------------ the bus that ingest and serve know

    def publish(self, message: Message) -> Position:
        seq = self._outgoing.enqueue(message)
        self._send()
        return Position(self._epoch, seq)

    def listen(self, listener: FeedListener) -> None:
        self._listener = listener

    def describe(self) -> dict[str, object]:
        return {"kind": "wire", "connected": True}

    def unpublished_markets(self) -> dict[MarketKey, str]:
        return {}

    # ------------------------------------------------------------ time

    async def run(self) -> None:
        """A heartbeat a second; what was refused is tried again with it."""
        while True:
            await self._clock.sleep(1.0)
            now = self._clock.monotonic()
            self._send()
            if not self._weather.has("bus down"):
                seqs = {_CHANNEL: self._outgoing.announced_seq}
                self._tracker.on_heartbeat(Heartbeat(0, self._epoch, seqs), {_CHANNEL: self._market}, now)
                self._read()
            self._tracker.update_lateness(now)
            self._show()

    # ------------------------------------------------------------ inside

    def _send(self) -> None:
        weather, outgoing = self._weather, self._outgoing
        if weather.has("bus down") or weather.has("bus refuses messages"):
            outgoing.is_blocked = True
            return
        batch = outgoing.next_batch()
        if not batch:
            return
        self._kept = outgoing.newest_state(self._epoch, outgoing.seq)  # as the script in Redis: before anybody hears
        outgoing.forget_sent(outgoing.seq)
        for message, seq in batch:
            if weather.has("bus loses messages") and seq % 3 == 0:
                continue
            for _ in range(1 + weather.has("bus repeats messages")):
                self._receive(message, Position(self._epoch, seq))

    def _receive(self, message: Message, position: Position) -> None:
        if self._tracker.is_missed(self._market):
            return
        result = self._tracker.on_message(self._market, position)
        if result is MessageOrder.NEXT:
            self._deliver(message, position)
        elif result is MessageOrder.GAP:
            self._read()

    def _read(self) -> None:
        """Read the newest state, as after every gap; what else was lost is read from the store."""
        if self._weather.has("bus down") or not self._tracker.take_missed(1):
            return
        self._tracker.mark_repaired(self._market)
        newest = self._kept
        position = self._tracker.on_newest_read(self._market, None if newest is None else newest.position)
        if position is None or newest is None or self._listener is None:
            return
        self._listener.on_feed_message(MessagesLost(self._market), position)
        for candle in newest.candles:
            self._listener.on_feed_message(MinuteChanged(self._market, candle, newest.metadata), position)
        if newest.state is not None:
            self._deliver(newest.state, position)

    def _deliver(self, message: Message, position: Position) -> None:
        if isinstance(message, StateChanged):
            self._published, self._shown = message, None
            if self._tracker.find_stale_cause(self._market, self._clock.monotonic()) is not None:
                self._show()
                return
        if self._listener is not None:
            self._listener.on_feed_message(message, position)

    def _show(self) -> None:
        """Replace the leader's state by a doubt."""
        cause = self._tracker.find_stale_cause(self._market, self._clock.monotonic())
        position = self._tracker.position_of(self._market) or Position(self._epoch, 0)
        if cause is not None and self._shown != cause.reason and self._listener is not None:
            self._shown = cause.reason
            self._listener.on_feed_message(StateChanged(self._market, "stale", self._clock.now_ms(), *cause), position)
        elif cause is None and self._shown is not None and self._published is not None:
            self._shown = None
            self._deliver(self._published, position)
