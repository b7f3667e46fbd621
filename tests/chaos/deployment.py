"""A whole site: processes with their roles, Redis, PostgreSQL and an exchange, a proxy on every way between two."""

import asyncio
import contextlib
import json
import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from candled.model import Candle, Interval, MarketKey, Symbol
from tests import deadlines, prefork
from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.prefork import ROOT, Program
from tests.proxy import Proxy
from tests.redis_servers import RedisServer, program
from tests.servers import NOT_FOUND, Database, PostgresServer, find_binaries
from tests.system.rig import MONDAY_MORNING_MS

SPEED = 6.0  # a minute of the market takes ten seconds
BEGINS_MS = MONDAY_MORNING_MS - 4 * 60_000  # so that the shortest run sees five-minute bars and an hour end
WEEK = Interval.parse("1W")
_PUSH_S = 0.25  # of the wall
_HEALTH_S = 1.5

Values = tuple[Any, ...]


def steady_port() -> int:
    """A TCP port that no connection going out is given either, so that it is free again after a restart."""
    while True:
        port = random.randrange(12_000, 32_000)  # below what systems hand out by themselves
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# At thirty times the speed a client would have a third of a second to answer a ping.
PATIENT = {"ping_interval": "10m", "ping_timeout": "5m"}


class Node:
    """One process of the site, started and ended any number of times.

    `redis`, `database`, `exchange` and `front` are the proxies between it and the others, the last one its clients'.
    """

    def __init__(self, name: str, roles: Sequence[str], directory: Path) -> None:
        self.name = name
        self.roles = tuple(roles)
        self.port = steady_port()
        self.starts = 0
        self.is_paused = False
        self.process: Program | None = None
        self.log = directory / f"{name}.log"
        self.journal = directory / f"{name}.journal"
        self._config = directory / f"{name}.yaml"
        self.redis: Proxy
        self.database: Proxy
        self.exchange: Proxy
        self.front: Proxy

    @property
    def serves(self) -> bool:
        return "serve" in self.roles

    @property
    def ingests(self) -> bool:
        return "ingest" in self.roles

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, settings: dict[str, Any], clock: ScaledClock, redis_speed: float = 1.0) -> None:
        """Start the process and do not wait for it."""
        self._config.write_text(yaml.safe_dump(settings), "utf-8")
        numbers = map(str, (clock.speed, clock.now_ms(), time.monotonic(), redis_speed))
        self.starts += 1
        self.is_paused = False
        with self.log.open("ab") as log:
            log.write(f"--- start {self.starts} ---\n".encode())
            self.process = prefork.start("tests.chaos.daemon", [str(self._config), *numbers], cwd=ROOT, output=log)

    def signal(self, how: int) -> None:
        """Send a signal, if it is running."""
        if self.process is not None and self.is_running:
            self.process.send_signal(how)
            self.is_paused = how == signal.SIGSTOP if how in (signal.SIGSTOP, signal.SIGCONT) else self.is_paused

    async def end(self, how: int, within_s: float = 20.0) -> int:
        """Send a signal, wait for the end, and return the exit status.

        Raises:
            AssertionError: it did not end.
        """
        assert self.process is not None
        self.signal(how)
        deadline = deadlines.now() + within_s
        while (status := self.process.poll()) is None:
            assert deadlines.now() < deadline, f"{self.name} did not end: {self.tail()}"
            await asyncio.sleep(0.02)
        return status

    async def health(self) -> dict[str, Any] | None:
        """Return the answer of `/health`, or None if none comes in time."""
        client = AsyncHTTPClient(force_instance=True)
        assert isinstance(client, SimpleAsyncHTTPClient)
        try:
            url = f"http://127.0.0.1:{self.port}/health?verbose"
            answer = await client.fetch(url, raise_error=False, connect_timeout=_HEALTH_S, request_timeout=_HEALTH_S)
            facts: dict[str, Any] = json.loads(answer.body) if answer.code in (200, 503) and answer.body else {}
            return facts or None
        except (OSError, HTTPClientError, ValueError):
            return None
        finally:
            client.close()

    def tail(self, characters: int = 6000) -> str:
        """The end of its log."""
        return self.log.read_text("utf-8", "replace")[-characters:] if self.log.exists() else ""


class Deployment:
    """Everything together; an async context manager. `ingest` and `serve` processes, and one that does both.

    Seconds pass `speed` times as fast as on the wall, and for all that has to do with Redis `redis_speed` times.
    """

    def __init__(
        self,
        directory: Path,
        *,
        ingest: int = 2,
        serve: int = 2,
        shards: int = 1,
        markets: int = 2,
        speed: float = SPEED,
        redis_speed: float = 1.0,
    ) -> None:
        self.directory = directory
        self._redis_speed = redis_speed
        self.shards = shards
        self.clock = ScaledClock(speed, BEGINS_MS)
        self.symbols = [Symbol(f"SYM{number:03}", "USDT") for number in range(markets)]
        tapes = [FakeMarket(symbol=symbol, tape=Synthetic(number)) for number, symbol in enumerate(self.symbols)]
        self.fake = FakeBitget(self.clock, tapes, push_interval_s=_PUSH_S * speed)
        self.fake.enforce_limits = False  # limits per second mean nothing on a fast clock
        self.fake.late_final(self.symbols[-1], by_s=4.0)
        names = [f"ingest{number}" for number in range(ingest)], [f"serve{number}" for number in range(serve)]
        self.nodes = [
            *(Node(name, ["ingest"], directory) for name in names[0]),
            *(Node(name, ["serve"], directory) for name in names[1]),
            Node("both", ["ingest", "serve"], directory),
        ]
        self.redis: RedisServer
        self.postgres: PostgresServer
        self.database: Database
        self._stack = ExitStack()

    @property
    def serving(self) -> list[Node]:
        return [node for node in self.nodes if node.serves]

    @property
    def ingesting(self) -> list[Node]:
        return [node for node in self.nodes if node.ingests]

    async def __aenter__(self) -> "Deployment":
        try:
            await self.fake.start()
            self.redis = RedisServer(program(), steady_port())
            self._stack.callback(self.redis.remove)
            # What it has confirmed is in the system's hands, so that only the machine's end could lose it.
            self.postgres = PostgresServer(postgres_binaries(), synchronous_commit="on")
            self._stack.callback(self.postgres.remove)
            self.postgres.port = steady_port()
            await asyncio.to_thread(self.redis.start)
            await asyncio.to_thread(self.postgres.start)
            self.database = self._stack.enter_context(_dropped_with_its_server(Database(self.postgres.dsn)))
            for node in self.nodes:
                node.redis = self._stack.enter_context(Proxy(self.redis.address))
                node.database = self._stack.enter_context(Proxy(("127.0.0.1", self.postgres.port)))
                node.exchange = self._stack.enter_context(Proxy(("127.0.0.1", self.fake.port)))
                node.front = self._stack.enter_context(Proxy(("127.0.0.1", node.port)))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            for node in self.nodes:
                if node.is_running:
                    await node.end(signal.SIGKILL)
            with contextlib.suppress(AttributeError):
                self.postgres.resume()
            await self.fake.close()
        finally:
            await asyncio.to_thread(self._stack.close)

    def start(self, node: Node) -> None:
        """Start a process of the site."""
        node.start(self.settings_of(node), self.clock, self._redis_speed)

    async def minutes(self, count: float) -> None:
        """Let so many minutes of the market pass."""
        await self.clock.sleep(count * 60)

    def to_boundary_s(self) -> float:
        """Real seconds to the next beginning of a minute."""
        return (60_000 - self.clock.now_ms() % 60_000) / 1000 / self.clock.speed

    async def leaders(self) -> dict[int, Node]:
        """Which process leads each shard, as they say themselves."""
        found = {}
        healths = await asyncio.gather(*(node.health() for node in self.ingesting))
        for node, health in zip(self.ingesting, healths, strict=True):
            for lease in (health or {}).get("bus", {}).get("leases", ()):
                if lease["state"] == "leader":
                    found[lease["shard"]] = node
        return found

    # ------------------------------------------------------------ what is true, and what is stored

    def truth(self, symbol: Symbol, until_ms: int, *, lead_ms: int = 0) -> list[Candle]:
        """The final minutes that the exchange had since the week began, or `lead_ms` before that."""
        return self.fake.truth(symbol, WEEK.floor(BEGINS_MS) - lead_ms, until_ms)

    def stored(self, symbol: Symbol, until_ms: int) -> list[tuple[int, Values]]:
        """What the database has of the same minutes, row by row.

        Raises:
            psycopg2.Error: it cannot be read.
        """
        rows = self.database.rows(
            "SELECT (date_part('epoch', time) * 1000)::bigint, open, high, low, close, volume, quote_volume "
            "FROM candled.candles JOIN candled.markets ON id = market WHERE symbol = %s AND time >= to_timestamp(%s) "
            "AND time < to_timestamp(%s) ORDER BY time",
            (str(symbol), WEEK.floor(BEGINS_MS) / 1000, until_ms / 1000),
        )
        return [(int(open_ms), tuple(values)) for open_ms, *values in rows]

    def key(self, symbol: Symbol) -> MarketKey:
        return MarketKey("bitget", symbol)

    def settings_of(self, node: Node) -> dict[str, Any]:
        """Return the settings of a process."""
        (host, redis_port), (_, exchange_port) = node.redis.address, node.exchange.address
        return {
            "server": {
                "health_details": True,
                "host": "127.0.0.1",
                "port": node.port,
                "warmup_wait": "60s",
                "max_connections_per_ip": 0,
                **PATIENT,
            },
            "roles": list(node.roles),
            "exchanges": {
                "bitget": {
                    "symbols": [str(symbol) for symbol in self.symbols],
                    "ws_url": f"ws://{host}:{exchange_port}/v2/ws/public",
                    "rest_url": f"http://{host}:{exchange_port}",
                }
            },
            "ingest": {"backfill": "1h", "grace_period": "20s", "shards": self.shards},
            "store": {"url": self.database.url(address=node.database.address), "journal": str(node.journal)},
            "bus": {"url": f"redis://{host}:{redis_port}/0"},
        }


def postgres_binaries() -> Path:
    """The folder with PostgreSQL's programs; skips the test where there is none."""
    found = find_binaries()
    if found is None:
        pytest.skip(NOT_FOUND)
    return found


@contextmanager
def _dropped_with_its_server(database: Database) -> Iterator[Database]:
    """A new database that is not dropped: its server goes, and may have gone already."""
    database.__enter__()
    yield database
