"""Minutes that the exchange itself lost, in virtual time."""

import pytest

from candled.model import MINUTE_MS, Range
from tests.ingest.virtual import START_MS, VirtualExchange, running

GAPS = [
    Range(at_ms, at_ms + 3 * MINUTE_MS)
    for at_ms in range(START_MS - 300 * MINUTE_MS, START_MS - 100 * MINUTE_MS, 20 * MINUTE_MS)
]


def lose_minutes(exchange: VirtualExchange) -> None:
    exchange.push_s = 20.0
    exchange.lacks = lambda open_ms: any(start_ms <= open_ms < end_ms for start_ms, end_ms in GAPS)


@pytest.mark.slow  # an hour and a half passes, until the fourth attempt
async def test_ten_gaps_of_the_exchange_are_reported_never_filled_and_requested_a_bounded_number_of_times():
    """Promise 2."""
    async with running(start_ms=START_MS, prepare=lose_minutes) as harness:
        await harness.run(95 * 60)
        assert harness.state[0] == "live"
        assert harness.wrong() == []
        assert [(gap.start_ms, gap.end_ms) for gap in harness.store.saved_gaps] == GAPS
        assert (harness.market["holes"]["count"], harness.market["holes"]["minutes"]) == (10, 30)
        for gap in GAPS:
            asked = [span for _, span in harness.exchange.asked if gap.hull(span) == span]
            assert 4 <= len(asked) <= 5  # at the start, up to twice, and after growing pauses
