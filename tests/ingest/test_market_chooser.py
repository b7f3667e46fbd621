"""The markets of a universe after each list of the exchange, and the remarks about them."""

import logging
from decimal import Decimal

import pytest

from candled.ingest.market_chooser import MarketChooser
from candled.model import Market, MarketKey, Symbol
from candled.symbol_pattern import SymbolPattern
from candled.universe import STEP_MARKETS, Universe
from candled.universe_choice import LEAVES_AFTER_MS, ChoiceRules
from tests.clocks import ManualClock

BTC, ETH, SOL, X = (Symbol(base, "USDT") for base in ("BTC", "ETH", "SOL", "X"))
EUR = Symbol("BTC", "EUR")


class Bench:
    def __init__(self, *patterns: str, **rules) -> None:
        choice = ChoiceRules(patterns=tuple(map(SymbolPattern.parse, patterns)), **rules)
        self.clock = ManualClock(10**12)
        self.universe = Universe(["bitget", "okx"])
        self.universe.set_markets("bitget", choice.named)
        self.used: set[Symbol] = set()
        self.chooser = MarketChooser(
            "bitget", choice, self.universe, self.clock, is_used=lambda key: key.symbol in self.used
        )
        self.chooser.start_choosing()

    def known(self, key: MarketKey) -> tuple[str, int | None]:
        facts = self.universe.facts(key)
        assert facts is not None
        return facts.status, facts.delisted_ms

    def list_markets(self, *symbols: Symbol, volume: int | None = 1) -> tuple[Symbol, ...]:
        known = None if volume is None else Decimal(volume)
        self.chooser.on_list([Market(symbol=symbol, quote_volume_24h=known) for symbol in symbols])
        return self.universe.symbols("bitget")


async def test_a_market_that_is_missing_after_it_was_listed_is_delisted_until_it_is_listed_again():
    bench, key = Bench("BTC/USDT"), MarketKey("bitget", BTC)
    bench.list_markets(ETH)
    assert bench.universe.facts(key) is None  # it was never listed
    for _ in range(2):
        bench.list_markets(BTC)
        assert bench.known(key) == ("trading", None)
        bench.list_markets()  # an empty list is no evidence
        assert bench.known(key) == ("trading", None)
        since_ms = bench.clock.now_ms()
        for _ in range(2):
            bench.list_markets(ETH)
            assert bench.known(key) == ("delisted", since_ms)
            await bench.clock.advance(60)


async def test_a_delisted_market_of_a_pattern_stays_while_it_is_used():
    bench = Bench("*/USDT", "!SOL/*")
    bench.list_markets(BTC, ETH)
    bench.used = {BTC}
    bench.list_markets(SOL)
    await bench.clock.advance(2 * LEAVES_AFTER_MS / 1000)
    assert bench.list_markets(SOL) == (BTC,)
    bench.used = set()
    assert bench.list_markets(SOL) == ()


def test_a_renamed_market_replaces_its_former_symbol_once_no_client_uses_that():
    bench, key = Bench("BTC/USDT"), MarketKey("bitget", ETH)
    bench.list_markets(BTC)
    bench.used = {BTC}
    bench.chooser.on_list([Market(symbol=ETH, former=BTC)])
    assert bench.universe.symbols("bitget") == (BTC, ETH)
    bench.used = set()
    assert bench.list_markets(ETH) == (ETH,)  # the exchange names the former symbol only for a while
    assert bench.universe.renamed == {MarketKey("bitget", BTC): key}
    assert bench.list_markets() == (ETH,)


def test_named_symbols_alone_stay_and_get_their_facts():
    bench = Bench("BTC/USDT", "X/USDT")
    assert bench.list_markets(ETH, BTC) == (BTC, X)
    facts = bench.universe.facts(MarketKey("bitget", BTC))
    assert facts is not None
    assert (facts.symbol, facts.quote_volume_24h) == (BTC, 1)
    assert bench.universe.facts(MarketKey("bitget", X)) is None


async def test_patterns_follow_the_list_and_missing_markets_leave_after_a_day():
    bench = Bench("BTC/USDT", "*/USDT")
    assert bench.list_markets(ETH) == (BTC, ETH)
    assert bench.list_markets(SOL) == (BTC, ETH, SOL)
    await bench.clock.advance(LEAVES_AFTER_MS / 1000)
    assert bench.list_markets(SOL) == (BTC, SOL)
    assert bench.list_markets() == (BTC, SOL)


def test_a_process_that_does_not_choose_takes_only_the_facts():
    bench = Bench("BTC/USDT", "*/USDT")
    bench.chooser.stop_choosing()
    bench.universe.set_markets("bitget", [SOL, BTC])  # as the process that chooses publishes
    assert bench.list_markets(BTC, ETH, SOL, EUR) == (SOL, BTC)
    assert bench.known(MarketKey("bitget", SOL)) == ("trading", None)
    bench.chooser.set_extras([EUR, X])  # the second one is not listed
    bench.chooser.set_rules(ChoiceRules(patterns=(SymbolPattern.parse("*/USDT"),)))
    assert bench.universe.symbols("bitget") == (SOL, BTC)
    bench.chooser.start_choosing()
    assert bench.universe.symbols("bitget") == (SOL, BTC, ETH, EUR)
    bench.chooser.set_extras([])
    assert bench.universe.symbols("bitget") == (SOL, BTC, ETH)


async def test_many_changes_are_made_in_steps_that_other_changes_may_interrupt():
    bench, sizes = Bench("*"), []
    bench.universe.add_listener(lambda change: sizes.append(len(change.added) + len(change.removed)))
    many = [Symbol(f"C{number}", "USDT") for number in range(3 * STEP_MARKETS)]
    bench.list_markets(*many)
    assert bench.universe.symbols("bitget") == tuple(many[:STEP_MARKETS])
    bench.chooser.set_extras(many[1:2])
    bench.chooser.set_rules(ChoiceRules(patterns=(SymbolPattern.parse("!C1/*"), SymbolPattern.parse("*"))))
    await bench.clock.advance(0)
    assert bench.universe.symbols("bitget") == (many[0], *many[2:], many[1])
    bench.list_markets(*many, BTC)
    assert bench.universe.symbols("bitget") == (many[0], *many[2:], BTC, many[1])
    assert max(sizes) <= 2 * STEP_MARKETS
    bench.chooser.set_rules(ChoiceRules(patterns=(SymbolPattern.parse("BTC/USDT"),)))
    bench.chooser.stop_choosing()
    await bench.clock.advance(0)
    assert len(bench.universe.symbols("bitget")) == len(many) + 1 - STEP_MARKETS  # the next process goes on


def test_remarks_are_logged_once_and_shown(caplog: pytest.LogCaptureFixture):
    bench = Bench("X/USDT", "*/USDT", "*/EUR", top=1, most=2)
    for _ in range(3):
        bench.list_markets(BTC, ETH, volume=None)
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [
        "exchanges.bitget.symbols: */EUR matches no listed market",
        "exchanges.bitget.symbols: some matching markets are left out, because most is 2",
        "exchanges.bitget.symbols: top has no effect, because the exchange lists no volumes",
    ]
    assert bench.chooser.describe() == {
        "trouble": None,
        "unmatched": ["*/EUR"],
        "unlisted": ["X/USDT"],
        "overLimit": 1,
        "leaving": 0,
        "onDemand": 0,
        "lacksVolumes": True,
    }


def test_a_change_is_one_line_of_some_markets(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    Bench("*").list_markets(*(Symbol(f"C{number}", "USDT") for number in range(12)))
    shown = ", ".join(f"C{number}/USDT" for number in range(10))
    assert caplog.records[-1].message == f"bitget: markets added: {shown} and 2 more"
