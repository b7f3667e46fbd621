"""The universe of markets: what changed, in which order listeners are called, and when they are not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.model import Market, MarketKey, Symbol
from candled.universe import MarketsChanged, Universe

BTC, ETH, SOL = (Symbol(base, "USDT") for base in ("BTC", "ETH", "SOL"))

symbols = st.lists(st.sampled_from([BTC, ETH, SOL, Symbol("BTC", "USDT", "USDT")]))
exchanges = st.sampled_from(["bitget", "okx"])
facts = st.dictionaries(
    st.sampled_from([BTC, ETH, SOL]), st.sampled_from(["trading", "suspended", "delisted"]), max_size=3
).map(lambda states: {symbol: Market(symbol=symbol, status=status) for symbol, status in states.items()})


@pytest.mark.slow
@given(st.lists(st.tuples(exchanges, symbols, facts)))
def test_a_listener_that_applies_each_change_has_the_markets_and_facts_of_the_universe(steps):
    universe, followed, order = Universe(["bitget", "okx"]), {}, []

    def follow(change: MarketsChanged) -> None:
        order.append("first")
        for symbol in change.removed:
            del followed[MarketKey(change.exchange, symbol)]
        for symbol in (*change.added, *change.changed):
            key = MarketKey(change.exchange, symbol)
            assert (key in followed) == (symbol in change.changed)
            followed[key] = universe.facts(key)
        assert followed == {key: universe.facts(key) for key in universe.markets}  # already while it is called

    universe.add_listener(follow)
    universe.add_listener(lambda change: order.append("second"))
    for exchange, chosen, known in steps:
        other = "okx" if exchange == "bitget" else "bitget"
        before, calls = universe.symbols(other), len(order)
        change = universe.set_markets(exchange, chosen, known)
        assert universe.symbols(exchange) == tuple(dict.fromkeys(chosen))
        assert universe.symbols(other) == before
        assert order[calls:] == (["first", "second"] if change else [])
        assert not universe.set_markets(exchange, chosen, known)  # the same again is no change
    assert all(key in universe for key in universe.markets)


def test_markets_are_in_the_order_of_the_exchanges_and_then_of_choice():
    universe = Universe(["okx", "bitget"])
    universe.set_markets("bitget", [BTC])
    universe.set_markets("okx", [SOL, ETH])
    assert universe.markets == (MarketKey("okx", SOL), MarketKey("okx", ETH), MarketKey("bitget", BTC))
    assert universe.default == "okx"


def test_a_market_that_leaves_the_list_keeps_its_facts_and_one_that_returns_later_has_none():
    universe = Universe(["okx"])
    listed = Market(symbol=BTC, price_decimals=2)
    universe.set_markets("okx", [BTC], {BTC: listed})
    assert not universe.set_markets("okx", [BTC])
    assert universe.facts(MarketKey("okx", BTC)) == listed
    delisted = replace(listed, status="delisted")
    assert universe.set_markets("okx", [BTC], {BTC: delisted}) == MarketsChanged("okx", changed=(BTC,))
    universe.set_markets("okx", [])
    assert universe.set_markets("okx", [BTC]) == MarketsChanged("okx", added=(BTC,))
    assert universe.facts(MarketKey("okx", BTC)) is None


def test_an_unknown_exchange_is_rejected():
    with pytest.raises(ValueError, match="expected one of the exchanges okx, got 'kraken'"):
        Universe(["okx"]).set_markets("kraken", [BTC])
    assert Universe(["okx"]).symbols("kraken") == ()


def test_a_former_symbol_means_the_renamed_market_unless_it_is_served():
    universe = Universe(["bitget"])
    old, new = Symbol("OLD", "USDT"), Symbol("NEW", "USDT")
    universe.set_markets("bitget", [old, new], {new: Market(symbol=new, former=old)})
    assert universe.renamed == {}
    universe.set_markets("bitget", [new])
    assert universe.renamed == {MarketKey("bitget", old): MarketKey("bitget", new)}
    universe.set_markets("bitget", [])
    assert universe.renamed == {}
