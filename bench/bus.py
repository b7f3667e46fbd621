"""Minutes from process to process through Redis: latency, messages a second, takeover and healing.

    python -m bench.bus [--messages 2000] [--markets 1000] [--seconds 10] [--subscribers 100] [--takeovers 5]

Publisher and listener are processes of their own, Redis is another. "Bare" is redis-py's own publish and subscribe of
the same bytes between the same processes, in turns with candled. Times are read from the clock that all processes of a
machine share.
"""

import argparse
import asyncio
import contextlib
import json
import selectors
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from redis import asyncio as aioredis

from bench.latency import percentiles
from bench.process import Process, scratch, spread, symbols
from candled.bus import FeedMetadata, Message, MinuteChanged
from candled.bus.codec import Names, encode_message
from candled.bus.factory import RedisParts
from candled.bus.redis.leases import LeaseState
from candled.clock import SystemClock
from candled.model import MINUTE_MS, Candle, MarketKey, Position, Symbol
from candled.universe import Universe
from tests.proxy import Proxy
from tests.redis_servers import RedisServer, own_redis

EXCHANGE = "bench"
BARE = "bare"
BETWEEN_S = 0.005
LEASE_S = 6.0
TOGETHER = 100


def markets_of(count: int) -> list[MarketKey]:
    """So many markets."""
    return [MarketKey(EXCHANGE, Symbol.parse(name)) for name in symbols(count)]


def candle(volume: int) -> Candle:
    """A version of the running minute; the volume tells it from the others."""
    now_ms = time.time_ns() // 1_000_000
    open_ms = now_ms - now_ms % MINUTE_MS
    return Candle.parse(open_ms, "67234.5", "67340", "67200", "67310.25", str(volume), "9772345.67", as_of_ms=now_ms)


def parts(url: str, markets: Sequence[MarketKey], *, ingests: bool) -> RedisParts:
    """The bus of one process."""
    universe = Universe([EXCHANGE])
    universe.set_markets(EXCHANGE, [market.symbol for market in markets])
    return RedisParts(url, SystemClock(), universe, lease_s=LEASE_S, ingests=ingests, serves=not ingests)


@contextlib.asynccontextmanager
async def leading(url: str, markets: Sequence[MarketKey]) -> AsyncIterator[RedisParts]:
    """A process that leads all markets."""
    one = parts(url, markets, ingests=True)
    one.start()
    assert one.leases is not None
    while one.leases.all[0].state is not LeaseState.LEADER:
        await asyncio.sleep(0.01)
    try:
        yield one
    finally:
        await one.stop()


# ---------------------------------------------------------------- the listening process


async def listen(url: str, markets: Sequence[MarketKey]) -> None:
    """Write a line for each message of the first market: its volume and when it was received; also for bare messages.

    A line with -1 tells that everything is connected. Every second one with -2 tells how many messages came, and the
    processor time that they took.
    """
    one, count = parts(url, markets, ingests=False), [0]

    class Received:
        def on_feed_message(self, message: Message, position: Position) -> None:
            count[0] += 1
            if isinstance(message, MinuteChanged) and message.market == markets[0]:
                report(int(message.candle.volume), time.perf_counter())

    one.bus.add_listener(Received())
    one.start()
    client = aioredis.Redis.from_url(url)
    pubsub = client.pubsub()
    await pubsub.subscribe(BARE)
    while not one.bus.describe()["connected"]:
        await asyncio.sleep(0.01)
    report(-1, time.perf_counter())
    asyncio.ensure_future(count_up(count))  # noqa: RUF006 - it lives as long as the process
    async for message in pubsub.listen():
        if message["type"] == "message":
            report(int(json.loads(message["data"])["volume"]), time.perf_counter())


async def count_up(count: list[int]) -> None:
    """Tell every second how many messages came in all."""
    while True:
        await asyncio.sleep(1.0)
        print(-2, count[0], time.process_time(), flush=True)


def report(number: int, at: float) -> None:
    """Print a line for the measuring process."""
    print(number, repr(at), flush=True)


class Listener(Process):
    """The listening process."""

    def __init__(self, directory: Path, url: str, markets: int) -> None:
        super().__init__("bench.bus", "listen", url, str(markets), directory=directory)

    async def lines(self, number: int, count: int = 1, within_s: float = 30.0) -> list[list[str]]:
        """Return the lines with this number, once there are `count` of them."""
        deadline = time.monotonic() + within_s
        while True:
            self.check()
            lines = [line.split() for line in self.log.read_text().splitlines()]
            found = [line for line in lines if line[:1] == [str(number)]]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(found)} of {count} lines with {number}")
            await asyncio.sleep(0.05)

    def receive_times(self) -> dict[int, float]:
        """When each numbered message was received."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return {int(line[0]): float(line[1]) for line in lines if len(line) == 2}


# ---------------------------------------------------------------- measuring


async def latency(url: str, messages: int, directory: Path) -> list[str]:
    """From `publish` to the listener, against bare redis-py, one message at a time in turns."""
    markets, sent, bare = markets_of(1), {}, {}
    with Listener(directory, url, 1) as listener:
        async with leading(url, markets) as leader, aioredis.Redis.from_url(url) as client:
            await listener.lines(-1)
            await asyncio.sleep(1.0)
            for number in range(1, 2 * messages, 2):
                sent[number] = time.perf_counter()
                leader.bus.publish(MinuteChanged(markets[0], candle(number), FeedMetadata()))
                await asyncio.sleep(BETWEEN_S)
                text = encode_message(
                    MinuteChanged(markets[0], candle(number + 1), FeedMetadata()), Position("0.1", number)
                )
                bare[number + 1] = time.perf_counter()
                await client.publish(BARE, text)
                await asyncio.sleep(BETWEEN_S)
            await asyncio.sleep(0.5)
        received = listener.receive_times()
    through_candled = [received[number] - at for number, at in sent.items() if number in received]
    through_bare = [received[number] - at for number, at in bare.items() if number in received]
    ratio = statistics.median(through_candled) / statistics.median(through_bare)
    return [
        f"bus: {percentiles(through_candled)}",
        f"  bare redis-py: {percentiles(through_bare)}; p50 {ratio:.2f} times",
    ]


async def rate(url: str, count: int, seconds: float, directory: Path) -> list[str]:
    """As many messages of as many markets as go through, and what they cost on both sides."""
    markets, volume = markets_of(count), 0
    with Listener(directory, url, count) as listener:
        async with leading(url, markets) as leader:
            await listener.lines(-1)
            await asyncio.sleep(1.0)
            lines = await listener.lines(-2)
            before, cpu_before = [float(one) for one in lines[-1][1:]], time.process_time()
            started = time.monotonic()
            while time.monotonic() - started < seconds:
                volume += 1
                for market in markets:
                    leader.bus.publish(MinuteChanged(market, candle(volume), FeedMetadata()))
                while leader.bus.describe()["waitingMarkets"]:
                    await asyncio.sleep(0.002)
            took_s, cpu_s = time.monotonic() - started, time.process_time() - cpu_before
            line_count = len(await listener.lines(-2))
            after = [float(one) for one in (await listener.lines(-2, line_count + 1))[-1][1:]]
            facts: Any = leader.bus.describe()
    sent, received = volume * count, after[0] - before[0]
    return [
        f"{count} markets: {sent / took_s:,.0f} messages/s published, {received / sent:.1%} received"
        f", publisher {1e6 * cpu_s / sent:.0f} us each, listener {1e6 * (after[1] - before[1]) / received:.0f} us each"
        f", refused {facts['refused']}"
    ]


async def carrying(server: RedisServer, subscribers: int, messages: int, directory: Path) -> list[str]:
    """What Redis itself spends on a message, for itself and for each subscriber."""
    text = encode_message(MinuteChanged(markets_of(1)[0], candle(1), FeedMetadata()), Position("0.1760000000000000", 1))
    with Process("bench.bus", "drain", str(server.port), str(subscribers), directory=directory) as drain:
        async with aioredis.Redis.from_url(server.url) as client:
            while (await client.pubsub_numsub(BARE))[0][1] < subscribers:
                drain.check()
                await asyncio.sleep(0.05)
            one = await _spent_us(client, text, messages, 1) / subscribers
            many = await _spent_us(client, text, messages, TOGETHER) / subscribers
    return [
        f"Redis, {subscribers} subscribers, messages of {len(text)} bytes, processor time per delivery:"
        f" {one:.2f} us one by one, {many:.2f} us {TOGETHER} together"
    ]


async def _spent_us(client: "aioredis.Redis", text: bytes, messages: int, together: int) -> float:
    """What the server spends on each message."""
    before = await _server_cpu_s(client)
    for _ in range(messages // together):
        pipeline = client.pipeline(transaction=False)
        for _ in range(together):
            pipeline.publish(BARE, text)
        await pipeline.execute()
    return 1e6 * (await _server_cpu_s(client) - before) / messages


async def _server_cpu_s(client: "aioredis.Redis") -> float:
    facts = await client.info("cpu")
    return float(facts["used_cpu_sys"]) + float(facts["used_cpu_user"])


def drain(port: int, subscribers: int) -> None:
    """Subscribe so many times, and read without looking, until it is killed."""
    selector = selectors.DefaultSelector()
    for _ in range(subscribers):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(f"SUBSCRIBE {BARE}\r\n".encode())
        selector.register(connection, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.recv(262_144)


async def healing(times: int) -> list[str]:
    """Measure how long a listener receives nothing after its connection went silent without closing, or was reset."""
    found: dict[str, list[float]] = {"half open": [], "reset": []}
    markets, received = markets_of(1), _Newest()
    with own_redis() as server, Proxy(server.address) as proxy:
        far = parts(f"redis://127.0.0.1:{proxy.address[1]}", markets, ingests=False)
        far.bus.add_listener(received)
        far.start()
        async with leading(server.url, markets) as leader:
            while not far.bus.describe()["connected"]:
                await asyncio.sleep(0.01)
            volume = 0
            for fault, took in list(found.items()) * times:
                (proxy.lose_existing if fault == "half open" else proxy.reset_existing)()
                began = time.monotonic()
                await asyncio.sleep(0.2)  # what the proxy has begun to carry still passes
                first = volume + 1
                while received.volume < first:
                    volume += 1
                    leader.bus.publish(MinuteChanged(markets[0], candle(volume), FeedMetadata()))
                    await asyncio.sleep(0.01)
                took.append(time.monotonic() - began)
        await far.stop()
    return [f"healed after a connection was {fault}: {spread(took, '.2f')} s" for fault, took in found.items()]


class _Newest:
    """Records the greatest volume that it has received."""

    volume = 0

    def on_feed_message(self, message: Message, position: Position) -> None:
        if isinstance(message, MinuteChanged):
            self.volume = max(self.volume, int(message.candle.volume))


async def takeover(times: int, directory: Path) -> list[str]:
    """How long until another process leads after the leader was killed, and after it stopped in order."""
    killed, stopped = [], []
    markets = markets_of(1)
    with own_redis() as server:
        for _ in range(times):
            process = Process("bench.bus", "lead", server.url, directory=directory)
            while not _leads(server):
                process.check()
                await asyncio.sleep(0.05)
            waiting = parts(server.url, markets, ingests=True)
            waiting.start()
            await asyncio.sleep(1.5)
            process.kill()
            killed.append(await _until_led(waiting))
            following = parts(server.url, markets, ingests=True)
            following.start()
            await asyncio.sleep(1.5)
            started = time.monotonic()
            await waiting.stop()
            stopped.append(await _until_led(following, started))
            await following.stop()
    return [
        f"takeover from a killed leader, leases of {LEASE_S:g} s: {spread(killed, '.1f')} s",
        f"takeover from one that stopped in order: {spread(stopped, '.2f')} s",
    ]


def _leads(server: Any) -> bool:
    with server.client() as client:
        return bool(client.get(Names("", EXCHANGE, 1).lease_key(0)))


async def _until_led(one: RedisParts, started: float | None = None) -> float:
    started = time.monotonic() if started is None else started
    assert one.leases is not None
    while one.leases.all[0].state is not LeaseState.LEADER:
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def lead(url: str) -> None:
    """Lead until killed."""
    async with leading(url, markets_of(1)):
        await asyncio.Event().wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.bus", description=__doc__)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--markets", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--subscribers", type=int, default=100)
    parser.add_argument("--takeovers", type=int, default=5)
    options = parser.parse_args(arguments)
    with own_redis() as server:
        with scratch() as directory:
            print("\n".join(asyncio.run(latency(server.url, options.messages, directory))), flush=True)
        with server.client() as client:
            client.flushall()
        with scratch() as directory:
            print("\n".join(asyncio.run(rate(server.url, options.markets, options.seconds, directory))), flush=True)
        with scratch() as directory:
            carried = carrying(server, options.subscribers, options.messages, directory)
            print("\n".join(asyncio.run(carried)), flush=True)
    print("\n".join(asyncio.run(healing(options.takeovers))), flush=True)
    with scratch() as directory:
        print("\n".join(asyncio.run(takeover(options.takeovers, directory))), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["listen"]:
        asyncio.run(listen(sys.argv[2], markets_of(int(sys.argv[3]))))
    elif sys.argv[1:2] == ["drain"]:
        drain(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["lead"]:
        asyncio.run(lead(sys.argv[2]))
    else:
        main()
