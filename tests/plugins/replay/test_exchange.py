"""The replay exchange: files, market clock, feed and history."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from candled import (
    MINUTE_MS,
    Candle,
    Candles,
    ConfigError,
    Event,
    ExchangeError,
    StreamFeed,
    Subscribed,
    SubscriptionRejected,
    Symbol,
)
from candled.model import SYMBOL_FORM
from candled_plugins.replay import candled_exchanges
from candled_plugins.replay.exchange import Replay
from tests.clocks import START_MS, ManualClock, ScaledClock

HEADER = "time_ms,open,high,low,close,volume"
BTC, ETH, SOL = (Symbol.parse(text) for text in ("BTC/USDT", "ETH/USDT", "SOL/USDT"))
NO_HTTP: Any = None  # replay asks nobody


def rows(minutes: int = 60) -> str:
    lines = [f"{n * MINUTE_MS},10,{12 + n % 7}.5,9,{10 + n % 2}.25,{n}.125" for n in range(minutes)]
    return "\n".join([HEADER, *lines]) + "\n"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.csv"
    path.write_text(rows(), "utf-8")
    return path


@pytest.fixture
def packed(tmp_path: Path, plain: Path) -> Path:
    path = tmp_path / "packed"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def replay(clock: Any, *, speed: float = 1.0, **files: Any) -> Replay:
    named = {key.replace("_", "/"): str(path) for key, path in files.items()}
    return Replay(Replay.Settings(files=named, speed=speed), clock)


async def history(exchange: Replay, start_ms: int, end_ms: int, symbol: Symbol = BTC) -> list[Candle]:
    return await exchange.fetch_history(NO_HTTP, symbol, start_ms, end_ms)


class Listener:
    """Reads a feed in the background."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def listen(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            self.events.append(event)

    def live(self, symbol: Symbol = BTC) -> list[Candle]:
        """What came after the snapshot."""
        batches = [event for event in self.events if isinstance(event, Candles) and not event.snapshot]
        return [candle for batch in batches if batch.symbol == symbol for candle in batch.candles]

    def snapshot(self, symbol: Symbol = BTC) -> list[Candle]:
        (batch,) = (e for e in self.events if isinstance(e, Candles) and e.snapshot and e.symbol == symbol)
        return list(batch.candles)


@asynccontextmanager
async def listening(exchange: Replay, *symbols: Symbol) -> AsyncIterator[Listener]:
    feed = exchange.make_feed(symbols or (BTC,))
    assert isinstance(feed, StreamFeed)
    listener = Listener()
    async with aclosing(feed.stream_events(None)) as events:
        task = asyncio.create_task(listener.listen(events))
        await asyncio.sleep(0)
        try:
            yield listener
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
def test_the_plugin_offers_replay_with_two_markets_of_its_own() -> None:
    (offered,) = candled_exchanges()
    assert offered is Replay
    markets = asyncio.run(Replay(Replay.Settings(), ManualClock()).fetch_markets(NO_HTTP))
    assert [(str(market.symbol), market.price_decimals) for market in markets] == [("BTC/USDT", 2), ("ETH/USDT", 2)]


async def test_gzip_and_plain_files_play_the_same(plain: Path, packed: Path) -> None:
    exchange = replay(ManualClock(), BTC_USDT=plain, ETH_USDT=packed)
    window = START_MS - 90 * MINUTE_MS, START_MS
    assert await history(exchange, *window, BTC) == await history(exchange, *window, ETH) != []


async def test_the_star_serves_any_symbol(plain: Path) -> None:
    exchange = Replay(Replay.Settings(files={"*": str(plain)}), ManualClock())
    assert len(await history(exchange, START_MS - 5 * MINUTE_MS, START_MS, SOL)) == 5
    assert await exchange.fetch_markets(NO_HTTP) == []


@pytest.mark.slow
async def test_a_contract_has_a_recording_of_its_own(plain: Path, packed: Path) -> None:
    contract = Symbol.parse("BTC/USDT:USDT")
    exchange = Replay(
        Replay.Settings(files={"BTC/USDT": str(plain), str(contract): "bundled:bitget-futures-ethusdt"}), ManualClock()
    )
    assert [market.symbol for market in await exchange.fetch_markets(NO_HTTP)] == [BTC, contract]
    start_ms, end_ms = START_MS - 3 * MINUTE_MS, START_MS
    pair = await history(exchange, start_ms, end_ms)
    assert len(pair) == 3
    assert pair != await history(exchange, start_ms, end_ms, contract)


def test_every_bad_file_is_reported_in_one_run_by_name_and_line(tmp_path: Path, plain: Path) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text(rows() + "5,1,1,1,1,1\n", "utf-8")
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(plain.read_bytes())[:-20])
    latin = tmp_path / "latin.csv"
    latin.write_bytes(b"\xe9,\xe9\n")
    files = {
        "BTCUSDT": str(plain),
        "A/USDT": str(broken),
        "B/USDT": str(cut),
        "C/USDT": str(tmp_path / "none.csv"),
        "D/USDT": str(tmp_path),
        "E/USDT": "bundled:no-such",
        "F/USDT": str(latin),
        "G/USDT": str(broken),
        "H/USDT": str(plain),
    }
    with pytest.raises(ConfigError) as caught:
        Replay(Replay.Settings(files=files), ManualClock())
    found = caught.value.problems
    assert found[0] == f"exchanges.replay.files: expected {SYMBOL_FORM}, got 'BTCUSDT'"
    assert found[1] == f"{broken}: line 62: expected an opening time on a boundary of 60000 ms, got 5"
    assert found[2].startswith(f"{cut}: cannot be read: ")
    assert found[3] == f"{tmp_path / 'none.csv'}: cannot be read: No such file or directory"
    assert found[4] == f"{tmp_path}: cannot be read: Is a directory"
    assert found[5].startswith("bundled:no-such: no such recording comes with candled: it has binance-spot-btcusdt, ")
    assert found[6].startswith(f"{latin}: cannot be read: ")
    assert len(found) == 7


async def test_history_ends_with_the_forming_minute_and_has_the_time_of_the_request(plain: Path) -> None:
    clock = ManualClock()
    exchange = replay(clock, BTC_USDT=plain)
    await clock.advance(90)
    candles = await history(exchange, START_MS - MINUTE_MS, START_MS + 10 * MINUTE_MS)
    assert [candle.open_ms for candle in candles] == [START_MS + n * MINUTE_MS for n in (-1, 0, 1)]
    assert {candle.as_of_ms for candle in candles} == {START_MS + 90_000}
    assert not any(candle.final for candle in candles)
    over, running = candles[1], candles[2]
    assert Decimal(0) < running.volume < running.open_ms // MINUTE_MS % 60 + Decimal("0.125")
    assert over.volume == over.open_ms // MINUTE_MS % 60 + Decimal("0.125")


async def test_history_of_an_unknown_symbol_is_an_error_and_its_subscription_is_refused(plain: Path) -> None:
    exchange = replay(ManualClock(), BTC_USDT=plain)
    with pytest.raises(ExchangeError, match="no recording for SOL/USDT"):
        await history(exchange, 0, MINUTE_MS, SOL)
    async with listening(exchange, SOL, BTC) as received:
        refused = [event for event in received.events if isinstance(event, SubscriptionRejected)]
    assert [event.symbol for event in refused] == [SOL]
    assert Subscribed(BTC) in received.events
    assert received.snapshot(BTC)


async def test_the_feed_begins_with_the_last_500_minutes_and_the_running_one(plain: Path) -> None:
    clock = ManualClock()
    await clock.advance(30)
    exchange = replay(clock, BTC_USDT=plain)
    async with listening(exchange) as received:
        snapshot = received.snapshot()
    assert [candle.open_ms for candle in snapshot] == [START_MS + n * MINUTE_MS for n in range(-500, 1)]
    assert all(candle.as_of_ms == candle.open_ms + MINUTE_MS for candle in snapshot[:-1])
    assert snapshot[-1].as_of_ms == START_MS + 30_000


async def test_at_speed_1_the_minute_grows_once_a_second_and_its_last_version_comes_before_the_next(
    plain: Path,
) -> None:
    clock = ManualClock()
    exchange = replay(clock, BTC_USDT=plain)
    async with listening(exchange) as received:
        await clock.advance(125)
        live = received.live()
    minutes = [[candle for candle in live if candle.open_ms == START_MS + n * MINUTE_MS] for n in range(3)]
    assert [len(versions) for versions in minutes] == [60, 61, 6]
    assert [candle.open_ms for candle in live] == sorted(candle.open_ms for candle in live)
    for versions in minutes[:2]:
        assert versions[-1].as_of_ms == versions[-1].open_ms + MINUTE_MS
        assert all(earlier.volume < later.volume for earlier, later in pairwise(versions))
    closed = await history(exchange, START_MS, START_MS + 2 * MINUTE_MS)
    assert [versions[-1].values for versions in minutes[:2]] == [candle.values for candle in closed]


async def test_at_speed_the_feed_ticks_four_times_a_second_and_leaves_no_minute_out(plain: Path) -> None:
    clock = ManualClock()
    exchange = replay(clock, speed=600.0, BTC_USDT=plain)
    async with listening(exchange) as received:
        await clock.advance(2)
        batches = [event for event in received.events if isinstance(event, Candles) and not event.snapshot]
        live = received.live()
    assert len(batches) == 8
    ended = [candle.open_ms for candle in live if candle.as_of_ms == candle.open_ms + MINUTE_MS]
    assert ended == [START_MS + n * MINUTE_MS for n in range(20)]
    assert [candle.open_ms for candle in live] == sorted(candle.open_ms for candle in live)


async def test_a_listener_that_was_delayed_receives_every_minute(plain: Path) -> None:
    clock = ManualClock()
    exchange = replay(clock, BTC_USDT=plain)
    feed = exchange.make_feed([BTC])
    assert isinstance(feed, StreamFeed)
    async with aclosing(feed.stream_events(None)) as events:
        assert await anext(events) == Subscribed(BTC)
        await anext(events)
        await clock.advance(185)
        waiting = asyncio.ensure_future(anext(events))
        await clock.advance(1)
        batch = await waiting
    assert isinstance(batch, Candles)
    assert [candle.open_ms for candle in batch.candles] == [START_MS + n * MINUTE_MS for n in range(4)]


async def test_the_market_clock_runs_at_speed_and_resumes_after_what_is_stored(plain: Path) -> None:
    clock = ManualClock()
    exchange = replay(clock, speed=20.0, BTC_USDT=plain)
    exchange.resume_after(None)
    assert exchange.now_ms() == START_MS
    await clock.advance(60)
    reached = exchange.now_ms()
    assert reached == START_MS + 20 * MINUTE_MS

    again = replay(clock, speed=20.0, BTC_USDT=plain)
    again.resume_after(reached - MINUTE_MS)
    assert again.now_ms() == reached
    await clock.advance(3)
    assert again.now_ms() == reached + MINUTE_MS


async def test_a_store_from_yesterday_does_not_delay_the_market_clock(plain: Path) -> None:
    exchange = replay(ManualClock(), BTC_USDT=plain)
    exchange.resume_after(START_MS - 24 * 60 * MINUTE_MS)
    assert exchange.now_ms() == START_MS


def test_market_time_stands_still_while_the_wall_clock_is_set_back(plain: Path) -> None:
    class Wall(ManualClock):
        ms = START_MS

        def now_ms(self) -> int:
            return self.ms

    wall = Wall()
    exchange = replay(wall, BTC_USDT=plain)
    exchange.resume_after(None)
    wall.ms += 5000
    assert exchange.now_ms() == START_MS + 5000
    wall.ms -= 60_000
    assert exchange.now_ms() == START_MS + 5000
    wall.ms += 61_000
    assert exchange.now_ms() == START_MS + 6000


@pytest.mark.slow
async def test_two_daemons_started_at_different_times_publish_the_same_minutes(plain: Path) -> None:
    early, late = ScaledClock(200.0, START_MS), ScaledClock(50.0, START_MS + 90_000)
    one, other = replay(early, BTC_USDT=plain), replay(late, speed=4.0, BTC_USDT=plain)
    async with listening(one) as received_one, listening(other) as received_other:
        await asyncio.sleep(1.0)
        last_one = {candle.open_ms: candle.values for candle in received_one.live() if candle.as_of_ms % MINUTE_MS == 0}
        last_other = {
            candle.open_ms: candle.values for candle in received_other.live() if candle.as_of_ms % MINUTE_MS == 0
        }
    both = last_one.keys() & last_other.keys()
    assert both
    assert {open_ms: last_one[open_ms] for open_ms in both} == {open_ms: last_other[open_ms] for open_ms in both}
