"""Candles on their way to the store, without a loop or a store."""

from hypothesis import given
from hypothesis import strategies as st

from candled.model import MarketKey, Symbol
from candled.store.pending_rows import PendingRows
from tests.store.contract import without_origin
from tests.store.rows import BTC, ETH, MONDAY_MS, minute


def filled(*rows):
    waiting = PendingRows(100)
    for row in rows:
        assert waiting.put_row(*row)
    return waiting


def test_only_the_superseding_version_of_a_minute_waits():
    newer = minute(0, volume="2")
    assert filled((BTC, minute(0)), (BTC, newer), (BTC, minute(0))).next_rows(9) == [(BTC, newer._replace(rev=1))]


def test_every_forming_minute_waits_until_a_final_version_does():
    forming = [minute(at, final=False) for at in (4, 5, 6)]
    waiting = filled(*((BTC, one) for one in reversed(forming)))
    assert waiting.next_rows(9) == [(BTC, one) for one in forming]
    waiting.put_row(BTC, minute(5))
    waiting.put_row(BTC, minute(5, volume="9", final=False))
    assert waiting.next_rows(9) == [(BTC, minute(5)), (BTC, forming[0]), (BTC, forming[2])]
    assert waiting.next_rows(9, forming=False) == [(BTC, minute(5))]
    assert len(waiting) == 3


def test_forming_minutes_that_never_become_final_do_not_pile_up():
    waiting = filled(*((BTC, minute(at, final=False)) for at in range(500)))
    assert len(waiting) == 60
    assert waiting.next_rows(1) == [(BTC, minute(440, final=False))]


def test_rows_are_sorted_by_market_and_time():
    waiting = filled((ETH, minute(1)), (BTC, minute(2)), (ETH, minute(0)), (BTC, minute(3, final=False)))
    assert [(market, candle.open_ms - MONDAY_MS) for market, candle in waiting.next_rows(9)] == [
        (BTC, 120_000),
        (BTC, 180_000),
        (ETH, 0),
        (ETH, 60_000),
    ]


def test_beyond_the_limit_new_minutes_are_refused_and_old_ones_kept():
    waiting = PendingRows(2)
    assert [waiting.put_row(BTC, minute(at)) for at in range(3)] == [True, True, False]
    assert not waiting.put_row(ETH, minute(0))
    assert [candle for _, candle in waiting.next_rows(9)] == [minute(0), minute(1)]


def test_a_full_table_still_takes_newer_versions_and_running_minutes():
    waiting = PendingRows(1)
    newer, running = minute(0, volume="2"), minute(1, final=False)
    assert waiting.put_row(BTC, minute(0))
    assert waiting.put_row(BTC, newer)
    assert waiting.put_row(BTC, running)
    assert waiting.next_rows(9) == [(BTC, newer._replace(rev=1)), (BTC, running)]


def test_room_is_free_again_after_a_drop():
    waiting = PendingRows(1)
    waiting.put_row(BTC, minute(0))
    waiting.drop_rows(waiting.next_rows(9))
    assert waiting.put_row(ETH, minute(1))
    assert len(waiting) == 1


def test_a_version_put_while_another_was_written_stays():
    waiting = filled((BTC, minute(0)), (BTC, minute(1)), (BTC, minute(2, final=False)))
    page = waiting.next_rows(9)
    newer, newer_running = minute(0, volume="2"), minute(2, volume="2", final=False)
    waiting.put_row(BTC, newer)
    waiting.put_row(BTC, newer_running)
    waiting.drop_rows(page)
    assert waiting.next_rows(9) == [(BTC, newer._replace(rev=1)), (BTC, newer_running)]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3), st.booleans())),
    st.integers(1, 7),
)
def test_pages_taken_and_dropped_bring_every_newest_version_once(puts, limit):
    markets = [MarketKey("bitget", Symbol(name, "USDT")) for name in "ABC"]
    waiting = PendingRows(1000)
    newest = {}
    for number, at, volume, final in puts:
        candle = minute(at, volume=str(volume), final=final)
        waiting.put_row(markets[number], candle)
        key = (number, at, final)
        if (number, at, True) in newest and not final:
            continue
        if key not in newest or candle.volume > newest[key].volume:
            newest[key] = candle
        if final:
            newest.pop((number, at, False), None)
    assert len(waiting) == len(newest)
    taken = []
    while page := waiting.next_rows(limit):
        assert len(page) <= limit
        taken += page
        waiting.drop_rows(page)
    expected = [(markets[number], candle) for (number, _, _), candle in newest.items()]
    assert sorted(repr((market, without_origin(candle))) for market, candle in taken) == sorted(map(repr, expected))
    assert len(waiting) == 0
