from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.bus import FeedMetadata
from candled.exchange import Candles, InvalidRow
from candled.ingest.coverage import Coverage, Urgency, Window
from candled.ingest.market import MarketIngest
from candled.ingest.market_status import Rules
from candled.model import MINUTE_MS, WEEK, Gap, MarketKey, Range, RangeSet, Symbol
from tests.rows import MONDAY_MS, minute
from tests.tiers import few_examples

BTC = Symbol.parse("BTC/USDT")


def at(seconds: float) -> int:
    return MONDAY_MS + round(seconds * 1000)


def market(*, present=((0, 600),), opens_at_close: bool = False, confirm: bool = False, recent=()) -> MarketIngest:
    coverage = Coverage(
        present=[Range(MONDAY_MS + a * MINUTE_MS, MONDAY_MS + b * MINUTE_MS) for a, b in present],
        known_gaps=[],
        since_ms=MONDAY_MS if present else None,
        from_ms=MONDAY_MS,
        absence="exchange_outage",
    )
    rules = Rules(
        grace_period_ms=2_000,
        quiet_after_ms=60_000,
        confirm=confirm,
        max_history_minutes=1000,
        opens_at_previous_close=opens_at_close,
        publishes_empty_candles=True,
        closed_flag="final",
    )
    one = MarketIngest(MarketKey("bitget", BTC), coverage, rules, recent)
    one.presence.connected = True
    return one


def push(one: MarketIngest, *candles, seconds: float, snapshot: bool = False):
    return one.on_push(Candles(BTC, candles, snapshot), at(seconds))


def test_a_running_minute_goes_out_live():
    one = market()
    outcome = push(one, minute(600, as_of=10_000), seconds=36_010)
    assert [candle.final for candle in outcome.live] == [False]
    assert one.status.condition(at(36_010)).state == "live"


def test_a_snapshot_after_a_long_gap_fills_it_through_the_store_except_the_forming_minute():
    one = market()
    rows = [minute(number, as_of=(700 - number) * 60_000 + 30_000) for number in range(500, 701)]
    outcome = push(one, *rows, seconds=42_030, snapshot=True)
    assert [candle.open_ms for candle in outcome.live] == [minute(700).open_ms]
    assert [candle.open_ms for candle in outcome.past] == [minute(number).open_ms for number in range(600, 700)]
    assert outcome.repaired == Range(minute(600).open_ms, minute(700).open_ms)
    assert all(candle.final for candle in outcome.past)


def test_a_snapshot_after_a_short_gap_fills_it_live():
    one = market()
    rows = [minute(number, as_of=(640 - number) * 60_000 + 30_000) for number in range(600, 641)]
    outcome = push(one, *rows, seconds=38_430, snapshot=True)
    assert [candle.open_ms for candle in outcome.live] == [minute(number).open_ms for number in range(600, 641)]
    assert outcome.past == []


def test_a_snapshot_of_stored_minutes_is_published_and_stored_no_second_time():
    stored = [minute(number, final=True) for number in range(541, 601)]
    one = market(present=((0, 601),), recent=stored)
    rows = [minute(number, as_of=36_100_000 - 60_000 * number) for number in range(400, 602)]
    outcome = push(one, *rows, seconds=36_100, snapshot=True)
    assert ([candle.open_ms for candle in outcome.live], outcome.past) == ([minute(601).open_ms], [])


@pytest.mark.parametrize(("passed_s", "is_asked"), [(1, False), (59, False), (61, True)])
def test_a_snapshot_is_compared_with_rest_unless_rest_has_just_answered(passed_s, is_asked):
    one = market(present=(), confirm=True)
    while (window := one.next_request(at(36_100))) is not None:
        numbers = range((window.start_ms - MONDAY_MS) // MINUTE_MS, (window.end_ms - MONDAY_MS) // MINUTE_MS)
        one.on_history(window, [minute(n, as_of=36_100_000 - 60_000 * n) for n in numbers], at(36_100))
    assert one.coverage.unconfirmed.minute_count == 0
    rows = [minute(n, as_of=(36_100 + passed_s) * 1000 - 60_000 * n) for n in range(200, 602 + passed_s // 60)]
    push(one, *rows, seconds=36_100 + passed_s, snapshot=True)
    assert (one.coverage.unconfirmed.minute_count > 300) is is_asked


def test_a_snapshot_that_reaches_into_the_week_before_is_confirmed_and_that_week_is_asked_for():
    one = market(present=(), confirm=True)
    one.examine_older(market(present=()).coverage, MONDAY_MS)
    rows = [minute(number, as_of=(30 - number) * 60_000 + 30_000) for number in range(-20, 31)]
    push(one, *rows, seconds=1830, snapshot=True)
    assert one.coverage.from_ms == MONDAY_MS - WEEK.ms
    asked = []
    while (window := one.next_request(at(1840))) is not None:
        numbers = range((window.start_ms - MONDAY_MS) // MINUTE_MS, (window.end_ms - MONDAY_MS) // MINUTE_MS)
        answer = [minute(number, as_of=(31 - number) * 60_000) for number in numbers]
        one.on_history(window, answer, at(1840))
        asked.append(window)
        assert len(asked) < 20, "the same is asked for again and again"
    assert {window.urgency for window in asked} == {Urgency.RECENT, Urgency.HISTORY}
    assert (one.known_gaps, one.missing_minutes(at(1840)), one.older) == ([], 0, None)


def test_minutes_missing_after_a_reconnect_without_snapshot_are_asked_for():
    one = market()
    push(one, minute(600, as_of=10_000), seconds=36_010)
    one.on_interrupted()
    push(one, minute(604, as_of=20_000), seconds=36_260)
    assert one.next_request(at(36_265)) == Window(Urgency.RECENT, minute(600).open_ms, minute(604).open_ms)


def test_a_push_that_was_missed_is_found_by_the_next_opening_price():
    one = market(opens_at_close=True, confirm=True)
    push(one, minute(600, "10", as_of=50_000), seconds=36_050)
    push(one, minute(601, as_of=500)._replace(open=minute(0).open + 1, high=minute(0).open + 1), seconds=36_060.5)
    one.finalize_minutes(at(36_075))
    window = one.next_request(at(36_075))
    assert (window.urgency, window.start_ms) == (Urgency.CONFIRM, minute(600).open_ms)
    outcome = one.on_history(window, [minute(600, "11", volume="2", as_of=75_000)], at(36_075))
    assert [(candle.close, candle.final) for candle in outcome.live] == [(11, True)]
    assert one.revisions == 1


def test_rest_that_agrees_with_the_stream_is_no_change():
    one = market(confirm=True)
    push(one, minute(600, "11", as_of=59_000), seconds=36_059)
    push(one, minute(601, as_of=500), seconds=36_060.5)
    one.finalize_minutes(at(36_075))
    outcome = one.on_history(one.next_request(at(36_075)), [minute(600, "11", as_of=75_000)], at(36_075))
    assert (outcome.live, outcome.past, outcome.repaired, one.revisions) == ([], [], None, 0)
    assert one.next_request(at(36_076)) is None


def test_silence_that_rest_agrees_with_is_quiet():
    one = market()
    push(one, minute(600, as_of=30_000), seconds=36_030)
    flat = [minute(600, as_of=200_000), minute(601, "10", volume="0", as_of=200_000)]
    windows = []
    while window := one.next_request(at(36_082)):
        windows.append(window)
        one.on_history(window, flat, at(36_082))
    assert windows[-1] == Window(Urgency.PRESENT, minute(600).open_ms, minute(602).open_ms)
    assert one.status.condition(at(36_095)) == ("quiet", "no_trades")
    while window := one.next_request(at(36_140)):
        one.on_history(window, flat, at(36_140))
    assert one.status.condition(at(36_140)).state == "quiet"


def test_silence_while_rest_shows_trades_is_a_dead_subscription():
    """The socket answers pings, one symbol has stopped."""
    one = market()
    push(one, minute(600, as_of=30_000), seconds=36_030)
    traded = minute(601, "12", volume="7", as_of=90_000)
    outcomes = []
    while window := one.next_request(at(36_140)):
        outcomes.append(one.on_history(window, [minute(600, as_of=140_000), traded], at(36_140)))
    assert any(outcome.is_subscription_dead for outcome in outcomes)
    assert one.status.condition(at(36_140)) == ("polling", "stream_silent")


def test_silence_without_an_answer_of_rest_is_stale():
    one = market()
    push(one, minute(600, as_of=30_000), seconds=36_030)
    one.on_history_failed("no route")
    assert one.status.condition(at(36_140)).state == "stale"


def test_a_market_is_warming_until_the_forming_week_is_complete():
    one = market(present=())
    push(one, minute(600, as_of=30_000), seconds=36_030)
    assert one.status.condition(at(36_030)).state == "warming"
    while window := one.next_request(at(36_040)):
        rows = [minute(number, as_of=90_000_000) for number in range(600)]
        one.on_history(window, rows, at(36_040))
    assert one.status.condition(at(36_040)).state == "live"


def test_impossible_candles_are_dropped_and_counted_and_the_others_go_on():
    one = market()
    good = minute(600, as_of=10_000)
    off_grid = good._replace(open_ms=good.open_ms + 1)
    inverted = minute(599)._replace(high=minute(0).low - 1)
    future = minute(700, as_of=10_000)
    outcome = push(one, off_grid, inverted, future, good, seconds=36_010)
    assert [candle.open_ms for candle in outcome.live] == [good.open_ms]
    assert one.rows.invalid.total == 3


def test_a_minute_the_exchange_never_had_is_never_invented():
    one = market(present=((0, 600),))
    push(one, minute(605, as_of=10_000), seconds=36_310)
    window = one.next_request(at(36_320))
    outcome = one.on_history(window, [minute(n, as_of=900_000) for n in (600, 601, 604)], at(36_320))
    assert [candle.open_ms for candle in outcome.live] == [minute(n).open_ms for n in (600, 601, 604)]
    assert [(known_gap.start_ms, known_gap.end_ms) for known_gap in one.known_gaps] == [
        (minute(602).open_ms, minute(604).open_ms)
    ]


# ---------------------------------------------------------------- compared with REST, compared with the store


def three_final_minutes(one: MarketIngest) -> Window:
    for number, close in ((600, "11"), (601, "12"), (602, "13"), (603, "10")):
        push(one, minute(number, close, as_of=50_000), seconds=number * 60 + 50)
        one.finalize_minutes(at(number * 60 + 55))
    return one.next_request(at(603 * 60 + 15))


def test_each_final_minute_is_compared_with_rest_once_and_differences_are_counted():
    one = market(confirm=True)
    window = three_final_minutes(one)
    rows = [minute(600, "11", as_of=300_000), minute(601, "12.5", volume="2", as_of=240_000)]
    outcome = one.on_history(window, rows, at(603 * 60 + 15))
    assert (outcome.checked, outcome.mismatched) == (3, 2)  # another close, and one that REST does not have
    assert [candle.open_ms for candle in outcome.live] == [minute(601).open_ms]
    again = one.on_history(window, rows, at(603 * 60 + 20))
    assert (again.checked, again.mismatched) == (0, 0)


# The volumes of a minute, of which the stream brought 5, in the answers of REST; how the minute then stands, after how
# many seconds at most, and how many differences from REST are counted.
LESSER = [
    pytest.param(["5"], 5, 20, 0, id="the same"),
    pytest.param(["2", "5"], 5, 20, 0, id="a cache that is one answer behind"),
    pytest.param(["1", "2", "3", "5"], 5, 20, 0, id="a cache that catches up"),
    pytest.param(["2"], 2, 260, 1, id="less, again and again"),
    pytest.param(["1", "2", "3", "4"] * 9, 4, 900, 1, id="something else each time"),
    pytest.param(["7"], 7, 20, 1, id="more"),
]


@pytest.mark.parametrize(("answers", "volume", "within_s", "mismatched"), LESSER)
def test_an_answer_with_less_volume_than_the_stream_had_counts_once_it_is_repeated(
    answers, volume, within_s, mismatched
):
    one, left, versions, counted = market(confirm=True), list(answers), {}, 0
    end_s = 36_060
    for second in range(end_s - 10, end_s + 900, 5):
        number, forming_s = divmod(second, 60)
        live = [minute(600, volume="5", as_of=59_000)] if second == end_s else []
        live += push(one, *live, minute(number, volume="1", as_of=forming_s * 1000), seconds=second).live
        live += one.finalize_minutes(at(second))
        while (window := one.next_request(at(second))) is not None:
            numbers = range((window.start_ms - MONDAY_MS) // MINUTE_MS, (window.end_ms - MONDAY_MS) // MINUTE_MS)
            rows = [minute(n, as_of=(second - n * 60) * 1000) for n in numbers if n != 600]
            if 600 in numbers:
                given = left.pop(0) if len(left) > 1 else left[0]
                rows.append(minute(600, volume=given, as_of=(second - 36_000) * 1000))
            outcome = one.on_history(window, rows, at(second))
            live += [*outcome.live, *outcome.past]
            counted += outcome.mismatched
        versions.update((second, candle.volume) for candle in live if candle.open_ms == minute(600).open_ms)
    assert set(versions.values()) <= {1, 5, volume}
    assert versions[max(versions)] == volume
    assert (counted, one.coverage.unconfirmed.minute_count <= 2) == (mismatched, True)
    assert max(versions) - end_s <= within_s


PRICES = ("open", "high", "low", "close")

# What the prices of REST's rows are multiplied by, how many minutes both the stream and REST have, and whether the
# answer may be one about this market.
FOREIGN = [
    pytest.param(1, 5, True, id="the same prices"),
    pytest.param("1.05", 5, True, id="ranges that overlap"),
    pytest.param("1.5", 2, True, id="two minutes apart"),
    pytest.param("1.5", 3, False, id="three minutes apart"),
    pytest.param("0.5", 5, False, id="lower prices"),
    pytest.param(40, 1, False, id="one minute apart by a factor"),
    pytest.param("0.02", 2, False, id="two minutes apart by a factor"),
    pytest.param(40, 0, True, id="no minute that both have"),
]


@pytest.mark.parametrize(("factor", "shared", "is_taken"), FOREIGN)
def test_an_answer_whose_prices_lie_apart_from_the_streams_is_one_about_another_market(factor, shared, is_taken):
    one = market(confirm=True)
    three_final_minutes(one)
    push(one, minute(604, "11", as_of=10_000), seconds=604 * 60 + 10)
    rows = [minute(number, "11", as_of=300_000) for number in range(600 - shared % 5, 600 + shared)]
    rows = [row._replace(**{name: getattr(row, name) * Decimal(factor) for name in PRICES}) for row in rows]
    assert (one.comparison.find_foreign(rows) is None) is is_taken
    assert one.comparison.find_foreign([InvalidRow(None, "nonsense")]) is None


FRAMES = [
    pytest.param(51, False, id="nine seconds early"),
    pytest.param(59.999, False, id="a millisecond early"),
    pytest.param(60, True, id="as the minute ends"),
    pytest.param(61, True, id="a second later"),
]


@pytest.mark.parametrize(("second", "is_believed"), FRAMES)
def test_a_frame_that_calls_its_minute_final_is_believed_once_the_minute_is_over(second, is_believed):
    one = market()
    push(one, minute(600, as_of=10_000), seconds=36_010)
    outcome = push(one, minute(600, "11", volume="2", as_of=round(second * 1000), final=True), seconds=36_000 + second)
    assert [candle.final for candle in outcome.live] == [is_believed]
    if not is_believed:
        push(one, minute(600, "12", volume="3", as_of=59_999), minute(601, as_of=0), seconds=36_060)
        assert [(candle.final, candle.close) for candle in one.finalize_minutes(at(36_062))] == [(True, 12)]


def test_minutes_that_rest_brought_are_not_compared_with_themselves():
    one = market(confirm=True)
    push(one, minute(605, as_of=10_000), seconds=36_310)
    outcome = one.on_history(
        one.next_request(at(36_320)), [minute(n, as_of=900_000) for n in range(600, 605)], at(36_320)
    )
    assert (outcome.checked, len(outcome.live)) == (0, 5)


def test_a_minute_that_the_store_has_lost_is_asked_for_and_stored_again():
    one = market(confirm=True)
    window = three_final_minutes(one)
    rows = [minute(number, close, as_of=400_000) for number, close in ((600, "11"), (601, "12"), (602, "13"))]
    one.on_history(window, rows, at(603 * 60 + 15))
    span = Range(minute(0).open_ms, minute(602).open_ms)
    stored = RangeSet([(minute(0).open_ms, minute(100).open_ms), (minute(102).open_ms, minute(601).open_ms)])
    lost, new = one.compare_with_store(one.coverage.covered_within(*span), stored, span)
    assert (list(lost), list(new)) == (
        [Range(minute(100).open_ms, minute(102).open_ms), Range(minute(601).open_ms, minute(602).open_ms)],
        [],
    )
    window = one.next_request(at(603 * 60 + 20))
    assert (window.urgency, window.end_ms) == (Urgency.RECENT, minute(602).open_ms)
    answer = [*(minute(number, as_of=90_000_000) for number in (100, 101)), rows[1]]
    outcome = one.on_history(window, answer, at(603 * 60 + 20))
    assert [candle.open_ms for candle in outcome.past] == [minute(number).open_ms for number in (100, 101, 601)]
    assert all(candle.final for candle in outcome.past)
    lost, _ = one.compare_with_store(one.coverage.covered_within(*span), stored, span)
    assert not lost  # a store that does not keep them is not offered them for ever


def test_what_another_process_stored_is_not_asked_for():
    one = market(present=((0, 100), (200, 600)))
    span = Range(minute(0).open_ms, minute(600).open_ms)
    lost, new = one.compare_with_store(one.coverage.covered_within(*span), RangeSet([span]), span)
    assert (list(lost), list(new)) == ([], [Range(minute(100).open_ms, minute(200).open_ms)])
    push(one, minute(600, as_of=30_000), seconds=36_030)
    assert one.next_request(at(36_030)) is None


def test_the_watermark_follows_the_minutes():
    one = market()
    assert one.feed_metadata(7) == FeedMetadata(logged_seq=7)
    push(one, minute(600, as_of=10_000), seconds=36_010)
    assert one.feed_metadata(7) == FeedMetadata(minute(600).open_ms, None, 7)
    push(one, minute(600, "12", as_of=59_000), minute(601, as_of=500), seconds=36_060.5)
    assert one.feed_metadata(7).watermark_ms == minute(600).open_ms  # its late versions have their chance
    push(one, minute(600, "12", volume="2", as_of=60_900), seconds=36_061)
    assert one.feed_metadata(7).watermark_ms == minute(600).open_ms
    one.finalize_minutes(at(36_063))
    assert one.feed_metadata(7).watermark_ms == minute(601).open_ms


def test_the_watermark_does_not_pass_missing_minutes():
    one = market()
    push(one, minute(600, as_of=10_000), seconds=36_010)
    one.on_interrupted()
    push(one, minute(604, as_of=20_000), seconds=36_260)
    gap = Range(minute(600).open_ms, minute(604).open_ms)
    assert one.feed_metadata(0) == FeedMetadata(minute(604).open_ms, gap, 0)
    rows = [minute(number, as_of=300_000) for number in (600, 601, 603)]
    one.on_history(one.next_request(at(36_265)), rows, at(36_265))
    assert one.feed_metadata(0) == FeedMetadata(minute(604).open_ms, None, 0)  # the exchange does not have 602


def test_the_watermark_does_not_pass_a_forming_minute_that_a_reconnect_repeats():
    one = market()
    push(one, minute(600, "12", volume="5", as_of=10_000), seconds=36_010)
    one.on_interrupted()
    push(one, minute(600, "11", volume="4", as_of=9_000), seconds=36_012)  # an older copy, which is no news
    assert one.feed_metadata(0).watermark_ms == minute(600).open_ms


def test_revisions_of_a_final_minute_are_counted_and_name_their_source():
    one = market(confirm=True)
    push(one, minute(600, "11", as_of=59_000), seconds=36_059)
    push(one, minute(601, as_of=500), seconds=36_060.5)
    assert [(candle.src, candle.rev) for candle in one.finalize_minutes(at(36_063))] == [("live", 0)]
    window = one.next_request(at(36_075))
    outcome = one.on_history(window, [minute(600, "12", as_of=75_000)], at(36_075))
    assert [(candle.src, candle.rev) for candle in outcome.live] == [("rest", 1)]
    outcome = push(one, minute(600, "13", as_of=76_000), seconds=36_076)
    assert outcome.live == []  # what REST has confirmed only REST changes
    window = one.next_request(at(36_077))
    assert (window.urgency, window.start_ms) == (Urgency.CONFIRM, minute(600).open_ms)
    outcome = one.on_history(window, [minute(600, "13", as_of=77_000)], at(36_077))
    assert [(candle.src, candle.rev) for candle in outcome.live] == [("rest", 2)]


def test_a_minute_that_was_taken_not_to_exist_revises_the_bars_it_belongs_to():
    one = market()
    push(one, minute(600, as_of=10_000), seconds=36_010)
    one.on_interrupted()
    push(one, minute(603, as_of=20_000), seconds=36_200)
    window = one.next_request(at(36_260))
    rows = [minute(number, as_of=200_000) for number in (600, 602)]
    assert {candle.rev for candle in one.on_history(window, rows, at(36_260)).live} == {0}
    outcome = push(one, minute(601, as_of=270_000), seconds=36_270)
    assert [(candle.open_ms, candle.rev) for candle in outcome.live] == [(minute(601).open_ms, 1)]


def test_a_minute_whose_beginning_was_seen_is_not_taken_to_be_absent_and_not_final():
    one = market()
    push(one, minute(600, volume="2", as_of=10_000), seconds=36_010)
    one.on_interrupted()
    window = Window(Urgency.RECENT, minute(600).open_ms, minute(603).open_ms)
    one.on_history(window, [minute(602, as_of=100_000)], at(36_200))  # the page lacks minutes 600 and 601
    reasons = {known_gap.reason: (known_gap.start_ms, known_gap.end_ms) for known_gap in one.coverage.known_gaps}
    assert reasons == {
        "unconfirmed": (minute(600).open_ms, minute(601).open_ms),
        "exchange_outage": (minute(601).open_ms, minute(602).open_ms),
    }
    assert not one.feed_metadata(0).is_range_final(minute(600).open_ms, minute(601).open_ms)
    assert one.missing_minutes(at(36_200)) == 1
    asked = []
    while (again := one.next_request(at(36_300), pace_ms=10**9)) is not None:
        asked.append(again)
        numbers = range((again.start_ms - MONDAY_MS) // MINUTE_MS, (again.end_ms - MONDAY_MS) // MINUTE_MS)
        rows = [minute(number, volume="5", as_of=36_300_000 - number * 60_000) for number in numbers]
        one.on_history(again, rows, at(36_300))
    assert any(window.start_ms <= minute(600).open_ms < window.end_ms for window in asked)
    assert one.feed_metadata(0).is_range_final(minute(600).open_ms, minute(601).open_ms)


def test_a_minute_without_trades_whose_end_was_not_seen_is_stored_though_its_values_did_not_change():
    one = market()
    push(one, minute(600, volume="0", as_of=10_000), seconds=36_010)
    one.on_interrupted()
    hours = 8 * 3600
    rows = [minute(number, volume="0", as_of=36_010_000 + hours * 1000) for number in (600, 1080)]
    outcome = one.on_history(
        Window(Urgency.RECENT, minute(600).open_ms, minute(1081).open_ms), rows, at(36_010 + hours)
    )
    assert [(candle.open_ms, candle.final) for candle in outcome.past] == [(minute(600).open_ms, True)]
    assert one.revisions == 0


def test_what_is_missing_is_asked_for_after_the_clock_was_ahead_and_is_right_again():
    one = market(present=((0, 600), (601, 660)))
    one.coverage.on_answer(Window(Urgency.RECENT, minute(600).open_ms, minute(601).open_ms), at(40_000), at(39_600))
    push(one, minute(660, as_of=5_000), seconds=39_605)
    while (
        window := one.next_request(at(43_500), pace_ms=10**9)
    ) is not None:  # an hour ahead, until nothing is left to ask
        one.on_history(window, [], at(43_500))
    one.coverage.drop_after(minute(660).open_ms)
    window = one.next_request(at(39_900), pace_ms=10**9)
    assert window is not None
    assert window.start_ms <= minute(660).open_ms


def test_gaps_of_older_stored_history_are_among_those_of_the_market():
    one, newer, older = market(present=((0, 100), (110, 600))), (100, 110), (-1000, -990)
    gaps = [
        Gap(start_ms=minute(first).open_ms, end_ms=minute(last).open_ms, reason="no_trades", attempts=1, retry_ms=None)
        for first, last in (older, newer)
    ]
    one.coverage.on_answer(Window(Urgency.HISTORY, gaps[1].start_ms, gaps[1].end_ms), at(36_000), at(36_000))
    present = [Range(minute(-2000).open_ms, gaps[0].start_ms), Range(gaps[0].end_ms, MONDAY_MS)]
    past = Coverage(
        present=present,
        known_gaps=gaps[:1],
        since_ms=present[0].start_ms,
        from_ms=present[0].start_ms,
        absence="exchange_outage",
    )
    one.examine_older(past, MONDAY_MS)
    assert [(known_gap.start_ms, known_gap.end_ms) for known_gap in one.known_gaps] == [
        (gap.start_ms, gap.end_ms) for gap in gaps
    ]


@pytest.mark.parametrize(("is_flooded", "reason"), [(False, "stream_down"), (True, "stream_flooded")])
def test_an_interruption_by_a_flood_has_its_own_reason_until_the_stream_is_back(is_flooded, reason):
    one = market()
    push(one, minute(600, as_of=10_000), seconds=36_010)
    one.on_interrupted(is_flooded=is_flooded)
    assert one.status.condition(at(36_011)) == ("stale", reason)
    one.presence.connected = True
    assert one.status.condition(at(36_012)) == ("live", "")


minute_numbers = st.integers(0, 199)
spans = st.lists(st.tuples(minute_numbers, st.integers(1, 60)), max_size=3)


@given(
    present=spans,
    lacks=st.sets(minute_numbers, max_size=6),
    asked=st.lists(st.tuples(minute_numbers, minute_numbers), min_size=1, max_size=4),
    pushed=st.sets(minute_numbers, max_size=4),
    late_s=st.sampled_from([0, 1, 3]),
)
@few_examples
def test_blank_minutes_are_processed_together_as_if_one_by_one(present, lacks, asked, pushed, late_s):
    """A response about them is processed together, which must make no difference."""
    known = RangeSet((start, start + count) for start, count in present)
    together, single = (market(present=list(known), confirm=True) for _ in range(2))
    single.comparison.count_blank = lambda *_: 0
    for one in (together, single):
        for number in sorted(pushed):
            push(one, minute(number, volume=2, as_of=59_000), seconds=60 * number + 59)
    now_s = 200 * 60 + late_s  # the newest minute has ended, but its grace period may go on
    for first, last in asked:
        first, last = sorted((first, last))
        window = Window(Urgency.WEEK, at(60 * first), at(60 * last + 60))
        rows = [minute(n, as_of=1000 * now_s - 60_000 * n) for n in range(first, last + 1) if n not in lacks]
        outcomes = [one.on_history(window, rows, at(now_s), asked_ms=at(now_s - 1)) for one in (together, single)]
        assert outcomes[0] == outcomes[1]
        assert together.known_gaps == single.known_gaps
        assert together.find_missing(at(now_s + 300)) == single.find_missing(at(now_s + 300))
        assert together.next_request(at(now_s)) == single.next_request(at(now_s))
        assert together.minutes.forming == single.minutes.forming
    assert together.revisions == single.revisions
