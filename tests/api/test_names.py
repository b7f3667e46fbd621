"""Every dialect has one name for each market, and finds the market by that name, whatever the markets are."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from candled.api.catalog import BinanceMarkets, MarketCatalog, binance_name, tradingview_name
from candled.bus.codec import Names
from candled.model import DEFAULT_INTERVALS, Symbol

# Few letters, so that names meet: signs that dialects put between parts, letters whose case changes their length.
PARTS = st.text("aA1.-_ßſK", min_size=1, max_size=3) | st.sampled_from(["BTC", "USDT", "USDT.P", "USDT_PERP"])
SYMBOLS = st.builds(Symbol, PARTS, PARTS, st.just("") | PARTS | st.builds("{}-261225".format, PARTS))
EXCHANGES = st.dictionaries(
    st.sampled_from(["bitget", "BITGET", "Bitget", "kraken"]),
    st.lists(SYMBOLS, unique=True, max_size=12),
    min_size=1,
)


@pytest.mark.parametrize(
    ("symbol", "tradingview", "binance"),
    [
        ("BTC/USDT", "BTCUSDT", "BTCUSDT"),
        ("BTC/USDT:USDT", "BTCUSDT.P", "BTCUSDT_PERP"),
        ("BTC/USD:BTC", "BTCUSD.P", "BTCUSD_PERP"),
        ("BTC/USD:BTC-261225", "BTCUSD_261225", "BTCUSD_261225"),
        ("1000SHIB/USDT:USDT", "1000SHIBUSDT.P", "1000SHIBUSDT_PERP"),
        ("stETH/USDC.e", "STETHUSDC.E", "STETHUSDC.E"),
    ],
)
def test_a_symbol_has_the_names_that_traders_know(symbol, tradingview, binance):
    assert tradingview_name(Symbol.parse(symbol)) == tradingview
    assert binance_name(Symbol.parse(symbol)) == binance


# The symbol itself, in capitals, was another market's last resort.
@pytest.mark.slow
@example({"BITGET": [Symbol("st", "b"), Symbol("s", "tb"), Symbol("S", "TB")]})
@example({"bitget": [Symbol("BTC", "USDT", "USDT"), Symbol("BTC", "USDT.P"), Symbol("BTC", "USDT", "BTC")]})
@given(EXCHANGES)
def test_names_are_unique_and_lead_back_to_their_market(markets):
    catalog = MarketCatalog(markets, DEFAULT_INTERVALS)
    channels = Names("", catalog.default, 1)
    assert len({catalog.ticker_of(market) for market in catalog.markets}) == len(catalog.markets)
    assert len({channels.candles_channel(market) for market in catalog.markets}) == len(catalog.markets)
    for market in catalog.markets:
        ticker = catalog.ticker_of(market)
        exchange, _, name = ticker.partition(":")
        assert catalog.by_ticker(ticker) == market
        assert exchange.upper() == market.exchange.upper()
        assert ":" not in name or name.upper() == str(market.symbol).upper()
        assert catalog.find_market(market.exchange, str(market.symbol)) == market
        assert catalog.by_ticker(str(market)) is not None


@pytest.mark.slow
@example({"bitget": [Symbol(base, "USDT") for base in ("A", "a", "ſ", "S", "s")]})
@given(EXCHANGES)
def test_binances_names_are_unique_also_in_small_letters(markets):
    catalog = MarketCatalog(markets, DEFAULT_INTERVALS)
    for exchange in catalog.exchanges:
        served = BinanceMarkets(catalog, exchange)
        mine = [market for market in catalog.markets if market.exchange == exchange]
        assert list(served.markets.values()) == mine
        assert [served.markets[name] for name in served.stream_names.values()] == mine
        assert all(stream == name or stream == name.lower() for stream, name in served.stream_names.items())


SEVERAL = {"bitget": ["BTC/USDT", "BTC/USDT:USDT", "stETH/USDT"], "kraken": ["BTC/USD", "BTC/USDT:USDT"]}


@pytest.mark.parametrize(
    ("written", "market"),
    [
        ("BITGET:BTCUSDT.P", "bitget:BTC/USDT:USDT"),
        ("bitget:btcusdt.p", "bitget:BTC/USDT:USDT"),
        ("BTCUSDT.P", "bitget:BTC/USDT:USDT"),
        ("BTC/USDT:USDT", "bitget:BTC/USDT:USDT"),
        ("KRAKEN:BTCUSDT.P", "kraken:BTC/USDT:USDT"),
        ("kraken:BTC/USDT:USDT", "kraken:BTC/USDT:USDT"),
        ("BTCUSDT", "bitget:BTC/USDT"),
        ("BTC/USD", "kraken:BTC/USD"),
        ("steth/usdt", "bitget:stETH/USDT"),
        ("bitget:BTC/USD", None),
        ("USDT:BTC/USDT", None),
        (":BTCUSDT", None),
    ],
)
def test_a_chart_finds_a_market_by_each_of_its_names(written, market):
    catalog = MarketCatalog({name: map(Symbol.parse, symbols) for name, symbols in SEVERAL.items()}, DEFAULT_INTERVALS)
    found = catalog.by_ticker(written)
    assert (found and str(found)) == market
