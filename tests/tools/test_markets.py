"""`candled check-config --markets` against the fake Bitget, and the page for made-up exchanges."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from candled.config import ExchangeConfig
from candled.exchange import ConnectionLimits, RequestBudget
from candled.model import Market, Symbol
from candled.symbol_pattern import SymbolPattern
from candled.tools.markets import check_markets, describe_markets
from candled.universe_choice import ChoiceRules
from candled_plugins.bitget.exchange import Bitget, BitgetSettings
from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.tools.command import settings

WEDNESDAY_MS = 1_759_881_600_000  # 2025-10-08T00:00Z, two days after the week began
SYMBOLS = ("BTC/USDT", "ETH/USDT", "BTCUP/USDT", "ETH/EUR")


def exchange(*patterns: str, rest_url: str = "http://localhost:1", **rules) -> ExchangeConfig:
    choice = ChoiceRules(patterns=tuple(map(SymbolPattern.parse, patterns)), **rules)
    own = BitgetSettings(rest_url=rest_url)
    return ExchangeConfig(name="bitget", plugin=Bitget, symbols=choice.named, settings=own, choice=choice)


def page(config: ExchangeConfig, listed: list[Market], backfill: timedelta = timedelta(days=30), **limits) -> list[str]:
    made = Bitget(config.settings, ScaledClock(1.0, WEDNESDAY_MS))
    made.limits = replace(made.limits, **limits)
    made.max_history_minutes, made.requests_per_s = 200, 5.0  # type: ignore[misc]
    return list(describe_markets(config, made, listed, backfill, WEDNESDAY_MS))


def markets(*names: str) -> list[Market]:
    return [Market(symbol=Symbol.parse(name), quote_volume_24h=Decimal(len(names))) for name in names]


async def test_the_page_names_every_rule_the_cost_and_the_markets(tmp_path, capsys):
    clock = ScaledClock(100.0, WEDNESDAY_MS)
    listed = [FakeMarket(symbol=Symbol.parse(name), tape=Synthetic(7)) for name in SYMBOLS]
    async with FakeBitget(clock, listed) as fake:
        config = exchange("ETH/EUR", "*/USDT", "!*UP/*", "X/USDT", "/^DOGE/", rest_url=fake.rest_url)
        assert await check_markets(settings(f"sqlite:///{tmp_path}/candled.db", config), clock) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "bitget: 3 of 4 listed markets, and 1 that it does not list",
        "  ETH/EUR  named",
        "  */USDT   matches 3",
        "  !*UP/*   excludes 1",
        "  X/USDT   named, but the exchange does not list it",
        "  /^DOGE/  matches no listed market",
    ]
    assert set(lines[-1].split()) == {"ETH/EUR", "X/USDT", "BTC/USDT", "ETH/USDT"}


async def test_an_exchange_that_does_not_answer_is_one_line(tmp_path, capsys):
    config = settings(f"sqlite:///{tmp_path}/candled.db", exchange("*/USDT"))
    assert await check_markets(config, ScaledClock(100.0, WEDNESDAY_MS)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("candled: exchanges.bitget: cannot reach localhost:1: ")
    assert printed.err.count("\n") == 1


async def test_the_requests_use_the_budgets_that_the_plugin_declares(tmp_path, monkeypatch, capsys):
    plain = Bitget.fetch_markets

    async def fetch_markets(self, http):
        await http.get_json(f"{self.settings.rest_url}/api/v2/spot/public/symbols", weight=20.0, budget="weight")
        return await plain(self, http)

    monkeypatch.setattr(Bitget, "fetch_markets", fetch_markets)
    monkeypatch.setattr(Bitget, "request_budgets", {"weight": RequestBudget(limit=6000)})
    clock = ScaledClock(100.0, WEDNESDAY_MS)
    async with FakeBitget(clock, [FakeMarket(symbol=Symbol.parse(SYMBOLS[0]), tape=Synthetic(7))]) as fake:
        config = exchange("*/USDT", rest_url=fake.rest_url)
        assert await check_markets(settings(f"sqlite:///{tmp_path}/candled.db", config), clock) == 0
    assert capsys.readouterr().out.startswith("bitget: 1 of 1 listed markets\n")


async def test_a_bug_of_a_plugin_is_one_line(tmp_path, capsys, monkeypatch):
    async def fetch_markets(self, http):
        raise KeyError("symbols")

    monkeypatch.setattr(Bitget, "fetch_markets", fetch_markets)
    config = settings(f"sqlite:///{tmp_path}/candled.db", exchange("*/USDT"))
    assert await check_markets(config, ScaledClock(100.0, WEDNESDAY_MS)) == 1
    assert capsys.readouterr().err == "candled: exchanges.bitget: KeyError: 'symbols'\n"


def test_the_cost_follows_from_budget_pages_and_backfill():
    lines = page(exchange("*", top=2), markets("A/B", "C/D", "E/F"))
    # 2 days of 1440 minutes are 14.4 pages of 200; the other 28 days are 201.6
    assert [line.strip() for line in lines[2:6]] == [
        "top: only the 2 with the largest volume of 24 hours",
        "connections: 1 of 50 markets",
        "this week: 30 requests, 1 min at 5 a second",
        "ingest.backfill, 30d: 404 more requests, 2 min",
    ]
    short = page(exchange("*"), markets("A/B"), timedelta(hours=1))
    assert "  ingest.backfill, 1h: 0 more requests, 0 min" in short


def test_a_thousand_markets_need_hours_and_some_are_read_over_rest():
    listed = markets(*(f"C{number}/USDT" for number in range(1000)))
    lines = page(exchange("*", most=1000), listed, **{"connections": 10})
    assert "  connections: 20 of 50 markets; the exchange allows 10, so the other markets are read over REST" in lines
    assert "  this week: 15,000 requests, 50 min at 5 a second" in lines
    assert "  ingest.backfill, 30d: 202,000 more requests, 11 h 14 min" in lines
    assert "  memory: about 200 MiB, and 600 MiB while history is being read" in lines
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (exchange("*"), "  most: 4 more are left out, because most is 500"),
        (exchange("*", top=3), "  top: only the 3 with the largest volume of 24 hours"),
        (exchange("*", min_age=timedelta(days=7)), "  min_age: only markets that have been traded for 7d"),
    ],
)
def test_limits_are_on_the_page(config, line):
    assert line in page(config, markets(*(f"C{number}/USDT" for number in range(504))))


def test_an_exchange_without_volumes_or_limits_says_so():
    lines = page(exchange("*", top=1), [Market(symbol=Symbol("A", "B"))], symbols_per_connection=None)
    assert "  top: no effect, because the exchange lists no volumes" in lines
    assert not any("connections" in line for line in lines)
    assert ConnectionLimits().symbols_per_connection is None
