"""Snapshots that are shortened to their newest minutes."""

from typing import Any

import pytest

from candled.exchange import Candles, InvalidRow
from candled.ingest.coverage import Urgency, Window
from candled.ingest.short_snapshots import ShortSnapshots, newest_minutes
from candled.model import MINUTE_MS, Symbol
from tests.ingest.test_market import at, market
from tests.rows import MONDAY_MS, minute

BTC = Symbol("BTC", "USDT")
NOW = 600  # the forming minute, since the start of the week


def snapshot(first: int = 100) -> Candles:
    return Candles(BTC, tuple(minute(number) for number in range(first, NOW + 1)), snapshot=True)


def answer(one: Any, first: int, last: int, lacks: Any = ()) -> None:
    """REST's answer about some minutes."""
    rows = [
        minute(number, as_of=(NOW - number) * 60_000 + 5000) for number in range(first, last) if number not in lacks
    ]
    window = Window(Urgency.WEEK, MONDAY_MS + first * MINUTE_MS, MONDAY_MS + last * MINUTE_MS)
    one.on_history(window, rows, at(60 * NOW + 5))


def test_a_snapshot_is_shortened_if_rest_will_be_asked_for_the_time_before_it():
    short = ShortSnapshots(max_history_minutes=1000)
    used = short.use_snapshot(snapshot(), market(present=()), may_shorten=True)
    assert used.snapshot
    assert used.candles == snapshot().candles[-3:]
    assert short.is_shortening


@pytest.mark.parametrize(
    ("present", "page", "may_shorten"),
    [
        ([(0, 100)], 1000, True),  # REST needs not be asked for the time before it
        ([(0, 50), (60, 90)], 460, True),  # shortened, it would take one more request
        ([(0, 50), (60, 90), (300, 301)], 1000, True),  # it may correct a stored minute
        ([], 1000, False),
    ],
)
def test_a_snapshot_is_used_whole_otherwise(present, page, may_shorten):
    short = ShortSnapshots(max_history_minutes=page)
    assert short.use_snapshot(snapshot(), market(present=present), may_shorten=may_shorten) == snapshot()
    assert not short.is_shortening


@pytest.mark.parametrize("is_credible", [True, False])
def test_a_snapshot_is_used_whole_while_rest_fails_or_denies_minutes(is_credible):
    short, one = ShortSnapshots(1000), market(present=())
    one.status.is_credible = is_credible
    if is_credible:
        one.on_history_failed("503")
    assert short.use_snapshot(snapshot(), one, may_shorten=True) == snapshot()


def test_a_small_snapshot_is_used_whole():
    short = ShortSnapshots(1000)
    assert short.use_snapshot(snapshot(NOW - 2), market(present=()), may_shorten=True) == snapshot(NOW - 2)


def test_an_answer_with_all_minutes_that_were_left_out_ends_the_wait():
    short, one = ShortSnapshots(1000), market(present=())
    short.use_snapshot(snapshot(), one, may_shorten=True)
    answer(one, 0, 200)
    short.on_answer(one)
    assert BTC in short._left_out  # it was about a part of them only
    answer(one, 200, NOW)
    short.on_answer(one)
    assert (short._left_out, short.unmet) == ({}, set())


def test_minutes_that_rest_lacks_are_taken_from_the_next_snapshot():
    short, one = ShortSnapshots(1000), market(present=())
    short.use_snapshot(snapshot(), one, may_shorten=True)
    answer(one, 0, NOW, lacks=[300])
    short.on_answer(one)
    assert short.unmet == {BTC}
    assert short.use_snapshot(snapshot(), one, may_shorten=True) == snapshot()
    assert (short.is_shortening, short.unmet) == (False, set())


def test_after_a_failure_of_rest_the_next_snapshot_is_used_whole():
    short, one = ShortSnapshots(1000), market(present=())
    short.on_failure(BTC)
    assert short.unmet == set()  # nothing was left out
    short.use_snapshot(snapshot(), one, may_shorten=True)
    short.on_failure(BTC)
    assert short.unmet == {BTC}
    assert short.use_snapshot(snapshot(), one, may_shorten=True) == snapshot()


def test_nothing_is_left_of_a_market_that_is_forgotten():
    short, one = ShortSnapshots(1000), market(present=())
    short.use_snapshot(snapshot(), one, may_shorten=True)
    short.forget_markets([BTC])
    short.on_answer(one)
    short.on_failure(BTC)
    assert (short._left_out, short.unmet) == ({}, set())


def test_a_minute_that_rest_has_in_addition_does_not_replace_one_that_it_lacks():
    short, one = ShortSnapshots(1000), market(present=())
    rows = tuple(minute(number) for number in range(100, NOW + 1) if number != 200)
    short.use_snapshot(Candles(BTC, (*rows, rows[5]), snapshot=True), one, may_shorten=True)
    answer(one, 0, NOW, lacks=[300])
    short.on_answer(one)
    assert short.unmet == {BTC}


def test_a_snapshot_of_an_ended_market_is_used_whole():
    short, one = ShortSnapshots(1000), market(present=())
    one.ended_ms = at(3600)
    assert short.use_snapshot(snapshot(), one, may_shorten=True) == snapshot()


def test_rows_of_one_minute_need_not_be_comparable():
    rows = (minute(1), minute(1)._replace(quote_volume=None), *(minute(number) for number in range(2, 5)))
    assert newest_minutes(Candles(BTC, rows, snapshot=True)).candles == rows[2:]


def test_the_newest_minutes_keep_the_invalid_rows_between_them():
    candles = tuple(minute(number) for number in (3, 1, 0, 2, 4))
    invalid = tuple(InvalidRow(open_ms, "bad") for open_ms in (None, minute(1).open_ms, minute(3).open_ms + 60_000))
    short = newest_minutes(Candles(BTC, candles, snapshot=True, invalid=invalid))
    assert [candle.open_ms for candle in short.candles] == [minute(number).open_ms for number in (2, 3, 4)]
    assert [row.open_ms for row in short.invalid] == [None, minute(4).open_ms]
