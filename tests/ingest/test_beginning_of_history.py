"""An answer with nothing is no evidence: neither of the beginning of history, nor of anything else."""

from dataclasses import replace

import pytest

from candled.ingest.coverage import Coverage, Urgency, Window
from candled.ingest.evidence import NOTHING, Evidence, find_evidence
from candled.model import MINUTE_MS, Gap, Market, Range
from tests.ingest.virtual import BTC, THURSDAY_MS, Machine, VirtualExchange, running
from tests.tiers import LONG

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START_MS = THURSDAY_MS + 6 * HOUR_MS
MONDAY_MS = THURSDAY_MS - 3 * DAY_MS
LISTED_MS = THURSDAY_MS - DAY_MS + 100 * MINUTE_MS  # on Wednesday


# ---------------------------------------------------------------- other sources

# Since when an exchange has minutes, the listing date it names, whether it has longer bars, the first known minute, and
# what follows.
AT = LISTED_MS
SOURCES = [
    pytest.param(AT, AT, False, AT, Evidence(begins_ms=AT), id="the listing date"),
    pytest.param(AT, AT + 59_000, False, AT, Evidence(begins_ms=AT), id="a listing within the minute"),
    pytest.param(AT, AT - HOUR_MS, False, AT, Evidence(begins_ms=AT - HOUR_MS), id="a listing before trading began"),
    pytest.param(AT, AT + DAY_MS, False, AT, NOTHING, id="a listing that cannot be"),
    pytest.param(AT, 0, False, AT, NOTHING, id="a listing before all that is wanted"),
    pytest.param(AT, None, True, AT, Evidence(begins_ms=AT), id="longer bars"),
    pytest.param(AT, AT - HOUR_MS, True, AT, Evidence(begins_ms=AT), id="listing date and longer bars"),
    pytest.param(0, None, True, AT, Evidence(has_before=True), id="minutes before all that is wanted"),
    pytest.param(AT, None, True, AT + DAY_MS, Evidence(is_contradicted=True), id="bars of days before"),
    pytest.param(AT, None, True, AT + HOUR_MS, Evidence(is_contradicted=True), id="bars of that day before"),
    pytest.param(AT, None, True, AT + 2 * MINUTE_MS, Evidence(begins_ms=AT), id="the same short bar, another price"),
    pytest.param(AT, None, False, AT, NOTHING, id="nothing"),
]


@pytest.mark.parametrize(("begins_ms", "listed_ms", "has_bars", "first_ms", "expected"), SOURCES)
async def test_the_beginning_of_history_is_taken_from_other_sources(begins_ms, listed_ms, has_bars, first_ms, expected):
    exchange = VirtualExchange(Machine(START_MS), begins_ms)
    exchange.has_bars = has_bars
    first = exchange.version(first_ms, START_MS)
    found = await find_evidence(exchange, None, BTC, Range(MONDAY_MS, first_ms), first, listed_ms)
    assert found == expected


async def test_bars_that_lack_the_known_minute_prove_nothing():
    exchange = VirtualExchange(Machine(START_MS), LISTED_MS)
    exchange.has_bars = True
    first = exchange.version(LISTED_MS, START_MS)

    async def nothing(*_):
        return []

    exchange.fetch_bars = nothing
    assert await find_evidence(exchange, None, BTC, Range(MONDAY_MS, LISTED_MS), first, None) == NOTHING


# ---------------------------------------------------------------- what follows for the minutes


def coverage(known_gaps=(), first=500) -> Coverage:
    present = [Range(MONDAY_MS + first * MINUTE_MS, START_MS)]
    return Coverage(
        present=present,
        known_gaps=known_gaps,
        since_ms=present[0].start_ms,
        from_ms=MONDAY_MS,
        absence="exchange_outage",
    )


def beyond(start_ms: int, retry_ms: int) -> Gap:
    end_ms = MONDAY_MS + 500 * MINUTE_MS
    return Gap(start_ms=start_ms, end_ms=end_ms, reason="beyond_history", attempts=1, retry_ms=retry_ms)


def asked(one: Coverage, now_ms: int) -> Window | None:
    """Ask for what is due, and be answered with nothing."""
    window = one.next_window(START_MS, now_ms, 1000, 0)
    if window is not None:
        one.on_answer(window, START_MS, now_ms)
    return window


def test_three_answers_over_ten_minutes_are_believed_where_nothing_else_speaks():
    one, looks = coverage(), []
    for now_ms in range(START_MS, START_MS + HOUR_MS, 20_000):
        if asked(one, now_ms):
            looks.append(now_ms)
            assert one.known_gaps[0].reason == ("unconfirmed" if len(looks) < 3 else "beyond_history")
            assert (one.since_ms == MONDAY_MS) == (len(looks) == 3)
    assert len(looks) == 3
    assert looks[-1] - looks[0] >= 660_000


ANSWERS = [
    pytest.param(Evidence(begins_ms=MONDAY_MS + 500 * MINUTE_MS), ["beyond_history"], True, id="it begins there"),
    pytest.param(
        Evidence(begins_ms=MONDAY_MS + 495 * MINUTE_MS), ["beyond_history", "unconfirmed"], False, id="nearly"
    ),
    pytest.param(Evidence(has_before=True), ["exchange_outage"], True, id="there is something before"),
    pytest.param(Evidence(is_contradicted=True), ["unconfirmed"], False, id="it is contradicted"),
    pytest.param(NOTHING, ["unconfirmed"], False, id="nothing"),
]


@pytest.mark.parametrize(("evidence", "reasons", "is_complete"), ANSWERS)
def test_evidence_names_the_minutes_before_the_first(evidence, reasons, is_complete):
    one = coverage()
    asked(one, START_MS)
    one.apply_evidence(evidence, START_MS)
    assert [gap.reason for gap in one.known_gaps] == reasons
    assert (one.since_ms == MONDAY_MS) == is_complete
    assert one.missing_within(MONDAY_MS, START_MS).total_ms == sum(
        gap.end_ms - gap.start_ms for gap in one.known_gaps if gap.reason == "unconfirmed"
    )


@pytest.mark.slow
def test_what_another_source_has_is_asked_for_without_an_end_and_never_believed_absent():
    one, looks = coverage(), 0
    asked(one, START_MS)
    one.apply_evidence(Evidence(is_contradicted=True), START_MS)
    for now_ms in range(START_MS, START_MS + 10 * DAY_MS, 60_000):
        looks += asked(one, now_ms) is not None
    assert [gap.reason for gap in one.known_gaps] == ["unconfirmed"]
    assert 20 <= looks <= 50
    assert one.since_ms > MONDAY_MS


@pytest.mark.slow
def test_the_time_before_history_is_examined_again_after_growing_intervals_and_not_all_of_it():
    gap = beyond(MONDAY_MS - 90 * DAY_MS, START_MS + DAY_MS)
    one = coverage([gap])
    one.from_ms = MONDAY_MS - 90 * DAY_MS
    looks = []
    for now_ms in range(START_MS, START_MS + 100 * DAY_MS, HOUR_MS):
        window = asked(one, now_ms)
        if window is not None:
            assert (window.urgency, window.end_ms) == (Urgency.HISTORY, gap.end_ms)
            assert window.end_ms - window.start_ms == 1000 * MINUTE_MS
            looks.append((now_ms - START_MS) // DAY_MS)
    intervals = [later - earlier for earlier, later in zip([0, *looks], looks, strict=False)]
    assert 4 <= len(looks) <= 8
    assert intervals[:3] == sorted(intervals[:3])
    assert min(intervals[2:]) >= 30
    assert [one.reason for one in one.known_gaps] == ["beyond_history"]


def test_a_minute_found_before_the_beginning_makes_all_around_it_doubtful():
    gap = beyond(MONDAY_MS, START_MS)
    one = coverage([gap])
    window = one.next_window(START_MS, START_MS, 1000, 0)
    one.add_minute(MONDAY_MS + 100 * MINUTE_MS, confirmed=True)
    one.on_answer(window, START_MS, START_MS)
    assert [(gap.reason, gap.attempts) for gap in one.known_gaps] == [("unconfirmed", 1), ("exchange_outage", 1)]


# ---------------------------------------------------------------- the whole way


@pytest.mark.slow
async def test_a_success_with_nothing_is_never_taken_for_an_answer():
    def lie(exchange):
        exchange.rest = "empty"

    async with running(start_ms=START_MS, prepare=lie) as harness:
        for _ in range(76):
            await harness.leap(600)
            facts = harness.market
            assert facts["state"] == "warming"
            assert facts["missingMinutes"] > 4000
            assert facts["beginning"]["reason"] == "unconfirmed"
            assert facts["beginning"]["nextTry"] is not None
        assert harness.store.since_ms is None or harness.store.since_ms >= START_MS
        assert len(harness.exchange.asked) < 76 * 50
        harness.exchange.rest = "up"
        await harness.run(300)
        assert (harness.state, harness.market["missingMinutes"]) == (("live", None), 0)
        assert harness.wrong(MONDAY_MS, harness.clock.true_ms // MINUTE_MS * MINUTE_MS - 2 * MINUTE_MS) == []


@pytest.mark.slow
@pytest.mark.parametrize("empty_candles", [True, False], ids=["with empty candles", "only minutes with trades"])
@pytest.mark.parametrize("second", [0, 15, 30, 45] if LONG else [15, 45])
async def test_a_success_with_nothing_in_the_middle_leaves_no_gap(second, empty_candles):
    def kind(exchange):
        exchange.publishes_empty_candles = empty_candles

    async with running(start_ms=START_MS, prepare=kind) as harness:
        await harness.run(300 + second)
        assert harness.state == ("live", None)
        harness.exchange.stream, harness.exchange.rest = "silent", "empty"
        for _ in range(10):
            await harness.leap(300)
            assert harness.state[0] in ("stale", "recovering")
        assert harness.market["missingMinutes"] >= 40
        harness.exchange.stream = harness.exchange.rest = "up"
        await harness.run(900)
        assert (harness.state, harness.market["missingMinutes"], harness.market["holes"]["count"]) == (
            ("live", None),
            0,
            0,
        )
        assert harness.wrong(MONDAY_MS, harness.clock.true_ms // MINUTE_MS * MINUTE_MS - 2 * MINUTE_MS) == []


KINDS = [
    pytest.param(False, True, 120, id="by the listing date"),
    pytest.param(True, False, 120, id="by longer bars"),
    pytest.param(False, False, 1200, id="by repeated answers"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("has_bars", "has_date", "within_s"), KINDS)
async def test_a_market_that_is_new_is_live_as_soon_as_something_confirms_it(has_bars, has_date, within_s):
    def new(exchange):
        exchange.begins_ms, exchange.has_bars = LISTED_MS, has_bars
        exchange.listed = [Market(symbol=BTC, listed_ms=LISTED_MS if has_date else None)]

    async with running(start_ms=START_MS, prepare=new) as harness:
        await harness.run(20)
        if within_s > 120:
            assert harness.state == ("warming", "unconfirmed_beginning")
            assert harness.market["beginning"]["reason"] == "unconfirmed"
        await harness.run(within_s)
        assert harness.state == ("live", None)
        assert harness.market["beginning"]["reason"] == "beyond_history"
        assert harness.market["missingMinutes"] == 0
        assert harness.store.since_ms == MONDAY_MS


@pytest.mark.slow
async def test_history_that_appears_later_is_found_though_it_was_once_believed_for_good_that_there_is_none():
    def short(exchange):
        exchange.begins_ms = LISTED_MS

    async with running(start_ms=START_MS, prepare=short) as harness:
        await harness.run(1300)
        assert harness.market["beginning"]["reason"] == "beyond_history"
    store = harness.store
    store.saved_gaps = [
        replace(gap, retry_ms=None) for gap in store.saved_gaps
    ]  # as a version before this one stored it
    async with running(clock=harness.clock, store=store) as again:
        await again.run(60)
        assert again.wrong(MONDAY_MS, START_MS) == []
        assert again.state == ("live", None)
        assert again.market["beginning"] is None
