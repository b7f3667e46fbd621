"""The Python client against a server that drops, delays, restarts and misorders."""

import asyncio
import gc
import importlib.util
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from candled.client import Bar, Bars, BarStream, Client, ConnectionEnded, RequestRejected, Status
from candled.model import iso_ms
from candled.tasks import Backoff
from tests import deadlines
from tests.clients.market import BTC, ETH, calm, fault, serving
from tests.clients.scripted import START_MS, Scripted
from tests.proxy import Proxy


@pytest.fixture(params=[True, False], ids=["extended", "plain"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Scripted]:
    async for server in serving(request.param):
        yield server


@pytest.fixture
async def extended() -> AsyncIterator[Scripted]:
    async for server in serving(True):
        yield server


def connected(server: Scripted, **options: Any) -> Client:
    return Client(server.url, backoff=Backoff(first_s=0.02, most_s=0.1), **options)


class Reader:
    """Reads a stream in the background; `bars` has everything it was given."""

    def __init__(self, stream: BarStream) -> None:
        self.stream = stream
        self.bars: list[Bar] = []
        self.task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for bar in self.stream:
            self.bars.append(bar)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with deadlines.timeout(10):
            while not is_so():
                assert not self.task.done(), self.task.exception()
                await asyncio.sleep(0.01)

    async def read(self, count: int) -> list[Bar]:
        """Wait until it was given that many bars."""
        await self.until(lambda: len(self.bars) >= count)
        return self.bars


@pytest.fixture
async def reading() -> AsyncIterator[Callable[[BarStream], Reader]]:
    readers: list[Reader] = []

    def read(stream: BarStream) -> Reader:
        readers.append(Reader(stream))
        return readers[-1]

    yield read
    for reader in readers:
        reader.task.cancel()
    await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)


def shown(bars: Any) -> list[dict[str, Any]]:
    """Bars as the scripted server has them."""
    return [
        {
            "time": iso_ms(int(bar.time.timestamp() * 1000)),
            **{key: float(getattr(bar, key)) for key in ("open", "high", "low", "close", "volume")},
        }
        for bar in bars
    ]


def is_synced(server: Scripted, topic: tuple[str, str], stream: BarStream) -> Callable[[], bool]:
    """Whether the stream holds what a fresh subscription would get."""
    return lambda: len(stream.bars) > 0 and shown(stream.bars) == server.fresh(topic, len(stream.bars))


Reading = Callable[[BarStream], Reader]

# ---------------------------------------------------------------- values


def test_a_bar_has_exact_numbers_and_an_aware_time():
    bar = Bar.from_wire(
        {
            "time": "2024-10-24T10:00:00.000Z", "open": Decimal("67234.50"), "high": Decimal(67340), "low": Decimal(1),
            "close": Decimal("0.1"), "volume": Decimal("0.000000010"), "final": True, "rev": Decimal(2), "src": "rest",
        }
    )  # fmt: skip
    assert bar == Bar(
        datetime(2024, 10, 24, 10, tzinfo=UTC),
        *map(Decimal, ("67234.5", "67340", "1", "0.1", "0.00000001")),
        quote_volume=None,
        final=True,
        rev=2,
        src="rest",
    )


def test_bars_are_a_sequence():
    bars = Bars([bar_at(0), bar_at(1), bar_at(2)])
    assert len(bars) == 3
    assert bars[1:] == Bars([bar_at(1), bar_at(2)])
    assert bars[-1].time == datetime(2026, 10, 5, 0, 2, tzinfo=UTC)
    assert repr(bars) == "<3 bars, 2026-10-05 00:00 to 2026-10-05 00:02>"


def bar_at(minute: int) -> Bar:
    at = datetime(2026, 10, 5, 0, minute, tzinfo=UTC)
    quote = Decimal("15.25") if minute else None
    return Bar(at, Decimal("1.5"), Decimal(2), Decimal(1), Decimal("1.25"), Decimal(10), quote, final=minute < 2)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("polars") is None, reason="needs polars: pip install 'candled[polars]'")
def test_bars_become_a_polars_frame():
    frame = Bars([bar_at(0), bar_at(1)]).to_polars()
    assert frame.columns[:3] == ["time", "open", "high"]
    assert frame["time"].to_list() == [bar_at(0).time, bar_at(1).time]
    assert frame["close"].to_list() == [1.25, 1.25]
    assert frame["quote_volume"].to_list() == [None, 15.25]
    assert Bars().to_polars().schema["time"].time_zone == "UTC"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="needs pandas: pip install 'candled[pandas]'")
def test_bars_become_a_pandas_frame():
    frame = Bars([bar_at(0), bar_at(1)]).to_pandas()
    assert list(frame.index.to_pydatetime()) == [bar_at(0).time, bar_at(1).time]
    assert frame["close"].dtype == "float64"
    assert list(frame["final"]) == [True, True]
    assert str(Bars().to_pandas().index.tz) == "UTC"


# ---------------------------------------------------------------- streams


async def test_a_loop_gets_the_bars_then_what_moves_then_what_opens(server: Scripted, reading: Reading) -> None:
    async with connected(server) as client:
        reader = reading(client.bars(*BTC, initial_bars=20))
        assert shown(await reader.read(20)) == server.fresh(BTC, 20)
        moved = server.trade(BTC)
        assert float((await reader.read(21))[-1].close) == moved["close"]
        opened = server.open_next(BTC)
        await reader.until(lambda: shown(reader.bars[-1:]) == server.fresh(BTC, 1))
        assert iso_ms(int(reader.bars[-1].time.timestamp() * 1000)) == opened["time"]
        assert reader.stream.status.state == "live"


async def test_changes_come_together_with_those_of_the_status(server: Scripted) -> None:
    server.make("NEW/USDT", "1m", 0)
    async with connected(server) as client:
        stream, empty = client.bars(*BTC, initial_bars=20), client.bars("NEW/USDT", "1m")
        assert [bar async for bars in until_loaded(stream) for bar in shown(bars)] == server.fresh(BTC, 20)
        assert {len(bars) async for bars in until_loaded(empty)} == {0}
        server.trade(BTC)
        async for bars in stream.changes():
            if bars:
                break
        assert shown(bars) == server.fresh(BTC, 1)
        stream.close()
        assert [len(bars) async for bars in stream.changes()] == [0]


async def until_loaded(stream: BarStream) -> AsyncIterator[Bars]:
    async for bars in stream.changes():
        yield bars
        if stream.is_loaded:
            return


async def test_without_reconnecting_everything_ends_with_the_connection(server: Scripted) -> None:
    async with connected(server, reconnect=False) as client:
        stream = client.bars(*BTC)
        async for _ in until_loaded(stream):
            pass
        server.drop()
        with pytest.raises(ConnectionEnded):
            async for _ in stream.changes():
                pass
        with pytest.raises(ConnectionEnded):
            client.bars(*ETH)
        with pytest.raises(ConnectionEnded):
            await client.history(*ETH)
    async with Client("ws://127.0.0.1:9/ws", reconnect=False) as client:
        with pytest.raises(ConnectionEnded, match="refused"):
            await anext(client.bars(*BTC))


@pytest.mark.slow
async def test_each_final_bar_comes_once_and_in_order(server: Scripted, reading: Reading) -> None:
    server.misorders = True
    async with connected(server) as client:
        reader = reading(client.bars(*BTC, initial_bars=20, final_only=True))
        await reader.read(19)
        for _ in range(4):
            server.trade(BTC)
            server.open_next(BTC)
            server.correct(BTC, -5)
            server.drop()
            server.trade(BTC)
            await reader.until(is_synced(server, BTC, reader.stream))
        server.open_next(BTC)
        await reader.read(24)
        assert [bar["time"] for bar in shown(reader.bars)] == server.finals(BTC)[-24:]


async def test_time_does_not_run_backwards_but_where_corrections_are_wanted(
    extended: Scripted, reading: Reading
) -> None:
    extended.misorders = True
    async with connected(extended) as client:
        without, with_them = reading(client.bars(*BTC)), reading(client.bars(*BTC, corrections=True))
        await asyncio.gather(without.read(100), with_them.read(100))
        extended.correct(BTC, -9)
        extended.trade(BTC)
        for reader in (without, with_them):
            await reader.until(lambda reader=reader: shown(reader.bars[-1:]) == extended.fresh(BTC, 1))
        given = [bar.time for bar in without.bars]
        assert given == sorted(given)
        assert [bar.rev for bar in with_them.bars if bar.rev] == [1]
        assert is_synced(extended, BTC, without.stream)()


async def test_after_a_drop_it_asks_for_what_changed(extended: Scripted, reading: Reading) -> None:
    async with connected(extended) as client:
        reader = reading(client.bars(*BTC, corrections=True))
        await reader.read(100)
        extended.drop()
        extended.correct(BTC, -7)
        extended.open_next(BTC)
        await reader.read(103)
        assert len(reader.bars) == 103
        assert extended.requests[-1]["resume"]["time"] == extended.fresh(BTC, 2)[0]["time"]
        assert is_synced(extended, BTC, reader.stream)()


@pytest.mark.slow
async def test_after_a_restart_that_forgot_it_loads_everything_again(extended: Scripted, reading: Reading) -> None:
    async with connected(extended) as client:
        reader = reading(client.bars(*BTC, initial_bars=30))
        await reader.read(30)
        await extended.stop(bye_ms=50)
        extended.begin_epoch(forget=True)
        extended.open_next(BTC)
        await extended.start()
        await reader.until(is_synced(extended, BTC, reader.stream))
        assert len(reader.stream.bars) == 30


@pytest.mark.slow
async def test_a_link_that_is_open_but_dead_is_replaced(extended: Scripted, reading: Reading) -> None:
    with Proxy(("127.0.0.1", int(extended.url.split(":")[2].split("/")[0]))) as proxy:
        url = f"ws://127.0.0.1:{proxy.address[1]}/ws"
        async with Client(url, backoff=Backoff(first_s=0.02, most_s=0.1), ping_s=0.2) as client:
            statuses: list[Status] = []
            reader = reading(client.bars(*BTC, on_status=statuses.append))
            await reader.read(100)
            proxy.freeze()
            await reader.until(lambda: statuses[-1].state == "lost")
            proxy.thaw()
            extended.open_next(BTC)
            await reader.until(is_synced(extended, BTC, reader.stream))


@pytest.mark.slow
async def test_who_reads_slowly_gets_the_newest_state_of_each_bar(server: Scripted) -> None:
    async with connected(server) as client:
        stream = client.bars(*BTC, initial_bars=1)
        await anext(stream)
        for _ in range(200):
            server.trade(BTC)
        server.open_next(BTC)
        async with deadlines.timeout(10):
            while not is_synced(server, BTC, stream)():
                await asyncio.sleep(0.01)
        given = [await anext(stream), await anext(stream)]
        assert shown(given) == server.fresh(BTC, 2)


@pytest.mark.slow
async def test_streams_share_one_socket_and_end_alone(server: Scripted, reading: Reading) -> None:
    async with connected(server) as client:
        first, second, third = client.bars(*BTC), client.bars(*ETH, initial_bars=10), client.bars(*BTC)
        reader = reading(third)
        await reader.read(100)
        async with deadlines.timeout(10):  # the second's bars are on their way too
            while not any(one.get("symbol") == "ETH/USDT" for one in server.requests):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        first.close()
        second.close()
        server.trade(BTC)
        await reader.read(101)
        assert len([bar async for bar in second]) == 10  # what waited is still given
        assert server.connections == 1
        ended = [one["symbol"] for one in server.requests if one["type"] == "unsubscribe"]
        assert ended == ["ETH/USDT"]


@pytest.mark.slow
async def test_a_loop_that_is_left_ends_its_subscription(server: Scripted) -> None:
    async with connected(server) as client:
        async for _ in client.bars(*BTC):
            break
        gc.collect()
        async with deadlines.timeout(10):
            while not any(one["type"] == "unsubscribe" for one in server.requests):
                await asyncio.sleep(0.01)


async def test_a_refused_subscription_ends_the_loop_with_the_reason(server: Scripted) -> None:
    server.refuses[BTC] = "Invalid symbol: BTC/USDT. Only ETH/USDT is supported.", 102
    async with connected(server) as client:
        with pytest.raises(RequestRejected, match="Only ETH/USDT is supported") as refusal:
            await anext(client.bars(*BTC))
        assert refusal.value.code == (102 if server.extended else None)
        assert await anext(client.bars(*ETH))


@pytest.mark.slow
async def test_what_the_server_cannot_do_now_is_asked_again(extended: Scripted) -> None:
    extended.refuses[BTC] = "Failed to subscribe to candles", 100
    async with connected(extended) as client:
        first = asyncio.ensure_future(anext(client.bars(*BTC)))
        await asyncio.sleep(0.1)
        extended.refuses.clear()
        assert shown([await deadlines.wait_for(first, 10)]) == extended.fresh(BTC, 100)[:1]


async def test_the_state_of_the_feed_is_known(extended: Scripted, reading: Reading) -> None:
    statuses: list[Status] = []
    async with connected(extended) as client:
        reader = reading(client.bars(*BTC, on_status=statuses.append))
        await reader.read(100)
        extended.turn("stale")
        await reader.until(lambda: reader.stream.status.state == "stale")
        assert reader.stream.status.since == datetime(2026, 10, 5, 0, 1, tzinfo=UTC)
    assert [status.state for status in statuses][:2] == ["loading", "live"]
    assert reader.stream.status.state == "closed"


async def test_an_exchange_that_turns_out_to_be_the_default_is_understood(server: Scripted) -> None:
    async with connected(server) as client:
        assert await anext(client.bars(*BTC, exchange="demo"))
        assert await anext(client.bars(*BTC))


# ---------------------------------------------------------------- history


@pytest.mark.slow
async def test_history_is_read_page_by_page_between_two_times(extended: Scripted) -> None:
    extended.make("LTC/USDT", "1m", 2500)
    topic = ("LTC/USDT", "1m")
    async with connected(extended) as client:
        assert shown(await client.history(*topic)) == extended.fresh(topic, 2500)
        start = datetime.fromtimestamp(START_MS / 1000 + 60 * 100, UTC)
        some = await client.history(*topic, start, START_MS + 60_000 * 1900)
        assert shown(some) == extended.fresh(topic, 2400)[:1800]
        assert await client.history(*topic, end="2020-01-01") == Bars()
        with pytest.raises(ValueError, match="time zone"):
            await client.history(*topic, datetime(2026, 1, 1))


async def test_a_question_survives_a_drop(extended: Scripted) -> None:
    async with connected(extended) as client:
        await anext(client.bars(*BTC))
        extended.silent = True
        answer = asyncio.ensure_future(client.history(*ETH))
        await asyncio.sleep(0.05)
        extended.silent = False
        extended.drop()
        assert shown(await deadlines.wait_for(answer, 10)) == extended.fresh(ETH, 50)


async def test_a_server_without_history_refuses_the_question() -> None:
    async for server in serving(False):
        async with connected(server) as client:
            with pytest.raises(RequestRejected, match="Unknown message type: history"):
                await deadlines.wait_for(client.history(*BTC), 10)


# ---------------------------------------------------------------- the client


async def test_outside_of_async_with_it_says_so() -> None:
    client = Client("ws://127.0.0.1:9/")
    with pytest.raises(RuntimeError, match="inside `async with`"):
        client.bars(*BTC)
    with pytest.raises(RuntimeError, match="inside `async with`"):
        await client.history(*BTC)


async def test_after_the_end_nothing_is_left(server: Scripted) -> None:
    before = asyncio.all_tasks()
    async with connected(server) as client:
        stream = client.bars(*BTC)
        await anext(stream)
    given = [bar async for bar in stream]  # what waited is still given
    assert len(given) == 99
    assert {task for task in asyncio.all_tasks() - before if "candled/client" in repr(task)} == set()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_after_any_faults_it_holds_what_a_fresh_load_gets(server: Scripted, seed: int, reading: Reading) -> None:
    draw = random.Random(seed)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(server))
        readers = {topic: reading(client.bars(*topic, initial_bars=40)) for topic in (BTC, ETH)}
        finals = {topic: reading(client.bars(*topic, initial_bars=40, final_only=True)) for topic in (BTC, ETH)}
        for reader in readers.values():
            await reader.read(40)
        for _ in range(60):
            if server.silent:  # a silent server is noticed by its pings in another test
                server.silent = False
                server.drop()
            await fault(server, draw)
        await calm(server)
        for topic, reader in readers.items():
            await reader.until(is_synced(server, topic, reader.stream))
            times = [bar.time for bar in reader.stream.bars]
            assert times == sorted(set(times))
            given = [bar.time for bar in reader.bars]
            assert given == sorted(given)
            once = [bar.time for bar in finals[topic].bars]
            assert once == sorted(set(once))
            newest = {bar["time"]: bar for bar in shown(reader.bars)}
            for bar in server.fresh(topic, 1):
                await reader.until(lambda bar=bar, newest=newest: bar["time"] in newest)
