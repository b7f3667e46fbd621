"""What every store must do. A store's test file subclasses `StoreContract` and provides `open_store`."""

import asyncio
import random
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from candled.errors import StoreRejected
from candled.model import (
    ALL_TIME,
    DEFAULT_INTERVALS,
    MINUTE,
    MINUTE_MS,
    BarTexts,
    Candle,
    Gap,
    Interval,
    MarketKey,
    Range,
    RangeSet,
    Symbol,
)
from candled.store.batch import SOURCES, group_by_market, merge_changes
from candled.store.history import HistoryReader
from candled.store.interface import FEEDS_KEPT, SEQ_UNPUBLISHED, BadRow, Store, Table
from candled.store.threads import StoreThreads
from tests import deadlines
from tests.store.rows import BTC, ETH, MONDAY_MS, minute, new_market, recorded
from tests.tiers import LONG

ALWAYS_MS = 10**15
M5, H1, D1, W1 = (Interval.parse(text) for text in ("5m", "1h", "1D", "1W"))
LONGER = tuple(interval for interval in DEFAULT_INTERVALS if interval != MINUTE)

OpenStore = Callable[..., Store]


def everything(store: Store, market, interval: Interval) -> list[Candle]:
    return store.read_bars_between(market, interval, 0, ALWAYS_MS)


def renaming(program: str) -> str:
    """The statement with which docs/reference/storage.md renames the contracts of an earlier version."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "storage.md").read_text("utf-8")
    (statement,) = re.findall(rf'^{program} .*"(UPDATE .*)"$', page, re.MULTILINE)
    return statement


def check_renaming(open_store: OpenStore, rename: Callable[[], None]) -> None:
    """Check that `rename` keeps all that an earlier version stored of a contract, under its new name."""
    old, new = (MarketKey("futures", Symbol.parse(text)) for text in ("BTC/USDT", "BTC/USDT:USDT"))
    store = open_store(M5, D1)
    store.write_minutes([(old, minute(at)) for at in range(12)] + [(BTC, minute(at, "3")) for at in range(5)])
    store.save_known_gaps(old, [gap(20, 22)])
    store.set_complete_from(old, 7)
    before = [everything(store, old, interval) for interval in (MINUTE, M5, D1)]
    store.close()
    rename()
    store = open_store(M5, D1)
    assert [everything(store, new, interval) for interval in (MINUTE, M5, D1)] == before
    assert (store.known_gaps(new), store.complete_from(new)) == ([gap(20, 22)], 7)
    assert everything(store, old, MINUTE) == []
    assert len(everything(store, BTC, MINUTE)) == 5
    store.write_minutes([(new, minute(12))])
    assert everything(store, new, MINUTE)[:-1] == before[0]


def gap(start: int, end: int, reason: str = "exchange_outage") -> Gap:
    return Gap(start_ms=start * MINUTE_MS, end_ms=end * MINUTE_MS, reason=reason, attempts=1, retry_ms=None)


def span(start: int, end: int) -> Range:
    return Range(start * MINUTE_MS, end * MINUTE_MS)


def bad(table: Table, interval: Interval, at: int) -> BadRow:
    return BadRow(table=table, interval=interval, time=minute(at).open_ms, problem="it is no bar")


def sums(minutes: Sequence[Candle], interval: Interval) -> list[Candle]:
    """The bars of `interval` by plain arithmetic over sorted minutes."""
    groups: dict[int, list[Candle]] = {}
    for candle in minutes:
        groups.setdefault(interval.floor(candle.open_ms), []).append(candle)
    return [
        Candle(
            open_ms,
            parts[0].open,
            max(part.high for part in parts),
            min(part.low for part in parts),
            parts[-1].close,
            sum((part.volume for part in parts), Decimal(0)),
            None
            if any(part.quote_volume is None for part in parts)
            else sum((part.quote_volume for part in parts if part.quote_volume is not None), Decimal(0)),
            max(part.as_of_ms for part in parts),
            True,
            sum(part.rev for part in parts),
            "agg",
        )
        for open_ms, parts in groups.items()
    ]


def folded(minute: Candle) -> Candle:
    """The longer bar of a minute that is alone in it, where that begins with it."""
    return minute._replace(src="agg")


def without_origin(candle: Candle) -> Candle:
    """A version as it was stated, without what depends on the versions that came before it."""
    return candle._replace(rev=0, src="")


_prices = st.decimals(min_value="0.01", max_value=999, places=2)
_volumes = st.decimals(min_value=0, max_value=99, places=3)
# Both sides of a week boundary, so that every interval has bars that begin there and bars that end there.
_offsets = st.sampled_from([*range(-7, 8), -1441, -61, 59, 60, 241, 1439, 1440, 5000])


@st.composite
def versions(draw: st.DrawFn) -> Candle:
    at = draw(_offsets)
    prices = sorted(draw(st.lists(_prices, min_size=4, max_size=4)))
    open_ms = MONDAY_MS + at * MINUTE_MS
    return Candle(
        open_ms,
        prices[1],
        prices[3],
        prices[0],
        prices[2],
        draw(_volumes),
        draw(st.none() | _volumes),
        draw(st.sampled_from([0, open_ms + 59_000, open_ms + 60_000, open_ms + 90_000])),
        draw(st.sampled_from([True, True, False])),
        draw(st.sampled_from([0, 0, 0, 1, 5])),
        draw(st.sampled_from(SOURCES)),
    )


class StoreContract:
    """`open_store(*intervals)` opens a store at this test's own place, the same one at every call.

    `read_endlessly(store)` reads from it for many seconds.
    """

    read_endlessly: Callable[[Store], object]

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Store:
        return open_store(*DEFAULT_INTERVALS)

    # ------------------------------------------------------------ values

    @pytest.mark.parametrize("text", ["0.00000001", "104217.50", "1", "123456789012345678.123456789012345678"])
    def test_every_digit_comes_back(self, store, text):
        number = Decimal(text)
        candle = Candle(MONDAY_MS, number, number, number, number, number, number, 7, True)
        store.write_minutes([(BTC, candle)])
        [minute_back], [day] = everything(store, BTC, MINUTE), everything(store, BTC, D1)
        assert [format(value, "f") for value in (*minute_back.values, *day.values)] == [text] * 12
        assert (minute_back, day) == (candle, folded(candle))

    def test_a_number_written_with_an_exponent_keeps_its_value(self, store):
        store.write_minutes([(BTC, minute(0, volume="1E+3"))])
        assert [candle.volume for candle in everything(store, BTC, MINUTE)] == [1000]

    def test_a_quote_volume_that_was_not_sent_stays_absent(self, store):
        store.write_minutes([(BTC, minute(0)), (BTC, minute(1, quote="0")), (BTC, minute(5, quote="0"))])
        assert [candle.quote_volume for candle in everything(store, BTC, MINUTE)] == [None, 0, 0]
        assert [bar.quote_volume for bar in everything(store, BTC, M5)] == [None, 0]

    def test_sums_are_those_of_decimal_addition(self, store):
        store.write_minutes([(BTC, minute(at, volume="0.1")) for at in range(3)])
        assert [bar.volume for bar in everything(store, BTC, W1)] == [Decimal("0.3")]

    def test_a_batch_with_a_number_it_cannot_store_leaves_nothing(self, store):
        with pytest.raises(StoreRejected):
            store.write_minutes(
                [
                    (ETH, minute(0)),
                    *((BTC, minute(at)._replace(volume=Decimal(text))) for at, text in enumerate(("1E-150", "1E+150"))),
                ]
            )
        assert everything(store, ETH, MINUTE) == everything(store, BTC, MINUTE) == []

    @pytest.mark.parametrize("text", ["1E+999999999999", "1E-999999999999"])
    def test_a_number_of_endless_digits_is_refused_immediately(self, store, text):
        with pytest.raises(StoreRejected, match="unsupported number"):
            store.write_minutes([(BTC, minute(0)._replace(volume=Decimal(text)))])
        assert everything(store, BTC, MINUTE) == []

    # ------------------------------------------------------------ versions

    def test_an_older_copy_that_arrives_late_changes_nothing(self, store):
        after = MONDAY_MS + MINUTE_MS
        newer, older = minute(0, "5", as_of_ms=after + 9), minute(0, "3", volume="8", as_of_ms=after)
        store.write_minutes([(BTC, newer)])
        store.write_minutes([(BTC, older)])
        assert everything(store, BTC, MINUTE) == [newer]
        assert everything(store, BTC, H1) == [folded(newer)]

    def test_a_revision_reaches_every_longer_bar(self, store):
        store.write_minutes([(BTC, minute(at)) for at in range(10)])
        store.write_minutes([(BTC, minute(9, "7", volume="4", as_of_ms=MONDAY_MS + 11 * MINUTE_MS))])
        for interval in LONGER:
            bars = everything(store, BTC, interval)
            assert (bars[-1].close, sum(bar.volume for bar in bars)) == (7, 13)

    def test_of_two_versions_in_one_batch_the_superseding_one_stays(self, store):
        better = minute(0, volume="3")
        store.write_minutes([(BTC, minute(0, volume="2")), (BTC, better), (BTC, minute(0, volume="1"))])
        assert everything(store, BTC, MINUTE) == [better._replace(rev=1)]

    @pytest.mark.slow
    @settings(
        max_examples=60 if LONG else 20,
        deadline=None,
        # each store's subclass runs it with fixtures of its own, which is what these two checks notice
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(st.lists(versions(), min_size=1, max_size=25), st.randoms(use_true_random=False))
    def test_any_order_and_duplication_of_versions_gives_the_same_rows(self, store, candles, dice):
        market = new_market()
        rows = [(market, candle) for candle in (*candles, *dice.choices(candles, k=5))]
        dice.shuffle(rows)
        model: dict[int, Candle] = {}
        while rows:
            size = dice.randint(1, 8)
            store.write_minutes(rows[:size])
            model |= {one.open_ms: one for one in merge_changes(group_by_market(rows[:size])[market].minutes, model)}
            del rows[:size]

        best: dict[int, Candle] = {}
        for candle in (candle for candle in candles if candle.final):
            if candle.open_ms not in best or candle.supersedes(best[candle.open_ms]):
                best[candle.open_ms] = candle
        minutes = [best[open_ms] for open_ms in sorted(best)]
        stored = everything(store, market, MINUTE)
        assert stored == [model[open_ms] for open_ms in sorted(model)]
        assert list(map(without_origin, stored)) == list(map(without_origin, minutes))
        for interval in LONGER:
            assert everything(store, market, interval) == sums(stored, interval)

        forming: dict[int, Candle] = {}
        for candle in candles:
            if candle.final or candle.open_ms in best:
                continue
            if candle.open_ms not in forming or candle.supersedes(forming[candle.open_ms]):
                forming[candle.open_ms] = candle
        expected = [without_origin(forming[open_ms]) for open_ms in sorted(forming)]
        assert list(map(without_origin, store.read_forming(market))) == expected

    # ------------------------------------------------------------ revisions

    def test_where_a_minute_came_from_and_how_often_it_was_revised_comes_back(self, store, open_store):
        minutes = [minute(at, rev=at, src=src) for at, src in enumerate(SOURCES)]
        running = minute(9, final=False, src="live")
        store.write_minutes([(BTC, candle) for candle in (*minutes, running)])
        again = open_store(*DEFAULT_INTERVALS)
        assert everything(again, BTC, MINUTE) == minutes
        assert again.read_bars(BTC, MINUTE, before_ms=ALWAYS_MS, limit=9) == minutes
        assert again.read_forming(BTC) == [running]
        assert [(bar.rev, bar.src) for bar in everything(again, BTC, H1)] == [(sum(range(len(SOURCES))), "agg")]

    def test_a_revision_counts_once_however_often_it_is_written(self, store):
        first = minute(0, src="live")
        store.write_minutes([(BTC, first), (BTC, minute(1, rev=2))])
        revised = minute(0, "5", as_of_ms=first.open_ms + MINUTE_MS, src="rest")
        for _ in range(3):
            store.write_minutes([(BTC, revised)])
            store.write_minutes([(BTC, first)])  # as a journal may bring it again
        assert everything(store, BTC, MINUTE) == [revised._replace(rev=1), minute(1, rev=2)]
        assert {interval: [bar.rev for bar in everything(store, BTC, interval)] for interval in LONGER} == {
            interval: [3] for interval in LONGER
        }

    def test_a_version_with_the_same_values_is_no_revision_and_does_not_change_whose_they_are(self, store):
        """Whoever has them in memory knows no better either."""
        store.write_minutes([(BTC, minute(0, rev=3, src="live"))])
        confirmed = minute(0, as_of_ms=MONDAY_MS + MINUTE_MS, src="rest")
        store.write_minutes([(BTC, confirmed)])
        assert everything(store, BTC, MINUTE) == [confirmed._replace(rev=3, src="live")]
        store.write_minutes(
            [(BTC, minute(1, src="live")), (BTC, minute(1, as_of_ms=confirmed.as_of_ms + MINUTE_MS, src="rest"))]
        )
        assert everything(store, BTC, MINUTE)[1].src == "live"

    @pytest.mark.parametrize(("sent", "kept"), [(0, 4), (2, 4), (9, 9)])
    def test_the_version_with_more_revisions_wins(self, store, sent, kept):
        store.write_minutes([(BTC, minute(0, rev=3))])
        store.write_minutes([(BTC, minute(0, "5", as_of_ms=MONDAY_MS + MINUTE_MS, rev=sent))])
        assert [bar.rev for bar in everything(store, BTC, MINUTE)] == [kept]
        assert [bar.rev for bar in everything(store, BTC, W1)] == [kept]

    def test_of_two_versions_in_one_batch_the_second_is_a_revision(self, store):
        batch = [(BTC, minute(0)), (BTC, minute(0, "5", as_of_ms=MONDAY_MS + MINUTE_MS))]
        for _ in range(2):
            store.write_minutes(batch)
            assert [bar.rev for bar in everything(store, BTC, MINUTE)] == [1]

    def test_a_revision_that_its_writer_did_not_count_is_logged_for_the_readers_of_its_messages(self, store):
        store.register_feed([BTC, ETH], "a")
        store.write_minutes([(market, minute(at)) for market in (BTC, ETH) for at in range(4)])
        assert store.unpublished("bitget") == {}
        revised = [minute(at, "5", as_of_ms=MONDAY_MS + 5 * MINUTE_MS) for at in (1, 2)]
        known = minute(3, "5", as_of_ms=MONDAY_MS + 5 * MINUTE_MS, rev=1)
        logged = [Range(revised[0].open_ms, revised[1].open_ms + MINUTE_MS)]
        for _ in range(2):
            store.write_minutes([(BTC, one) for one in (*revised, known, minute(4))] + [(ETH, known)])
            assert store.unpublished("bitget") == {BTC.symbol: logged}
        assert store.changes_since(BTC, "a", 900) == logged

    # ------------------------------------------------------------ real minutes

    @pytest.mark.slow
    def test_a_real_week_in_shuffled_pages_gives_the_sums_of_its_minutes(self, store):
        minutes = recorded("btcusdt-week.csv.gz")
        pages = [minutes[start : start + 1000] for start in range(0, len(minutes), 997)]  # with some overlap
        random.Random(1).shuffle(pages)
        for page in pages:
            store.write_minutes([(BTC, candle) for candle in page])
        assert everything(store, BTC, MINUTE) == minutes
        for interval in LONGER:
            assert everything(store, BTC, interval) == sums(minutes, interval)

    @pytest.mark.slow
    def test_a_thin_real_market_shows_exactly_its_missing_minutes(self, store):
        minutes = recorded("ethusd-thin-week.csv.gz")
        store.write_minutes([(BTC, candle) for candle in minutes])
        span = minutes[0].open_ms, minutes[-1].open_ms + MINUTE_MS
        ranges = store.stored_ranges(BTC, *span)
        there = [at_ms for start_ms, end_ms in ranges for at_ms in range(start_ms, end_ms, MINUTE_MS)]
        assert there == [candle.open_ms for candle in minutes]
        assert ranges == list(RangeSet(ranges))
        assert everything(store, BTC, H1) == sums(minutes, H1)

    @pytest.mark.slow
    def test_folding_again_changes_nothing_where_nothing_is_wrong(self, store):
        minutes = recorded("btcusdt-week.csv.gz")[:3000]
        store.write_minutes([(BTC, candle) for candle in minutes])
        store.rebuild_rollups(ETH, [ALL_TIME])
        store.rebuild_rollups(BTC, [Range(minutes[7].open_ms, minutes[900].open_ms), Range(0, 1), ALL_TIME])
        for interval in LONGER:
            assert everything(store, BTC, interval) == sums(minutes, interval)

    def test_bars_are_folded_again_also_where_no_minute_is_left(self, store):
        store.write_minutes([(BTC, minute(at)) for at in range(0, 30)])
        gone = [bad("candles", MINUTE, at) for at in range(30)]
        store.discard_rows(BTC, gone)
        assert {interval: everything(store, BTC, interval) for interval in DEFAULT_INTERVALS} == {
            interval: [] for interval in DEFAULT_INTERVALS
        }
        assert store.newest_minutes("bitget").get(BTC.symbol) is None
        store.write_minutes([(BTC, minute(7))])
        assert everything(store, BTC, MINUTE) == [minute(7)]
        assert store.span(BTC, MINUTE) == Range(minute(7).open_ms, minute(8).open_ms)

    @pytest.mark.parametrize(
        ("rows", "left"),
        [
            ([], range(120)),
            ([("candles", MINUTE, 0)], range(1, 120)),
            ([("candles", MINUTE, 119), ("candles", MINUTE, 60)], [*range(60), *range(61, 119)]),
            ([("candles", MINUTE, 500)], range(120)),
            ([("rollups", H1, 60), ("rollups", M5, 5)], range(120)),
            ([("forming", MINUTE, 130)], range(120)),
            ([("forming", MINUTE, 5), ("candles", MINUTE, 130)], range(120)),
        ],
    )
    def test_discarded_rows_are_gone_and_bars_are_those_of_the_rest(self, store, rows, left):
        store.write_minutes([(market, minute(at)) for market in (BTC, ETH) for at in range(120)])
        store.write_minutes([(BTC, minute(130, final=False))])
        store.discard_rows(BTC, [bad(*row) for row in rows])
        kept = [minute(at) for at in left]
        assert everything(store, BTC, MINUTE) == kept
        assert {interval: everything(store, BTC, interval) for interval in LONGER} == {
            interval: sums(kept, interval) for interval in LONGER
        }
        assert len(store.read_forming(BTC)) == 1 - (("forming", MINUTE, 130) in rows)
        assert len(everything(store, ETH, MINUTE)) == 120
        assert store.span(BTC, MINUTE) == Range(kept[0].open_ms, kept[-1].open_ms + MINUTE_MS)
        assert store.bad_rows(BTC) == []

    @pytest.mark.parametrize(("at", "interval"), [((0,), D1), ((3, 5000), MINUTE), ((7, 1500, 20_000), H1)])
    def test_the_span_of_bars_is_from_the_oldest_to_the_end_of_the_newest(self, store, at, interval):
        assert store.span(BTC, interval) is None
        store.write_minutes([(BTC, minute(one)) for one in at])
        first, last = everything(store, BTC, interval)[0], everything(store, BTC, interval)[-1]
        assert store.span(BTC, interval) == Range(first.open_ms, last.open_ms + interval.ms)
        assert store.span(ETH, interval) is None
        assert store.kept_from() == 0

    # ------------------------------------------------------------ reading

    def test_bars_are_the_newest_before_a_time_oldest_first(self, store):
        store.write_minutes([(BTC, minute(at)) for at in range(30)])
        page = store.read_bars(BTC, MINUTE, before_ms=MONDAY_MS + 20 * MINUTE_MS, limit=3)
        assert [(bar.open_ms - MONDAY_MS) // MINUTE_MS for bar in page] == [17, 18, 19]
        page = store.read_bars(BTC, M5, before_ms=MONDAY_MS + 20 * MINUTE_MS, limit=2)
        assert [(bar.open_ms - MONDAY_MS) // MINUTE_MS for bar in page] == [10, 15]
        assert len(store.read_bars(BTC, M5, before_ms=ALWAYS_MS, limit=99)) == 6

    @pytest.mark.parametrize("limit", [0, -1])
    def test_no_bars_are_none_not_all(self, store, limit):
        store.write_minutes([(BTC, minute(0))])
        assert store.read_bars(BTC, MINUTE, before_ms=ALWAYS_MS, limit=limit) == []

    def test_bars_between_includes_its_start_and_not_its_end(self, store):
        store.write_minutes([(BTC, minute(at)) for at in range(5)])
        bars = store.read_bars_between(BTC, MINUTE, MONDAY_MS + MINUTE_MS, MONDAY_MS + 3 * MINUTE_MS)
        assert [(bar.open_ms - MONDAY_MS) // MINUTE_MS for bar in bars] == [1, 2]

    def test_texts_of_bars_are_those_that_are_printed_of_the_same_bars(self, store):
        numbers = ("0.00000001", "100", "1.50", "3E+3", "20.000", "0", "12345678901234567890.123456789")
        minutes = [
            Candle(
                MONDAY_MS + at * MINUTE_MS,
                *(Decimal(number) + shift for shift in (0, 2, 0, 1)),
                Decimal(numbers[-1 - at]),
                None if at % 2 else Decimal(number),
                as_of_ms=MONDAY_MS + (at + 2) * MINUTE_MS,
                final=True,
                rev=at,
                src="live" if at else "",
            )
            for at, number in enumerate(numbers)
        ]
        store.write_minutes([(BTC, one) for one in minutes])
        for interval in (MINUTE, M5, D1):
            texts = store.read_texts_between(BTC, interval, 0, ALWAYS_MS)
            assert list(map(list, texts)) == list(map(list, BarTexts.of(everything(store, BTC, interval))))
        assert store.read_texts_between(BTC, MINUTE, 0, ALWAYS_MS).opens[3] == "3000"
        assert store.read_texts_between(BTC, MINUTE, MONDAY_MS, MONDAY_MS) == BarTexts()

    def test_an_interval_that_is_not_configured_is_refused(self, store):
        store.write_minutes([(BTC, minute(0))])
        for read in (
            lambda: store.read_bars(BTC, Interval.parse("3m"), before_ms=ALWAYS_MS, limit=1),
            lambda: store.read_bars_between(BTC, Interval.parse("3m"), 0, ALWAYS_MS),
            lambda: store.read_texts_between(BTC, Interval.parse("3m"), 0, ALWAYS_MS),
        ):
            with pytest.raises(StoreRejected, match="3m"):
                read()

    def test_of_an_unknown_market_there_is_nothing(self, store):
        assert store.read_bars(BTC, MINUTE, before_ms=ALWAYS_MS, limit=9) == everything(store, BTC, D1) == []
        assert store.read_texts_between(BTC, MINUTE, 0, ALWAYS_MS) == BarTexts()
        assert store.complete_from(BTC) is None
        assert store.read_forming(BTC) == []
        assert store.stored_ranges(BTC, 0, ALWAYS_MS) == store.known_gaps(BTC) == []
        assert store.newest_minutes("bitget") == {}

    def test_markets_and_exchanges_are_kept_apart(self, store):
        elsewhere = BTC._replace(exchange="kraken")
        store.write_minutes([(BTC, minute(0, "3")), (ETH, minute(1, "4")), (elsewhere, minute(2, "5"))])
        closes = [[bar.close for bar in everything(store, market, W1)] for market in (BTC, ETH, elsewhere)]
        assert closes == [[3], [4], [5]]
        assert store.newest_minutes("bitget") == {BTC.symbol: MONDAY_MS, ETH.symbol: MONDAY_MS + MINUTE_MS}

    def test_presence_is_cut_to_the_range_asked_for(self, store):
        store.write_minutes([(BTC, minute(at)) for at in (0, 1, 2, 5, 6)])
        ranges = store.stored_ranges(BTC, MONDAY_MS + MINUTE_MS, MONDAY_MS + 6 * MINUTE_MS)
        assert ranges == [
            Range(MONDAY_MS + MINUTE_MS, MONDAY_MS + 3 * MINUTE_MS),
            Range(MONDAY_MS + 5 * MINUTE_MS, MONDAY_MS + 6 * MINUTE_MS),
        ]

    # ------------------------------------------------------------ forming minutes

    def test_a_forming_minute_is_no_part_of_history(self, store):
        store.write_minutes([(BTC, minute(0)), (BTC, minute(1, final=False))])
        assert store.read_forming(BTC) == [minute(1, final=False)]
        assert len(everything(store, BTC, MINUTE)) == 1
        assert everything(store, BTC, M5) == [folded(minute(0))]
        store.write_minutes([(ETH, minute(1, final=False))])
        assert store.newest_minutes("bitget") == {BTC.symbol: MONDAY_MS}

    def test_of_each_forming_minute_the_superseding_version_stays(self, store):
        newest = minute(2, volume="1", final=False)
        store.write_minutes([(BTC, newest), (BTC, minute(1, volume="9", final=False))])
        store.write_minutes([(BTC, minute(1, volume="10", final=False)), (BTC, minute(2, volume="0", final=False))])
        assert store.read_forming(BTC) == [minute(1, volume="10", final=False), newest]

    @pytest.mark.parametrize(
        ("written", "left"),
        [
            ([[3, 4, 5], [-4]], [3, 5]),
            ([[3, 4], [-6]], [3, 4]),
            ([[-3], [3]], []),
            ([[-3, 3, 4]], [4]),
            ([[3, -3, 4]], [4]),
            ([[3, 4], [-3, -4, 5]], [5]),
            ([[5], [3], [4]], [3, 4, 5]),
        ],
    )
    def test_a_forming_minute_is_kept_until_a_final_version_of_it_is_stored(self, store, open_store, written, left):
        """A number is a minute, a final one where it is negative; each list is a batch."""
        for batch in written:
            store.write_minutes([(BTC, minute(abs(at), final=at < 0)) for at in batch])
            store.write_minutes([(ETH, minute(abs(at), final=False)) for at in batch])
        assert store.read_forming(BTC) == [minute(at, final=False) for at in left]
        again = open_store(*DEFAULT_INTERVALS)
        assert again.read_forming(BTC) == [minute(at, final=False) for at in left]
        assert len(again.read_forming(ETH)) == len({abs(at) for batch in written for at in batch})

    def test_a_forming_minute_that_will_never_be_final_is_dropped_by_maintenance(self, store):
        store.write_minutes([(BTC, minute(at, final=False)) for at in (0, 1439, 1441)])
        store.write_minutes([(ETH, minute(0, final=False))])
        store.tidy_up(MONDAY_MS)
        assert [candle.open_ms - MONDAY_MS for candle in store.read_forming(BTC)] == [
            1439 * MINUTE_MS,
            1441 * MINUTE_MS,
        ]
        assert len(store.read_forming(ETH)) == 1

    # ------------------------------------------------------------ what is known of the past

    def test_since_when_history_is_complete_is_remembered(self, store, open_store):
        store.set_complete_from(BTC, 5)
        store.set_complete_from(BTC, 3)
        store.set_complete_from(BTC, 4)  # of another process, which knows less
        assert (store.complete_from(BTC), store.complete_from(ETH)) == (3, None)
        assert open_store(*DEFAULT_INTERVALS).complete_from(BTC) == 3

    @pytest.mark.parametrize(
        ("complete", "minutes", "served"),
        [(None, [], None), (5, [], 5), (None, [3, 9], 3), (5, [9], 5), (5, [3, 9], 3), (0, [3], 0)],
    )
    def test_what_may_be_served_begins_with_the_oldest_minute_or_with_complete_history(
        self, store, complete, minutes, served
    ):
        store.write_minutes([(ETH, minute(-7))])
        if complete is not None:
            store.set_complete_from(BTC, MONDAY_MS + complete * MINUTE_MS)
        store.write_minutes([(BTC, minute(at)) for at in minutes])
        assert store.served_from(BTC) == (None if served is None else MONDAY_MS + served * MINUTE_MS)

    def test_gaps_saved_within_a_range_leave_the_others_and_cut_those_across_its_edges(self, store):
        store.save_known_gaps(BTC, [gap(0, 2), gap(4, 10), gap(20, 22)])
        store.save_known_gaps(BTC, [gap(6, 7, "no_trades"), gap(18, 19)], span(5, 9))
        assert store.known_gaps(BTC) == [gap(0, 2), gap(4, 5), gap(6, 7, "no_trades"), gap(9, 10), gap(20, 22)]
        store.save_known_gaps(BTC, [], span(0, 6))
        assert store.known_gaps(BTC) == [gap(6, 7, "no_trades"), gap(9, 10), gap(20, 22)]

    def test_gaps_that_touch_and_differ_in_nothing_else_become_one(self, store):
        store.save_known_gaps(BTC, [gap(0, 5)])
        store.save_known_gaps(BTC, [gap(5, 8)], span(5, 8))
        store.save_known_gaps(BTC, [gap(8, 9, "no_trades")], span(8, 9))
        assert store.known_gaps(BTC) == [gap(0, 8), gap(8, 9, "no_trades")]

    def test_gaps_can_be_read_within_a_range(self, store):
        known_gaps = [gap(0, 5), gap(7, 8), gap(10, 12)]
        store.save_known_gaps(BTC, known_gaps)
        assert store.known_gaps(BTC, span(4, 8)) == known_gaps[:2]
        assert store.known_gaps(BTC, span(5, 7)) == []
        assert store.known_gaps(BTC, span(11, 99)) == known_gaps[2:]

    def test_saved_gaps_replace_the_ones_before(self, store, open_store):
        early = Gap(start_ms=0, end_ms=60_000, reason="beyond_history", attempts=1, retry_ms=None)
        late = Gap(start_ms=120_000, end_ms=240_000, reason="exchange_outage", attempts=3, retry_ms=9)
        store.save_known_gaps(BTC, [late, early])
        assert store.known_gaps(BTC) == [early, late]
        store.save_known_gaps(BTC, [late])
        store.save_known_gaps(ETH, [])
        assert open_store(*DEFAULT_INTERVALS).known_gaps(BTC) == [late]

    # ------------------------------------------------------------ the log of changes

    def test_a_feed_lists_changes_after_a_message(self, store, open_store):
        store.register_feed([BTC, ETH], "a")
        store.log_changes(BTC, "a", [(3, span(0, 2)), (4, span(9, 10)), (7, span(1, 5))])
        store.log_changes(ETH, "a", [(1, span(50, 60))])
        again = open_store(*DEFAULT_INTERVALS)
        assert again.changes_since(BTC, "a", 0) == [span(0, 5), span(9, 10)]
        assert again.changes_since(BTC, "a", 3) == [span(1, 5), span(9, 10)]
        assert again.changes_since(BTC, "a", 4) == [span(1, 5)]
        assert again.changes_since(BTC, "a", 7) == []

    def test_changes_of_later_feeds_are_listed_too(self, store):
        for epoch in ("a", "b", "c"):
            store.register_feed([BTC], epoch)
        store.log_changes(BTC, "c", [(1, span(9, 10))])
        store.log_changes(BTC, "a", [(5, span(0, 1))])
        store.log_changes(BTC, "b", [(2, span(4, 5))])
        assert store.changes_since(BTC, "a", 5) == [span(4, 5), span(9, 10)]
        assert store.changes_since(BTC, "b", 0) == [span(4, 5), span(9, 10)]
        assert store.changes_since(BTC, "c", 1) == []

    def test_a_feed_may_be_registered_and_its_changes_logged_again(self, store):
        store.register_feed([BTC], "a")
        store.register_feed([BTC], "b")
        store.log_changes(BTC, "b", [(1, span(3, 4))])
        store.register_feed([ETH, BTC, BTC], "a")  # still before b
        for _ in range(2):
            store.log_changes(BTC, "a", [(1, span(0, 1)), (1, span(0, 2))])
        assert store.changes_since(BTC, "b", 0) == [span(3, 4)]
        assert store.changes_since(BTC, "a", 0) == [span(0, 2), span(3, 4)]

    def test_a_change_that_is_published_later_is_in_every_answer_until_then(self, store):
        store.log_changes(BTC, None, [(SEQ_UNPUBLISHED, span(7, 8))])  # no client can ask for it yet
        store.register_feed([BTC], "a")
        store.log_changes(BTC, None, [(SEQ_UNPUBLISHED, span(0, 2)), (SEQ_UNPUBLISHED, span(5, 6))])
        assert store.changes_since(BTC, "a", 900) == [span(0, 2), span(5, 6)]
        store.log_changes(BTC, "a", [(7, span(0, 3))])
        assert store.changes_since(BTC, "a", 900) == [span(5, 6)]
        assert store.changes_since(BTC, "a", 6) == [span(0, 3), span(5, 6)]

    def test_unpublished_changes_are_found_by_exchange(self, store):
        store.log_changes(BTC, None, [(SEQ_UNPUBLISHED, span(0, 1))])  # no client can ask for it yet
        for epoch in "ab":
            store.register_feed([BTC, ETH, BTC._replace(exchange="kraken")], epoch)
        assert store.unpublished("bitget") == {}
        store.log_changes(BTC, "a", [(SEQ_UNPUBLISHED, span(8, 9))])  # of a feed that has ended
        store.log_changes(
            BTC,
            None,
            [
                (SEQ_UNPUBLISHED, span(0, 2)),
                (SEQ_UNPUBLISHED, span(2, 3)),
                (4, span(5, 6)),
                (SEQ_UNPUBLISHED, span(7, 8)),
            ],
        )
        store.log_changes(ETH, None, [(SEQ_UNPUBLISHED, span(1, 2))])
        assert store.unpublished("bitget") == {BTC.symbol: [span(0, 3), span(7, 8)], ETH.symbol: [span(1, 2)]}
        store.log_changes(BTC, "b", [(9, span(0, 3))])
        assert store.unpublished("bitget") == {BTC.symbol: [span(7, 8)], ETH.symbol: [span(1, 2)]}
        assert store.unpublished("kraken") == store.unpublished("nobody") == {}

    def test_changes_of_an_unknown_feed_can_be_neither_listed_nor_logged(self, store):
        assert store.changes_since(BTC, "a", 0) is None
        store.register_feed([], "a")
        store.register_feed([ETH], "a")
        assert store.changes_since(BTC, "a", 0) is None
        with pytest.raises(StoreRejected, match="does not have the feed a"):
            store.log_changes(BTC, "a", [(1, span(0, 1))])
        assert store.changes_since(ETH, "a", 0) == []

    def test_changes_are_logged_whole_or_not_at_all(self, store):
        store.register_feed([BTC], "a")
        with pytest.raises(StoreRejected):
            store.log_changes(BTC, "a", [(1, span(0, 1)), (10**30, span(1, 2))])
        assert store.changes_since(BTC, "a", 0) == []

    def test_many_changes_of_all_times_come_back_merged(self, store):
        store.register_feed([BTC], "a")
        changes = [(seq, span(seq * 7 % 1000, seq * 7 % 1000 + 2)) for seq in range(3000)]
        store.log_changes(BTC, "a", [*changes, (3000, ALL_TIME)])
        assert store.changes_since(BTC, "a", 2999) == store.changes_since(BTC, "a", 0) == [ALL_TIME]
        assert store.changes_since(BTC, "a", 3000) == []

    def test_only_the_newest_feeds_are_kept(self, store):
        for number in range(FEEDS_KEPT + 3):
            store.register_feed([BTC], f"e{number}")
            store.log_changes(BTC, f"e{number}", [(1, span(number, number + 1))])
        store.register_feed([ETH], "e0")
        store.tidy_up(MONDAY_MS)
        assert [store.changes_since(BTC, f"e{number}", 0) for number in range(3)] == [None] * 3
        assert store.changes_since(BTC, "e3", 0) == [span(3, FEEDS_KEPT + 3)]
        assert store.changes_since(ETH, "e0", 0) == []
        with pytest.raises(StoreRejected):
            store.log_changes(BTC, "e2", [(2, span(0, 1))])

    def test_feeds_that_ended_long_ago_are_dropped_and_a_long_one_is_not(self, store):
        day_ms = 1440 * MINUTE_MS
        store.register_feed([BTC], "a")
        store.tidy_up(MONDAY_MS)
        store.tidy_up(MONDAY_MS + 400 * day_ms)
        assert store.changes_since(BTC, "a", 0) == []  # still the newest
        store.register_feed([BTC], "b")
        store.tidy_up(MONDAY_MS + 401 * day_ms)
        store.register_feed([BTC], "c")
        store.tidy_up(MONDAY_MS + 430 * day_ms)
        assert store.changes_since(BTC, "a", 0) == []
        store.tidy_up(MONDAY_MS + 431 * day_ms)
        assert [store.changes_since(BTC, epoch, 0) for epoch in "abc"] == [None, [], []]
        store.register_feed([BTC], "d")  # is none of those before
        store.log_changes(BTC, "d", [(1, span(0, 1))])
        assert store.changes_since(BTC, "b", 0) == [span(0, 1)]

    def test_health_learns_kind_and_schema(self, store):
        assert {"kind", "schema"} <= store.describe().keys()

    # ------------------------------------------------------------ opening again

    def test_everything_is_stored_after_opening_again(self, store, open_store):
        store.write_minutes([(BTC, minute(0)), (BTC, minute(1, final=False))])
        again = open_store(*DEFAULT_INTERVALS)
        assert everything(again, BTC, MINUTE) == [minute(0)]
        assert everything(again, BTC, W1) == [folded(minute(0))]
        assert again.read_forming(BTC) == [minute(1, final=False)]

    @pytest.mark.slow
    def test_a_new_interval_is_folded_from_stored_minutes(self, open_store):
        # far apart, because old minutes are folded in several steps
        minutes = [*recorded("btcusdt-week.csv.gz")[:3000], minute(60_000), minute(200_000)]
        open_store(MINUTE, M5).write_minutes([(BTC, candle) for candle in minutes])
        later = open_store(MINUTE, M5, H1, W1)
        for interval in (M5, H1, W1):
            assert everything(later, BTC, interval) == sums(minutes, interval)

    def test_an_interval_that_is_added_is_folded_in_steps_between_writes(self, open_store):
        minutes = [minute(number, final=True) for number in range(0, 3 * 40_320, 977)]
        store = open_store(M5)
        store.write_minutes([(market, candle) for market in (BTC, ETH) for candle in minutes])
        steps, late = store.add_intervals([H1, W1]), 0
        for late, _ in enumerate(steps, start=1):
            store.write_minutes([(BTC, minute(late, final=True))])
            if late < 4:
                assert store.intervals() == [M5]
        assert late >= 6  # months of two markets
        assert store.intervals() == [M5, H1, W1]
        written = sorted([*minutes, *(minute(number, final=True) for number in range(1, late + 1))])
        for interval in (M5, H1, W1):
            assert everything(store, BTC, interval) == sums(written, interval)
            assert everything(store, ETH, interval) == sums(minutes, interval)
        assert list(store.add_intervals([H1])) == []

    def test_an_interval_whose_folding_was_interrupted_can_be_added_again(self, open_store):
        minutes = [minute(number, final=True) for number in range(0, 2 * 40_320, 977)]
        store = open_store(M5)
        store.write_minutes([(BTC, candle) for candle in minutes])
        steps = store.add_intervals([H1])
        next(steps)
        steps.close()
        assert store.intervals() == [M5]
        for _ in store.add_intervals([H1]):
            pass
        assert everything(store, BTC, H1) == sums(minutes, H1)

    def test_an_interval_that_is_not_wanted_any_more_stays_and_is_kept_up(self, open_store):
        open_store(M5, H1).write_minutes([(BTC, minute(0))])
        without = open_store(M5)
        without.write_minutes([(BTC, minute(1))])
        assert without.intervals() == [M5, H1]
        assert without.describe()["intervals"] == ["5m", "1h"]
        assert everything(without, BTC, H1) == sums([minute(0), minute(1)], H1)

    def test_an_interval_is_dropped_by_command_and_can_be_had_again(self, open_store):
        store = open_store(M5, H1, W1)
        store.write_minutes([(BTC, minute(0)), (ETH, minute(90))])
        assert store.drop_interval(H1) == 2
        store.write_minutes([(BTC, minute(1))])
        assert store.intervals() == [M5, W1]
        with pytest.raises(StoreRejected, match="1h"):
            everything(store, BTC, H1)
        assert everything(store, BTC, W1) == sums([minute(0), minute(1)], W1)
        assert everything(open_store(M5, H1), BTC, H1) == sums([minute(0), minute(1)], H1)

    # ------------------------------------------------------------ guests

    @pytest.mark.parametrize(
        "act",
        [
            lambda guest: guest.close(),
            lambda guest: everything(guest, BTC, D1),
            lambda guest: guest.write_minutes([(BTC, minute(61)), (BTC, minute(3, "7", as_of_ms=10**13))]),
            lambda guest: guest.write_minutes([(ETH, minute(61))]),
            lambda guest: guest.rebuild_rollups(BTC, [ALL_TIME]),
            lambda guest: guest.save_known_gaps(BTC, [gap(0, 2)]),
        ],
        ids=["nothing", "read", "revise", "another market", "fold", "holes"],
    )
    def test_whatever_a_guest_does_the_bars_of_the_daemon_are_those_of_the_minutes(self, open_store, act):
        m3, m6 = Interval.parse("3m"), Interval.parse("6m")
        kept = (m3, m6, D1, W1)
        daemon = open_store(MINUTE, *kept)
        daemon.write_minutes([(BTC, minute(at)) for at in range(0, 60, 7)])
        guest = open_store()
        assert guest.intervals() == [*kept]
        if act(guest) is None:
            daemon.write_minutes([(BTC, minute(at)) for at in range(60)])
        minutes = everything(daemon, BTC, MINUTE)
        for interval in kept:
            assert everything(daemon, BTC, interval) == sums(minutes, interval)
        assert daemon.intervals() == [*kept]

    def test_only_minutes_can_be_kept(self, open_store):
        store = open_store(MINUTE)
        store.write_minutes([(BTC, minute(0))])
        assert everything(store, BTC, MINUTE) == [minute(0)]

    # ------------------------------------------------------------ threads

    @pytest.mark.slow
    async def test_a_read_without_waiters_is_ended_or_never_begins(self, store):
        store.write_minutes([(BTC, minute(0))])
        threads = StoreThreads(store, readers=2)
        history = HistoryReader(store, threads)
        begun, asked_in_vain = threading.Barrier(3, timeout=10), threading.Event()

        def endless(number: int) -> None:
            begun.wait()
            self.read_endlessly(store)

        running = [asyncio.create_task(history._read_shared(endless, number)) for number in range(2)]
        joined = asyncio.create_task(history._read_shared(endless, 1))
        await asyncio.to_thread(begun.wait)
        await asyncio.sleep(0.5)  # for the statements to reach the database
        queued = asyncio.create_task(history._read_shared(asked_in_vain.set))
        await asyncio.sleep(0)
        after = asyncio.create_task(history.read_bars(BTC, MINUTE, ALWAYS_MS, 1))
        started = deadlines.now()
        queued.cancel()
        for task in running:
            task.cancel()
        assert await deadlines.wait_for(after, 5) == (minute(0),)  # on the thread that is free again
        assert not joined.done()  # one is still waited for
        joined.cancel()
        both = [history.read_bars(BTC, MINUTE, ALWAYS_MS, limit) for limit in (1, 2)]
        assert await deadlines.wait_for(asyncio.gather(*both), 5) == [(minute(0),)] * 2
        await threads.close()
        assert deadlines.now() - started < 5
        assert not asked_in_vain.is_set()

    @pytest.mark.slow
    def test_readers_never_see_half_a_batch(self, store):
        done = threading.Event()

        def read() -> set[Decimal]:
            seen: set[Decimal] = set()
            while not done.is_set():
                seen.update(bar.volume for bar in store.read_bars(BTC, M5, before_ms=ALWAYS_MS, limit=100))
            return seen

        with ThreadPoolExecutor(2) as threads:
            readers = [threads.submit(read) for _ in range(2)]
            try:
                for start in range(0, 200, 5):
                    store.write_minutes([(BTC, minute(at)) for at in range(start, start + 5)])
            finally:
                done.set()
        assert [reader.result() - {Decimal(5)} for reader in readers] == [set(), set()]
        assert len(everything(store, BTC, M5)) == 40
