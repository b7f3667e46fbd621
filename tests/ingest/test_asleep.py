"""A machine that slept, and finds only REST: the minutes are missing, fetched, and the chart is up to date."""

import pytest

from candled.model import MINUTE, MINUTE_MS
from tests.ingest.virtual import THURSDAY_MS, Machine, running

HOUR_MS = 3_600_000


EVIDENCE = [
    pytest.param(True, False, id="answers that state the time"),
    pytest.param(False, True, id="the date of answers"),
    pytest.param(True, True, id="both"),
]
NIGHTS = [
    pytest.param(5 * MINUTE_MS, id="5 min"),
    pytest.param(8 * HOUR_MS, id="8 h"),
    pytest.param(90 * HOUR_MS, id="90 h"),
]


@pytest.mark.slow
@pytest.mark.parametrize("night_ms", NIGHTS)
@pytest.mark.parametrize(("stamps_rows", "has_dates"), EVIDENCE)
async def test_after_a_sleep_with_only_rest_the_chart_is_up_to_date(stamps_rows, has_dates, night_ms):
    def set_up(exchange):
        exchange.rest_stamp = stated if stamps_rows else None
        exchange.date = stated if has_dates else None

    def stated(at_ms):
        return at_ms

    clock = Machine(THURSDAY_MS + 6 * HOUR_MS)
    async with running(clock=clock, prepare=set_up) as harness:
        await harness.run(195)
        assert harness.state == ("live", None)
        slept_ms = MINUTE.floor(clock.now_ms())
        harness.exchange.stream = "down"
        clock.asleep_ms = night_ms
        await harness.run(5)
        assert harness.state[0] != "quiet"
        await harness.run(115)
        until_ms = MINUTE.floor(clock.now_ms())
        assert harness.state == ("polling", "stream_down")
        assert max(candle.open_ms for candle in harness.minutes) == until_ms
        assert harness.market["missingMinutes"] == 0
        assert harness.wrong(slept_ms - 30 * MINUTE_MS, until_ms - MINUTE_MS) == []


@pytest.mark.slow
async def test_after_a_sleep_with_nothing_in_reach_it_does_not_claim_to_know():
    clock = Machine(THURSDAY_MS + 6 * HOUR_MS)
    async with running(clock=clock) as harness:
        await harness.run(180)
        harness.exchange.stream = harness.exchange.rest = "down"
        clock.asleep_ms = 8 * HOUR_MS
        await harness.run(120)
        assert harness.state == ("stale", "stream_down")
        harness.exchange.stream = harness.exchange.rest = "up"
        await harness.run(200)
        assert (harness.state, harness.market["missingMinutes"]) == (("live", None), 0)
