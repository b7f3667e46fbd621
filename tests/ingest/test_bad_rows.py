"""Rows that cannot be candles: counted, a gap with a reason, asked for again, and no obstacle to anything else."""

import asyncio
import logging

import pytest

from candled.errors import ExchangeError
from candled.exchange import MAX_ROWS, Candles, InvalidRow, read_rows, read_rows_in_slices
from candled.ingest.coverage import Coverage, Urgency, Window
from candled.ingest.error_counter import ErrorCounter
from candled.ingest.market import MarketIngest
from candled.ingest.rows import sift
from candled.model import MINUTE_MS, Range, RangeSet
from tests.clocks import ManualClock
from tests.ingest.test_market import BTC, at, market, push
from tests.rows import MONDAY_MS, minute

DAY_MS = 86_400_000


def span(first: int, last: int) -> Range:
    return Range(MONDAY_MS + first * MINUTE_MS, MONDAY_MS + last * MINUTE_MS)


# ---------------------------------------------------------------- sorting an answer


inverted = minute(3)._replace(high=minute(0).low - 1)
ANSWERS = {
    "all good": ([minute(2), minute(3), minute(4)], [2, 3, 4], []),
    "in descending order": ([minute(4), minute(3), minute(2)], [2, 3, 4], []),
    "an impossible candle": ([minute(2), inverted, minute(4)], [2, 4], [3]),
    "off the grid": ([minute(2), minute(3)._replace(open_ms=minute(3).open_ms + 7), minute(4)], [2, 4], [3]),
    "an unreadable row": ([minute(2), InvalidRow(minute(3).open_ms, "x"), minute(4)], [2, 4], [3]),
    "an unreadable row beside a good one": ([minute(3), InvalidRow(minute(3).open_ms, "x")], [3], []),
    "a row without a time": ([minute(2), InvalidRow(None, "x"), minute(4)], [2, 4], [0, 1, 3]),
    "the same row twice": ([minute(2), minute(3), minute(3)], [2, 3], []),
    "two different rows": ([minute(2), minute(3, "11"), minute(3, "12")], [2], [3]),
    "a later version from a later page": ([minute(3, "11", as_of=70_000), minute(3, "12", as_of=80_000)], [3], []),
    "outside of the range": ([minute(2), minute(9), InvalidRow(minute(8).open_ms, "x")], [2], []),
    "numbers that cannot be added": ([minute(2), minute(3, volume="1e300")], [2], [3]),
}


@pytest.mark.parametrize(("rows", "good", "unreadable"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_its_good_rows_and_the_minutes_of_the_others(rows, good, unreadable):
    answer = sift(rows, span(0, 5))
    assert [candle.open_ms for candle in answer.candles] == [minute(number).open_ms for number in good]
    assert answer.unreadable_within(span(0, 5)) == RangeSet(span(number, number + 1) for number in unreadable)


def test_of_two_versions_from_two_pages_the_later_one_counts():
    (candle,) = sift([minute(3, "12", as_of=80_000), minute(3, "11", as_of=70_000)], span(0, 5)).candles
    assert candle.close == 12


def test_a_plugin_reads_rows_one_by_one():
    def read(row):
        return minute(int(row[0]), row[1])

    rows = read_rows([["0", "11"], ["60000", "x"], None, ["2", "12"]], read)
    assert [getattr(row, "close", None) for row in rows] == [11, None, None, 12]
    assert [row.open_ms for row in rows if isinstance(row, InvalidRow)] == [60_000, None]


@pytest.mark.parametrize(("read_all", "most"), [(None, 100), (lambda rows: list(map(minute, rows)), 500)])
async def test_other_tasks_run_while_a_page_is_read(read_all, most):
    read: list[int] = []
    seen: list[int] = []

    def read_row(row):
        read.append(row)
        return minute(row) if row % 7 or read_all is not None else minute("no")

    def read_together(rows):
        read.extend(rows)
        return read_all(rows)

    async def watch():
        while True:
            seen.append(len(read))
            await asyncio.sleep(0)

    watching = asyncio.ensure_future(watch())
    together = None if read_all is None else read_together
    rows = await read_rows_in_slices(range(2000), read_row, ManualClock(), open_ms=lambda row: row, read_all=together)
    watching.cancel()
    assert rows == read_rows(range(2000), read_row, open_ms=lambda row: row)
    assert max(later - earlier for earlier, later in zip(seen, seen[1:], strict=False)) == most
    with pytest.raises(ExchangeError, match=f"expected at most {MAX_ROWS} rows"):
        await read_rows_in_slices(range(MAX_ROWS + 1), read_row, ManualClock())


# ---------------------------------------------------------------- a market with bad rows


def answer_everything(one: MarketIngest, bad: set[int], now_s: float) -> list[Window]:
    """Answer all that is asked for now; of the minutes `bad` there is no candle in the answers."""
    windows = []
    while window := one.next_request(at(now_s)):
        windows.append(window)
        numbers = range((window.start_ms - MONDAY_MS) // MINUTE_MS, (window.end_ms - MONDAY_MS) // MINUTE_MS)
        rows = [
            InvalidRow(minute(number).open_ms, "0/0/0/close") if number in bad else minute(number, as_of=10**9)
            for number in numbers
        ]
        one.on_history(window, rows, at(now_s))
        assert len(windows) < 100
    return windows


@pytest.mark.parametrize("bad", [{300}, set(range(300, 330)), set(range(599)), {0}, {599}], ids=len)
def test_warming_ends_whatever_rows_are_bad_and_their_minutes_are_gaps_with_that_reason(bad):
    one = market(present=())
    push(one, minute(600, as_of=30_000), seconds=36_030)
    assert one.status.condition(at(36_030)).state == "warming"
    answer_everything(one, bad, 36_040)
    assert one.status.condition(at(36_040)).state == "live"
    assert {gap.reason for gap in one.known_gaps} == {"invalid"}
    assert sum(gap.end_ms - gap.start_ms for gap in one.known_gaps) == len(bad) * MINUTE_MS
    assert one.rows.invalid.total == len(bad)
    assert one.coverage.since_ms == MONDAY_MS


@pytest.mark.slow
def test_a_bad_row_is_requested_with_growing_pauses_for_as_long_as_it_takes_and_then_repaired():
    one = market(present=((0, 300), (301, 600)))
    push(one, minute(600, as_of=30_000), seconds=36_030)
    asked = []
    for seconds in range(36_040, 36_040 + 5 * 86_400, 60):
        push(one, minute(seconds // 60, as_of=seconds % 60 * 1000), seconds=seconds)
        one.finalize_minutes(at(seconds + 10))
        while window := one.next_request(at(seconds)):
            if window.start_ms <= minute(300).open_ms < window.end_ms:
                asked.append(seconds)
            bad = InvalidRow(minute(300).open_ms, "zeros")
            numbers = range((window.start_ms - MONDAY_MS) // MINUTE_MS, (window.end_ms - MONDAY_MS) // MINUTE_MS)
            one.on_history(window, [bad if n == 300 else minute(n, as_of=10**9) for n in numbers], at(seconds))
    pauses = [later - earlier for earlier, later in zip(asked, asked[1:], strict=False)]
    assert len(asked) >= 8
    assert pauses == sorted(pauses)
    assert pauses[0] <= 120
    assert max(pauses) <= 1.5 * 86_400
    window = Window(Urgency.HISTORY, *span(300, 301))
    outcome = one.on_history(window, [minute(300, as_of=10**9)], at(36_040 + 5 * 86_400))
    assert [candle.open_ms for candle in outcome.past] == [minute(300).open_ms]
    assert one.known_gaps == []


def test_a_final_minute_whose_row_cannot_be_read_is_requested_again_later_and_not_immediately():
    one = market(confirm=True)
    for number in (600, 601):
        push(one, minute(number, as_of=50_000), seconds=number * 60 + 50)
    one.finalize_minutes(at(601 * 60 + 59))
    now_s = 601 * 60 + 15
    window = one.next_request(at(now_s))
    assert window.urgency is Urgency.CONFIRM
    outcome = one.on_history(window, [InvalidRow(minute(600).open_ms, "zeros")], at(now_s))
    assert (outcome.checked, outcome.mismatched, one.coverage.unconfirmed.minute_count) == (0, 0, 1)
    assert one.next_request(at(now_s + 1)) is None
    later_s = now_s + 120
    window = one.next_request(at(later_s))
    while window.urgency is not Urgency.CONFIRM:
        one.on_history(window, [minute(n, as_of=10**9) for n in (601, 602)], at(later_s))
        window = one.next_request(at(later_s))
    outcome = one.on_history(window, [minute(600, as_of=300_000)], at(later_s))
    assert one.coverage.unconfirmed.minute_count == 0


def test_a_bad_row_at_the_beginning_is_not_taken_for_the_time_before_the_listing():
    covered = Coverage(
        present=[span(500, 600)], known_gaps=[], since_ms=None, from_ms=MONDAY_MS, absence="exchange_outage"
    )
    covered.on_answer(
        Window(Urgency.HISTORY, *span(0, 500)), span(0, 600).end_ms, at(36_000), RangeSet([span(200, 203)])
    )
    assert [(gap.reason, *Range(gap.start_ms, gap.end_ms)) for gap in covered.known_gaps] == [
        ("unconfirmed", *span(0, 200)),
        ("invalid", *span(200, 203)),
        ("exchange_outage", *span(203, 500)),
    ]


def test_a_row_that_can_be_read_again_but_is_gone_becomes_an_outage():
    covered = Coverage(
        present=[span(0, 10), span(11, 600)], known_gaps=[], since_ms=None, from_ms=MONDAY_MS, absence="no_trades"
    )
    window = Window(Urgency.HISTORY, *span(10, 11))
    covered.on_answer(window, span(0, 600).end_ms, at(36_000), RangeSet([span(10, 11)]))
    covered.on_answer(window, span(0, 600).end_ms, at(36_001))
    assert [(gap.reason, gap.attempts) for gap in covered.known_gaps] == [("no_trades", 1)]


# ---------------------------------------------------------------- the stream


def test_a_minute_whose_last_push_cannot_be_read_is_not_final_by_its_successor():
    one = market()
    push(one, minute(600, as_of=50_000), seconds=36_050)
    one.on_push(Candles(BTC, (), invalid=(InvalidRow(minute(600).open_ms, "zeros"),)), at(36_059))
    push(one, minute(601, as_of=500), seconds=36_060.5)
    assert one.finalize_minutes(at(36_075)) == []
    assert one.next_request(at(36_080)) == Window(Urgency.RECENT, *span(600, 601))


def test_bad_rows_of_the_stream_are_one_log_line_and_a_count(caplog):
    one = market()
    with caplog.at_level(logging.INFO):
        for second in range(300):
            push(one, minute(600)._replace(high=minute(0).low - 1), seconds=36_010 + second / 10)
            one.rows.log_recovery(at(36_010 + second / 10))
        for second in range(0, 600, 10):
            one.rows.log_recovery(at(36_050 + second))
    assert one.rows.invalid.total == 300
    assert len(caplog.records) == 2
    assert "dropped 300" in caplog.text


def test_a_series_of_errors_is_logged_at_its_begin_and_its_end():
    errors = ErrorCounter()
    assert [errors.add_error(at_ms) for at_ms in (0, 1000, 50_000)] == [True, False, False]
    assert [errors.end_series(at_ms) for at_ms in (100_000, 110_000, 120_000)] == [0, 3, 0]
    assert errors.add_error(200_000)
    assert errors.total == 4
