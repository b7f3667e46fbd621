"""The markets of a universe after each list of the exchange, and the remarks about them."""

import logging
from decimal import Decimal

import pytest

from candled.ingest.market_chooser import MarketChooser
from candled.model import Market, MarketKey, Symbol
from candled.symbol_pattern import SymbolPattern
from candled.universe import Universe
from candled.universe_choice import LEAVES_AFTER_MS, ChoiceRules
from tests.clocks import ManualClock

BTC, ETH, SOL, X = (Symbol(base, "USDT") for base in ("BTC", "ETH", "SOL", "X"))


class Bench:
    def __init__(self, *patterns: str, **rules) -> None:
        choice = ChoiceRules(patterns=tuple(map(SymbolPattern.parse, patterns)), **rules)
        self.clock = ManualClock(10**12)
        self.universe = Universe(["bitget", "okx"])
        self.universe.set_markets("bitget", choice.named)
        self.chooser = MarketChooser("bitget", choice, self.universe, self.clock)

    def list_markets(self, *symbols: Symbol, volume: int | None = 1) -> tuple[Symbol, ...]:
        known = None if volume is None else Decimal(volume)
        self.chooser.on_list([Market(symbol=symbol, quote_volume_24h=known) for symbol in symbols])
        return self.universe.symbols("bitget")


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


def test_remarks_are_logged_once_and_shown(caplog: pytest.LogCaptureFixture):
    bench = Bench("X/USDT", "*/USDT", "*/EUR", top=1, most=2)
    for _ in range(3):
        bench.list_markets(BTC, ETH, volume=None)
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [
        "exchanges.bitget.symbols: */EUR matches no listed market",
        "exchanges.bitget.symbols: X/USDT is named, but not listed",
        "exchanges.bitget.symbols: some matching markets are left out, because most is 2",
        "exchanges.bitget.symbols: top has no effect, because the exchange lists no volumes",
    ]
    assert bench.chooser.describe() == {
        "trouble": None,
        "unmatched": ["*/EUR"],
        "unlisted": ["X/USDT"],
        "overLimit": 1,
        "leaving": 0,
        "lacksVolumes": True,
    }


def test_a_change_is_one_line_of_some_markets(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    Bench("*").list_markets(*(Symbol(f"C{number}", "USDT") for number in range(12)))
    shown = ", ".join(f"C{number}/USDT" for number in range(10))
    assert caplog.records[-1].message == f"bitget: markets added: {shown} and 2 more"
