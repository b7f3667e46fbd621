"""Markets on demand of one process: who may start them, how long they are kept, and how they are found."""

import asyncio

import pytest

from candled.api.errors import UnknownSymbol
from candled.api.offered_markets import OfferedMarkets
from candled.errors import Unavailable
from candled.model import Market, MarketKey, Symbol
from candled.on_demand import START_S, DemandRefused, MarketsOnDemand, MemoryBook
from candled.symbol_pattern import SymbolPattern
from candled.universe import Universe
from candled.universe_choice import REPORTED_S, DemandRules
from tests.clocks import ManualClock

BTC, ETH, SOL, UP, PERP = map(Symbol.parse, ("BTC/USDT", "ETH/USDT", "SOL/USDT", "XUP/USDT", "BTC/USDT:USDT"))
RULES = DemandRules(most=2, keep_s=60.0, most_per_address=1, exclusions=(SymbolPattern.parse("!*UP/USDT"),))


def key(symbol: Symbol) -> MarketKey:
    return MarketKey("bitget", symbol)


class Bench:
    """One process, whose leader adds every market of the book."""

    def __init__(self, rules: DemandRules = RULES) -> None:
        self.clock, self.universe = ManualClock(), Universe(["bitget", "okx"])
        self.universe.set_markets("bitget", [BTC])
        self.book = MemoryBook(self.clock)
        self.used: set[MarketKey] = set()
        self.demand = MarketsOnDemand(
            self.universe, self.clock, self.book, self.used.__contains__, {"bitget": rules, "okx": DemandRules()}
        )
        self.demand.on_list("bitget", [BTC, ETH, SOL, UP, PERP])
        self.rules = rules

    async def follow(self) -> set[Symbol]:
        """Have the leader read the book; return its markets."""
        wanted = await self.book.read_markets("bitget", self.rules)
        self.universe.set_markets("bitget", [BTC, *wanted])
        return set(wanted)

    async def start(self, symbol: Symbol, address: str = "192.0.2.1") -> None:
        starting = asyncio.ensure_future(self.demand.start_market(key(symbol), address))
        await self.clock.advance(0)
        await self.follow()
        await self.clock.advance(0.1)
        await starting

    async def pass_time(self, seconds: float) -> set[Symbol]:
        for _ in range(int(seconds / 5)):
            await self.clock.advance(5)
            await self.demand.renew()
        return await self.follow()


def test_only_listed_markets_that_are_not_excluded_are_found():
    bench = Bench()
    find = bench.demand.find_market
    assert find("bitget", "ETH/USDT") == key(ETH)
    assert [find("bitget", text) for text in ("NO/USDT", "XUP/USDT", "ethusdt", "*", "")] == [None] * 5
    bench.demand.on_list("okx", [ETH])
    assert find("okx", "ETH/USDT") is None  # without the setting
    bench.demand.on_list("bitget", [])  # no evidence
    assert find("bitget", "ETH/USDT") == key(ETH)
    bench.demand.on_list("bitget", [BTC])
    assert find("bitget", "ETH/USDT") is None
    bench.demand.set_rules({})
    assert find("bitget", "BTC/USDT") is None


async def test_a_client_that_asks_before_the_list_is_known_waits_for_it():
    bench = Bench()
    demand = MarketsOnDemand(bench.universe, bench.clock, bench.book, bench.used.__contains__, {"bitget": RULES})
    assert demand.find_candidate("bitget", "ETH/USDT") == key(ETH)
    assert [demand.find_candidate("bitget", text) for text in ("XUP/USDT", "ethusdt")] == [None] * 2
    assert demand.find_market("bitget", "ETH/USDT") is None
    waiting = asyncio.ensure_future(demand.wait_for_lists(["bitget"]))
    await bench.clock.advance(1)
    assert not waiting.done()
    demand.on_list("bitget", [ETH])
    await bench.clock.advance(0.1)
    assert waiting.done()
    assert (demand.find_market("bitget", "ETH/USDT"), demand.find_candidate("bitget", "NO/USDT")) == (key(ETH), None)
    await demand.wait_for_lists(["okx"])  # it has none on demand


async def test_a_client_waits_no_longer_than_for_the_start_of_a_market():
    bench = Bench()
    demand = MarketsOnDemand(bench.universe, bench.clock, bench.book, bench.used.__contains__, {"bitget": RULES})
    waiting = asyncio.ensure_future(demand.wait_for_lists(["bitget"]))
    await bench.clock.advance(START_S + 0.1)
    assert waiting.done()


def test_every_dialect_finds_them():
    bench = Bench()
    offered = OfferedMarkets(bench.demand)

    def found(kind, name, exchange=None):
        return offered.find(UnknownSymbol(404, "unknown_symbol", "", kind=kind, name=name, exchange=exchange))

    assert found("symbol", "ETH/USDT", "bitget") == key(ETH)
    assert [found("ticker", name) for name in ("BITGET:ETHUSDT", "ethusdt", "bitget:eth/usdt")] == [key(ETH)] * 3
    assert (found("ticker", "BTCUSDT.P"), found("binance", "BTCUSDT_PERP", "bitget")) == (key(PERP), key(PERP))
    assert found("ticker", "XUPUSDT") is found("binance", "ETHUSDT", "okx") is None
    bench.demand.on_list("bitget", [SOL])
    assert (found("ticker", "ETHUSDT"), found("binance", "SOLUSDT", "bitget")) == (None, key(SOL))


def test_every_dialect_knows_for_which_lists_a_request_waits():
    bench = Bench()
    demand = MarketsOnDemand(
        bench.universe, bench.clock, bench.book, bench.used.__contains__, {"bitget": RULES, "okx": RULES}
    )
    offered = OfferedMarkets(demand)

    def awaited(kind, name, exchange=None):
        refusal = UnknownSymbol(404, "unknown_symbol", "", kind=kind, name=name, exchange=exchange)
        return list(offered.awaited_lists(refusal))

    assert awaited("symbol", "ETH/USDT", "bitget") == awaited("binance", "ETHUSDT", "bitget") == ["bitget"]
    assert awaited("ticker", "OKX:ETHUSDT") == awaited("ticker", "okx:ETH/USDT") == ["okx"]
    assert awaited("ticker", "ETHUSDT") == awaited("ticker", "BTC/USDT:USDT") == ["bitget", "okx"]
    # no list can have these
    assert awaited("symbol", "XUP/USDT", "bitget") == awaited("symbol", "ethusdt", "bitget") == []
    assert awaited("symbol", "ETH/USDT", "binance") == awaited("binance", "ETHUSDT", "binance") == []
    demand.on_list("bitget", [ETH])
    assert awaited("symbol", "NO/USDT", "bitget") == awaited("binance", "NOUSDT", "bitget") == []
    assert awaited("ticker", "NOUSDT") == ["okx"]


async def test_a_market_is_kept_while_it_is_used_and_for_a_while_after_that():
    bench = Bench()
    await bench.start(ETH)
    assert bench.demand.is_starting(key(ETH))
    bench.used.add(key(ETH))
    assert await bench.pass_time(300) == {ETH}
    assert not bench.demand.is_starting(key(ETH))
    bench.used.clear()
    assert await bench.pass_time(50) == {ETH}
    bench.demand.note_request(key(ETH))
    assert await bench.pass_time(55) == {ETH}
    assert await bench.pass_time(15) == set()


async def test_limits_of_an_address_and_of_all():
    bench = Bench()
    await bench.start(ETH)
    with pytest.raises(DemandRefused, match=r"at most 1 of bitget from one address"):
        await bench.start(SOL)
    await bench.start(ETH)  # it runs
    await bench.start(SOL, "192.0.2.2")
    with pytest.raises(DemandRefused, match="at most 2 of bitget at a time"):
        await bench.start(PERP, "192.0.2.3")
    assert bench.demand.refused == 2
    assert await bench.pass_time(70) == set()
    await bench.start(PERP)  # the first one of this address has ended


async def test_a_refused_market_does_not_count_for_the_address():
    bench = Bench(DemandRules(most=1, keep_s=60.0, most_per_address=1))
    await bench.start(ETH)
    with pytest.raises(DemandRefused, match="at a time"):
        await bench.start(SOL, "192.0.2.2")
    await bench.pass_time(70)
    await bench.start(SOL, "192.0.2.2")


async def test_a_leader_that_does_not_answer_is_an_error():
    bench = Bench()
    starting = asyncio.ensure_future(bench.demand.start_market(key(ETH), "192.0.2.1"))
    await bench.clock.advance(START_S + 1)
    with pytest.raises(Unavailable, match="ETH/USDT cannot be started"):
        await starting
    await bench.start(SOL)  # not counted


async def test_clients_that_ask_together_start_a_market_together():
    bench = Bench()
    starting = [asyncio.ensure_future(bench.demand.start_market(key(ETH), f"192.0.2.{one}")) for one in range(5)]
    await bench.clock.advance(0)
    await bench.follow()
    await bench.clock.advance(0.1)
    await asyncio.gather(*starting)
    assert await bench.pass_time(5) == {ETH}


async def test_delisted_markets_that_are_used_are_reported_on_demand_or_not():
    bench = Bench()
    delisted = {symbol: Market(symbol=symbol, status="delisted") for symbol in (BTC, ETH)}
    bench.universe.set_markets("okx", [BTC, ETH, SOL], {**delisted, SOL: Market(symbol=SOL)})
    bench.used |= {MarketKey("okx", BTC), MarketKey("okx", SOL)}
    await bench.demand.renew()
    assert await bench.book.read_delisted("okx") == [BTC]
    assert await bench.book.read_delisted("bitget") == []
    bench.used.clear()
    await bench.pass_time(REPORTED_S - 5)
    assert await bench.book.read_delisted("okx") == [BTC]
    await bench.pass_time(5)
    assert await bench.book.read_delisted("okx") == []
