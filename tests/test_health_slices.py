"""`/health?verbose` and the other answers about a thousand markets leave the loop to others after every few of them."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from candled.aggregate.live_bars import LiveBars
from candled.bus.memory_bus import MemoryBus
from candled.health import Health
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.http import HttpClient
from candled.ingest.market_loader import IngestOptions
from candled.ingest_side import ShardedIngest
from candled.model import DEFAULT_INTERVALS, Symbol
from candled.universe import Universe
from tests.clocks import ManualClock
from tests.ingest.many_markets import ManyMarkets, ManyMemories, World

T = TypeVar("T")
SYMBOLS = [Symbol(f"COIN{number:04}", "USDT") for number in range(1000)]
AT_ONCE = 400


class TurnClock(ManualClock):
    """Counts the markets between two turns of the loop, and calls `on_turn` in each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.slices: list[int] = []
        self.on_turn: Callable[[], None] = lambda: None
        self._count = 0

    def watch(self, items: Iterator[T]) -> Iterator[T]:
        for item in items:
            self._count += 1
            yield item

    async def sleep(self, seconds: float) -> None:
        self.slices.append(self._count)
        self._count = 0
        self.on_turn()
        await super().sleep(seconds)


class Stage:
    """The health of a process that reads a thousand markets. None is open yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = clock = TurnClock()
        self.universe = Universe(["virtual"])
        self.universe.set_markets("virtual", SYMBOLS)
        bars = LiveBars(self.universe.markets, DEFAULT_INTERVALS, SimpleNamespace(), clock)  # type: ignore[arg-type]
        self.universe.add_listener(bars.on_markets_changed)
        options = IngestOptions(
            backfill_ms=0, grace_period_ms=6000, quiet_after_ms=60_000, checkpoint_ms=5000, confirm=True
        )  # fmt: skip
        parts: dict[str, Any] = {"store": ManyMemories(), "http": HttpClient(clock, 1000.0), "options": options}
        one = ExchangeIngest(
            "virtual", ManyMarkets(World(), clock), SYMBOLS, clock=clock, bus=MemoryBus("one"), **parts
        )
        self.universe.add_listener(lambda change: one.remove_markets(change.removed))
        ingest: Any = SimpleNamespace(running=[one], _choosers={}, problems={}, markets=set(self.universe.markets))
        for name in ("describe", "describe_symbols", "measure"):
            setattr(ingest, name, getattr(ShardedIngest, name).__get__(ingest))
        for owner, name in ((bars, "describe_feeds"), (ingest, "describe_symbols")):
            read = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda read=read: clock.watch(read()))
        writer = {"state": "ok"}
        self.health = Health(
            SimpleNamespace(roles=("ingest", "serve")),  # type: ignore[arg-type]
            SimpleNamespace(statuses=()),  # type: ignore[arg-type]
            clock,
            store=SimpleNamespace(describe=dict),  # type: ignore[arg-type]
            upkeep=SimpleNamespace(conflicts=(), problem=None),  # type: ignore[arg-type]
            writer=SimpleNamespace(describe=lambda: writer),  # type: ignore[arg-type]
            history=SimpleNamespace(problem=None),  # type: ignore[arg-type]
            bus=MemoryBus("one"),
            bars=bars,
            watchdog=SimpleNamespace(),  # type: ignore[arg-type]
            universe=self.universe,
            ingest=ingest,
            describe_hooks=lambda name: {},
        )
        self.health.is_reading = True

    def remove_market(self, symbol: Symbol) -> None:
        self.universe.set_markets("virtual", [one for one in self.universe.symbols("virtual") if one != symbol])


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


async def test_all_details_of_a_thousand_markets_are_described_in_slices(stage: Stage) -> None:
    described = (await stage.health.report())["exchanges"]["virtual"]["symbols"]
    assert list(described) == list(map(str, SYMBOLS))
    assert {one["state"] for one in described.values()} == {"warming"}
    assert max(stage.clock.slices) <= AT_ONCE
    assert stage.clock.slices[-1] <= 50  # markets that are read here take longer than feeds
    assert len(stage.clock.slices) >= 20


@pytest.mark.parametrize("number", [0, 500, 999])
async def test_a_market_that_is_removed_meanwhile_is_in_no_answer(stage: Stage, number: int) -> None:
    for turn in (1, 10):
        left = iter(range(turn))
        symbol = SYMBOLS[number - turn]
        stage.clock.on_turn = lambda left=left, symbol=symbol: next(left, None) is None and stage.remove_market(symbol)
        assert symbol in stage.universe.symbols("virtual")
        described = (await stage.health.report())["exchanges"]["virtual"]["symbols"]
        assert list(described) == list(map(str, stage.universe.symbols("virtual")))
        assert str(symbol) not in described


async def test_the_summary_is_made_in_slices_too(stage: Stage) -> None:
    summary = await stage.health.summarize()
    assert summary["exchanges"]["virtual"]["states"] == {"warming": 1000}
    assert len(stage.clock.slices) >= 10
    stage.clock.on_turn = lambda: stage.remove_market(SYMBOLS[-1])
    assert (await stage.health.summarize())["exchanges"]["virtual"]["states"] == {"warming": 999}
