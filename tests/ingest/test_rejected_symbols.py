"""No market is given up: refused, unlisted or both, it is asked for again, and what the stream brings is believed."""

import pytest

from candled.exchange import SubscriptionRejected
from candled.ingest.connection import FeedConnection
from candled.ingest.rejected_symbols import RejectedSymbols
from candled.model import Market, Symbol
from tests.ingest.test_connection import ETH, PlainFeed, connection, sent
from tests.ingest.virtual import BTC, running


def asked_at(one: FeedConnection, until: float, start: float = 0.0) -> list[float]:
    """When BTC is subscribed to, while the exchange refuses it each time."""
    times, now = [], start
    while now <= until:
        if "+BTC/USDT" in one.frames_to_send(now):
            times.append(now)
            one.on_frame("no BTC/USDT", now)
        now += 1.0
    return times


@pytest.mark.slow
def test_a_refused_symbol_is_asked_again_after_growing_pauses_without_an_end():
    one = connection(BTC, ETH)
    assert one.on_frame("candle ETH/USDT", 0.0)
    times = asked_at(one, 40_000.0)
    pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert pauses[:4] == [60.0, 120.0, 240.0, 480.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pauses[-2] == 3600.0


ACCEPTED = [
    pytest.param(0, 60.0, id="refused once"),
    pytest.param(1, 180.0, id="refused twice"),
    pytest.param(5, 3780.0, id="refused six times"),
]


@pytest.mark.parametrize(("more", "at"), ACCEPTED)
def test_what_was_refused_and_comes_back_is_read_as_if_nothing_had_been(more, at):
    one = connection(BTC)
    one.frames_to_send(0.0)
    assert one.on_frame("no BTC/USDT", 0.0) == [SubscriptionRejected(BTC, "unknown")]
    refusals, now = 0, 0.0
    while refusals < more:
        now += 1.0
        if "+BTC/USDT" in one.frames_to_send(now):
            one.on_frame("no BTC/USDT", now)
            refusals += 1
    assert "+BTC/USDT" in sent(one, at, at)
    one.on_frame("candle BTC/USDT", at)
    one.on_frame("no BTC/USDT", at + 1)
    assert "+BTC/USDT" in sent(one, at + 61, at + 60)  # the pauses begin anew


def test_a_refusal_outlasts_a_reconnect_only_until_its_pause_is_over():
    rejected, feed = RejectedSymbols(), PlainFeed("ws://localhost", [BTC, ETH])
    first = FeedConnection(feed, [BTC, ETH], 0.0, rejected)
    first.frames_to_send(0.0)
    first.on_frame("no BTC/USDT", 0.0)
    second = FeedConnection(feed, [BTC, ETH], 30.0, rejected)
    assert sent(second, 31.0, 30.0) == ["+ETH/USDT"]
    assert "+BTC/USDT" in sent(second, 61.0, 60.0)
    third = FeedConnection(feed, [BTC, ETH], 61.0, rejected)
    assert sent(third, 61.0, 61.0) == ["+BTC/USDT"]


def test_a_sign_that_the_exchange_has_it_ends_the_pause():
    rejected = RejectedSymbols()
    for _ in range(8):
        rejected.add_rejection(BTC, 0.0)
    rejected.retry_now(BTC, 10.0)
    assert rejected.take_due(10.0) == (BTC,)
    assert rejected.take_due(10.0) == ()


OTHER = Market(symbol=Symbol.parse("BTC/USDC"))
LISTS = [
    pytest.param(None, id="the list cannot be read"),
    pytest.param([], id="the list is empty"),
    pytest.param([OTHER], id="the list lacks the market"),
]


@pytest.mark.slow
@pytest.mark.parametrize("listed", LISTS)
async def test_evidence_from_the_stream_beats_the_list(listed):
    def lie(exchange):
        exchange.listed = listed

    async with running(prepare=lie) as harness:
        await harness.run(200)
        assert harness.state == ("live", None)
        assert harness.market["missingMinutes"] == 0
        assert harness.market["listing"] == ("unlisted" if listed else None)
        assert harness.market["trouble"] is None
        lists = harness.exchange.lists
        harness.exchange.listed = [Market(symbol=BTC, price_decimals=2)]
        await harness.leap(3600)
        await harness.run(100)
        assert harness.exchange.lists > lists
        assert (harness.market["listing"], harness.state) == ("trading", ("live", None))


@pytest.mark.slow
async def test_a_market_that_is_listed_after_the_start_comes_by_itself():
    def not_yet(exchange):
        exchange.listed, exchange.stream, exchange.rest = [OTHER], "silent", "down"

    async with running(prepare=not_yet) as harness:
        await harness.run(1200)
        assert harness.state == ("stale", "not_listed")
        assert harness.market["trouble"].startswith("virtual does not list BTC/USDT, did you mean BTC/USDC?")
        harness.exchange.listed, harness.exchange.stream, harness.exchange.rest = [Market(symbol=BTC)], "up", "up"
        await harness.leap(3600)
        await harness.run(100)
        assert (harness.state, harness.market["missingMinutes"]) == (("live", None), 0)
