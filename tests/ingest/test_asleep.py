"""A machine that slept, and finds only REST: the minutes are missing, fetched, and the chart is up to date."""

import pytest

from candled.model import MINUTE, MINUTE_MS
from tests.clocks import ManualClock
from tests.ingest.small import THURSDAY_MS, running

HOUR_MS = 3_600_000


class Machine(ManualClock):
    """Its steady clock stands still while it sleeps, as Linux's does; the wall's goes on."""

    asleep_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.asleep_ms


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
    def tell(exchange):
        exchange.stamps_rows, exchange.has_dates = stamps_rows, has_dates

    clock = Machine(THURSDAY_MS + 6 * HOUR_MS)
    async with running(clock=clock, prepare=tell) as run:
        await run.seconds(195)
        assert run.state == ("live", None)
        slept_ms = MINUTE.floor(clock.now_ms())
        run.exchange.stream = "down"
        clock.asleep_ms = night_ms
        await run.seconds(5)
        assert run.state[0] != "quiet"
        await run.seconds(115)
        until_ms = MINUTE.floor(clock.now_ms())
        assert run.state == ("polling", "stream_down")
        assert max(candle.open_ms for candle in run.minutes()) == until_ms
        assert run.health()["missingMinutes"] == 0
        assert run.wrong(slept_ms - 30 * MINUTE_MS, until_ms - MINUTE_MS) == []


@pytest.mark.slow
async def test_after_a_sleep_with_nothing_in_reach_it_does_not_claim_to_know():
    clock = Machine(THURSDAY_MS + 6 * HOUR_MS)
    async with running(clock=clock) as run:
        await run.seconds(180)
        run.exchange.stream = run.exchange.rest = "down"
        clock.asleep_ms = 8 * HOUR_MS
        await run.seconds(120)
        assert run.state == ("stale", "stream_down")
        run.exchange.stream = run.exchange.rest = "up"
        await run.seconds(200)
        assert (run.state, run.health()["missingMinutes"]) == (("live", None), 0)
