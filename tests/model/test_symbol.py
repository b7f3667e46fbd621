import pytest

from candled.model import MarketKey, Symbol


@pytest.mark.parametrize("text", ["BTC/USDT", "1000PEPE/USDT", "ETH/BTC", "币安/USDT"])
def test_a_symbol_prints_as_it_was_written(text):
    assert str(Symbol.parse(text)) == text


@pytest.mark.parametrize("text", ["BTCUSDT", "BTC/", "/USDT", "BTC/USDT/X", "BTC USDT", "BTC/US DT", "", "a:b/c"])
def test_what_is_no_pair_is_refused(text):
    with pytest.raises(ValueError, match="expected BASE/QUOTE"):
        Symbol.parse(text)


def test_a_market_is_named_with_its_exchange():
    assert str(MarketKey("bitget", Symbol.parse("BTC/USDT"))) == "bitget:BTC/USDT"
