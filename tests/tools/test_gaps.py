"""`candled gaps` and `candled repair` with a real SQLite file; repair against the fake Bitget."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.config import Config
from candled.config.sections import IngestSettings
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Gap, Range
from candled.store.sqlite.store import SqliteStore
from candled.tools.gaps import read_gaps
from tests.clocks import ManualClock
from tests.rows import minute
from tests.tools import command
from tests.tools.exchange import BTC, DAY_MS, MARKET, NOON_MS, at, bench, iso

START_MS = NOON_MS - DAY_MS // 2 - 7 * DAY_MS  # a Monday


def known_gap(
    first: int, last: int, reason: str = "exchange_outage", attempts: int = 5, retry_ms: int | None = None
) -> Gap:
    return Gap(
        start_ms=START_MS + first * MINUTE_MS,
        end_ms=START_MS + last * MINUTE_MS,
        reason=reason,
        attempts=attempts,
        retry_ms=retry_ms,
    )


def ms(number: int) -> int:
    return START_MS + number * MINUTE_MS


class Shop:
    """A store made by hand, and the settings that name it."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(path, DEFAULT_INTERVALS)
        self.store.open()
        self.config = command.settings(f"sqlite:///{path}")

    def put(self, *ranges: tuple[int, int]) -> None:
        for first, last in ranges:
            rows = [minute(number, final=True, start=START_MS) for number in range(first, last)]
            self.store.write_minutes([(MARKET, row) for row in rows])

    def gaps(self, *arguments: object, now_ms: int) -> int:
        return command.called(self.config, "gaps", "BTC/USDT", *arguments, clock=ManualClock(now_ms))


def running_week_only(config: Config) -> Config:
    return config.model_copy(update={"ingest": IngestSettings(backfill=timedelta(0))})


@contextmanager
def open_shop(directory: Path) -> Iterator[Shop]:
    one = Shop(directory / "candled.db")
    one.config = running_week_only(one.config)
    try:
        yield one
    finally:
        one.store.close()  # a test may have opened another one


@pytest.fixture
def shop(tmp_path) -> Iterator[Shop]:
    with open_shop(tmp_path) as one:
        yield one


def test_every_missing_minute_is_listed_with_its_reason_attempts_and_next_try(shop, capsys):
    shop.put((60, 100), (110, 200), (203, 300))
    known_gaps = [
        known_gap(0, 60, "beyond_history", 1),
        known_gap(100, 105),
        known_gap(105, 110, "no_trades", 3),
        known_gap(200, 202, attempts=2, retry_ms=ms(400)),
    ]
    shop.store.save_known_gaps(MARKET, known_gaps)
    shop.store.set_complete_from(MARKET, ms(0))
    assert shop.gaps("--json", now_ms=ms(302)) == 1
    (report,) = json.loads(capsys.readouterr().out)["markets"]
    assert report["missing"] == {
        "beyond_history": 60,
        "exchange_outage": 7,
        "missing": 1,
        "no_trades": 5,
    }
    assert [
        (gap["from"], gap["minutes"], gap["reason"], gap["attempts"], gap["nextTry"]) for gap in report["gaps"]
    ] == [
        (iso(ms(0)), 60, "beyond_history", 1, None),
        (iso(ms(100)), 5, "exchange_outage", 5, None),
        (iso(ms(105)), 5, "no_trades", 3, None),
        (iso(ms(200)), 2, "exchange_outage", 2, iso(ms(400))),
        (iso(ms(202)), 1, "missing", 0, None),
    ]


def test_in_words_minutes_without_trades_are_only_counted_unless_asked_for(shop, capsys):
    shop.put((0, 100), (101, 200), (210, 300))
    shop.store.save_known_gaps(
        MARKET, [known_gap(100, 101, "no_trades", 3), known_gap(200, 210, attempts=1, retry_ms=ms(400))]
    )
    assert shop.gaps(now_ms=ms(302)) == 0
    text = capsys.readouterr().out
    assert "exchange_outage 10 min, no_trades 1 min" in text
    assert f"{iso(ms(200))} to {iso(ms(210))}" in text
    assert f"asked once, again at {iso(ms(400))}" in text
    assert iso(ms(100)) not in text
    shop.gaps("--all", now_ms=ms(302))
    assert iso(ms(100)) in capsys.readouterr().out


def test_minutes_since_the_daemon_stopped_are_missing_because_of_us(shop, capsys):
    shop.put((0, 100))
    assert shop.gaps(now_ms=ms(162)) == 1
    assert "missing 60 min" in capsys.readouterr().out


def test_a_complete_market_has_no_gaps(shop, capsys):
    shop.put((0, 100))
    assert shop.gaps(now_ms=ms(102)) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_minutes_that_the_store_has_dropped_are_not_missing(shop, tmp_path, capsys):
    shop.put((0, 10))
    shop.store.set_complete_from(MARKET, ms(0))
    shop.store.close()
    shop.store = SqliteStore(tmp_path / "candled.db", DEFAULT_INTERVALS, retention_days=1)
    shop.store.open()
    week = 7 * DAY_MS // MINUTE_MS
    assert len([*shop.store.drop_old_minutes(ms(2 * week))]) >= 1
    shop.put((2 * week, 2 * week + 10))
    assert shop.gaps("--json", now_ms=ms(2 * week + 12)) == 1
    (report,) = json.loads(capsys.readouterr().out)["markets"]
    assert (report["from"], report["missing"]) == (iso(ms(week)), {"missing": week})


def test_a_market_of_which_nothing_is_stored_lacks_what_the_settings_want(shop, capsys):
    assert shop.gaps("--json", now_ms=ms(62)) == 1
    (report,) = json.loads(capsys.readouterr().out)["markets"]
    assert report["missing"] == {"missing": 60}


def test_holes_that_were_filled_since_are_no_gaps(shop, capsys):
    shop.put((0, 100))
    shop.store.save_known_gaps(MARKET, [known_gap(40, 50)])
    assert shop.gaps(now_ms=ms(102)) == 0
    assert "nothing is missing" in capsys.readouterr().out


@pytest.mark.slow
@given(st.data())
def test_minutes_and_gaps_together_are_all_minutes_each_once(tmp_path_factory, data):
    with open_shop(tmp_path_factory.mktemp("gaps")) as one:
        page = 4 * 7 * 1440  # minutes that are read in one step
        edges = data.draw(st.lists(st.integers(-30, 30), min_size=2, max_size=8, unique=True).map(sorted))
        numbers = [page + edge for edge in edges]
        one.put(*zip(numbers[::2], numbers[1::2], strict=False))
        first, length = data.draw(st.integers(-20, 20)), data.draw(st.integers(1, 15))
        one.store.save_known_gaps(MARKET, [known_gap(page + first, page + first + length)])
        span = Range(ms(page - 40), ms(page + 40))
        gaps = list(read_gaps(one.store, MARKET, Range(ms(0), span.end_ms)))
        there = [(start_ms, end_ms) for start_ms, end_ms in one.store.stored_ranges(MARKET, *span)]
        pieces = sorted([*((gap.start_ms, gap.end_ms) for gap in gaps), *there])
        assert (pieces[0][0], pieces[-1][1]) == (ms(0), span.end_ms)
        assert all(left[1] == right[0] for left, right in pairwise(pieces))
        assert all(_differ(left, right) for left, right in pairwise(gaps))


def _differ(left: Gap, right: Gap) -> bool:
    return left.end_ms < right.start_ms or left.reason != right.reason


# ---------------------------------------------------------------- repair


async def filled(one, *without: tuple[int, int]) -> None:
    """All minutes of the last two days but some."""
    rows = one.truth(at(-2), NOON_MS)
    stamped = [row._replace(as_of_ms=row.open_ms + MINUTE_MS) for row in rows]
    one.put(*(row for row in stamped if not any(start <= row.open_ms < end for start, end in without)))


def remember(one, *known_gaps: Gap) -> None:
    store = one.store()
    store.save_known_gaps(MARKET, known_gaps)
    store.set_complete_from(MARKET, at(-2))
    store.close()


async def repaired(one, capsys, *arguments: object) -> tuple[int, dict]:
    one.config = running_week_only(one.config)
    status = await one.run("repair", *arguments, "--json")
    return status, json.loads(capsys.readouterr().out)["markets"][0]


@pytest.mark.slow
async def test_everything_is_asked_for_again_now_also_what_was_given_up(tmp_path, capsys):
    given_up, missed, missing = (at(-1), at(-1, 30)), (at(-0.5), at(-0.5, 7)), (at(-1.5), at(-1.5, 20))
    async with bench(tmp_path) as one:
        one.fake.missing_minutes(BTC, missing)
        await filled(one, given_up, missed)
        remember(
            one,
            Gap(start_ms=missing[0], end_ms=missing[1], reason="exchange_outage", attempts=5, retry_ms=None),
            Gap(start_ms=given_up[0], end_ms=given_up[1], reason="exchange_outage", attempts=5, retry_ms=None),
        )
        status, report = await repaired(one, capsys)
        assert status == 0
        results = {gap["from"]: (gap["repaired"], gap["now"]) for gap in report["gaps"]}
        assert results[iso(given_up[0])] == (30, [])
        assert results[iso(missed[0])] == (7, [])
        assert results[iso(missing[0])] == (0, ["exchange_outage"])
        assert one.known_gaps() == [(*missing, "exchange_outage")]
        assert all(end_ms - start_ms <= 999 * MINUTE_MS for start_ms, end_ms in one.asked())
        assert len(one.asked()) <= 5


@pytest.mark.slow
async def test_what_is_older_than_the_exchanges_history_is_left_unless_asked_for(tmp_path, capsys):
    before = Gap(start_ms=at(-3), end_ms=at(-2), reason="beyond_history", attempts=1, retry_ms=None)
    async with bench(tmp_path) as one:
        await filled(one)
        remember(one, before)
        store = one.store()
        store.set_complete_from(MARKET, at(-3))
        store.close()
        status, report = await repaired(one, capsys)
        assert (status, one.stored(at(-3), at(-2))) == (0, [])
        status, report = await repaired(one, capsys, "--all")
        assert (status, len(one.stored(at(-3), at(-2)))) == (0, 1440)
        assert (report["gaps"][0]["repaired"], one.known_gaps()) == (1440, [])


@pytest.mark.slow
async def test_an_exchange_that_is_away_leaves_everything_as_it_was(tmp_path, capsys):
    missed = (at(-1), at(-1, 30))
    async with bench(tmp_path, speed=1000.0) as one:
        await filled(one, missed)
        one.fake.rest_down = True
        status, report = await repaired(one, capsys)
        assert status == 1
        assert "cannot reach" in report["trouble"]
        assert one.known_gaps() == []
