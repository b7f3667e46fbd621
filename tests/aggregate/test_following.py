"""What changed since a client was cut off, and what a process does that has lost messages."""

import pytest

from candled.aggregate.live_bars import LiveBars
from candled.aggregate.resume import MOST_RESUMED
from candled.bus import FeedMetadata, HistoryChanged, Message, MessagesLost, MinuteChanged
from candled.errors import StoreRejected, StoreUnavailable
from candled.model import (
    DEFAULT_INTERVALS,
    MINUTE,
    MINUTE_MS,
    Candle,
    Interval,
    MarketKey,
    Position,
    Range,
    RangeSet,
    Symbol,
)
from tests.clocks import ManualClock
from tests.rooms.stage import Stored
from tests.rows import MONDAY_MS, minute

BTC = MarketKey("replay", Symbol("BTC", "USDT"))
FIVE = Interval.parse("5m")


def at(number: int) -> int:
    return MONDAY_MS + number * MINUTE_MS


class Logged(Stored):
    """A history with a log of changes and known holes."""

    def __init__(self, minutes=(), **options) -> None:
        super().__init__(minutes, **options)
        self.log: dict[tuple[str, int], list[Range]] = {}  # by position: what changed since
        self.absent: list = []

    async def changes_since(self, market, epoch, seq, **_):
        return self.log.get((epoch, seq))

    async def known_gaps(self, market, within):
        return self.absent


class Process:
    """Live bars that hear what a test says of the feed, one message after the other."""

    def __init__(self, minutes: int = 60) -> None:
        self.stored = Logged(minute(number, final=True) for number in range(minutes))
        self.clock = ManualClock(MONDAY_MS + minutes * MINUTE_MS)
        self.bars = LiveBars([BTC], DEFAULT_INTERVALS, self.stored, self.clock)
        self.seq = 0
        self.epoch = "one"

    async def start(self) -> "Process":
        await self.bars.start()
        return self

    def publish_message(self, message: Message) -> Position:
        self.seq += 1
        position = Position(self.epoch, self.seq)
        self.bars.on_feed_message(message, position)
        return position

    def minute(self, candle: Candle, *, received: bool = True, logged: int | None = None) -> Position:
        """A minute changes; a final one is stored too. What was told before it is in the log."""
        if candle.final:
            self.stored.minutes[candle.open_ms] = candle
        metadata = FeedMetadata(candle.open_ms + MINUTE_MS * candle.final, None, self.seq if logged is None else logged)
        if received:
            return self.publish_message(MinuteChanged(BTC, candle, metadata))
        self.seq += 1
        return Position(self.epoch, self.seq)

    async def since(self, position: Position, newest: int, interval: Interval = MINUTE) -> list[int] | None:
        """The numbers of the minutes at which the changed bars begin, for a client whose newest bar begins there."""
        time_ms = interval.floor(MONDAY_MS + newest * MINUTE_MS)
        resume = await self.bars.prepare_resume(BTC, interval, position, time_ms)
        bars = None if resume is None else self.bars.bars_since(BTC, interval, resume)
        return None if bars is None else [(bar.open_ms - MONDAY_MS) // MINUTE_MS for bar in bars]


async def test_from_memory_come_exactly_the_bars_that_changed():
    one = await Process().start()
    seen = one.minute(minute(60, volume="2", as_of=10_000))
    assert await one.since(seen, 60) == []
    one.minute(minute(60, volume="3", final=True))
    one.minute(minute(61, volume="1", as_of=500))
    assert await one.since(seen, 60) == [60, 61]
    assert await one.since(seen, 60, FIVE) == [60]
    one.minute(minute(30, "12", volume="5", final=True, as_of=90_000))
    assert await one.since(seen, 60) == [30, 60, 61]
    assert await one.since(seen, 60, FIVE) == [30, 60]


@pytest.mark.slow
async def test_bars_older_than_memory_come_from_the_store():
    one = await Process().start()
    seen = one.minute(minute(60, volume="2", as_of=10_000))
    for number in range(60, 1700):
        one.minute(minute(number, final=True))
    assert one.bars.newest_times(BTC, MINUTE, 2000)[0] > MONDAY_MS + 400 * MINUTE_MS
    assert await one.since(seen, 60) == list(range(60, 1700))


@pytest.mark.slow
async def test_more_than_a_chart_can_use_is_not_resumed():
    one = await Process().start()
    seen = one.minute(minute(60, volume="2", as_of=10_000))
    for number in range(60, 62 + MOST_RESUMED):
        one.minute(minute(number, final=True))
    assert await one.since(seen, 60) is None


async def test_bars_become_final_for_a_client_that_was_away_when_history_became_complete():
    one = Process()
    one.stored.since = at(40)
    await one.start()
    seen = one.minute(minute(60, volume="2", as_of=10_000))
    one.publish_message(HistoryChanged(BTC, at(0), at(1), at(0), FeedMetadata(at(60), None, 1)))
    await one.clock.advance(1)
    assert one.bars.is_range_final(BTC, at(0), at(60))
    resume = await one.bars.prepare_resume(BTC, MINUTE, seen, at(60))
    assert resume is not None
    final = one.bars.became_final(BTC, resume)
    assert list(final.common(RangeSet([(at(0), at(40))]))) == [Range(at(0), at(40))]


async def test_a_position_that_was_not_followed_is_answered_from_the_log():
    one = await Process().start()
    one.seq = 100
    one.minute(minute(60, volume="2", as_of=10_000), logged=101)
    await one.clock.advance(10)
    one.stored.log["one", 90] = [Range(MONDAY_MS + 7 * MINUTE_MS, MONDAY_MS + 9 * MINUTE_MS)]
    assert await one.since(Position("one", 90), 58) == [7, 8, *range(48, 61)]
    assert await one.since(Position("gone", 90), 58) is None


async def test_a_log_that_may_lack_messages_this_process_missed_is_not_believed():
    one = await Process().start()
    one.seq = 100
    one.minute(minute(60, volume="2", as_of=10_000), logged=99)
    one.stored.log["one", 90] = []

    async def turn():
        for _ in range(30):
            await one.clock.advance(1)

    import asyncio

    asked = asyncio.ensure_future(one.since(Position("one", 90), 58))
    await turn()
    assert await asked is None


async def test_lost_messages_are_made_up_for_from_the_store():
    one = await Process().start()
    one.minute(minute(60, volume="2", as_of=10_000))
    seen = one.bars.feed_position(BTC)
    one.minute(minute(60, volume="3", final=True), received=False)
    one.minute(minute(61, volume="4", final=True), received=False)
    one.minute(minute(62, volume="1", as_of=500))
    assert one.bars.feed_position(BTC) == seen  # no client may learn a position whose changes are missing
    assert one.bars.describe_recovery()["catchingUp"] == 1
    one.stored.log[tuple(seen)] = []
    await one.clock.advance(1)
    assert one.bars.describe_recovery() == {"healed": 1, "catchingUp": 0}
    assert [bar.volume for bar in one.bars.newest_bars(BTC, MINUTE, 3)] == [3, 4, 1]
    assert one.bars.feed_position(BTC) == ("one", 4)
    assert await one.since(seen, 60) == [60, 61, 62]


async def test_a_past_that_changed_in_lost_messages_is_found_in_the_log():
    one = await Process().start()
    one.minute(minute(60, volume="2", as_of=10_000))
    seen = one.bars.feed_position(BTC)
    one.minute(minute(5, "12", volume="9", final=True, as_of=90_000), received=False)
    one.stored.log[tuple(seen)] = [Range(MONDAY_MS + 5 * MINUTE_MS, MONDAY_MS + 6 * MINUTE_MS)]
    one.minute(minute(60, volume="3", as_of=12_000))
    await one.clock.advance(1)
    assert one.bars.get_bar(BTC, MINUTE, MONDAY_MS + 5 * MINUTE_MS).volume == 9
    assert await one.since(seen, 60) == [5, 60]


async def test_a_log_that_does_not_know_a_feed_yet_is_asked_from_the_end_of_the_one_before():
    """As after a takeover: else everything that is held would count as changed, and nobody could resume."""
    one = await Process().start()
    seen = one.minute(minute(60, volume="2", as_of=10_000))
    one.epoch, one.seq = "two", 0
    one.minute(minute(60, volume="3", as_of=20_000))
    one.bars.on_feed_message(MessagesLost(BTC), Position("two", 1))
    one.stored.log[tuple(seen)] = []
    await one.clock.advance(5)
    one.bars.on_feed_message(MessagesLost(BTC), Position("two", 1))
    await one.clock.advance(5)
    assert one.bars.describe_recovery() == {"healed": 2, "catchingUp": 0}
    assert await one.since(seen, 60) == [60]


async def test_a_change_that_is_not_in_the_log_yet_is_waited_for():
    one = await Process().start()
    seen = one.minute(minute(60, volume="2", as_of=10_000))
    one.stored.log[tuple(seen)] = []
    one.seq += 1  # a change of minute 5 was told, and not heard
    one.minute(minute(60, volume="3", as_of=12_000), logged=1)
    await one.clock.advance(1)
    assert one.bars.describe_recovery()["catchingUp"] == 1
    changed = minute(5, "12", volume="9", final=True, as_of=90_000)
    one.stored.minutes[changed.open_ms] = changed
    one.stored.log[tuple(seen)] = [Range(changed.open_ms, changed.open_ms + MINUTE_MS)]
    one.minute(minute(60, volume="4", as_of=14_000), logged=3)
    await one.clock.advance(2)
    assert one.bars.describe_recovery() == {"healed": 1, "catchingUp": 0}
    assert one.bars.get_bar(BTC, MINUTE, changed.open_ms).volume == 9


async def test_where_the_log_stays_behind_everything_cached_is_read_again():
    one = await Process().start()
    seen = one.minute(minute(60, volume="2", as_of=10_000))
    one.stored.log[tuple(seen)] = []
    one.minute(minute(5, "12", volume="9", final=True, as_of=90_000), received=False)
    one.minute(minute(60, volume="3", as_of=12_000), logged=1)
    await one.clock.advance(6)
    assert one.bars.describe_recovery()["catchingUp"] == 1
    await one.clock.advance(2)
    assert one.bars.describe_recovery() == {"healed": 1, "catchingUp": 0}
    assert one.bars.get_bar(BTC, MINUTE, MONDAY_MS + 5 * MINUTE_MS).volume == 9


async def test_without_a_log_everything_cached_is_read_again():
    one = await Process().start()
    one.minute(minute(60, volume="2", as_of=10_000))
    one.minute(minute(5, "12", volume="9", final=True, as_of=90_000), received=False)
    one.minute(minute(60, volume="3", as_of=12_000))
    await one.clock.advance(1)
    assert one.bars.get_bar(BTC, MINUTE, MONDAY_MS + 5 * MINUTE_MS).volume == 9
    assert one.bars.describe_recovery() == {"healed": 1, "catchingUp": 0}


async def test_what_is_not_stored_yet_is_looked_for_until_it_is():
    one = await Process().start()
    one.minute(minute(60, volume="2", as_of=10_000))
    late = minute(60, volume="3", final=True)
    one.seq += 1  # told, not heard, and the store is behind
    one.publish_message(MinuteChanged(BTC, minute(61, volume="1", as_of=500), FeedMetadata(MONDAY_MS + 61 * MINUTE_MS)))
    await one.clock.advance(5)
    assert one.bars.describe_recovery()["catchingUp"] == 1
    one.stored.minutes[late.open_ms] = late
    await one.clock.advance(20)
    assert one.bars.describe_recovery() == {"healed": 1, "catchingUp": 0}
    assert [bar.volume for bar in one.bars.newest_bars(BTC, MINUTE, 2)] == [3, 1]


async def test_a_minute_the_exchange_does_not_have_is_not_waited_for():
    one = await Process().start()
    one.minute(minute(60, final=True))
    one.seq += 1
    one.stored.absent = [Range(MONDAY_MS + 61 * MINUTE_MS, MONDAY_MS + 62 * MINUTE_MS)]
    one.publish_message(
        MinuteChanged(BTC, minute(62, volume="1", as_of=500), FeedMetadata(MONDAY_MS + 62 * MINUTE_MS, None, 2))
    )
    await one.clock.advance(2)
    assert one.bars.describe_recovery() == {"healed": 1, "catchingUp": 0}


async def test_at_a_first_start_only_minutes_behind_the_gap_are_waited_for():
    """Whoever serves hears of the newest minutes while history is being filled, and of those perhaps not all."""
    one = Process(0)
    one.stored.since = None
    await one.start()
    one.bars.on_feed_message(MessagesLost(BTC), Position("one", 0))
    gap = Range(at(0), at(58))
    one.seq += 3  # minutes 58 to 60 were told, and not heard
    one.publish_message(MinuteChanged(BTC, minute(61, volume="4", as_of=500), FeedMetadata(at(61), gap)))
    await one.clock.advance(2)
    assert one.bars.describe_recovery()["catchingUp"] == 1
    for number in (58, 59, 60):
        one.stored.minutes[at(number)] = minute(number, final=True)
    await one.clock.advance(8)
    assert one.bars.describe_recovery()["catchingUp"] == 0
    one.stored.since = at(0)
    for number in range(58):
        one.stored.minutes[at(number)] = minute(number, final=True)
    one.publish_message(HistoryChanged(BTC, at(0), at(58), at(0), FeedMetadata(at(61))))
    await one.clock.settle()
    assert [bar.open_ms for bar in one.bars.newest_bars(BTC, MINUTE, 100)] == [at(number) for number in range(62)]


async def test_minutes_lost_within_a_gap_are_read_before_their_bars_are_final():
    """The gap of a message reaches from the first missing minute to the last, over minutes that were published."""
    one = Process(0)
    one.stored.since = None
    await one.start()
    one.bars.on_feed_message(MessagesLost(BTC), Position("one", 0))
    one.seq += 2  # minutes 56 and 57 are published and lost
    one.publish_message(MinuteChanged(BTC, minute(58, final=True), FeedMetadata(at(61), Range(at(0), at(61)), 2)))
    await one.clock.advance(8)
    assert one.bars.describe_recovery()["catchingUp"] == 0
    for number, gap_end in ((59, 61), (60, 56)):
        one.publish_message(
            MinuteChanged(BTC, minute(number, final=True), FeedMetadata(at(61), Range(at(0), at(gap_end)), one.seq))
        )
    one.stored.since = at(0)
    for number in (*range(56), 58, 59, 60):
        one.stored.minutes[at(number)] = minute(number, final=True)
    one.publish_message(HistoryChanged(BTC, at(0), at(56), at(0), FeedMetadata(at(61), None, one.seq)))
    await one.clock.advance(5)
    bar = one.bars.get_bar(BTC, FIVE, at(55))
    assert (bar.volume, one.bars.is_final(BTC, FIVE, bar)) == (3, False)
    for number in (56, 57):
        one.stored.minutes[at(number)] = minute(number, final=True)
    await one.clock.advance(30)
    bar = one.bars.get_bar(BTC, FIVE, at(55))
    assert (bar.volume, one.bars.is_final(BTC, FIVE, bar)) == (5, True)


async def test_a_stored_forming_minute_is_no_evidence_of_the_minutes_before_it():
    """As at a first start: the forming minute was stored, and the final ones before it were published, not stored."""
    one = Process(0)
    one.stored.since, one.stored.unfinished = None, [minute(60, volume="1")]
    await one.start()
    one.bars.on_feed_message(MessagesLost(BTC), Position("one", 0))
    one.seq += 60  # minutes up to 59 are published and lost
    one.publish_message(MinuteChanged(BTC, minute(60, volume="2"), FeedMetadata(at(60), Range(at(0), at(30)), 60)))
    one.stored.since = at(0)
    for number in range(60):
        one.stored.minutes[at(number)] = minute(number, final=True)
    one.publish_message(HistoryChanged(BTC, at(0), at(30), at(0), FeedMetadata(at(60), None, one.seq)))
    await one.clock.advance(30)
    assert [bar.open_ms for bar in one.bars.newest_bars(BTC, MINUTE, 100)] == [at(number) for number in range(61)]


async def test_before_anything_is_known_of_history_what_was_lost_is_looked_for():
    one = Process(0)
    one.stored.since = None
    await one.start()
    one.seq += 1
    one.publish_message(MinuteChanged(BTC, minute(61, volume="4", as_of=500), FeedMetadata(at(61))))
    await one.clock.advance(2)
    assert one.bars.describe_recovery()["catchingUp"] == 1
    one.stored.since = at(60)
    one.stored.minutes[at(60)] = minute(60, final=True)
    await one.clock.advance(8)
    assert one.bars.describe_recovery() == {"healed": 1, "catchingUp": 0}


async def test_the_bus_itself_may_report_that_messages_were_missed():
    one = await Process().start()
    one.minute(minute(60, final=True))
    one.stored.minutes[minute(61).open_ms] = minute(61, volume="7", final=True)
    one.bars.on_feed_message(MessagesLost(BTC), Position("one", 1))
    await one.clock.advance(2)
    assert [bar.volume for bar in one.bars.newest_bars(BTC, MINUTE, 2)] == [1, 7]
    assert one.bars.describe_recovery()["healed"] == 1


async def test_a_position_is_published_only_once_a_repaired_range_was_read():
    one = await Process().start()
    before = one.minute(minute(60, volume="2", as_of=10_000))
    one.publish_message(
        HistoryChanged(BTC, MONDAY_MS, MONDAY_MS + MINUTE_MS, MONDAY_MS, FeedMetadata(MONDAY_MS + 60 * MINUTE_MS))
    )
    assert one.bars.feed_position(BTC) == before
    await one.clock.settle()
    assert one.bars.feed_position(BTC) == ("one", 2)


async def test_a_bar_that_history_cuts_is_not_published():
    """Its first minutes are before the time from which on history is complete."""
    one = Process(20)
    one.stored.since = at(7)
    await one.start()
    notified: list[int] = []

    class RecordingListener:
        def on_history_changed(self, market, interval, bars):
            notified.extend(bar.open_ms for bar in bars if interval == FIVE)

        def on_finality(self, market): ...
        def on_bars_changed(self, market, changes): ...

    one.bars.add_listener(RecordingListener())
    for number in (8, 12):
        one.stored.minutes[at(number)] = minute(number, "12", volume="9", final=True, as_of=90_000)
    one.publish_message(HistoryChanged(BTC, at(7), at(20), at(7), FeedMetadata(at(20))))
    await one.clock.settle()
    assert notified == [at(10)]
    assert one.bars.get_bar(BTC, FIVE, at(5)) is None
    assert one.bars.get_bar(BTC, FIVE, at(10)).open_ms == at(10)


@pytest.mark.parametrize("is_read", [False, True])
async def test_a_long_repair_is_read_into_memory_only_for_the_clients_of_a_market(is_read):
    one = await Process().start()
    one.minute(minute(900, as_of=10_000))
    if is_read:
        one.bars.newest_bars(BTC, MINUTE, 1)
    one.stored.minutes |= {at(number): minute(number, final=True) for number in range(900)}
    one.publish_message(HistoryChanged(BTC, at(0), at(900), at(0), FeedMetadata(at(900))))
    await one.clock.settle()
    assert one.bars.is_loaded(BTC, MINUTE, 120)
    assert one.bars.is_loaded(BTC, MINUTE, 800) is is_read
    for interval, count in ((MINUTE, 901), (FIVE, 181)):
        await one.bars.load_bars(BTC, interval, count, 0.0)
        assert one.bars.newest_times(BTC, interval, count)[0] == at(0)
    assert one.bars.newest_bars(BTC, FIVE, 2)[0].volume == 5


async def test_a_bar_is_final_when_its_minutes_are_and_none_is_missing():
    one = await Process().start()
    (bar,) = one.bars.newest_bars(BTC, FIVE, 1)
    assert one.bars.is_final(BTC, FIVE, bar)
    gap = Range(bar.open_ms + MINUTE_MS, bar.open_ms + 2 * MINUTE_MS)
    one.publish_message(MinuteChanged(BTC, minute(62, as_of=500), FeedMetadata(MONDAY_MS + 62 * MINUTE_MS, gap)))
    assert not one.bars.is_final(BTC, FIVE, bar)
    one.publish_message(MinuteChanged(BTC, minute(62, as_of=900), FeedMetadata(MONDAY_MS + 62 * MINUTE_MS)))
    assert one.bars.is_final(BTC, FIVE, bar)
    assert not one.bars.is_final(BTC, FIVE, one.bars.newest_bars(BTC, FIVE, 1)[0])


async def test_a_bar_is_not_shown_before_all_its_minutes_are_read():
    one = Process()
    one.stored.minutes = {open_ms: candle for open_ms, candle in one.stored.minutes.items() if open_ms >= at(7)}
    one.stored.since = at(7)
    await one.start()
    quarter = Interval.parse("15m")
    assert one.bars.newest_times(BTC, quarter, 9)[0] == at(15)
    one.stored.minutes |= {minute(number).open_ms: minute(number, final=True) for number in range(7)}
    one.publish_message(HistoryChanged(BTC, at(0), at(7), at(0), FeedMetadata(at(60))))
    assert one.bars.newest_times(BTC, quarter, 9)[0] == at(15)
    await one.clock.settle()
    assert [bar.volume for bar in one.bars.newest_bars(BTC, quarter, 9)] == [15] * 4


async def test_no_bar_is_final_while_its_minutes_are_being_read():
    one = await Process().start()
    (bar,) = one.bars.newest_bars(BTC, FIVE, 1)
    notified: list[bool] = []

    class Listener:
        def on_bars_changed(self, *_) -> None: ...
        def on_history_changed(self, *_) -> None: ...
        def on_state_changed(self, *_) -> None: ...
        def on_finality(self, key) -> None:
            notified.append(one.bars.is_final(BTC, FIVE, bar))

    one.bars.add_listener(Listener())
    one.publish_message(HistoryChanged(BTC, bar.open_ms, bar.open_ms + MINUTE_MS, MONDAY_MS, FeedMetadata(at(60))))
    assert not one.bars.is_final(BTC, FIVE, bar)
    await one.clock.settle()
    assert one.bars.is_final(BTC, FIVE, bar)
    assert notified[-1]


@pytest.mark.parametrize("problem", [StoreUnavailable("away"), StoreRejected("permission denied")])
async def test_a_repair_that_cannot_be_read_is_read_later_and_logged_once(problem, caplog):
    one = await Process().start()
    one.stored.minutes[at(30)] = minute(30, volume="77", final=True)
    read, one.stored.read_bars_between = one.stored.read_bars_between, _fail_with(problem)
    one.publish_message(HistoryChanged(BTC, at(30), at(31), MONDAY_MS, FeedMetadata(at(60))))
    for _ in range(5):
        await one.clock.settle()
        await one.clock.advance(1.0)
    assert len(caplog.records) == 1
    one.stored.read_bars_between = read
    await one.clock.advance(2.0)
    bar = one.bars.get_bar(BTC, MINUTE, at(30))
    assert bar.volume == 77
    assert one.bars.is_final(BTC, MINUTE, bar)


@pytest.mark.parametrize("problem", [StoreUnavailable("away"), StoreRejected("permission denied")])
async def test_bars_that_cannot_be_loaded_at_the_start_are_loaded_later_and_logged_once(problem, caplog):
    one = Process()
    read, one.stored.complete_from = one.stored.complete_from, _fail_with(problem)
    await one.start()
    for _ in range(5):
        await one.clock.advance(1.0)
    assert not one.bars.is_loaded(BTC, MINUTE, 10)
    assert len(caplog.records) == 1
    one.stored.complete_from = read
    await one.clock.advance(2.0)
    assert len(one.bars.newest_bars(BTC, MINUTE, 10)) == 10


def _fail_with(problem: Exception):
    async def fail(*_):
        raise problem

    return fail


async def test_no_bar_that_may_lack_lost_messages_is_final():
    one = await Process().start()
    one.minute(minute(60, volume="2", as_of=10_000))
    one.seq += 1
    one.publish_message(MinuteChanged(BTC, minute(65, volume="1", as_of=500), FeedMetadata(at(65))))
    queued, late = one.bars.get_bar(BTC, MINUTE, at(50)), one.bars.get_bar(BTC, MINUTE, at(60))
    assert one.bars.is_final(BTC, MINUTE, queued)
    assert not one.bars.is_final(BTC, MINUTE, late)


async def test_a_market_whose_numbers_were_forged_goes_on_once_the_bus_reports_its_position():
    one = await Process().start()
    one.minute(minute(60, volume="1"))
    one.bars.on_feed_message(MinuteChanged(BTC, minute(60, volume="2")), Position("one", 1_000_000))
    one.bars.on_feed_message(MessagesLost(BTC, back_to=Position("one", one.seq)), Position("one", one.seq))
    one.minute(minute(60, volume="3"))
    assert str(one.bars.get_bar(BTC, MINUTE, at(60)).volume) == "3"
    assert one.bars.feed_position(BTC) != ("one", 1_000_000)


async def test_a_machine_clock_a_year_ahead_does_not_make_a_process_forget_its_bars():
    one = await Process().start()
    one.minute(minute(60, final=True))
    one.clock._start_ms += 365 * 86_400_000
    one.minute(minute(61, final=True), received=False)
    one.minute(minute(62, final=True))
    await one.clock.advance(30)
    assert not one.bars.is_behind(BTC)
    assert one.bars.newest_times(BTC, MINUTE, 10)[-1] == at(62)
    one.minute(minute(63, volume="2"))
    assert one.bars.get_bar(BTC, MINUTE, at(63)) is not None


async def test_a_change_of_the_past_that_was_the_last_message_lost_is_read_although_the_newest_minute_came():
    one = await Process().start()
    one.minute(minute(60, volume="2"))
    one.stored.minutes[at(30)] = minute(30, "12", volume="9", as_of=90_000, final=True)._replace(rev=1)
    one.stored.log["one", 1] = [Range(at(30), at(31))]
    one.stored.log["one", 2] = []
    one.seq = 2
    position, metadata = Position("one", 2), FeedMetadata(at(60), None, 2)
    one.bars.on_feed_message(MessagesLost(BTC), position)  # a bus reads the newest state: message 2 was minute 30
    one.bars.on_feed_message(MinuteChanged(BTC, minute(60, volume="3"), metadata), position)
    await one.clock.advance(30)
    assert one.bars.get_bar(BTC, MINUTE, at(30)).volume == 9


async def test_bars_that_are_read_again_are_not_final_before_they_were_read():
    one = await Process().start()
    one.publish_message(MinuteChanged(BTC, minute(60, volume="2"), FeedMetadata(at(60), Range(at(30), at(31)))))
    notified = []

    class Listener:
        def on_finality(self, market):
            notified.append(one.bars.is_final(BTC, MINUTE, one.bars.get_bar(BTC, MINUTE, at(30))))

        def on_bars_changed(self, *_): ...
        def on_history_changed(self, *_): ...
        def on_state_changed(self, *_): ...

    one.bars.add_listener(Listener())
    one.stored.minutes[at(30)] = minute(30, "12", volume="9", as_of=90_000, final=True)
    one.publish_message(HistoryChanged(BTC, at(30), at(31), MONDAY_MS, FeedMetadata(at(60))))
    assert notified == [False]
    await one.clock.advance(1)
    assert notified[-1] is True
    assert one.bars.get_bar(BTC, MINUTE, at(30)).volume == 9


async def test_what_was_missing_before_messages_were_lost_is_not_final_before_it_was_read():
    one = await Process().start()
    one.publish_message(MinuteChanged(BTC, minute(60, volume="2"), FeedMetadata(at(60), Range(at(30), at(31)))))
    one.seq += 1  # told that minute 30 is there
    one.stored.minutes[at(30)] = minute(30, "12", volume="9", as_of=90_000, final=True)
    one.publish_message(MinuteChanged(BTC, minute(60, volume="3"), FeedMetadata(at(60), None, one.seq)))
    assert not one.bars.is_final(BTC, MINUTE, one.bars.get_bar(BTC, MINUTE, at(30)))
    await one.clock.advance(30)
    assert one.bars.is_final(BTC, MINUTE, one.bars.get_bar(BTC, MINUTE, at(30)))
    assert one.bars.get_bar(BTC, MINUTE, at(30)).volume == 9


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_bar_that_lacks_stored_minutes_is_not_final_at_the_start(is_known):
    one = Process()
    for number in (31, 32):
        del one.stored.minutes[at(number)]
    if is_known:
        one.stored.absent = [Range(at(31), at(33))]
    await one.start()
    assert one.bars.is_final(BTC, FIVE, one.bars.get_bar(BTC, FIVE, at(30))) is is_known
    assert one.bars.is_final(BTC, FIVE, one.bars.get_bar(BTC, FIVE, at(25)))
