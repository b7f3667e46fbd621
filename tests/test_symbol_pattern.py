import time

import pytest

from candled.model import Symbol
from candled.symbol_pattern import SYMBOL_PATTERN_FORM, SymbolPattern


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("BTC/USDT", ["BTC/USDT"], ["BTC/USDT:USDT", "BTC/USD", "1BTC/USDT", "btc/USDT"]),
        ("*/USDT", ["BTC/USDT", "1000.x/USDT"], ["BTC/USDT:USDT", "BTC/USDC", "BTC/USDTX"]),
        ("*/USDT:USDT", ["BTC/USDT:USDT"], ["BTC/USDT", "BTC/USDT:USDT-261225"]),
        ("*/*:*", ["BTC/USD:BTC", "BTC/USD:BTC-261225"], ["BTC/USD"]),
        ("B**C/US*", ["BTC/USDT", "BC/US"], ["AB/USDT", "BT/USDT"]),
        ("*", ["BTC/USDT", "BTC/USD:BTC-261225"], []),
        ("!*UP/USDT", ["BTCUP/USDT", "UP/USDT"], ["BTC/USDT"]),
        ("!BTC/USDT", ["BTC/USDT"], ["ETH/USDT"]),
        ("/^(BTC|ETH)\\/.*/", ["BTC/USDT", "ETH/USD:ETH"], ["XBTC/USDT", "SOL/BTC"]),
        ("/UP/", ["BTCUP/USDT", "A/UPS"], ["up/USDT"]),
        ("!/[*+?(]{2}\\)/", ["a**)/b"], ["a/b"]),
        ("a.b+/USDT", ["a.b+/USDT"], ["aXb+/USDT"]),
        ("a.*/USDT", ["a.b/USDT"], ["ab/USDT"]),
    ],
)
def test_a_pattern_matches_whole_symbols(pattern, matching, others):
    parsed = SymbolPattern.parse(pattern)
    assert str(parsed) == pattern
    assert parsed.is_exclusion == pattern.startswith("!")
    assert [text for text in [*matching, *others] if parsed.matches(Symbol.parse(text))] == matching


@pytest.mark.parametrize(
    "symbol",
    [
        Symbol("\x1b[2J", "USDT"),
        Symbol("BTC\u202e", "USDT"),
        Symbol("\ud800", "USDT"),
        Symbol("a b", "USDT"),
        Symbol("a/b", "USDT"),
        Symbol("a", "USDT:b"),
        Symbol("", "USDT"),
        Symbol("a" * 33, "USDT"),
    ],
    ids=repr,
)
def test_no_pattern_matches_a_symbol_that_cannot_be_written_or_printed(symbol):
    assert not any(SymbolPattern.parse(text).matches(symbol) for text in ("*", "*/*", "*/*:*", "/./", "/USDT/"))


@pytest.mark.parametrize("text", ["", "!", "BTC", "BTC/", "*USDT", "/", "//", "A/B/C", "A /B", "A/B:C:D", "!*X"])
def test_another_form_is_an_error(text):
    with pytest.raises(ValueError, match=r"^expected") as caught:
        SymbolPattern.parse(text)
    assert str(caught.value) == f"expected {SYMBOL_PATTERN_FORM}, got {text!r}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/(/", "no regular expression: missing ), unterminated subpattern at position 0"),
        ("/a{9999999999}/", "no regular expression: the repetition number is too large"),
        ("/" + "a" * 201 + "/", "a regular expression has at most 200 characters"),
        ("/(a+)+$/", "a regular expression may not repeat a group, such as (…)*"),
        ("/(a|a){9}/", "a regular expression may not repeat a group, such as (…)*"),
        ("/(?:a)*/", "a regular expression may not repeat a group, such as (…)*"),
        (r"/(a+)\1/", "a regular expression may not refer to its groups"),
        (r"/(?P<n>a)(?P=n)/", "a regular expression may contain (?:…), but no other group with (?"),
        ("/(?=a)/", "a regular expression may contain (?:…), but no other group with (?"),
        ("/.*.*.*.*/", "a regular expression has at most 3 of * + {"),
        ("/" + "a?" * 7 + "/", "a regular expression has at most 6 of ?"),
        ("/" + "(a|a)" * 5 + "/", "a regular expression has at most 4 of ("),
    ],
)
def test_expressions_that_are_wrong_or_slow_are_refused(text, problem):
    with pytest.raises(ValueError, match=r"^(a|no) regular expression") as caught:
        SymbolPattern.parse(text)
    assert str(caught.value) == problem


def test_the_slowest_expressions_that_are_allowed_take_milliseconds():
    longest = Symbol("a" * 32, "a" * 32, "a" * 32)
    for text in ("/.*.*.*!/", "/.+.+.+!/", "/" + "a?" * 6 + ".*.*!/", "/" + "(a|a|a|a)" * 4 + ".*!/"):
        pattern = SymbolPattern.parse(text)
        before = time.thread_time()
        assert not pattern.matches(longest)
        assert time.thread_time() - before < 1.0


def test_escaped_signs_are_no_repetitions():
    assert SymbolPattern.parse(r"/\*\+\?\(\)\*[*+?(){}]\\1/").matches(Symbol(r"*+?()**\1", "USDT"))
