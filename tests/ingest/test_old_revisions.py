"""The exchange's later word is taken at any age: counted, stored, and told to clients."""

import pytest

from candled.ingest.coverage import Urgency
from candled.model import MINUTE, MINUTE_MS, Range
from tests.ingest.test_market import at, market, push
from tests.ingest.virtual import Harness, started
from tests.rows import MONDAY_MS, minute


def revise(harness: Harness, open_ms: int) -> None:
    row = harness.exchange.row(open_ms)
    harness.exchange.revised[open_ms] = row._replace(volume=row.volume + 5, high=row.high + 1)


async def restart(harness: Harness) -> Harness:
    await harness.stop()
    return await started(harness.store, start_ms=harness.clock.true_ms, revised=harness.exchange.revised)


async def reconnect(harness: Harness) -> Harness:
    harness.ingest.on_feed_interrupted(harness.exchange.feed, "test")
    harness.ingest.on_feed_connected(harness.exchange.feed)
    harness.push_snapshot()
    return harness


AGES = [pytest.param(minutes, id=f"{minutes} min") for minutes in (61, 120, 300)]


@pytest.mark.slow
@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("occasion", [restart, reconnect])
async def test_a_revision_of_an_old_minute_is_taken_counted_and_published(age, occasion):
    harness = await started()
    await harness.run(150)
    old_ms = MINUTE.floor(harness.clock.true_ms) - age * MINUTE_MS
    revise(harness, old_ms)
    harness = await occasion(harness)
    await harness.run(120)
    assert harness.wrong() == []
    stored = harness.store.rows[old_ms]
    assert (stored.rev, stored.final) == (1, True)
    assert harness.market["revisions"] == 1
    assert harness.health["parity"]["mismatched24h"] == 1
    assert any(one.start_ms <= old_ms < one.end_ms for one in harness.repaired)
    assert any(span.start_ms <= old_ms < span.end_ms for span in harness.store.logged)
    await harness.stop()


@pytest.mark.slow
async def test_minutes_of_the_last_day_are_compared_again_every_six_hours():
    harness = await started()
    await harness.run(100)
    old_ms = MINUTE.floor(harness.clock.true_ms) - 90 * MINUTE_MS
    revise(harness, old_ms)
    harness.exchange.stream = "silent"
    await harness.leap(6 * 3600)
    await harness.run(500)
    assert harness.store.rows[old_ms].rev == 1
    asked = [one for one in harness.exchange.asked if one[1].start_ms <= old_ms < one[1].end_ms]
    assert len(asked) <= 6
    await harness.stop()


@pytest.mark.slow
async def test_what_rest_agrees_with_is_not_written_again():
    harness = await started()
    await harness.run(150)
    before = dict(harness.store.rows)
    logged = len(harness.store.logged)
    await reconnect(harness)
    await harness.run(30)
    old = Range(MONDAY_MS, MINUTE.floor(harness.clock.true_ms) - 70 * MINUTE_MS)
    assert all(harness.store.rows[open_ms] is before[open_ms] for open_ms in range(*old, MINUTE_MS))
    assert len(harness.store.logged) == logged
    assert harness.health["parity"]["mismatched24h"] == 0
    assert harness.market["unconfirmedMinutes"] <= 2
    await harness.stop()


@pytest.mark.slow
def test_a_storm_of_revisions_becomes_one_request():
    one = market(confirm=True)
    push(
        one,
        *(minute(number, as_of=(651 - number) * MINUTE_MS) for number in range(600, 652)),
        seconds=39_060,
        snapshot=True,
    )

    def storm(seconds: int) -> int:
        sent = []
        for turn in range(3000):
            number = 600 + turn % 50
            candle = minute(number, volume=str(seconds + turn), as_of=seconds * 1000 - number * MINUTE_MS)
            sent += push(one, candle, seconds=seconds).live
        return len(sent)

    def confirm(seconds: int) -> int:
        count = 0
        while window := one.next_request(at(seconds)):
            numbers = range((window.start_ms - at(0)) // MINUTE_MS, (window.end_ms - at(0)) // MINUTE_MS)
            one.on_history(window, [minute(number, as_of=10**9) for number in numbers], at(seconds))
            count += window.urgency is Urgency.CONFIRM
        return count

    assert confirm(39_064) == 1
    assert one.minutes.get_minute(at(36_000)).final
    assert storm(39_070) <= 60
    assert confirm(39_072) == 1
    assert storm(39_075) == 0
    assert confirm(39_076) == 0
    assert confirm(39_125) == 1


def test_missing_minutes_that_the_stream_brings_one_by_one_are_left_to_rest():
    one = market(present=((500, 600),), confirm=True)
    push(one, minute(600, as_of=10_000), seconds=36_010)
    storm = [push(one, minute(number, as_of=10**8, final=True), seconds=36_012 + number % 2) for number in range(400)]
    assert sum(bool(outcome.past) for outcome in storm) == 60
    while window := one.next_request(at(36_075)):
        numbers = range((window.start_ms - at(0)) // MINUTE_MS, (window.end_ms - at(0)) // MINUTE_MS)
        one.on_history(window, [minute(number, as_of=10**9) for number in numbers], at(36_075))
    assert one.missing_minutes(at(36_075)) == 0
    late = [minute(number, as_of=10**8, final=True) for number in (0, 1)]
    assert push(one, *late, minute(601, as_of=10_000), seconds=36_076, snapshot=True).past == []


@pytest.mark.slow
def test_revisions_by_the_stream_alone_are_bounded():
    one = market()
    push(
        one,
        *(minute(number, as_of=(651 - number) * MINUTE_MS) for number in range(600, 652)),
        seconds=39_060,
        snapshot=True,
    )
    for seconds, most in ((39_070, 60), (39_080, 0), (39_125, 60)):
        revised = [
            len(
                push(
                    one, minute(600, volume=str(seconds + turn), as_of=seconds * 1000 - 36_000_000), seconds=seconds
                ).live
            )
            for turn in range(1000)
        ]
        assert sum(revised) == most
