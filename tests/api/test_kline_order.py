"""Kline streams in virtual time: no silence at a minute's end, no step back, each bar closed once and with its end."""

import json
import random
from dataclasses import dataclass, field

import pytest

from candled.api.catalog import BinanceMarkets, MarketCatalog
from candled.api.kline_order import MOST_UNCLOSED, KlineOrder
from candled.api.kline_streams import FINAL_WAIT_S, KlineStreams
from candled.bus import FeedMetadata
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Range
from tests.clocks import ManualClock
from tests.rooms.stage import BTC, MONDAY_MS, Stage, Stored
from tests.rows import minute
from tests.tiers import LONG

FIRST = 60  # the first minute that is pushed; those before are stored and final


@dataclass
class StreamMessage:
    """A message of a stream: the minute's number, whether it closes the bar, the volume, and when it came."""

    number: int
    closes: bool
    volume: str
    at: float


@dataclass(eq=False)
class RecordingListener:
    """A connection to one stream, which fails at once when it hears what must never come."""

    clock: ManualClock
    messages_sent: list[StreamMessage] = field(default_factory=list)
    on_close: list[int] = field(default_factory=list)
    recipient_slots = ()
    grant = None

    def charge_work(self, cost: float) -> float:
        return 0.0

    def charge_refusal(self) -> None:
        pass

    def send_frame(self, frame) -> int:
        event = json.loads(frame.payload)
        kline = event["k"]
        number = (kline["t"] - MONDAY_MS) // MINUTE_MS
        one = StreamMessage(number, kline["x"], kline["v"], self.clock.monotonic())
        assert number not in self.on_close, "the stream sent an update after a bar's close"
        if one.closes:
            assert not self.on_close or number > self.on_close[-1], "bars closed out of order"
            assert (
                not self.messages_sent
                or any(earlier.number == number for earlier in self.messages_sent)
                or number > self.newest
            )
            self.on_close.append(number)
        else:
            assert number >= self.newest, "the stream went back in time"
            last = self.messages_sent[-1] if self.messages_sent else None
            assert last is None or (last.number, last.volume) != (number, one.volume), (
                "the stream sent the same bar twice"
            )
        self.messages_sent.append(one)
        return len(frame)

    take_frame = send_frame

    def send_reply(self, frame) -> None:
        raise AssertionError(frame.payload)

    def cancel_topic(self, topic) -> None:
        pass

    def cork(self, many) -> None:
        pass

    @property
    def newest(self) -> int:
        return max((one.number for one in self.messages_sent), default=0)

    def first(self, number: int) -> float:
        """When the first message about a minute came."""
        return next(one.at for one in self.messages_sent if one.number == number)

    def sequence(self) -> list[tuple[int, bool]]:
        """Minutes and whether they were closed, repetitions left out."""
        pairs = [(one.number, one.closes) for one in self.messages_sent]
        return [pair for at, pair in enumerate(pairs) if not at or pair != pairs[at - 1]]


class Streams:
    """A process with kline streams."""

    def __init__(self, one: Stage) -> None:
        self.one = one
        self.changes = 0
        catalog = MarketCatalog({"replay": [BTC.symbol]}, DEFAULT_INTERVALS)
        markets = BinanceMarkets(catalog, "replay")

        def make_reader(connection):
            socket = one.connect()
            socket.client._connection = connection
            return socket.client

        def publish(recipients, frame):
            for connection in list(recipients):
                connection.send_frame(frame)

        self.streams = KlineStreams(markets, one.bars, make_reader, publish, one.clock, one.limits)

    def connect(self, interval: str = "1m") -> RecordingListener:
        listener = RecordingListener(self.one.clock)
        self.streams.make_raw(listener, f"/ws/btcusdt@kline_{interval}")
        return listener

    async def wait(self, seconds: float) -> None:
        """Let time pass in larger steps than `Stage.wait`."""
        for _ in range(round(seconds * 10)):
            await self.one.clock.advance(0.1)
            self.one.hub.run_due()

    async def feed(self, number: int, seconds: float, final_until: int | None = None) -> None:
        """So many seconds of a minute that changes twice a second; `settled`: final are all minutes before it."""
        for _ in range(round(seconds * 2)):
            self.changes += 1
            self.one.push(minute(number, volume=str(self.changes), as_of=self.changes), final_until)
            await self.wait(0.5)


async def streams(minutes=FIRST, at_s: float = 0.0) -> Streams:
    """A process in which it is so many seconds after the first minute opened."""
    clock = ManualClock(MONDAY_MS + FIRST * MINUTE_MS + round(at_s * 1000))
    stored = Stored(minute(number, final=True) for number in range(minutes))
    return Streams(await Stage(stored, clock).start())


@pytest.mark.parametrize("settle_s", [0.0, 0.5, 1.5, 3.0, 6.0, 20.0, 45.0])
async def test_a_new_bar_does_not_wait_long_for_the_end_of_the_old_one_which_is_sent_when_it_is_known(settle_s):
    one = await streams()
    listener = one.connect()
    await one.feed(FIRST, 5)
    opened_at = one.one.clock.monotonic()
    await one.feed(FIRST + 1, settle_s)
    known_at = one.one.clock.monotonic()
    await one.feed(FIRST + 1, 60 - settle_s, final_until=FIRST + 1)
    assert listener.first(FIRST + 1) - opened_at <= FINAL_WAIT_S + 1.1
    ends = [
        messages_sent
        for messages_sent in listener.messages_sent
        if messages_sent.closes and messages_sent.number == FIRST
    ]
    assert len(ends) == 1
    assert ends[0].at - known_at <= 1.1
    late = settle_s > FINAL_WAIT_S
    before = [(FIRST - 1, True), (FIRST, False)]
    after = [(FIRST + 1, False), (FIRST, True), (FIRST + 1, False)] if late else [(FIRST, True), (FIRST + 1, False)]
    assert listener.sequence() == [*before, *after]


async def test_a_bar_closes_with_its_end_however_late_that_came():
    """A last version after the next bar began is not sent by itself, but it is what the bar closes with."""
    one = await streams()
    listener = one.connect()
    await one.feed(FIRST, 3)
    await one.feed(FIRST + 1, 4)
    one.one.push(minute(FIRST, volume="777", as_of=63_000), FIRST)
    await one.feed(FIRST + 1, 3)
    assert "777" not in {messages_sent.volume for messages_sent in listener.messages_sent}
    await one.feed(FIRST + 1, 3, final_until=FIRST + 1)
    assert [messages_sent.volume for messages_sent in listener.messages_sent if messages_sent.closes] == ["1", "777"]


@pytest.mark.parametrize("next_bar_is_there", [False, True])
async def test_a_bar_that_is_revised_after_its_close_is_not_sent_again(next_bar_is_there):
    one = await streams()
    listener = one.connect()
    await one.feed(FIRST, 3)
    one.one.push(minute(FIRST, volume="500", final=True), FIRST + 1)
    await one.wait(3)
    if next_bar_is_there:
        await one.feed(FIRST + 1, 4, final_until=FIRST + 1)
    before = len(listener.messages_sent)
    one.one.push(minute(FIRST, volume="501", as_of=90_000, final=True)._replace(rev=1), FIRST + 1)
    await one.wait(12)
    assert FIRST not in {messages_sent.number for messages_sent in listener.messages_sent[before:]}
    await one.feed(FIRST + 1, 4, final_until=FIRST + 1)
    assert [messages_sent.volume for messages_sent in listener.messages_sent if messages_sent.closes] == ["1", "500"]


@pytest.mark.parametrize(
    ("seconds", "begins"),
    [
        (0.5, [(FIRST, False)]),  # the new bar is not sent yet
        (1.5, [(FIRST, False)]),
        (4.0, [(FIRST, False), (FIRST + 1, False)]),  # which the close of the old one may follow
        (20.0, [(FIRST, False), (FIRST + 1, False)]),
    ],
)
@pytest.mark.parametrize("somebody_listens", [True, False])
async def test_a_connection_begins_with_each_bar_whose_close_is_still_to_come(seconds, begins, somebody_listens):
    one = await streams()
    if somebody_listens:
        one.connect()
    await one.feed(FIRST, 60)
    await one.feed(FIRST + 1, seconds)
    listener = one.connect()
    assert listener.sequence() == begins
    await one.feed(FIRST + 1, 5, final_until=FIRST + 1)
    assert listener.on_close == [FIRST]


@pytest.mark.slow
@pytest.mark.parametrize("stops_s", [-3.0, -0.5, 0.5, 1.5, 3.0, 5.0, 8.0])
@pytest.mark.parametrize("away_s", [0.5, 3.0, 30.0])
async def test_after_a_restart_around_a_minutes_end_no_stream_goes_back(stops_s, away_s):
    """`Ear` fails where time runs back or a bar closes twice; the close of the minute is not lost either."""
    before = await streams()
    await before.feed(FIRST, 60 + min(stops_s, 0))
    await before.feed(FIRST + 1, max(stops_s, 0))
    stored = before.one.stored
    stored.minutes |= {minute(FIRST).open_ms: minute(FIRST, volume="9", final=True)} if stops_s > 6 else {}
    at_s = 60 + stops_s + away_s
    after = Streams(await Stage(stored, ManualClock(MONDAY_MS + FIRST * MINUTE_MS + round(at_s * 1000))).start())
    after.one.facts = FeedMetadata(watermark_ms=MONDAY_MS + (FIRST + (stops_s > 6)) * MINUTE_MS)
    early = after.connect()
    running = FIRST if at_s < 60 else FIRST + 1
    if running > FIRST:  # the exchange's first answer shows both
        after.one.push(minute(FIRST, volume="9", as_of=60_000))
    after.one.push(minute(running, volume="1", as_of=1))
    late = after.connect()
    await after.feed(running, 6)
    later = after.connect()
    await after.feed(FIRST + 1, 4)
    await after.feed(FIRST + 1, 4, final_until=FIRST + 1)
    await after.feed(FIRST + 1, 45, final_until=FIRST + 1)
    await after.feed(FIRST + 2, 10, final_until=FIRST + 2)
    for listener in (early, late, later):
        assert listener.on_close[-1] == FIRST + 1
        assert stops_s > 6 or FIRST in listener.on_close


async def test_bars_that_end_in_a_burst_are_all_closed_in_order():
    one = await streams()
    listener = one.connect()
    for number in range(FIRST, FIRST + 9):
        one.one.push(minute(number, volume="3", final=True), number + 1)
    await one.wait(20)
    assert listener.on_close == list(range(FIRST - 1, FIRST + 9))


async def test_bars_whose_finality_is_unknown_for_long_are_closed_in_order_when_it_is_known():
    one = await streams()
    listener = one.connect()
    for number in range(FIRST, FIRST + 5):
        await one.feed(number, 10)
        assert listener.newest == number
    await one.feed(FIRST + 5, 5, final_until=FIRST + 5)
    assert listener.on_close == list(range(FIRST - 1, FIRST + 5))


async def test_a_bar_with_a_gap_is_never_closed_once_a_later_one_is():
    one = await streams()
    listener = one.connect()
    await one.feed(FIRST, 10)
    gap = Range(MONDAY_MS + FIRST * MINUTE_MS, MONDAY_MS + (FIRST + 1) * MINUTE_MS)
    one.one.settle(FIRST + 1, gap)
    await one.feed(FIRST + 1, 30)
    one.one.settle(FIRST + 2, gap)
    await one.feed(FIRST + 2, 10)
    one.one.settle(FIRST + 2)
    await one.feed(FIRST + 2, 10)
    assert listener.on_close == [FIRST - 1, FIRST + 1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20 if LONG else 8))
async def test_whatever_a_feed_does_time_goes_forward_and_each_bar_closes_with_its_end(seed):
    draw = random.Random(seed)
    one = await streams()
    listeners = [one.connect()]
    current: dict[int, str] = {}
    final_until, number = FIRST, FIRST
    for _ in range(400):
        match draw.randint(0, 9):
            case 0:
                number += draw.choice([1, 1, 1, 2])
            case 1:
                final_until = max(final_until, draw.randint(final_until, number))
            case 2:
                listeners.append(one.connect(draw.choice(["1m", "1m", "5m"])))
        changed = number if draw.random() < 0.8 else draw.randint(max(final_until, number - 2), number)
        current[changed] = str(draw.randint(1, 5))
        one.one.push(minute(changed, volume=current[changed], as_of=draw.randint(0, 120_000)), final_until)
        await one.wait(draw.choice([0.1, 0.3, 1.0]))
    one.one.push(minute(number + 1, volume="1"), number + 1)
    await one.wait(30)
    assert listeners[0].on_close[-1] == number
    closed = listeners[0].on_close
    assert len(closed) >= 0.7 * len(
        {messages_sent.number for messages_sent in listeners[0].messages_sent if messages_sent.number < number}
    )


# ---------------------------------------------------------------- the pure order


def test_no_more_bars_wait_to_be_closed_than_a_reader_can_use():
    order = KlineOrder()
    for number in range(50):
        assert order.take(minute(number), final=False)
    assert len(order.unclosed) == MOST_UNCLOSED
    assert not order.close(minute(0).open_ms)
    assert order.close(order.unclosed[-1])
    assert order.unclosed == ()


@pytest.mark.parametrize(
    ("steps", "sent"),
    [
        ([(0, "1", False), (0, "1", False), (0, "2", False)], [True, False, True]),  # the same is not said twice
        ([(0, "1", False), (0, "1", True), (0, "2", True)], [True, True, False]),  # nothing follows the end
        ([(1, "1", False), (0, "1", True)], [True, False]),  # no step back
        ([(0, "1", False), (2, "1", True), (1, "1", True)], [True, True, False]),
    ],
)
def test_states_are_sent_or_not(steps, sent):
    order = KlineOrder()
    assert [order.take(minute(at, volume=volume), final=final) for at, volume, final in steps] == sent
