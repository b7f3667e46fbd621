"""The choice of markets, over random lists and rules."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.model import Market, Symbol
from candled.symbol_pattern import SymbolPattern
from candled.universe_choice import LEAVES_AFTER_MS, ChoiceRules, MarketChoice, choose_markets, recall_markets

HOUR_MS, NOW_MS = 3_600_000, 1_800_000_000_000
BTC, ETH, UP = Symbol("BTC", "USDT"), Symbol("ETH", "USDT"), Symbol("BTCUP", "USDT")


def rules(*patterns: str, **others) -> ChoiceRules:
    return ChoiceRules(patterns=tuple(map(SymbolPattern.parse, patterns)), **others)


def market(symbol: Symbol | str, volume: int | None = None, **others) -> Market:
    symbol = Symbol.parse(symbol) if isinstance(symbol, str) else symbol
    return Market(symbol=symbol, quote_volume_24h=None if volume is None else Decimal(volume), **others)


def names(choice: MarketChoice) -> list[str]:
    return [str(symbol) for symbol in choice.symbols]


def coins(*volumes: int) -> list[Market]:
    return [market(f"C{number}/USDT", volume) for number, volume in enumerate(volumes)]


# ---------------------------------------------------------------- single rules


def test_named_symbols_come_first_then_patterns_by_volume():
    listed = [market("SOL/USDT", 2), market(ETH, 5), market(UP, 9), market("BTC/USDC", 7), market(BTC, 1)]
    chosen = choose_markets(rules("BTC/USDT", "*/USDT", "!*UP/USDT"), listed, NOW_MS)
    assert chosen == MarketChoice(symbols=(BTC, ETH, Symbol("SOL", "USDT")))


def test_an_exclusion_spares_named_symbols():
    assert names(
        choose_markets(rules("JUP/USDT", "*/USDT", "!*UP/USDT"), [market("JUP/USDT"), market(UP)], NOW_MS)
    ) == ["JUP/USDT"]


def test_top_chooses_by_volume_and_named_symbols_come_on_top():
    chosen = choose_markets(rules("C9/USDT", "*", top=2), [*coins(5, 7, 6), market("C9/USDT", 1)], NOW_MS)
    assert names(chosen) == ["C9/USDT", "C1/USDT", "C2/USDT"]


def test_without_volumes_top_has_no_effect_and_is_reported():
    chosen = choose_markets(rules("*", top=1), [market(BTC), market(ETH)], NOW_MS)
    assert (chosen.symbols, chosen.lacks_volumes) == ((BTC, ETH), True)
    assert not choose_markets(rules("*"), [market(BTC)], NOW_MS).lacks_volumes


def test_markets_that_do_not_trade_yet_or_are_too_young_wait():
    listed = [
        market("A/USDT", status="upcoming"),
        market("B/USDT", status="suspended"),
        market("C/USDT", status="delisted"),
        market("D/USDT", listed_ms=NOW_MS - 7 * 24 * HOUR_MS + 1),
        market("E/USDT", listed_ms=NOW_MS - 7 * 24 * HOUR_MS),
        market("F/USDT"),
    ]
    assert names(choose_markets(rules("*", min_age=timedelta(days=7)), listed, NOW_MS)) == ["E/USDT", "F/USDT"]
    later = choose_markets(rules("*", min_age=timedelta(days=7)), listed, NOW_MS + 1)
    assert names(later) == ["D/USDT", "E/USDT", "F/USDT"]


def test_a_market_leaves_after_a_day_beyond_the_limit():
    top_10 = rules("*", top=10)
    volumes = list(range(30, 10, -1))
    chosen = choose_markets(top_10, coins(*volumes), NOW_MS)
    assert names(chosen) == [f"C{number}/USDT" for number in range(10)]
    volumes[9] = 19  # place 11: it stays, and place 10 joins
    chosen = choose_markets(top_10, coins(*volumes), NOW_MS + HOUR_MS, chosen)
    assert (len(chosen.symbols), chosen.leaving) == (11, {})
    volumes[9] = 0
    left = Symbol("C9", "USDT")
    for hours in (2, 25):
        chosen = choose_markets(top_10, coins(*volumes), NOW_MS + hours * HOUR_MS, chosen)
        assert (left in chosen.symbols, chosen.leaving) == (True, {left: NOW_MS + 2 * HOUR_MS})
    chosen = choose_markets(top_10, coins(*volumes), NOW_MS + 26 * HOUR_MS, chosen)
    assert (left in chosen.symbols, chosen.leaving) == (False, {})


def test_a_market_that_comes_back_within_the_limit_starts_a_new_day():
    best = rules("*", top=1)
    chosen = choose_markets(best, [market(BTC, 2), market(ETH, 1)], NOW_MS)
    chosen = choose_markets(best, [market(BTC, 1), market(ETH, 2)], NOW_MS + HOUR_MS, chosen)
    assert (chosen.symbols, chosen.leaving) == ((BTC, ETH), {BTC: NOW_MS + HOUR_MS})
    chosen = choose_markets(best, [market(BTC, 2), market(ETH, 1)], NOW_MS + 2 * HOUR_MS, chosen)
    assert chosen.leaving == {ETH: NOW_MS + 2 * HOUR_MS}


def test_delisted_and_missing_markets_leave_after_a_day_and_suspended_ones_stay():
    every = rules("*")
    chosen = choose_markets(every, [market("A/B"), market("C/D"), market("E/F"), market("G/H")], NOW_MS)
    listed = [market("A/B", status="delisted"), market("C/D", status="suspended"), market("G/H")]
    chosen = choose_markets(every, listed, NOW_MS, chosen)
    assert names(chosen) == ["A/B", "C/D", "E/F", "G/H"]
    chosen = choose_markets(every, listed, NOW_MS + LEAVES_AFTER_MS, chosen)
    assert names(chosen) == ["C/D", "G/H"]


def test_a_restarted_process_begins_with_the_markets_that_were_read_until_the_end():
    newest = {ETH: NOW_MS, BTC: NOW_MS - HOUR_MS, UP: NOW_MS, Symbol("SOL", "USDT"): NOW_MS - HOUR_MS - 1}
    named = Symbol("NEW", "USDT")
    assert recall_markets(rules(str(named), "*/USDT", "!*UP/*"), newest) == (named, BTC, ETH)
    assert recall_markets(rules(str(named), "*", most=2), newest) == (named, BTC)
    assert recall_markets(rules(str(BTC)), newest) == (BTC,)
    assert recall_markets(rules("*"), {}) == ()


def test_a_changed_rule_removes_immediately():
    chosen = choose_markets(rules("*"), [market(BTC), market(UP)], NOW_MS)
    assert choose_markets(rules("*", "!*UP/*"), [market(BTC), market(UP)], NOW_MS, chosen).symbols == (BTC,)
    assert choose_markets(rules("*", "!*UP/*"), [], NOW_MS, chosen).symbols == (BTC,)


def test_more_than_the_limit_are_left_out_and_earlier_choices_stay():
    few = rules("Z/USDT", "*", most=2)
    chosen = choose_markets(few, coins(5, 6), NOW_MS)
    assert (names(chosen), chosen.over_limit) == (["Z/USDT", "C1/USDT"], (Symbol("C0", "USDT"),))
    chosen = choose_markets(few, coins(9, 6), NOW_MS, chosen)
    assert names(chosen) == ["Z/USDT", "C1/USDT"]


def test_the_new_symbol_of_a_renamed_market_is_chosen_and_the_former_one_while_it_is_used():
    named, former = rules("A/USDT"), Symbol("A", "USDT")
    listed = [market("B/USDT", former=former), market("C/USDT"), market("A/USDT", status="delisted")]
    used = choose_markets(named, listed, NOW_MS, is_used=lambda symbol: symbol == former)
    assert names(used) == ["A/USDT", "B/USDT"]
    chosen = choose_markets(named, listed, NOW_MS, used)
    assert names(chosen) == ["B/USDT"]
    for later in ([market("B/USDT"), market("C/USDT")], []):  # the list lacks it soon
        chosen = choose_markets(named, later, NOW_MS, chosen)
        assert names(chosen) == ["B/USDT"]
    again = [market("A/USDT"), *listed[:2]]
    assert names(choose_markets(named, again, NOW_MS, chosen)) == ["A/USDT"]
    assert names(choose_markets(rules("C/USDT"), listed, NOW_MS, chosen)) == ["C/USDT"]


def test_patterns_without_a_market_and_symbols_that_are_not_listed_are_named():
    chosen = choose_markets(rules("BTC/USDT", "X/USDT", "*/EUR", "*/USDT", "!*DOWN/*"), [market(BTC)], NOW_MS)
    assert (chosen.unmatched, chosen.unlisted) == (("*/EUR", "!*DOWN/*"), (Symbol("X", "USDT"),))
    assert names(chosen) == ["BTC/USDT", "X/USDT"]


def test_an_empty_list_changes_nothing():
    chosen = choose_markets(rules("*"), [market(BTC), market(ETH)], NOW_MS)
    assert choose_markets(rules("*"), [], NOW_MS + 9 * LEAVES_AFTER_MS, chosen).symbols == chosen.symbols


# ---------------------------------------------------------------- invariants

symbols = st.builds(Symbol, st.sampled_from("ABCDEFGH"), st.sampled_from(["USDT", "EUR"]))
facts = st.builds(
    market,
    symbols,
    st.none() | st.integers(0, 9),
    status=st.sampled_from(["upcoming", "trading", "trading", "trading", "suspended", "delisted"]),
    listed_ms=st.none() | st.integers(NOW_MS - 100 * HOUR_MS, NOW_MS),
)
lists = st.lists(facts, max_size=12, unique_by=lambda one: one.symbol)
all_rules = st.builds(
    rules,
    st.sampled_from(["*", "*/USDT", "/^[A-D]/"]),
    st.sampled_from(["!A/*", "!*/EUR", "!H/USDT"]),
    st.sampled_from(["A/USDT", "Q/EUR", "B/*"]),
    top=st.none() | st.integers(1, 5),
    min_age=st.sampled_from([timedelta(0), timedelta(hours=50)]),
    most=st.integers(1, 8),
)
steps = st.lists(st.tuples(lists, st.integers(0, 30 * HOUR_MS)), min_size=1, max_size=6)


@pytest.mark.slow
@given(all_rules, steps)
def test_every_choice_obeys_the_rules(choice, steps):
    now_ms, former = NOW_MS, None
    for listed, pause_ms in steps:
        now_ms += pause_ms
        chosen = choose_markets(choice, listed, now_ms, former)
        before = set(former.symbols if former else ())
        by_symbol = {one.symbol: one for one in listed}
        assert len(set(chosen.symbols)) == len(chosen.symbols) <= max(choice.most, len(choice.named))
        assert chosen.symbols[: len(choice.named)] == choice.named
        assert all(map(choice.matches, chosen.symbols))
        assert not set(chosen.symbols) & set(chosen.over_limit)
        for symbol in set(chosen.symbols) - before - set(choice.named):
            assert by_symbol[symbol].active
        assert chosen.leaving.keys() <= before & set(chosen.symbols)
        assert all(now_ms - since_ms < LEAVES_AFTER_MS for since_ms in chosen.leaving.values()) or not listed
        for symbol in before - set(chosen.symbols):  # it was noticed a day ago, or never could be
            assert symbol in chosen.over_limit or now_ms - former.leaving[symbol] >= LEAVES_AFTER_MS
        former = chosen


@pytest.mark.slow
@given(all_rules, lists)
def test_the_same_list_chooses_the_same(choice, listed):
    chosen = choose_markets(choice, listed, NOW_MS)
    assert choose_markets(choice, listed, NOW_MS, chosen) == chosen
    assert set(choose_markets(choice, listed[::-1], NOW_MS).unlisted) == set(chosen.unlisted)


@pytest.mark.slow
@given(all_rules, lists)
def test_without_top_and_limit_everything_open_that_matches_is_chosen(choice, listed):
    chosen = choose_markets(replace(choice, top=None, most=100, min_age=timedelta(0)), listed, NOW_MS)
    wanted = {one.symbol for one in listed if one.active and choice.matches(one.symbol)} | set(choice.named)
    assert set(chosen.symbols) == wanted
