"""The fixed window: how many, by whom, and the headers that say so."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.addresses import client_of
from candled.config import LimitSettings
from candled.errors import Unavailable
from candled.serve.rate_limit import MemoryCounter, RateLimit, RateLimits
from tests.clocks import ManualClock

BOTH = ("legacy", "draft-6")


def limit(clock, *, requests=100, window_s=900.0, styles=BOTH, counter=None):
    one = RateLimit("api", counter or MemoryCounter(clock), clock)
    one.set_limits(requests, window_s, styles)
    return one


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("2001:db8:1:ff00::1", "2001:db8:1:ff00::/56"),
        ("2001:db8:1:ffff:ffff:ffff:ffff:ffff", "2001:db8:1:ff00::/56"),
        ("2001:db8:1:fe00::1", "2001:db8:1:fe00::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("garbage", "garbage"),
        ("x" * 100_000, "x" * 64),
        ("", ""),
    ],
)
def test_an_ipv6_address_counts_by_its_first_56_bits_and_an_ipv4_one_alone(address, owner):
    assert client_of(address) == owner


async def test_the_hundred_and_first_request_of_a_window_is_refused_and_the_next_window_is_empty():
    clock = ManualClock()
    one = limit(clock)
    assert [(await one.check_request("a")).allowed for _ in range(100)] == [True] * 100
    assert not (await one.check_request("a")).allowed
    assert (await one.check_request("b")).allowed
    await clock.advance(899)
    assert not (await one.check_request("a")).allowed
    await clock.advance(1)
    assert (await one.check_request("a")).allowed


async def test_the_headers_are_those_of_express_rate_limit():
    clock = ManualClock(1_800_000_000_500)
    one = limit(clock)
    assert dict((await one.check_request("a")).headers) == {
        "X-RateLimit-Limit": "100",
        "X-RateLimit-Remaining": "99",
        "X-RateLimit-Reset": "1800000901",  # Unix seconds, rounded up
        "RateLimit-Policy": "100;w=900",
        "RateLimit-Limit": "100",
        "RateLimit-Remaining": "99",
        "RateLimit-Reset": "900",
    }
    await clock.advance(0.4)
    for _ in range(100):
        last = await one.check_request("a")
    assert (last.headers["X-RateLimit-Remaining"], last.headers["RateLimit-Remaining"]) == ("0", "0")
    assert (last.headers["Retry-After"], last.headers["RateLimit-Reset"]) == ("900", "900")  # 899.6, rounded up


async def test_draft_8_is_an_option():
    one = limit(ManualClock(), styles=("draft-8",))
    partition = base64.b64encode(hashlib.sha256(b"192.0.2.1").hexdigest()[:12].encode()).decode()
    assert dict((await one.check_request("192.0.2.1")).headers) == {
        "RateLimit-Policy": f'"100-in-15min"; q=100; w=900; pk=:{partition}:',
        "RateLimit": '"100-in-15min"; r=99; t=900',
    }


async def test_no_limit_has_no_headers():
    one = limit(ManualClock(), requests=0)
    outcomes = [await one.check_request("a") for _ in range(1000)]
    assert all(outcome.allowed and not outcome.headers for outcome in outcomes)


async def test_where_the_shared_counter_is_unavailable_this_process_counts_for_itself():
    class Away:
        async def count_hit(self, key, window_s):
            raise Unavailable("gone")

    one = limit(ManualClock(), requests=3, counter=Away())
    assert [(await one.check_request("a")).allowed for _ in range(4)] == [True, True, True, False]


async def test_millions_of_addresses_cost_bounded_memory_and_ended_windows_none():
    clock = ManualClock()
    counter = MemoryCounter(clock, most=1000)
    for number in range(5000):
        await counter.count_hit(f"api:{number}", 900)
    assert len(counter._windows[900]) <= 1001
    assert (await counter.count_hit("api:4999", 900))[0] == 2  # the youngest are remembered
    await clock.advance(901)
    await counter.count_hit("api:x", 900)
    assert len(counter._windows[900]) == 1


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 40)), max_size=60))
async def test_each_key_has_a_window_of_its_own_that_its_first_request_begins(requests):
    clock = ManualClock()
    counter = MemoryCounter(clock)
    began: dict[str, tuple[float, int]] = {}
    for key, pause_s in requests:
        await clock.advance(pause_s)
        now = clock.monotonic()
        start, count = began.get(key, (now, 0))
        if now >= start + 60:
            start, count = now, 0
        began[key] = start, count + 1
        counted, left_s = await counter.count_hit(key, 60)
        assert (counted, left_s) == (count + 1, pytest.approx(start + 60 - now))


class _Remote:
    """A counter outside of the process."""

    def __init__(self, clock) -> None:
        self.memory = MemoryCounter(clock)
        self.hits = 0

    async def count_hit(self, key, window_s):
        self.hits += 1
        return self.memory.count_now(key, window_s)


@pytest.mark.parametrize("is_remote", [True, False])
async def test_an_address_over_its_limit_is_refused_without_the_counter_until_its_window_ends(is_remote):
    clock = ManualClock()
    counter = _Remote(clock) if is_remote else MemoryCounter(clock)
    one = limit(clock, requests=2, window_s=60.0, counter=counter)
    assert [(await one.check_request("192.0.2.1")).allowed for _ in range(3)] == [True, True, False]
    assert one.refuse_now("192.0.2.2") is None
    hits = getattr(counter, "hits", 3)
    for pause_s, left in ((0.0, "60"), (0.5, "60"), (0.5, "59"), (57.5, "2"), (1.4, "1")):
        await clock.advance(pause_s)
        for result in (await one.check_request("192.0.2.1"), one.check_now("192.0.2.1"), one.refuse_now("192.0.2.1")):
            assert result is not None
            assert (result.allowed, result.headers["Retry-After"]) == (False, left)
            assert result.headers["RateLimit-Reset"] == left
    assert getattr(counter, "hits", 3) == hits
    await clock.advance(0.2)
    assert one.refuse_now("192.0.2.1") is None
    assert (await one.check_request("192.0.2.1")).headers["X-RateLimit-Remaining"] == "1"


async def test_new_limits_count_on_and_forgive_refusals():
    clock = ManualClock()
    limits = RateLimits(LimitSettings(api_requests=2), MemoryCounter(clock), clock)
    api = limits.groups["api"]
    assert [(await api.check_request("a")).allowed for _ in range(3)] == [True, True, False]
    limits.set_limits(LimitSettings(api_requests=5, headers=("draft-8",)))
    results = [await api.check_request("a") for _ in range(3)]
    assert [one.allowed for one in results] == [True, True, False]
    assert "X-RateLimit-Limit" not in results[0].headers
    assert '"5-in-15min"' in results[0].headers["RateLimit-Policy"]
    limits.set_limits(LimitSettings(api_requests=0))
    assert (await api.check_request("a")).allowed
