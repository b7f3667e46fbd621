"""`candled doctor`: one page about a candled and its surroundings, without secrets, to read or to paste."""

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from candled import __version__
from candled.budget import MakeBudget
from candled.config import Config, ExchangeConfig, config_warnings, local_file, make_exchange, make_store
from candled.config.sections import MEMORY
from candled.errors import ConfigError, Unavailable
from candled.exchange import Candles, Clock, Event, Exchange, Feed, FeedError, Subscribed, SubscriptionRejected
from candled.ingest.feeds import FeedRunner, LoopBudget
from candled.ingest.http import HttpClient
from candled.model import Symbol, iso_ms
from candled.plugins import Plugins, reason_of
from candled.settings import redacted, without_passwords
from candled.tasks import first_of
from candled.token_bucket import TokenBucket
from candled.transport.descriptors import raise_limit, shortage

from .budgets import request_budgets

_LIBRARIES = ("tornado", "pydantic", "websockets", "msgspec", "redis", "psycopg2-binary", "uvloop")
_WITHIN_S = 15.0  # for each part
_CLOCK_MS = 2_000  # more than the precision of `Date`, which is a second
_FREE_BYTES = 2 * 10**9
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WIDTH = 16


class Doctor:
    """Examines the parts one by one. A problem in one does not hide the others."""

    def __init__(self, plugins: Plugins, clock: Clock, write: Callable[[str], None] = print) -> None:
        self._plugins = plugins
        self._clock = clock
        self._write = write
        #: The number of problems.
        self.problems = 0

    async def examine(self, read: Callable[[], Config], file: Path | None) -> int:
        """Print the page; return the exit status: 1 if there is a problem."""
        self._print_environment()
        for status in self._plugins.statuses:
            if not status.ok:
                self._print_problem(f"plugin {status.name}", f"cannot be used: {status.error}")
        name = "defaults" if file is None else str(file)
        try:
            config = read()
        except ConfigError as error:
            for problem in error.problems:
                self._print_problem("settings", problem)
            return 1
        self._print("settings", f"{name}; exchanges {', '.join(one.name for one in config.exchanges)}")
        self._print_problems("settings", questionable_settings(config))
        self._print_limits(config)
        await self._examine_part("store", asyncio.to_thread(_open_store, config))
        await self._examine_part("bus", self._ping_bus(config))
        await self._examine_exchanges(config)
        self._write(f"problems: {self.problems or 'none'}")
        return 1 if self.problems else 0

    # ------------------------------------------------------------ parts

    def _print_environment(self) -> None:
        self._print("candled", f"{__version__}, Python {platform.python_version()} at {sys.executable}")
        # platform.platform() starts a program to learn the processor
        system = f"{platform.system()} {platform.release()} {platform.machine()}"
        self._print("system", f"{system}, {os.cpu_count()} processors, time zone of this page: UTC")
        found = []
        for name in _LIBRARIES:
            try:
                found.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                continue
        self._print("libraries", ", ".join(found))
        self._print("clock", iso_ms(self._clock.now_ms()))
        variables = sorted(name for name in os.environ if name.startswith("CANDLED_"))
        self._print("variables", ", ".join(variables) or "none")  # their values may be secrets

    def _print_limits(self, config: Config) -> None:
        limit = raise_limit()
        self._print("open files", str(limit))
        self._print_problems("open files", [shortage(limit, config.server.max_connections)])
        file = local_file(config)
        if file is not None and file.parent.is_dir():
            free = shutil.disk_usage(file.parent).free
            self._print("free space", f"{free / 10**9:,.1f} GB where the store or its journal is")
            if free < _FREE_BYTES:
                self._print_problem("free space", "less than 2 GB")

    async def _examine_part(self, name: str, work: Awaitable[str]) -> None:
        try:
            async with asyncio.timeout(_WITHIN_S):
                self._print(name, await work)
        except TimeoutError:
            self._print_problem(name, f"did not answer within {_WITHIN_S:g} s")
        except Exception as error:  # a plugin may raise anything
            self._print_problem(name, reason_of(error))

    async def _ping_bus(self, config: Config) -> str:
        if config.bus.url == MEMORY:
            return "inside the process"
        from candled.bus.redis.address import RedisAddress
        from candled.bus.redis.connections import Servers, close

        servers = Servers(RedisAddress.parse(config.bus.url))
        nodes = (await servers.find_topology()).nodes
        started = self._clock.monotonic()
        for node in nodes:
            client = servers.make_client(node)
            try:
                await client.ping()
            finally:
                await close(client)
        took_ms = (self._clock.monotonic() - started) * 1000
        return f"{', '.join(map(str, nodes))} answered in {took_ms:.0f} ms"

    async def _examine_exchanges(self, config: Config) -> None:
        async with request_budgets(config, self._clock) as budget:
            for one in config.exchanges:
                await self._examine_exchange(one, budget)

    async def _examine_exchange(self, one: ExchangeConfig, budget: MakeBudget) -> None:
        subject = f"exchanges.{one.name}"
        try:
            exchange = make_exchange(one, self._clock)
        except ConfigError as error:
            self._print_problems(subject, [one.removeprefix(f"{subject}: ") for one in error.problems])
            return
        http = HttpClient(self._clock, exchange.requests_per_s, budget, one.proxies, exchange.request_budgets)
        symbols = list(one.symbols)
        try:
            await self._examine_part(subject, self._list_markets(one, exchange, http, symbols))
            if symbols:
                await self._examine_part(subject, self._read_stream(one, exchange, http, symbols[0]))
        finally:
            http.close()

    async def _list_markets(
        self, one: ExchangeConfig, exchange: Exchange, http: HttpClient, symbols: list[Symbol]
    ) -> str:
        """Return a line about the REST API; add the trading markets to `symbols`."""
        ahead_ms: list[int] = []  # of the exchange's clock, by its `Date`
        http.on_date = lambda date_ms, asked_ms, answered_ms: ahead_ms.append(date_ms + 500 - self._clock.now_ms())
        markets = await exchange.fetch_markets(http)
        symbols += [market.symbol for market in markets if market.active]
        if ahead_ms and abs(ahead_ms[-1]) > _CLOCK_MS:
            self._print_problem("clock", f"{-ahead_ms[-1] / 1000:+.1f} s from that of exchanges.{one.name}")
        return f"answers, {len(markets):,} markets; proxy: {one.proxies.describe()}"

    async def _read_stream(self, one: ExchangeConfig, exchange: Exchange, http: HttpClient, symbol: Symbol) -> str:
        """Subscribe to one market, and return a line about the first answer."""
        answer = _FirstAnswer()
        started = self._clock.monotonic()
        runner = FeedRunner(
            exchange.name,
            exchange.make_feed((symbol,)),
            answer,
            self._clock,
            TokenBucket(1.0),
            LoopBudget(),
            one.proxies,
            exchange.limits,
            http,
        )
        await first_of(runner.run(), answer.wait())
        took_ms = (self._clock.monotonic() - started) * 1000
        return f"its stream answered a subscription to {symbol} in {took_ms:.0f} ms"

    # ------------------------------------------------------------ lines

    def _print(self, subject: str, text: str) -> None:
        self._write(f"{subject:<{_WIDTH}} {redacted(without_passwords(text))}")

    def _print_problem(self, subject: str, text: str) -> None:
        self.problems += 1
        self._print(subject, f"PROBLEM: {text}")

    def _print_problems(self, subject: str, texts: Iterable[str | None]) -> None:
        for text in texts:
            if text is not None:
                self._print_problem(subject, text)


class _FirstAnswer:
    """Waits for the first answer of a feed to its subscription."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        """Wait for the answer.

        Raises:
            Unavailable: the feed was interrupted, or the exchange refuses the subscription.
        """
        await self._answer

    def on_connected(self, feed: Feed) -> None:
        """Do nothing: the answer to the subscription counts."""

    def on_event(self, event: Event) -> None:
        """Take an answer."""
        match event:
            case Candles() | Subscribed():
                self._finish(None)
            case SubscriptionRejected(symbol=symbol, reason=reason):
                self._finish(f"the stream refuses {symbol}: {reason}")
            case FeedError(reason=reason):
                self._finish(f"the stream reports an error: {reason}")

    def on_interrupted(self, feed: Feed, reason: str) -> None:
        """Treat an interruption as the answer."""
        self._finish(f"the stream was interrupted: {reason}")

    def _finish(self, problem: str | None) -> None:
        if self._answer.done():
            return
        if problem is None:
            self._answer.set_result(None)
        else:
            self._answer.set_exception(Unavailable(problem))


def questionable_settings(config: Config) -> Iterator[str]:
    """Yield a line for each setting that is valid but probably a mistake."""
    yield from config_warnings(config)
    server = config.server
    if server.internal_port is not None and not set(server.internal_hosts) <= set(_LOOPBACK):
        yield "server.internal_host: other machines reach the metrics and details of the internal port"
    if server.health_details and not set(server.hosts) <= set(_LOOPBACK):
        yield "server.health_details: every client sees error texts and addresses"
    if server.prefix and not server.trusted_proxies:
        yield (
            "server.trusted_proxies: server.prefix is for a proxy, whose clients share one address and its limits "
            "unless it is trusted"
        )
    if not config.store.journal and not config.store.url.startswith("sqlite:"):
        yield "store.journal: without one, candles are lost if candled stops while the database is unavailable"
    simulated = [one.name for one in config.exchanges if one.plugin.is_simulated]
    if simulated and len(simulated) < len(config.exchanges):
        yield f"exchanges.{simulated[0]}: has no real candles, beside exchanges that have"


def _open_store(config: Config) -> str:
    file = config.store.url.removeprefix("sqlite:///")
    if file != config.store.url and config.store.init and not Path(file).exists():
        return f"{file} does not exist yet; the daemon creates it"
    store = make_store(config)
    try:
        store.open()
        facts = store.describe()
    finally:
        store.close()
    return f"{facts['kind']}, schema {facts['schema']}, bars of {', '.join(['1m', *facts['intervals']])}"
