"""Limits, pings and habits that exchanges document, and the plugins that keep to them; and markets of another kind."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from candled import MINUTE_MS, ExchangeError, SocketFeed, Symbol
from tests.clocks import START_MS, ManualClock
from tests.plugins.local import FakeHttp
from tests.plugins.test_conformance import REAL

SPOT, LINEAR, INVERSE = (Symbol.parse(text) for text in ("BTC/USDT", "BTC/USDT:USDT", "BTC/USD:BTC"))
USDC_PERPETUAL = Symbol("BTC", "USDC", "USDC")
OWN = {"bybit-inverse": INVERSE, "hyperliquid": USDC_PERPETUAL, "bitget": SPOT, "okx": SPOT}
BOTH_KINDS = ("bitget", "hyperliquid", "okx")


def own_symbol(name: str) -> Symbol:
    return OWN.get(name) or (LINEAR if name.endswith(("-usdt", "-usdm", "-linear")) else SPOT)


def made(name: str) -> Any:
    return REAL[name](REAL[name].Settings(), ManualClock(START_MS))


def feed_of(name: str, *symbols: Symbol) -> SocketFeed:
    feed = made(name).make_feed(symbols or [own_symbol(name)])
    assert isinstance(feed, SocketFeed)
    return feed


@dataclass(kw_only=True)
class Limits:
    """What an exchange documents, or what its clients have observed; None: nothing is known."""

    #: Rows of a page, and the minutes that exist.
    rows: int
    kept: int | None = None
    #: Requests or weight: the number and its period in seconds.
    requests: tuple[float, float] = (1e9, 1)
    symbols: int | None = None
    connections: int | None = None
    #: Frames of a client in a second, of subscriptions in an hour, and attempts to connect in a minute.
    frames_per_s: float = 1e9
    subscribes_per_hour: int | None = None
    attempts_per_minute: float = 1e9
    #: Seconds of silence after which the exchange disconnects, and after which it does so in any case.
    silence_s: float | None = None
    lifetime_s: float | None = None
    publishes_empty_candles: bool = False


DAY_S = 86_400.0
DOCUMENTED = {
    # pongs count as frames, and there is one in 20 s
    "binance": Limits(
        rows=1000, requests=(6000, 60), symbols=1024, frames_per_s=4.9, lifetime_s=DAY_S, attempts_per_minute=60,
        publishes_empty_candles=True,
    ),
    # more rows than 499 cost more than twice the weight
    "binance-usdm": Limits(
        rows=499, requests=(2400, 60), symbols=200, frames_per_s=9.9, lifetime_s=DAY_S, attempts_per_minute=60,
        publishes_empty_candles=True,
    ),
    "bitget": Limits(
        rows=1000, requests=(20, 1), symbols=1000, frames_per_s=10, lifetime_s=DAY_S, silence_s=120,
        attempts_per_minute=60, publishes_empty_candles=True,
    ),
    "okx": Limits(rows=300, requests=(20, 2), subscribes_per_hour=480, attempts_per_minute=180, silence_s=30),
    "bybit": Limits(rows=1000, requests=(600, 5), attempts_per_minute=100, silence_s=600),
    "bybit-linear": Limits(rows=1000, requests=(600, 5), attempts_per_minute=100, silence_s=600),
    "bybit-inverse": Limits(rows=1000, requests=(600, 5), attempts_per_minute=100, silence_s=600),
    "kraken": Limits(rows=720, kept=720, requests=(1, 1), attempts_per_minute=15),
    "kucoin": Limits(
        rows=1500, requests=(2000, 30), symbols=300, frames_per_s=10, attempts_per_minute=30, lifetime_s=DAY_S,
    ),
    "kucoin-usdt": Limits(
        rows=200, requests=(2000, 30), symbols=300, frames_per_s=10, attempts_per_minute=30, lifetime_s=DAY_S,
    ),
    "gate": Limits(rows=1000, kept=10_000, requests=(200, 10)),
    "gate-usdt": Limits(rows=1999, kept=10_000, requests=(200, 10)),
    "mexc": Limits(rows=500, requests=(200, 10), symbols=30, frames_per_s=100, silence_s=60, lifetime_s=DAY_S),
    "mexc-usdt": Limits(rows=2000, requests=(20, 2), silence_s=60),
    "htx": Limits(rows=2000, kept=2000, requests=(10, 1), publishes_empty_candles=True),
    "htx-usdt": Limits(rows=2000, requests=(10, 1)),
    # connections: 10 in one place, 100 in another; requests: 33 a second from all connections
    "hyperliquid": Limits(
        rows=5000, kept=5000, requests=(1200, 60), symbols=1000, connections=10, frames_per_s=33,
        attempts_per_minute=30, silence_s=60,
    ),
    "coinbase": Limits(rows=300, requests=(10, 1), frames_per_s=8, attempts_per_minute=480),
}  # fmt: skip


def test_each_exchange_has_its_limits_here():
    assert DOCUMENTED.keys() == REAL.keys()


@pytest.mark.parametrize("name", REAL)
def test_a_page_and_the_kept_minutes_are_not_longer_than_those_of_the_exchange(name):
    known, exchange = DOCUMENTED[name], made(name)
    assert exchange.max_history_minutes <= known.rows
    assert (exchange.history_minutes is None) == (known.kept is None)
    if known.kept is not None:  # the forming minute is one of them, and minutes pass until the answer comes
        assert exchange.history_minutes <= known.kept - 10
    assert exchange.publishes_empty_candles == known.publishes_empty_candles


@pytest.mark.parametrize("name", REAL)
def test_requests_leave_half_of_the_budget_to_others(name):
    known, exchange = DOCUMENTED[name], made(name)
    per_s = known.requests[0] / known.requests[1]
    budgets = exchange.request_budgets.values()
    rates = [one.limit * one.share / one.period_s for one in budgets] or [exchange.requests_per_s]
    assert min(rates) <= per_s * (0.8 if name == "kraken" else 0.5)


@pytest.mark.parametrize("name", REAL)
def test_connections_stay_within_the_limits(name):
    known, exchange, feed = DOCUMENTED[name], made(name), feed_of(name)
    limits = exchange.limits
    assert limits.symbols_per_connection <= (known.symbols or 1000)
    assert limits.frames_per_s <= known.frames_per_s
    assert limits.attempts_per_minute <= known.attempts_per_minute
    if known.connections is not None:
        assert limits.connections <= known.connections
    if known.subscribes_per_hour is not None:
        assert limits.subscribes_per_hour <= known.subscribes_per_hour
    if known.lifetime_s is not None:
        assert feed.lifetime_s < known.lifetime_s
    if known.silence_s is not None:
        assert feed.make_ping() is not None
        assert feed.ping_every_s + feed.pong_within_s < known.silence_s


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("binance-usdm", "/market/"),  # the older address accepts candles, and sends none
        ("okx", "/v5/business"),  # the public address has no candles
        ("kraken", "/v2"),
        ("mexc", "wbs-api."),  # the older service ended
    ],
)
def test_the_address_is_the_one_that_has_candles(name, part):
    assert part in made(name).settings.ws_url


def subscriptions(name: str, symbol: Symbol) -> list[str]:
    feed = feed_of(name, symbol)
    return [json.dumps(json.loads(frame)) for frame in feed.subscribe([symbol])]


@pytest.mark.parametrize("name", [name for name in REAL if name not in BOTH_KINDS])
@pytest.mark.parametrize("other", [SPOT, LINEAR, INVERSE, Symbol.parse("BTC/USDT:USDT-261225")], ids=str)
async def test_a_market_of_another_kind_is_not_taken_for_one_of_the_same_name(name, other):
    """`BTCUSDT` may be a spot pair and a contract: the candles of one must not become those of the other."""
    own = own_symbol(name)
    if other == own:
        return
    settle = other.base if own.settle == own.base else own.settle and other.quote
    named_alike = Symbol(other.base, other.quote, settle)
    assert subscriptions(name, other) != subscriptions(name, named_alike)

    asked: list[Any] = []

    def refuse(path: str, query: dict[str, Any]) -> Any:
        asked.append((path, query))
        raise ExchangeError("none")

    for symbol in (other, named_alike):
        with pytest.raises(ExchangeError):
            await made(name).fetch_history(FakeHttp(refuse), symbol, START_MS - MINUTE_MS, START_MS)
    assert asked[0] != asked[1] or name in ("gate-usdt", "kucoin-usdt", "mexc-usdt")  # these ask for sizes first
