"""One table for every writer: the winning version of a minute, its count of revisions and its source.

The rule is `Candle.merged_with`; PostgreSQL has it in SQL, the others call it. `Candle.copied_over` is the one of
those who only show what a writer merged, `Candle.confirmed_over` that of REST's word.
"""

from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from candled.model import MINUTE, Candle
from candled.store.batch import group_by_market
from candled.store.interface import Store
from candled.store.pending_rows import PendingRows
from candled.store.postgres.store import PostgresStore
from candled.store.sqlite.store import SqliteStore
from tests.servers import Database, shared_postgres
from tests.store.rows import BTC, MONDAY_MS, new_market

Merge = Callable[[Candle, Candle], Candle]


def version(at_s: int, close: str = "2", volume: str = "5", rev: int = 0, src: str = "live", **more: Any) -> Candle:
    """Return the exchange's version of a minute so many seconds after its beginning; at 60 it is over."""
    candle = Candle.parse(MONDAY_MS, "2", "9", "1", close, volume, "7", as_of_ms=MONDAY_MS + at_s * 1000, final=True)
    return candle._replace(rev=rev, src=src, **more)


class Case(NamedTuple):
    """What is known, what comes then, and what is kept: `rev` and `src` None stand for `known` as it was."""

    known: Candle
    new: Candle
    rev: int | None
    src: str | None = None
    #: of those who show: whether the new one is shown, and with which count
    shown_rev: int | None = None


KNOWN = None
MERGED = {
    # which values win
    "a later statement": Case(version(61), version(75, "3", src="rest"), 1, "rest", 0),
    "an earlier statement that comes late": Case(version(75), version(61, "3", src="rest"), KNOWN),
    "one made after the end over a larger one from before": Case(
        version(59, volume="8"), version(60, "3"), 1, "live", 0
    ),
    "one made before the end, however large, after one from after": Case(version(60), version(59, "3", "8"), KNOWN),
    "of two from before the end the larger": Case(version(59), version(50, "3", "6"), 1, "live", 0),
    "of two from before the end not the later": Case(version(50), version(59, "3", "4"), KNOWN),
    "of two as large from before the end the later": Case(version(50), version(55, "3"), 1, "live", 0),
    "a statement without a time over nothing better": Case(version(0), version(0, volume="6"), 1, "live", 0),
    "a statement without a time": Case(version(61), version(0, "3", "6")._replace(as_of_ms=0), KNOWN),
    "of two of one moment the larger": Case(version(61), version(61, "3", "6", src="rest"), 1, "rest", 0),
    "of two of one moment not the smaller": Case(version(61), version(61, "3", "4", src="rest"), KNOWN),
    "of one moment and volume, with a quote volume": Case(version(61, quote_volume=None), version(61), 1, "live", 0),
    "of one moment and volume, without a quote volume": Case(version(61), version(61, quote_volume=None), KNOWN),
    "of one moment, the higher high": Case(version(61), version(61, high=Decimal(10)), 1, "live", 0),
    "of one moment, not the lower high": Case(version(61), version(61, high=Decimal(8)), KNOWN),
    "of one moment, the lower low": Case(version(61), version(61, low=Decimal("0.5")), 1, "live", 0),
    "of one moment, not the higher low": Case(version(61), version(61, low=Decimal("1.5")), KNOWN),
    "of one moment, the higher close": Case(version(61), version(61, "3"), 1, "live", 0),
    "of one moment, not the lower close": Case(version(61, "3"), version(61), KNOWN),
    "of one moment, the higher open": Case(version(61), version(61, open=Decimal(3)), 1, "live", 0),
    "of one moment, not the lower open": Case(version(61), version(61, open=Decimal(1)), KNOWN),
    # whose word it is, and what counts as a revision
    "the same again": Case(version(61), version(61, src="rest"), KNOWN),
    "the same values, confirmed later": Case(version(61, rev=2), version(75, src="rest"), 2, "live", 2),
    "the same values in another spelling": Case(version(61), version(61, "2.000"), KNOWN),
    "the same values in another spelling, later": Case(version(61), version(75, "2.000", src="rest"), 0, "live", 0),
    "the same values from an unknown source": Case(version(61, src=""), version(75, src="backfill"), 0, "", 0),
    "other values over revisions": Case(version(61, rev=3), version(75, "3", src="backfill"), 4, "backfill", 3),
    "a writer that counted as many": Case(version(61, rev=3), version(75, "3", rev=4), 4, "live", 4),
    "a writer that counted fewer": Case(version(61, rev=3), version(75, "3", rev=1), 4, "live", 3),
    "a writer that counted more": Case(version(61, rev=3), version(75, "3", rev=9), 9, "live", 9),
    "a writer that counted more of the same": Case(version(61, rev=3), version(61, rev=5, src="rest"), 5, "live"),
    "a writer that counted fewer of the same": Case(version(61, rev=3), version(61, rev=2), KNOWN),
    "an earlier statement with a larger count": Case(version(75, rev=1), version(61, "3", rev=9), KNOWN),
}


class _Stored:
    """A store as a merge: one write after the other, or both in one batch."""

    def __init__(self, store: Store, *, in_one_batch: bool) -> None:
        self._store = store
        self._in_one_batch = in_one_batch

    def __call__(self, new: Candle, known: Candle) -> Candle:
        market = new_market()
        rows = [(market, known), (market, new)]
        for batch in [rows] if self._in_one_batch else [rows[:1], rows[1:]]:
            self._store.write_minutes(batch)
        [kept] = self._store.read_bars_between(market, MINUTE, 0, 2**45) or self._store.read_forming(market)
        return kept


def _batched(new: Candle, known: Candle) -> Candle:
    batch = group_by_market([(BTC, known), (BTC, new)])[BTC]
    return (batch.minutes or batch.forming)[known.open_ms]


def _waiting(new: Candle, known: Candle) -> Candle:
    waiting = PendingRows(10)
    for candle in (known, new):
        waiting.put_row(BTC, candle)
    [(_, kept)] = waiting.next_rows(10)
    return kept


@pytest.fixture(
    scope="module",
    params=[
        "memory",
        "batch",
        "waiting rows",
        "sqlite",
        "sqlite, one batch",
        pytest.param("postgresql", marks=pytest.mark.postgres),
        pytest.param("postgresql, one batch", marks=pytest.mark.postgres),
    ],
)
def merge(request, tmp_path_factory):
    """The rule as one of its writers has it."""
    if request.param in ("memory", "batch", "waiting rows"):
        yield {"memory": Candle.merged_with, "batch": _batched, "waiting rows": _waiting}[request.param]
        return
    with ExitStack() as stack:
        if request.param.startswith("sqlite"):
            store = SqliteStore(tmp_path_factory.mktemp("rule") / "candled.db", [])
        else:
            database = stack.enter_context(Database(shared_postgres()))
            store = PostgresStore(database.url(), [])
        store.open()
        stack.callback(store.close)
        yield _Stored(store, in_one_batch=request.param.endswith("batch"))


def spelled(candle: Candle) -> tuple[Any, ...]:
    """A candle with its digits as they are written."""
    return candle.open_ms, tuple(map(str, candle.values)), candle.as_of_ms, candle.final, candle.rev, candle.src


@pytest.mark.slow
def test_every_writer_keeps_the_same_version(merge: Merge) -> None:
    kept, expected = {}, {}
    for name, case in MERGED.items():
        wins = case.known if case.rev is None else case.new._replace(rev=case.rev, src=case.src)
        kept[name], expected[name] = spelled(merge(case.new, case.known)), spelled(wins)
    assert kept == expected


@pytest.mark.slow
def test_the_same_version_of_a_forming_minute_without_counting_a_revision(merge: Merge) -> None:
    kept, expected = {}, {}
    for name, case in MERGED.items():
        known, new = case.known._replace(final=False), case.new._replace(final=False)
        wins = known if case.rev is None else new._replace(rev=max(known.rev, new.rev), src=case.src)
        kept[name], expected[name] = spelled(merge(new, known)), spelled(wins)
    assert kept == expected


def test_a_reader_takes_the_writers_version_and_loses_no_count() -> None:
    kept, expected = {}, {}
    for name, case in MERGED.items():
        shown = case.known if case.shown_rev is None else case.new._replace(rev=case.shown_rev)
        kept[name], expected[name] = spelled(case.new.copied_over(case.known)), spelled(shown)
    assert kept == expected


def test_a_reader_shows_a_final_version_in_place_of_a_forming_one() -> None:
    for case in MERGED.values():
        forming = case.known._replace(final=False)
        assert case.new.replaces_shown(forming)
        assert not forming.replaces_shown(case.new)


HOUR_S = 3600
#: what is known, REST's answer, and of what is kept: when it was stated, `rev` and `src`
CONFIRMED = {
    "a later answer": (version(61), version(75, "3", src="rest"), (75, 1, "rest")),
    "an answer with the smaller stamp": (version(75), version(61, "3", src="rest"), (75.001, 1, "rest")),
    "an answer without a stamp": (version(61), version(0, "3", src="rest"), (61.001, 1, "rest")),
    "an answer to a stamp from the future": (
        version(HOUR_S),
        version(75, "3", src="rest"),
        (HOUR_S + 0.001, 1, "rest"),
    ),
    "an answer with less volume": (version(61), version(61, volume="4", src="backfill"), (61.001, 1, "backfill")),
    "an answer over values sent before the end": (
        version(50, volume="9"),
        version(0, src="rest"),
        (60.001, 1, "rest"),
    ),
    "the same values": (version(75, rev=1), version(61, src="rest"), (75, 1, "live")),
    "the same values, later": (version(61, rev=1), version(75, src="rest"), (75, 1, "live")),
    "another answer over revisions": (version(75, rev=3), version(61, "3", src="rest"), (75.001, 4, "rest")),
}


def test_the_exchanges_own_answer_wins_whatever_its_stamp(merge: Merge) -> None:
    kept, expected = {}, {}
    for name, (known, answer, (as_of_s, rev, src)) in CONFIRMED.items():
        merged = merge(answer.confirmed_over(known), known)
        kept[name] = (merged.values, merged.as_of_ms, merged.rev, merged.src)
        expected[name] = (answer.values, MONDAY_MS + round(as_of_s * 1000), rev, src)
    assert kept == expected


def test_a_minute_that_was_never_final_is_replaced_without_a_revision() -> None:
    known = version(50)._replace(final=False)
    assert version(60, "3").merged_with(known).rev == 0
    assert version(60, "3", rev=1).merged_with(known).rev == 1
