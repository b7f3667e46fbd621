"""Stamps that lie: no minute ends early, none stays wrong, nothing is asked of the future, and charts go on."""

import pytest

from candled.model import MINUTE, MINUTE_MS, Gap
from tests.ingest.test_exchange_clock import HOUR, LIES, SECOND, YEAR
from tests.ingest.virtual import BTC, START_MS, Harness, Memory, started
from tests.rows import MONDAY_MS
from tests.tiers import LONG

LIES = {**LIES, "jumping back": lambda ms: ms - (ms // 1000 % 7) * 60 * SECOND}


def check(harness: Harness) -> None:
    assert harness.false_finals == []
    assert harness.asked_for_the_future() == []
    assert harness.store.saved_gaps == []
    assert harness.wrong() == []
    assert harness.market["state"] == "live"
    assert harness.clock.true_ms - harness.shown_at_ms <= 2_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lie", "machine_ms"),
    [
        pytest.param(lie, machine_ms, id=f"{name}, {machine_ms} ms")
        for number, (name, lie) in enumerate(LIES.items())
        for machine_ms in (0, -3 * HOUR)
        if LONG or bool(machine_ms) == number % 2
    ],
)
async def test_one_frame_ends_no_minute_and_stops_no_chart(lie, machine_ms):
    harness = await started(machine_ms=machine_ms)
    await harness.run(150)
    before = len(harness.minutes)
    harness.push(harness.exchange.frame(stamp=lie))
    await harness.run(25)
    assert harness.clock.true_ms - harness.shown_at_ms <= 2_000
    assert len(harness.minutes) - before >= 20
    await harness.run(160)
    check(harness)
    assert harness.health["parity"]["mismatched24h"] == 0
    await harness.stop()


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_the_first_frames_may_lie(lie):
    harness = await started(stamp=lie)
    await harness.run(1)
    harness.exchange.stamp = lambda ms: ms
    await harness.run(160)
    check(harness)
    await harness.stop()


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_stream_that_lies_for_good_is_not_believed_but_its_candles_are(lie):
    harness = await started(stamp=lie)
    await harness.run(200)
    check(harness)
    await harness.stop()


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@pytest.mark.parametrize("which", ["rest_stamp", "date", "both"])
async def test_rest_that_lies_about_the_time_is_still_right_about_minutes(lie, which):
    harness = await started(**dict.fromkeys(("rest_stamp", "date") if which == "both" else (which,), lie))
    await harness.run(200)
    check(harness)
    await harness.stop()


@pytest.mark.slow
@pytest.mark.parametrize("ahead_ms", [90 * SECOND, HOUR, YEAR])
async def test_rest_corrects_a_minute_whose_stored_stamp_is_in_the_future(ahead_ms):
    """As a former version of candled stored it: half a minute, with a stamp of the far future."""
    first = await started()
    await first.run(200)
    await first.stop()
    store: Memory = first.store
    poisoned = [max(store.rows), max(store.rows) - 150 * MINUTE_MS]
    for open_ms in poisoned:
        row = first.exchange.version(open_ms, open_ms + 30_000, open_ms + 30_000)
        store.rows[open_ms] = row._replace(as_of_ms=first.clock.true_ms + ahead_ms, final=True, src="live")
    harness = await started(store, start_ms=first.clock.true_ms)
    await harness.run(200)
    check(harness)
    assert harness.health["parity"]["mismatched24h"] == 2
    assert harness.market["revisions"] == 2
    assert {store.rows[open_ms].rev for open_ms in poisoned} == {1}
    assert any(one.start_ms <= poisoned[1] < one.end_ms for one in harness.repaired)
    await harness.stop()


@pytest.mark.slow
async def test_a_minute_that_the_stream_got_wrong_is_corrected_and_counted():
    harness = await started()
    await harness.run(150)
    wrong_ms = MINUTE.floor(harness.clock.true_ms)
    true_row = harness.exchange.row(wrong_ms)
    harness.exchange.revised[wrong_ms] = true_row._replace(volume=true_row.volume + 5)
    await harness.run(35)
    del harness.exchange.revised[wrong_ms]  # REST is right
    await harness.run(180)
    check(harness)
    assert harness.health["parity"]["mismatched24h"] == 1
    await harness.stop()


@pytest.mark.slow
@pytest.mark.parametrize("by_ms", [2 * HOUR, -2 * HOUR, YEAR])
async def test_setting_this_machines_clock_changes_nothing(by_ms):
    harness = await started()
    await harness.run(150)
    harness.clock.machine_ms += by_ms
    await harness.run(200)
    check(harness)
    await harness.stop()


@pytest.mark.slow
async def test_gaps_of_minutes_to_come_are_dropped_at_the_start():

    store, now_ms = Memory(), MINUTE.floor(START_MS)
    future = Gap(
        start_ms=now_ms - MINUTE_MS, end_ms=now_ms + 59 * MINUTE_MS, reason="exchange_outage", attempts=5, retry_ms=None
    )
    past = Gap(start_ms=MONDAY_MS, end_ms=MONDAY_MS + MINUTE_MS, reason="exchange_outage", attempts=5, retry_ms=None)
    store.saved_gaps = [past, future]
    harness = await started(store)
    assert [gap.end_ms for gap in harness.store.saved_gaps] == [past.end_ms, now_ms]
    await harness.run(100)
    assert harness.market["holes"]["minutes"] <= 2
    assert str(BTC) in harness.health["symbols"]
    await harness.stop()
