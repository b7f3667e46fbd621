"""Symbols divided among connections, and the limits of each connection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.exchange import ConnectionLimits, Pong, SocketFeed, Subscribed
from candled.ingest.connection import FeedConnection
from candled.ingest.distribution import distribute
from candled.model import Symbol

LIMITS = st.none() | st.integers(1, 20)


def symbols(count: int) -> list[Symbol]:
    return [Symbol(f"S{number}", "USDT") for number in range(count)]


@given(st.integers(0, 200), LIMITS, LIMITS, st.integers(1, 4))
def test_each_symbol_is_on_one_connection_within_the_limits_or_left_over(count, per_connection, connections, shards):
    limits = ConnectionLimits(symbols_per_connection=per_connection, connections=connections)
    groups, surplus = distribute(symbols(count), limits, shards)
    assert [symbol for group in groups for symbol in group] + list(surplus) == symbols(count)
    assert all(1 <= len(group) <= (per_connection or count) for group in groups)
    if connections is not None:
        assert len(groups) <= max(1, connections // shards)
    if surplus:  # no connection has room
        assert connections is not None
        assert {len(group) for group in groups} == {per_connection}


class Talkative(SocketFeed):
    ping = "ping"
    ping_every_s = 60.0

    def subscribe(self, symbols):
        return [f"+{symbol}" for symbol in symbols]

    def read_frame(self, frame):
        return [Pong(), *map(Subscribed, self.symbols)]


@pytest.mark.slow
def test_an_hourly_limit_of_subscriptions_delays_no_ping():
    limits = ConnectionLimits(frames_per_s=100.0, subscribes_per_hour=10)
    feed = Talkative("ws://localhost", symbols(25))
    one = FeedConnection(feed, feed.symbols, 0.0, limits=limits)
    times, pings = [], 0
    for now in range(2 * 3600):
        for frame in one.frames_to_send(float(now)):
            if frame == "ping":
                pings += 1
                one.on_frame("pong", float(now))
            else:
                one.on_frame("ok", float(now))
                times.append(now)
                if len(times) == 1:
                    assert one.has_more
    assert pings >= 100
    assert max(sum(start <= at < start + 3600 for at in times) for start in range(0, 3600, 60)) <= 20
    assert sum(at < 10 for at in times) == 10
