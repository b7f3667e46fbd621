"""The numbers of an exchange's ingest agree with its part of `/health?verbose`."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.health import is_healthy
from candled.ingest.coverage import Coverage, Urgency, Window
from candled.ingest.evidence import Evidence
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.measures import IngestMeasures
from candled.model import MINUTE_MS, Gap, Range
from tests.ingest.virtual import Harness, started
from tests.rows import MONDAY_MS

CASES: list[dict[str, Any]] = [
    {},
    {"stream": "down"},
    {"stream": "silent"},
    {"stream": "down", "rest": "down"},
    {"rest": "empty"},
    {"begins_ms": MONDAY_MS + 3_600_000},
    {"lacks": lambda open_ms: open_ms // MINUTE_MS % 7 == 0},
    {"quiet": lambda open_ms: True},
]


def measure(*shards: ExchangeIngest) -> IngestMeasures:
    """The present state in numbers, as `ShardedIngest.measure` adds it up in slices."""
    measures = IngestMeasures()
    for ingest in shards:
        ingest.measure_feeds(measures)
        silent = ingest.silent_symbols
        for symbol in ingest.symbols:
            ingest.measure_market(symbol, measures, silent)
    return measures


def agree(harness: Harness) -> None:
    measures, facts = measure(harness.ingest), harness.health
    market = facts["symbols"]["BTC/USDT"]
    assert measures.states.states == {market["state"]: 1}
    assert measures.states.reasons == ({} if market["reason"] is None else {market["reason"]: 1})
    assert (not measures.states.unhealthy and measures.is_rest_available) is is_healthy(facts)
    assert measures.skew_ms == facts["clockSkewMs"]
    assert measures.connected_feeds == market["connected"]
    assert (measures.compared, measures.differing) == (facts["parity"]["checked24h"], facts["parity"]["mismatched24h"])
    if "holes" in market:
        assert measures.gap_minutes["missing"] == market["missingMinutes"]
        known = {
            reason: count for reason, count in measures.gaps.items() if reason not in ("missing", "beyond_history")
        }
        assert sum(known.values()) == market["holes"]["count"]
        assert sum(measures.gap_minutes[reason] for reason in known) == market["holes"]["minutes"]
        assert (measures.revisions, measures.invalid_rows) == (market["revisions"], market["invalidCandles"])
        assert measures.unconfirmed == market["unconfirmedMinutes"]
        age_ms = market["lastMessageAgeMs"]
        now_ms = harness.clock.now_ms() + measures.skew_ms  # the exchange's, as ingest estimates it
        assert measures.pushed_ms == (None if age_ms is None else now_ms - age_ms)


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(options) or "well")
async def test_they_agree_in_every_state(options):
    harness = await started(**options)
    states = set()
    for seconds in (1, 10, 60, 200):
        await harness.run(seconds)
        agree(harness)
        states.add(harness.state)
    await harness.stop()
    assert states


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.integers(1, 12),
            st.sampled_from(["answer", "stored", "lost", "reopen", "evidence", "ahead"]),
        ),
        max_size=12,
    )
)
def test_known_gaps_are_counted_by_reason_after_any_change(changes):
    """The counts are kept, and not counted again, so every change has to be applied to them."""
    coverage = Coverage(
        present=[Range(MONDAY_MS + 50 * MINUTE_MS, MONDAY_MS + 60 * MINUTE_MS)],
        known_gaps=[Gap(start_ms=MONDAY_MS, end_ms=MONDAY_MS + 2 * MINUTE_MS, reason="unconfirmed", attempts=2)],
        since_ms=None,
        from_ms=MONDAY_MS,
        absence="no_trades",
    )
    now_ms = MONDAY_MS + 61 * MINUTE_MS
    for start, length, change in changes:
        span = Range(MONDAY_MS + start * MINUTE_MS, MONDAY_MS + (start + length) * MINUTE_MS)
        if change == "answer":
            coverage.on_answer(Window(Urgency.HISTORY, *span), now_ms, now_ms)
        elif change == "stored":
            coverage.add_stored(*span)
        elif change == "lost":
            coverage.mark_not_stored(*span)
        elif change == "evidence":
            coverage.apply_evidence(Evidence(begins_ms=span.start_ms), now_ms)
        elif change == "ahead":
            coverage.drop_after(span.start_ms)
        else:
            coverage.reopen_unconfirmed()
        expected: dict[str, tuple[int, int]] = {}
        for gap in coverage.known_gaps:
            count, minutes = expected.get(gap.reason, (0, 0))
            expected[gap.reason] = count + 1, minutes + gap.minute_count
        assert coverage.gap_counts == expected


@pytest.mark.slow
async def test_shards_add_up():
    one, other = await started(), await started(stream="down", rest="down", lacks=lambda open_ms: True)
    await one.run(60)
    await other.run(60)
    own, others, measures = measure(one.ingest), measure(other.ingest), measure(one.ingest, other.ingest)
    for name in ("feeds", "connected_feeds", "gaps", "gap_minutes", "unconfirmed", "revisions", "compared"):
        assert getattr(measures, name) == getattr(own, name) + getattr(others, name), name
    assert measures.states.states == own.states.states + others.states.states
    assert measures.states.unhealthy == own.states.unhealthy + others.states.unhealthy == 1
    assert measures.skew_ms == max(own.skew_ms, others.skew_ms, key=abs)
    assert (own.is_rest_available, measures.is_rest_available, measures.pushed_ms) == (True, False, own.pushed_ms)
    await one.stop()
    await other.stop()
