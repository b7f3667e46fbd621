"""Retention of the SQLite store: minutes go by weeks and in small steps, and their bars stay."""

import asyncio

import pytest

from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, WEEK, Gap, Range
from candled.store.history import read_gaps
from candled.store.sqlite.store import SqliteStore
from candled.store.threads import StoreThreads
from candled.store.upkeep import StoreUpkeep
from candled.tasks import TaskSet
from tests.clocks import ManualClock
from tests.store.contract import LONGER, everything
from tests.store.rows import BTC, ETH, MONDAY_MS, minute

WEEK_MINUTES = WEEK.ms // MINUTE_MS
DAY_MS = 1440 * MINUTE_MS
NOW_MS = MONDAY_MS + 3 * WEEK.ms + 2 * DAY_MS  # ten days before that lies in the second week
KEPT_MS = MONDAY_MS + WEEK.ms
MINUTES = [minute(at) for at in range(0, 4 * WEEK_MINUTES, 60)]


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "candled.db", DEFAULT_INTERVALS, retention_days=10)
    store.open()
    store.write_minutes([(BTC, candle) for candle in MINUTES])
    yield store
    store.close()


def drop(store):
    return sum(1 for _ in store.drop_old_minutes(NOW_MS))


def bars_of(store):
    return {interval: everything(store, BTC, interval) for interval in LONGER}


def test_old_minutes_are_dropped_by_weeks_and_their_bars_stay(store):
    bars = bars_of(store)
    assert store.kept_from() == 0
    assert drop(store) > 5
    assert store.kept_from() == KEPT_MS
    assert everything(store, BTC, MINUTE) == MINUTES[7 * 24 :]
    assert bars_of(store) == bars
    store.rebuild_rollups(BTC, [Range(0, 2**53)])
    assert bars_of(store) == bars
    assert drop(store) == 0


def test_a_minute_too_old_to_be_kept_is_ignored_and_does_not_spoil_its_bar(store):
    drop(store)
    bars = bars_of(store)
    store.write_minutes([(BTC, minute(60, "9")), (BTC, minute(61)), (ETH, minute(5))])
    assert everything(store, BTC, MINUTE) == MINUTES[7 * 24 :]
    assert everything(store, ETH, MINUTE) == []
    assert bars_of(store) == bars


def test_an_interrupted_deletion_goes_on_and_its_minutes_are_gone_from_the_first_step(tmp_path, store):
    next(store.drop_old_minutes(NOW_MS))
    assert (store.kept_from(), store.served_from(BTC)) == (KEPT_MS, KEPT_MS)
    store.close()
    store = SqliteStore(tmp_path / "candled.db", DEFAULT_INTERVALS, retention_days=10)
    store.open()
    assert store.kept_from() == KEPT_MS
    drop(store)
    assert everything(store, BTC, MINUTE) == MINUTES[7 * 24 :]
    store.close()


def test_dropped_minutes_are_no_gap(store):
    store.set_complete_from(BTC, MONDAY_MS)
    drop(store)
    store.save_known_gaps(BTC, [Gap(start_ms=KEPT_MS + MINUTE_MS, end_ms=KEPT_MS + 9 * MINUTE_MS, reason="no_trades")])
    found = read_gaps(store, BTC, Range(MONDAY_MS, KEPT_MS + 10 * MINUTE_MS))
    assert [(gap.start_ms - KEPT_MS, gap.reason) for gap in found] == [
        (MINUTE_MS, "no_trades"),
        (9 * MINUTE_MS, "missing"),
    ]


def test_an_interval_added_later_has_the_bars_of_kept_minutes(store):
    next(store.drop_old_minutes(NOW_MS))  # older minutes are still in the file
    for _ in store.add_intervals([fresh := MINUTE.parse("30m")]):
        pass
    assert everything(store, BTC, fresh)[0].open_ms == KEPT_MS


@pytest.mark.slow
def test_the_file_gets_smaller(tmp_path, store):
    store.write_minutes([(BTC, minute(at)) for at in range(WEEK_MINUTES)])
    before = store.describe()["bytes"] + store.describe()["walBytes"]
    drop(store)
    store.close()
    assert (tmp_path / "candled.db").stat().st_size < before / 2


def test_without_a_setting_every_minute_is_kept(store, tmp_path):
    store.close()
    with_all = SqliteStore(tmp_path / "candled.db", DEFAULT_INTERVALS)
    with_all.open()
    assert [*with_all.drop_old_minutes(NOW_MS)] == []
    assert everything(with_all, BTC, MINUTE) == MINUTES
    with_all.close()


async def test_the_daemon_drops_on_the_writing_thread_and_other_writes_run_in_between(store):
    threads, clock, tasks = StoreThreads(store), ManualClock(NOW_MS), TaskSet()
    StoreUpkeep(store, threads, None, clock).start(tasks)
    left = []
    while store.kept_from() == 0:
        await asyncio.sleep(0)
    while (count := len(await threads.run_write(everything, store, BTC, MINUTE))) > len(MINUTES) - 7 * 24:
        left.append(count)
    assert len({*left}) > 2
    await tasks.cancel()
    await threads.close()
