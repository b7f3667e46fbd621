"""The drill: each fault raises exactly the alerts that docs/how-to/alerts.md names for it, and they end with it.

The daemons, Redis, PostgreSQL, files and certificates are real. The rules are those of deploy/prometheus, evaluated
over scraped metrics (prometheus.py). The same alerts have to fire for more than half an hour of Prometheus's time, so
that no alert with a longer `for` follows.
"""

import asyncio
import json
import re
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from candled.model import Symbol
from candled.status.problems import PROBLEMS
from tests import deadlines
from tests.certificates import Authority
from tests.chaos.deployment import Deployment, Node, steady_port
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.metrics.prometheus import INTERVAL_S, Firing, Prometheus, Target
from tests.metrics.scrape import running
from tests.sources import ROOT

BTC = Symbol.parse("BTC/USDT")
SPEED = 60.0
MARKET_SPEED, REDIS_SPEED = 15.0, 3.0  # Redis itself counts real seconds
ROUNDS = 1860 // INTERVAL_S
ROUND_S = 0.05  # of the wall
RECOVERY_ROUND_S = 0.25  # of the wall, with several processes
WITHIN_S = 40.0
IGNORED = frozenset(
    {"CandledLoopBlocked"}
)  # it would be about the machine that runs the tests, on a clock that is fast

Step = Callable[[], Awaitable[None] | None]


class Drill:
    """Injects one fault after another. `settle` waits for a moment, between scrapes after a fault."""

    def __init__(self, prometheus: Prometheus, settle: Callable[[], Awaitable[None]]) -> None:
        self._prometheus = prometheus
        self._settle = settle

    async def begin(self) -> None:
        """Wait until everything is well."""
        async with deadlines.timeout(WITHIN_S):
            while await self._prometheus.round() or self._prometheus.pending:
                await self._settle()

    async def fault(self, expected: Firing, begin: Step, end: Step) -> None:
        """Inject a fault; expect it on the status page, and these alerts as long as it lasts, and none after it."""
        await _do(begin)
        await self._until_shown(expected)
        while (firing := await self._prometheus.round()) != expected:
            assert firing <= expected <= self._prometheus.pending, sorted(firing)
        for _ in range(ROUNDS):
            assert sorted(await self._prometheus.round()) == sorted(expected)
        await _do(end)
        async with deadlines.timeout(WITHIN_S):
            while (firing := await self._prometheus.round()) or self._prometheus.pending:
                assert firing <= expected, sorted(firing - expected)
                await self._settle()
        await self._until_shown(frozenset())

    async def _until_shown(self, alerts: Firing) -> None:
        """Wait until the status pages have the problems with these names, in words, or no problem if there are none.

        A page may show more, which the fault causes. A process that does not answer has no page.
        """
        for instance, target in self._prometheus.targets.items():
            wanted = {name for name, where in alerts if where == instance}
            async with deadlines.timeout(WITHIN_S):
                while "CandledDown" not in wanted:
                    problems = json.loads(await target.get("/status.json"))["problems"]
                    shown = {one["id"]: one["text"] for one in problems if one["id"] not in IGNORED}
                    if wanted <= shown.keys() and (alerts or not shown):
                        assert all(shown[name].startswith(PROBLEMS[name][1].partition("{")[0]) for name in wanted)
                        break
                    await asyncio.sleep(ROUND_S)


async def _do(step: Step) -> None:
    waiting = step()
    if waiting is not None:
        await waiting


# ---------------------------------------------------------------- one process


class MachineClock:
    """The clock of a machine, which is `wrong_ms` ahead of the true time."""

    def __init__(self, true: FairScaledClock) -> None:
        self.wrong_ms = 0
        self._true = true
        self.monotonic = true.monotonic
        self.sleep = true.sleep

    def now_ms(self) -> int:
        return self._true.now_ms() + self.wrong_ms


class Alone:
    """A process that does everything, with an SQLite file, and a certificate."""

    def __init__(self, fake: FakeBitget, clock: MachineClock, authority: Authority) -> None:
        self.fake = fake
        self.clock = clock
        self._authority = authority
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, self._limits[1]))

    def free_disk(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def ban(self) -> None:
        self.fake.rest_429(retry_after=300)

    def end_ban(self) -> None:
        self.fake.heal()

    def set_clock(self, wrong_ms: int) -> None:
        self.clock.wrong_ms = wrong_ms

    def renew(self, days: float) -> None:
        self._authority.sign("127.0.0.1", days)


@asynccontextmanager
async def alone(directory: Path) -> AsyncIterator[tuple[Alone, Drill, Prometheus]]:
    true = FairScaledClock(SPEED)
    authority, clock = Authority(directory), MachineClock(true)
    certificate, key = authority.sign("127.0.0.1", days=90)
    async with FakeBitget(true, [FakeMarket(symbol=BTC, tape=Synthetic(1))], push_interval_s=2.0) as fake:
        fake.enforce_limits = False
        bitget = {"symbols": [str(BTC)], "ws_url": fake.ws_url, "rest_url": fake.rest_url}
        server = {"tls_certificate": str(certificate), "tls_key": str(key)}
        async with running(directory, {"bitget": bitget}, clock=clock, **server) as deployment:
            prometheus = Prometheus({"alone": Target(deployment.daemon.internal_port)}, ignored=IGNORED)
            drill = Drill(prometheus, lambda: true.sleep(INTERVAL_S))  # alerts do not outpace the recovery
            await drill.begin()
            process = Alone(fake, clock, authority)
            try:
                yield process, drill, prometheus
            finally:
                process.free_disk()


def alerts(instance: str, *names: str) -> Firing:
    return frozenset((name, instance) for name in names)


@pytest.mark.usefixtures("daemon")
async def test_faults_of_one_process_raise_their_alerts(tmp_path):
    async with alone(tmp_path) as (process, drill, prometheus):
        full = alerts("alone", "CandledStoreUnavailable")
        await drill.fault(full, process.fill_disk, process.free_disk)
        banned = alerts("alone", "CandledExchangePaused")
        await drill.fault(banned, process.ban, process.end_ban)
        wrong = alerts("alone", "CandledClockWrong")
        await drill.fault(wrong, lambda: process.set_clock(300_000), lambda: process.set_clock(0))
        for days, name in ((10, "CandledCertificateExpires"), (-1 / 24, "CandledCertificateExpired")):
            await drill.fault(alerts("alone", name), lambda days=days: process.renew(days), lambda: process.renew(90))
    await asyncio.to_thread(prometheus.check_with_promtool, tmp_path)


# ---------------------------------------------------------------- several processes


class Several(Deployment):
    """A process that ingests and one that serves, with PostgreSQL and Redis; all clocks are fast."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ingest=1, serve=1, markets=1, speed=MARKET_SPEED, redis_speed=REDIS_SPEED)
        self.reader, self.server = self.nodes[:2]
        self.internal_ports = {node.name: steady_port() for node in (self.reader, self.server)}

    def settings_of(self, node: Node) -> dict[str, Any]:
        settings = super().settings_of(node)
        server = {**settings["server"], "internal_port": self.internal_ports[node.name]}
        return {**settings, "server": server, "bus": {**settings["bus"], "lease": "30s"}}  # a busy machine lapses none


@pytest.mark.usefixtures("daemon", "redis", "postgres")
async def test_faults_of_a_site_raise_their_alerts(tmp_path):
    async with Several(tmp_path) as them:
        for node in (them.reader, them.server):
            them.start(node)
        targets = {name: Target(port) for name, port in them.internal_ports.items()}
        prometheus = Prometheus(targets, ignored=IGNORED)
        drill = Drill(prometheus, lambda: asyncio.sleep(RECOVERY_ROUND_S))
        try:
            await drill.begin()
            down = alerts("ingest0", "CandledStoreUnavailable") | alerts("serve0", "CandledStoreUnreadable")
            await drill.fault(down, lambda: lose_database(them, targets["serve0"]), in_thread(them.postgres.start))
            bus_down = alerts("ingest0", "CandledBusDown") | alerts("serve0", "CandledBusDown")
            await drill.fault(bus_down, in_thread(them.redis.kill), in_thread(them.redis.start))
            frozen = alerts("ingest0", "CandledDown") | alerts("serve0", "CandledLeaderSilent")
            reader = them.reader
            await drill.fault(frozen, lambda: reader.signal(signal.SIGSTOP), lambda: reader.signal(signal.SIGCONT))
        finally:
            for target in targets.values():
                target.close()
    await asyncio.to_thread(prometheus.check_with_promtool, tmp_path)


async def lose_database(them: Several, server: Target) -> None:
    """A process that only serves notices it when it reads, as for the probe of a balancer."""
    await asyncio.to_thread(them.postgres.kill)
    await server.get("/readyz")


def in_thread(step: Callable[[], None]) -> Step:
    return lambda: asyncio.to_thread(step)


def test_the_drill_has_the_faults_of_the_page_and_no_others():
    table = (ROOT / "docs" / "how-to" / "alerts.md").read_text("utf-8").partition("| fault | alert |")[2]
    documented = set(re.findall(r"`(Candled\w+)`", table.partition("\n\n")[0]))
    injected = set(re.findall(r"\"(Candled\w+)\"", Path(__file__).read_text("utf-8")))
    assert injected - IGNORED == documented
