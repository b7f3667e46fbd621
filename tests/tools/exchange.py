"""A fake Bitget and a SQLite store for commands that ask an exchange, on a clock that runs faster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from candled.config import Config, ExchangeConfig
from candled.model import MINUTE, MINUTE_MS, Candle, MarketKey, Symbol, iso_ms
from candled.store.sqlite.store import SqliteStore
from candled_plugins.bitget.exchange import Bitget, BitgetSettings
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.tools.command import called, prepare, settings

BTC = Symbol.parse("BTC/USDT")
MARKET = MarketKey("bitget", BTC)
NOON_MS = 1_759_752_000_000  # 2025-10-06T12:00Z, a Monday
DAY_MS = 1440 * MINUTE_MS


def at(days: float = 0, minutes: int = 0) -> int:
    """A time before or after noon."""
    return NOON_MS + round(days * DAY_MS) + minutes * MINUTE_MS


class Bench:
    """One market at the fake, and the store of the settings."""

    def __init__(self, directory: Path, fake: FakeBitget, clock: FairScaledClock, plugin: type[Bitget]) -> None:
        self.path = directory / "candled.db"
        self.fake = fake
        self.clock = clock
        bitget = BitgetSettings(ws_url=fake.ws_url, rest_url=fake.rest_url)
        exchange = ExchangeConfig(name="bitget", plugin=plugin, symbols=(BTC,), settings=bitget)
        self.config: Config = settings(f"sqlite:///{self.path}", exchange)

    async def run(self, *arguments: object) -> int:
        """Run a command that asks the exchange on this loop; return the exit status."""
        prepare(self.config)
        outcome = called(self.config, *arguments, clock=self.clock)
        assert not isinstance(outcome, int)
        return await outcome

    def store(self) -> SqliteStore:
        """The store, opened as a guest; to be closed."""
        prepare(self.config)
        store = SqliteStore(self.path, None)
        store.open()
        return store

    def stored(self, start_ms: int = 0, end_ms: int = 10**14) -> list[Candle]:
        store = self.store()
        try:
            return store.read_bars_between(MARKET, MINUTE, start_ms, end_ms)
        finally:
            store.close()

    def known_gaps(self) -> list[tuple[int, int, str]]:
        store = self.store()
        try:
            return [(gap.start_ms, gap.end_ms, gap.reason) for gap in store.known_gaps(MARKET)]
        finally:
            store.close()

    def complete_from(self) -> int | None:
        store = self.store()
        try:
            return store.complete_from(MARKET)
        finally:
            store.close()

    def put(self, *candles: Candle) -> None:
        store = self.store()
        try:
            store.write_minutes([(MARKET, candle) for candle in candles])
        finally:
            store.close()

    def truth(self, start_ms: int, end_ms: int) -> list[Candle]:
        return self.fake.truth(BTC, start_ms, end_ms)

    def asked(self) -> list[tuple[int, int]]:
        """The ranges of minutes that the requests so far could have brought, in their order."""
        pages = [*self.fake.requests_to("candles"), *self.fake.requests_to("history-candles")]
        pages.sort(key=lambda request: request.at_ms)
        return [
            (int(page.query["endTime"]) - (int(page.query["limit"]) - 1) * MINUTE_MS, int(page.query["endTime"]))
            for page in pages
        ]


def iso(at_ms: int) -> str:
    """A time as an argument."""
    return iso_ms(at_ms)


def values(candles: list[Candle]) -> list[tuple]:
    """Return the values of candles, without the exchange's time."""
    return [(candle.open_ms, *candle.values) for candle in candles]


@asynccontextmanager
async def bench(
    directory: Path, *, listed_ms: int = 0, speed: float = 100.0, plugin: type[Bitget] = Bitget
) -> AsyncIterator[Bench]:
    clock = FairScaledClock(speed, NOON_MS)
    market = FakeMarket(symbol=BTC, tape=Synthetic(7), listed_ms=listed_ms)
    async with FakeBitget(clock, [market]) as fake:
        fake.enforce_limits = False  # limits per second mean nothing on a fast clock
        yield Bench(directory, fake, clock, plugin)
