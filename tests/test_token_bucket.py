import pytest

from candled.token_bucket import TokenBucket


def test_a_bucket_gives_its_rate_and_no_more():
    bucket = TokenBucket(rate=10, burst=10)
    taken = sum(bucket.try_take(tick / 100) == 0.0 for tick in range(1000))
    assert taken == pytest.approx(110, abs=1)


def test_a_bucket_returns_how_long_to_wait():
    bucket = TokenBucket(rate=2, burst=1)
    assert bucket.try_take(0.0) == 0.0
    assert bucket.try_take(0.0) == pytest.approx(0.5)


def test_a_closed_bucket_gives_nothing_before_its_time_and_no_burst_after():
    bucket = TokenBucket(rate=1, burst=10)
    bucket.close_until(60.0)
    assert bucket.try_take(30.0) == 30.0
    assert bucket.closed_for(30.0) == 30.0
    assert bucket.try_take(60.5) > 0
    assert bucket.try_take(61.0) == 0.0
