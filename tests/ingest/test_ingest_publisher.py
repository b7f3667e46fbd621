"""What leaves ingest, in which order, and what its messages say of the log of changes."""

import asyncio

from candled.bus import HistoryChanged, MinuteChanged, StateChanged
from candled.bus.memory_bus import MemoryBus
from candled.ingest.market import Outcome
from candled.ingest.publisher import IngestPublisher
from candled.model import MINUTE_MS, Decimals, Position, Range
from candled.store.interface import SEQ_UNPUBLISHED
from tests.clocks import ManualClock
from tests.ingest.test_market import at, market, push
from tests.rows import MONDAY_MS, minute


class PastStore:
    """A store that keeps nothing, and a diary of what it was asked for."""

    def __init__(self) -> None:
        self.diary: list[tuple] = []

    def enqueue_row(self, market, candle, *, changes=None) -> bool:
        self.diary.append(("put", candle.open_ms, candle.final, changes))
        return True

    async def flush(self) -> None:
        self.diary.append(("flush",))

    async def flush_market(self, market) -> None:
        self.diary.append(("flush",))

    async def register_feed(self, markets, epoch) -> None:
        self.diary.append(("open", epoch))

    async def log_changes(self, market, epoch, changes) -> None:
        self.diary.append(("note", epoch, changes))

    async def save_coverage(self, market, since_ms, known_gaps, within) -> None:
        self.diary.append(("coverage", since_ms))


class PublisherHarness:
    """An outlet with everything around it."""

    def __init__(self) -> None:
        self.clock = ManualClock(MONDAY_MS)
        self.bus = MemoryBus("one")
        self.received: list[tuple] = []
        self.bus.add_listener(self)
        self.keeper = PastStore()
        self.market = market()
        self.outlet = IngestPublisher(self.bus, self.keeper, self.clock, checkpoint_ms=5_000)
        self.outlet.open_market(self.market, minute(599).open_ms, at(36_000))

    def on_feed_message(self, message, position) -> None:
        self.received.append((message, position))

    def minutes(self) -> list[tuple]:
        return [(message, position) for message, position in self.received if isinstance(message, MinuteChanged)]


def test_a_new_minute_at_the_live_edge_is_published_and_stored_and_changes_no_past():
    harness = PublisherHarness()
    harness.outlet.publish_live(harness.market, push(harness.market, minute(600, as_of=10_000), seconds=36_010).live)
    harness.outlet.publish_live(
        harness.market, push(harness.market, minute(600, as_of=67_000, final=True), seconds=36_067).live
    )
    assert [entry[2:] for entry in harness.keeper.diary] == [(False, None), (True, None)]
    assert [message.metadata.watermark_ms for message, _ in harness.minutes()] == [
        minute(600).open_ms,
        minute(601).open_ms,
    ]


def test_no_minute_is_final_before_the_message_with_its_end():
    """The stream comes back with four minutes at once, one of which was told as it began."""
    harness = PublisherHarness()
    harness.outlet.publish_live(harness.market, push(harness.market, minute(601, as_of=5_000), seconds=36_065).live)
    back = [minute(number, "12", as_of=200_000) for number in (600, 601, 602, 603)]
    harness.outlet.publish_live(harness.market, push(harness.market, *back, seconds=36_200, snapshot=True).live)
    published = {message.candle.open_ms: message.candle for message, _ in harness.minutes()}
    assert [message.candle.open_ms for message, _ in harness.minutes()][1:] == [one.open_ms for one in back]
    shown: dict[int, object] = {}
    for message, _ in harness.minutes():
        shown[message.candle.open_ms] = message.candle.values
        for open_ms, values in shown.items():
            is_final = message.metadata.is_range_final(open_ms, open_ms + MINUTE_MS)
            assert not is_final or values == published[open_ms].values
    assert [message.metadata.watermark_ms for message, _ in harness.minutes()][-1] == minute(603).open_ms
    assert harness.minutes()[-1][0].metadata.gap is None


def test_a_revision_is_published_immediately_and_stored_as_a_change_of_the_past():
    harness = PublisherHarness()
    harness.outlet.publish_live(
        harness.market, push(harness.market, minute(600, as_of=67_000, final=True), seconds=36_067).live
    )
    harness.outlet.publish_live(
        harness.market, push(harness.market, minute(600, "12", as_of=70_000, final=True), seconds=36_070).live
    )
    (_, first), (message, second) = harness.minutes()
    assert (message.candle.rev, second.seq) == (1, first.seq + 1)
    assert [entry[3] for entry in harness.keeper.diary] == [None, second]


async def test_messages_have_the_position_of_the_log():
    harness = PublisherHarness()
    assert [message.metadata.logged_seq for message, _ in harness.minutes()] == []
    running = asyncio.ensure_future(harness.outlet.run())
    await harness.clock.advance(1)  # the feed is registered
    harness.outlet.publish_live(
        harness.market, push(harness.market, minute(600, as_of=67_000, final=True), seconds=36_067).live
    )
    harness.outlet.publish_live(
        harness.market, push(harness.market, minute(600, "12", as_of=70_000, final=True), seconds=36_070).live
    )
    harness.outlet.publish_live(harness.market, push(harness.market, minute(601, as_of=11_000), seconds=36_071).live)
    revised = harness.minutes()[1][1].seq
    assert harness.minutes()[2][0].metadata.logged_seq == revised - 1
    await harness.clock.advance(1)  # flushed
    harness.outlet.publish_live(
        harness.market, push(harness.market, minute(601, volume="2", as_of=12_000), seconds=36_072).live
    )
    assert harness.minutes()[3][0].metadata.logged_seq >= revised
    assert ("open", "one") in harness.keeper.diary
    running.cancel()


async def test_a_repaired_past_is_in_the_log_before_it_is_stored_and_published_after():
    harness = PublisherHarness()
    outcome = Outcome(past=[minute(number, final=True) for number in (3, 4)], repaired=Range(MONDAY_MS, at(600)))
    harness.outlet.publish_live(
        harness.market, push(harness.market, minute(600, as_of=10_000), seconds=36_010).live, outcome.past_range
    )
    assert harness.minutes()[-1][0].metadata.gap == outcome.past_range  # it is not published yet
    harness.keeper.diary.clear()
    await harness.outlet.publish_repair(harness.market, outcome)
    unknown = Position("one", SEQ_UNPUBLISHED)
    published = next(position for message, position in harness.received if isinstance(message, HistoryChanged))
    assert harness.keeper.diary == [
        ("put", minute(3).open_ms, True, unknown),
        ("put", minute(4).open_ms, True, unknown),
        ("flush",),
        ("coverage", MONDAY_MS),
        ("note", "one", [(published.seq, Range(minute(3).open_ms, minute(4).open_ms + MINUTE_MS))]),
    ]


async def test_healing_can_be_cancelled_while_it_is_logged():
    harness = PublisherHarness()
    reached, never = asyncio.Event(), asyncio.Event()

    async def note_changes(market, epoch, changes) -> None:
        reached.set()
        await never.wait()

    harness.keeper.log_changes = note_changes
    outcome = Outcome(past=[minute(3, final=True)], repaired=Range(MONDAY_MS, at(600)))
    harness.outlet.publish_live(harness.market, [], outcome.past_range)
    healing = asyncio.ensure_future(harness.outlet.publish_repair(harness.market, outcome))
    await reached.wait()
    healing.cancel()
    assert [type(one) for one in await asyncio.gather(healing, return_exceptions=True)] == [asyncio.CancelledError]


async def test_while_a_store_is_slow_one_save_is_under_way():
    harness, turns = PublisherHarness(), asyncio.Event()

    async def flush_market(market) -> None:
        await turns.wait()

    harness.keeper.flush_market = flush_market
    harness.market.coverage.extend_since(MONDAY_MS - MINUTE_MS)
    assert not harness.outlet.has_published(harness.market)
    saving = asyncio.ensure_future(harness.outlet.publish_repair(harness.market, Outcome()))
    assert harness.outlet.has_published(harness.market)  # before the task begins, so no push begins another one
    await asyncio.sleep(0)
    assert harness.outlet.has_published(harness.market)
    harness.market.coverage.extend_since(MONDAY_MS - 2 * MINUTE_MS)
    turns.set()
    await saving
    assert not harness.outlet.has_published(harness.market)
    await harness.outlet.publish_repair(harness.market, Outcome())
    assert harness.outlet.has_published(harness.market)


def test_the_state_is_published_when_it_changes_and_again_for_later_processes():
    harness = PublisherHarness()
    push(harness.market, minute(600, as_of=10_000), seconds=36_010)
    for seconds in (36_011, 36_012, 36_022, 36_030):
        harness.outlet.publish_state(harness.market, at(seconds))
    states = [(one.state, one.since_ms) for one, _ in harness.received if isinstance(one, StateChanged)]
    assert states == [("stale", at(36_000)), ("live", at(36_011)), ("live", at(36_011))]
    assert harness.outlet.state_since_ms(harness.market) == at(36_011)


def test_decimals_are_published_with_the_state_as_soon_as_the_exchange_named_them():
    harness = PublisherHarness()
    push(harness.market, minute(600, as_of=10_000), seconds=36_010)
    harness.outlet.publish_state(harness.market, at(36_011))
    harness.market.decimals = Decimals(2, 6)
    for seconds in (36_012, 36_013, 36_023):
        harness.outlet.publish_state(harness.market, at(seconds))
    published = [(one.decimals, one.since_ms) for one, _ in harness.received if isinstance(one, StateChanged)][1:]
    assert published == [(Decimals(), at(36_011)), ((2, 6), at(36_011)), ((2, 6), at(36_011))]
