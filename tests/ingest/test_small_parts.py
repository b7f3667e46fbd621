import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.ingest.backoff import Backoff
from candled.ingest.skew import ClockSkew
from candled.token_bucket import TokenBucket


def test_backoff_doubles_with_jitter_up_to_its_most_and_starts_over_after_success():
    backoff = Backoff(first_s=1.0, most_s=60.0, draw=random.Random(1))
    waits = [backoff.failed() for _ in range(10)]
    for number, wait in enumerate(waits):
        limit = min(60.0, 2.0**number)
        assert limit / 2 <= wait <= limit
    assert len(set(waits[6:])) > 1
    backoff.succeeded()
    assert backoff.failed() <= 1.0


def test_a_bucket_gives_its_rate_and_no_more():
    bucket = TokenBucket(rate=10, burst=10)
    taken = sum(bucket.take(tick / 100) == 0.0 for tick in range(1000))
    assert taken == pytest.approx(110, abs=1)


def test_a_bucket_says_how_long_to_wait():
    bucket = TokenBucket(rate=2, burst=1)
    assert bucket.take(0.0) == 0.0
    assert bucket.take(0.0) == pytest.approx(0.5)


def test_a_closed_bucket_gives_nothing_before_its_time_and_no_burst_after():
    bucket = TokenBucket(rate=1, burst=10)
    bucket.close_until(60.0)
    assert bucket.take(30.0) == 30.0
    assert bucket.closed_for(30.0) == 30.0
    assert bucket.take(60.5) > 0
    assert bucket.take(61.0) == 0.0


def test_skew_is_the_sample_that_travelled_least():
    skew = ClockSkew()
    for delay in (300, 40, 900):
        skew.observe(1_000_000 + 5_000, 1_000_000 + delay)
    assert skew.ms == 4_960


@given(st.lists(st.integers(-50, 50), max_size=40))
def test_skew_is_the_largest_of_the_newest_samples(samples):
    skew = ClockSkew(samples=5)
    for number, sample in enumerate(samples, 1):
        skew.observe(sample, 0)
        assert skew.ms == max(samples[:number][-5:])
    assert skew.is_known == bool(samples)
