"""A process that serves, with a clock that is turned by hand, and clients that check what they are sent."""

import asyncio
import json
from collections import Counter, deque

from candled.aggregate.live_bars import LiveBars
from candled.bus import FeedMetadata, HistoryChanged, MinuteChanged, StateChanged
from candled.bus.memory_bus import MemoryBus
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, BarTexts, MarketKey, Range, Symbol, Topic, fold
from candled.model.gaps import REASONS, find_gaps
from candled.protocol.frames import Frame
from candled.protocol.messages import PLAIN
from candled.protocol.requests import RequestCodec, Subscribe
from candled.rooms.hub import Hub
from candled.serve.client import ClientSession
from candled.serve.pager import HistoryPages, SessionContext
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS, minute

BTC = MarketKey("replay", Symbol.parse("BTC/USDT"))
ETH = MarketKey("replay", Symbol.parse("ETH/USDT"))
PROTOCOL = RequestCodec({"replay": [BTC.symbol]}, DEFAULT_INTERVALS)


class Stored:
    """A history in memory, folded on demand."""

    def __init__(self, minutes=(), complete_from=MONDAY_MS) -> None:
        self.minutes = {candle.open_ms: candle for candle in minutes}
        self.since = complete_from
        self.unfinished = ()  # minutes that are not final
        self.absent = ()  # what the exchange does not have
        self.queries = 0
        self.log = []  # of changes of the past: epoch, seq, range
        self.clock = None  # reading takes a while on it

    async def read_bars_between(self, market, interval, start_ms, end_ms):
        self.queries += 1
        await (asyncio.sleep(0) if self.clock is None else self.clock.sleep(0.15))
        buckets = {}
        for candle in sorted(self.minutes.values()):
            if start_ms <= interval.floor(candle.open_ms) < end_ms:
                buckets.setdefault(interval.floor(candle.open_ms), []).append(candle)
        return [
            parts[0] if interval.ms == MINUTE_MS else fold(parts, open_ms, final=True)
            for open_ms, parts in sorted(buckets.items())
        ]

    async def read_texts_between(self, market, interval, start_ms, end_ms):
        return BarTexts.of(await self.read_bars_between(market, interval, start_ms, end_ms))

    async def read_bars(self, market, interval, before_ms, limit):
        return (await self.read_bars_between(market, interval, 0, before_ms))[-limit:]

    async def read_forming(self, market):
        return self.unfinished

    async def complete_from(self, market):
        return self.since

    async def served_from(self, market):
        return self.since

    async def kept_from(self):
        return 0

    async def known_gaps(self, market, within):
        return [one for one in self.absent if one.start_ms < within.end_ms and within.start_ms < one.end_ms]

    async def find_gaps(self, market, span, *, limit=None, reasons=REASONS):
        stored = [Range(at, at + MINUTE_MS) for at in sorted(self.minutes)]
        gaps = find_gaps(stored, await self.known_gaps(market, span), span)
        return [gap for gap in gaps if gap.reason in reasons]

    async def changes_since(self, market, epoch, seq, *, logged_seq=-1):
        if epoch not in {name for name, _, _ in self.log}:
            return None
        return [span for name, at, span in self.log if (name, at) > (epoch, seq)]


class Chart:
    """The documented client: replaces its bars on `initial`, replaces its last bar or appends on `update`.

    What is never allowed to come makes it fail at once.
    """

    def __init__(self) -> None:
        self.bars: list[dict] = []
        self.initials: list[list[dict]] = []
        self.updates: list[dict] = []
        self.corrections: list[dict] = []
        self.resumes: list[list[dict]] = []
        self.recovered: list[bool] = []
        self.position: tuple[str, int] | None = None
        self.finals: Counter[str] = Counter()
        self._last: dict | None = None

    def take(self, message: dict) -> None:
        if "seq" in message:
            self.position = message["epoch"], message["seq"]
        if "recovered" in message:
            self.recovered.append(message["recovered"])
        if message["type"] != "update":
            self._last = None
        match message["type"]:
            case "initial":
                self.initials.append(message["bars"])
                self.bars = list(message["bars"])
                self.finals.clear()
                assert self.bars == sorted(self.bars, key=lambda bar: bar["time"])
            case "update":
                self._update(message["bar"])
            case "correction":
                self.corrections.append(message["bar"])
                self._put(message["bar"])
            case "resumed":
                self.resumes.append(message["bars"])
                self.finals.clear()
                for bar in message["bars"]:
                    self._put(bar)

    def forget_last(self) -> None:
        """An update may come that is as the last one was."""
        self._last = None

    def _update(self, bar: dict) -> None:
        assert self._last != bar, "an unchanged bar was sent again"
        self._last = bar
        self.updates.append(bar)
        assert self.initials or self.resumes, "an update came before its initial"
        assert not self.finals[bar["time"]], "an update came after a bar's last one"
        self.finals[bar["time"]] += bar.get("final", False)
        if self.bars and self.bars[-1]["time"] == bar["time"]:
            self.bars[-1] = bar
        else:
            assert not self.bars or bar["time"] > self.bars[-1]["time"], "the chart moved back"
            self.bars.append(bar)

    def _put(self, bar: dict) -> None:
        bars = {one["time"]: one for one in self.bars} | {bar["time"]: bar}
        self.bars = [bars[time] for time in sorted(bars)]


class Socket:
    """A client's link: what was sent, at once; or, while it is `stuck`, when it is let go."""

    recipient_slots = ()
    grant = None
    address = "192.0.2.1"

    def __init__(self, clock) -> None:
        self.client = None
        self.frames: list[Frame] = []
        self.received: list[dict] = []
        self.at: list[tuple[float, dict]] = []
        self.charts: dict[tuple[str, str], Chart] = {}
        self.blocked = False
        self.gathers = False
        self._clock = clock
        self._replies: deque[Frame] = deque()
        self._wanted: dict[Topic, None] = {}
        self._updates: dict[Topic, dict[int, Frame]] = {}

    def send_frame(self, frame: Frame) -> int:
        if not self.blocked:
            self._deliver(frame)
        else:
            assert frame.topic is not None
            assert frame.open_ms
            waiting = self._updates.setdefault(frame.topic, {})
            waiting[frame.open_ms] = frame
            if len(waiting) > 3:
                del self._updates[frame.topic]
                self.client.on_fell_behind(frame.topic)
        return len(frame)

    take_frame = send_frame

    def send_reply(self, frame: Frame) -> None:
        if self.blocked:
            self._replies.append(frame)
        else:
            self._deliver(frame)

    def charge_work(self, cost: float) -> float:
        return 0.0

    def charge_refusal(self) -> None:
        pass

    def request_snapshot(self, topic: Topic) -> None:
        if self.blocked:
            self._updates.pop(topic, None)
            self._wanted[topic] = None
        else:
            self._grant(topic)

    def cancel_topic(self, topic: Topic) -> None:
        self._updates.pop(topic, None)
        self._wanted.pop(topic, None)

    def cork(self, many: bool) -> None:
        self.gathers = many

    def disconnect(self, code: int, reason: str) -> None:
        raise AssertionError("a connection was closed")

    def let_go(self) -> None:
        """The client reads again."""
        self.blocked = False
        while self._replies:
            self._deliver(self._replies.popleft())
        wanted, self._wanted = self._wanted, {}
        for topic in wanted:
            self._grant(topic)
        updates, self._updates = self._updates, {}
        for waiting in updates.values():
            for _, frame in sorted(waiting.items()):
                for chart in self.charts.values():
                    chart.forget_last()  # it may have changed and changed back meanwhile
                self._deliver(frame)

    def chart(self, interval: str = "1m", symbol: str = "BTC/USDT") -> Chart:
        return self.charts.setdefault((symbol, interval), Chart())

    def of(self, *types: str) -> list[dict]:
        """What was heard of these types."""
        return [message for message in self.received if message["type"] in types]

    def send_json(self, message: dict | str) -> list[dict]:
        """Send a request; return what came at once."""
        before = len(self.received)
        self.client.on_client_message(message if isinstance(message, str) else json.dumps(message))
        return self.received[before:]

    def subscribe(self, interval: str = "1m", bars: int = 100, **options) -> list[dict]:
        return self.send_json(
            {"type": "subscribe", "symbol": "BTC/USDT", "interval": interval, "initialBars": bars, **options}
        )

    def _grant(self, topic: Topic) -> None:
        frame = self.client.make_initial(topic)
        if frame is not None:
            self._deliver(frame)

    def _deliver(self, frame: Frame) -> None:
        message = json.loads(frame.payload)
        self.frames.append(frame)
        self.received.append(message)
        self.at.append((self._clock.monotonic(), message))
        if "interval" in message:
            self.chart(message["interval"], message["symbol"]).take(message)


class Joined(Chart):
    """A member without a client behind it, ready at any time, and the link of it."""

    recipient_slots = ()
    address = "192.0.2.1"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.left = False
        self.frames: list[Frame] = []

    def request_initial(self, membership) -> None:
        if not self.left:
            self.send_frame(self.hub.render_snapshot(membership))

    def send_frame(self, frame: Frame) -> int:
        self.frames.append(frame)
        self.take(json.loads(frame.payload))
        return len(frame)

    def take_frame(self, frame: Frame) -> int:
        return self.send_frame(frame)


class Publisher:
    """Sends to a whole list immediately, or in slices of random sizes, one each time `turn` is called."""

    def __init__(self, draw=None) -> None:
        self._draw = draw
        self._jobs = deque()

    def broadcast(self, recipients, frame) -> None:
        recipients.sending += 1
        self._jobs.append([recipients, frame, 0, len(recipients)])
        if self._draw is None:
            self.turn()

    @property
    def waiting(self) -> int:
        """How many broadcasts are not through."""
        return len(self._jobs)

    def turn(self) -> None:
        """Send a slice of the oldest broadcast."""
        if not self._jobs:
            return
        job = self._jobs[0]
        recipients, frame, start, stop = job
        end = stop if self._draw is None else min(stop, start + self._draw.randrange(1, 5))
        for connection in recipients[start:end]:
            connection.send_frame(frame)
        job[2] = end
        if end == stop:
            recipients.sending -= 1
            self._jobs.popleft()


class Limits:
    """The settings of one client."""

    def __init__(self, rooms: int = 64, rate: int = 0, wait_s: float = 0.0) -> None:
        from datetime import timedelta

        self.max_rooms_per_connection = rooms
        self.max_messages_per_second = rate
        self.warmup_wait = timedelta(seconds=wait_s)


class Stage:
    """One process that serves, from the bus to the clients' sockets."""

    def __init__(
        self, stored: Stored, clock=None, *, epoch: str = "one", draw=None, bus: MemoryBus | None = None
    ) -> None:
        self.stored = stored
        self.clock = clock or ManualClock(MONDAY_MS + 3_600_000)
        self.bars = LiveBars([BTC], DEFAULT_INTERVALS, stored, self.clock)
        self.publisher = Publisher(draw)
        self.hub = Hub(PROTOCOL, self.bars, self.clock, self.publisher)
        self.bars.add_listener(self.hub)
        self.bus = bus or MemoryBus(epoch)
        self.bus.add_listener(self.bars)
        self.facts = FeedMetadata(watermark_ms=MONDAY_MS + 60 * MINUTE_MS)
        self.limits = Limits()
        self.pages = HistoryPages(lambda *request: self.history(*request))  # tests replace `history`

    async def start(self) -> "Stage":
        await self.bars.start()
        return self

    def push(self, candle, final_until: int | None = None) -> None:
        """A minute changed; `settled`: all minutes before that number are final now."""
        self.settle(final_until)
        self.bus.publish(MinuteChanged(BTC, candle, self.facts))

    def settle(self, number: int | None, gap: Range | None = None) -> None:
        """From the next message on all minutes before that number are final, but for a gap."""
        if number is not None:
            self.facts = FeedMetadata(watermark_ms=MONDAY_MS + number * MINUTE_MS, gap=gap, logged_seq=10**9)

    def heal(self, candles) -> None:
        """Minutes of the past are stored and told of."""
        if not candles:
            return
        self.stored.minutes |= {candle.open_ms: candle for candle in candles}
        times = [candle.open_ms for candle in candles]
        span = min(times), max(times) + MINUTE_MS
        position = self.bus.publish(HistoryChanged(BTC, *span, self.stored.since, self.facts))
        self.stored.log.append((position.epoch, position.seq, Range(*span)))

    def state(self, state: str) -> None:
        self.bus.publish(StateChanged(BTC, state, self.clock.now_ms()))

    async def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            await self.clock.advance(0.02)
            self.hub.run_due()
            self.publisher.turn()

    def join(self, interval: str = "1m", bars: int = 100, options=PLAIN) -> Joined:
        """A member that is told everything at once."""
        chart = Joined(self.hub)
        chart.membership = self.hub.join_room(chart, chart, topic(interval), bars, options)
        chart.request_initial(chart.membership)
        return chart

    def session_context(self) -> SessionContext:
        return SessionContext(self.hub, self.bars, PROTOCOL, self.clock, self.limits, self.pages)

    def connect(self) -> Socket:
        """A client with a socket."""
        socket = Socket(self.clock)
        socket.client = ClientSession(socket, self.session_context())
        return socket

    async def history(self, key, interval, before_ms, limit):
        bars = await self.stored.read_bars(key, interval, before_ms, 10**6)
        return bars[-limit:], len(bars) <= limit


def topic(interval: str) -> Topic:
    request = PROTOCOL.decode_request(json.dumps({"type": "subscribe", "symbol": "BTC/USDT", "interval": interval}))
    assert isinstance(request, Subscribe)
    return request.topic


async def stage(count: int = 60, **options) -> Stage:
    return await Stage(Stored(minute(number, final=True) for number in range(count)), **options).start()
