import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.model import SYMBOL_FORM, SYMBOL_PATTERN, MarketKey, Symbol

PART = st.text(st.characters(exclude_characters="/:", exclude_categories=["Cs"]), min_size=1, max_size=32).filter(
    lambda text: not re.search(r"\s", text)
)
SYMBOLS = st.builds(Symbol, PART, PART, st.just("") | PART)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("BTC/USDT", ("BTC", "USDT", "", "", "")),
        ("1000PEPE/USDT", ("1000PEPE", "USDT", "", "", "")),
        ("币安/USDT", ("币安", "USDT", "", "", "")),
        ("stETH/USD.e", ("stETH", "USD.e", "", "", "")),
        ("BTC/USDT:USDT", ("BTC", "USDT", "USDT", "USDT", "")),
        ("BTC/USD:BTC-261225", ("BTC", "USD", "BTC-261225", "BTC", "261225")),
        ("BTC/USD:BTC-261225-60000-C", ("BTC", "USD", "BTC-261225-60000-C", "BTC", "261225-60000-C")),
    ],
)
def test_a_symbol_has_the_parts_that_ccxt_writes(text, parts):
    symbol = Symbol.parse(text)
    assert (*symbol, symbol.settle_coin, symbol.expiry) == parts
    assert str(symbol) == text


@pytest.mark.slow
@given(SYMBOLS)
def test_printing_and_parsing_are_inverses(symbol):
    assert Symbol.parse(str(symbol)) == symbol
    assert re.fullmatch(SYMBOL_PATTERN, str(symbol))


@given(st.text(st.sampled_from("aB1./: -\n"), max_size=12))
def test_a_text_is_a_symbol_or_refused(text):
    try:
        assert str(Symbol.parse(text)) == text
    except ValueError:
        assert not re.fullmatch(SYMBOL_PATTERN, text)


@given(SYMBOLS, SYMBOLS)
def test_different_symbols_print_differently(one, other):
    assert (str(one) == str(other)) == (one == other)


@pytest.mark.parametrize(
    "text",
    ["BTCUSDT", "BTC/", "/USDT", "BTC/USDT/X", "BTC USDT", "BTC/US DT", "", "a:b/c", "BTC/USDT:", "a/b:c:d", "a/b:c/d",
     f"{'B' * 33}/USDT", f"BTC/USDT:{'S' * 33}"],
)  # fmt: skip
def test_what_is_no_pair_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"expected {SYMBOL_FORM}, got {text!r}")):
        Symbol.parse(text)


@pytest.mark.parametrize("text", ["BTC/USDT", "BTC/USDT:USDT"])
def test_a_market_is_named_with_its_exchange(text):
    assert str(MarketKey("bitget", Symbol.parse(text))) == f"bitget:{text}"
