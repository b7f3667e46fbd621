"""What goes wrong, drawn from a seed: processes and servers die or freeze, ways between them are cut or go mute."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from tests import deadlines
from tests.chaos.deployment import Deployment, Node
from tests.chaos.tap import Tap
from tests.proxy import Proxy

TAKEOVER_S = 10.0
LEASE_S = 6.0


class Faults:
    """Injects faults; each method is one, named as it is counted, and returns when it is over.

    A method ends with whatever it broke repaired, so that only the healing is left. Two faults never kill or freeze the
    same thing at once: the second waits for its turn. `takeovers_s` are the times from the end of a leader to the first
    message of the next, where nothing else was broken meanwhile. What is broken stays so for `longest_s` at most.
    """

    def __init__(self, deployment: Deployment, tap: Tap, draw: random.Random, *, longest_s: float) -> None:
        self.counts: Counter[str] = Counter()
        self.takeovers_s: list[float] = []
        self.active: Counter[str] = Counter()
        self._deployment = deployment
        self._tap = tap
        self._draw = draw
        self._longest_s = longest_s
        self._locks = {
            name: asyncio.Lock() for name in (*(node.name for node in deployment.nodes), "redis", "database")
        }
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "kill leader": self.kill_leader,
            "freeze leader": self.freeze_leader,
            "kill follower": self.kill_follower,
            "freeze follower": self.freeze_follower,
            "kill serve": self.kill_serve,
            "freeze serve": self.freeze_serve,
            "stop process": self.stop_process,
            "restart redis": self.restart_redis,
            "freeze redis": self.freeze_redis,
            "kill database": self.kill_database,
            "freeze database": self.freeze_database,
        }
        for way in ("redis", "database", "exchange", "front"):
            for how in (self._reset, self._mute, self._lose):
                name = how.__name__.strip("_")
                self.kinds[f"{name} {way}"] = lambda how=how, way=way, name=name: how(f"{name} {way}", way)

    async def round(self, kinds: Sequence[str], *, at_boundary: bool) -> None:
        """Several faults that begin within two seconds of each other, around the beginning of a minute or anywhere."""
        if at_boundary:
            await asyncio.sleep(max(0.0, self._deployment.to_boundary_s() - self._draw.uniform(0.0, 0.5)))
        waits_s = [0.0] + [self._draw.uniform(0.0, 2.0) for _ in kinds[1:]]
        async with asyncio.TaskGroup() as tasks:
            for kind, wait_s in zip(kinds, waits_s, strict=True):
                tasks.create_task(self._later(kind, wait_s))

    async def _later(self, kind: str, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        await self.kinds[kind]()

    # ------------------------------------------------------------ processes

    async def kill_leader(self) -> None:
        node = await self._leader()
        async with self._broken("kill leader", node.name):
            begun_alone = self._is_alone
            await node.end(signal.SIGKILL)
            taking_over = asyncio.ensure_future(self._tap.next_feed(2 * TAKEOVER_S))
            await self._for_a_while(0.0)
            self._deployment.start(node)
            self._note_takeover(await taking_over, begun_alone)

    async def freeze_leader(self) -> None:
        """For so long that another takes over, or so short that none does."""
        node = await self._leader()
        async with self._broken("freeze leader", node.name):
            begun_alone = self._is_alone
            node.signal(signal.SIGSTOP)
            if self._draw.random() < 0.3:
                await asyncio.sleep(self._draw.uniform(1.0, LEASE_S - 2.0))
            else:
                self._note_takeover(await self._tap.next_feed(2 * TAKEOVER_S), begun_alone)
                await self._for_a_while(0.0)
            node.signal(signal.SIGCONT)

    async def kill_follower(self) -> None:
        await self._kill("kill follower", await self._follower())

    async def freeze_follower(self) -> None:
        await self._freeze("freeze follower", await self._follower())

    async def kill_serve(self) -> None:
        await self._kill("kill serve", self._draw.choice(self._deployment.serving))

    async def freeze_serve(self) -> None:
        await self._freeze("freeze serve", self._draw.choice(self._deployment.serving))

    async def stop_process(self) -> None:
        """In an orderly way, as for an update."""
        node = self._draw.choice(self._deployment.nodes)
        async with self._broken("stop process", node.name):
            await node.end(signal.SIGTERM)
            await self._for_a_while(0.0)
            self._deployment.start(node)

    async def _kill(self, kind: str, node: Node) -> None:
        async with self._broken(kind, node.name):
            await node.end(signal.SIGKILL)
            await self._for_a_while(0.0)
            self._deployment.start(node)

    async def _freeze(self, kind: str, node: Node) -> None:
        async with self._broken(kind, node.name):
            node.signal(signal.SIGSTOP)
            await self._for_a_while(2.0)
            node.signal(signal.SIGCONT)

    # ------------------------------------------------------------ servers

    async def restart_redis(self) -> None:
        """It loses all its data."""
        async with self._broken("restart redis", "redis"):
            await asyncio.to_thread(self._deployment.redis.kill)
            if self._draw.random() < 0.3:
                await self._for_a_while(0.0)
            self._tap.restarted()
            await asyncio.to_thread(self._deployment.redis.start)

    async def freeze_redis(self) -> None:
        async with self._broken("freeze redis", "redis"):
            self._deployment.redis.pause()
            await self._for_a_while(1.0)
            self._deployment.redis.resume()

    async def kill_database(self) -> None:
        async with self._broken("kill database", "database"):
            await asyncio.to_thread(self._deployment.postgres.kill)
            await self._for_a_while(0.0)
            await asyncio.to_thread(self._deployment.postgres.start)

    async def freeze_database(self) -> None:
        async with self._broken("freeze database", "database"):
            self._deployment.postgres.pause()
            await self._for_a_while(1.0)
            self._deployment.postgres.resume()

    # ------------------------------------------------------------ ways

    async def _reset(self, kind: str, way: str) -> None:
        """All connections are reset, and new ones for a while."""
        proxy = self._way(way)
        async with self._broken(kind):
            proxy.refuse()
            proxy.reset_existing()
            await self._for_a_while(0.1)
            proxy.refuse(False)

    async def _mute(self, kind: str, way: str) -> None:
        """Nothing is carried any more; afterwards all of it arrives."""
        proxy = self._way(way)
        async with self._broken(kind):
            proxy.freeze()
            await self._for_a_while(1.0)
            proxy.thaw()

    async def _lose(self, kind: str, way: str) -> None:
        """The connections there are stay open and carry nothing for ever; new ones work."""
        proxy = self._way(way)
        async with self._broken(kind):
            proxy.lose_existing()

    def _way(self, way: str) -> Proxy:
        fitting = {"exchange": self._deployment.ingesting, "front": self._deployment.serving}.get(
            way, self._deployment.nodes
        )
        proxy: Proxy = getattr(self._draw.choice(fitting), way)
        return proxy

    # ------------------------------------------------------------ inside

    async def _for_a_while(self, least_s: float) -> None:
        await asyncio.sleep(self._draw.uniform(least_s, self._longest_s))

    @asynccontextmanager
    async def _broken(self, kind: str, what: str | None = None):
        """Count a fault, and be the only one who kills or freezes `what`."""
        async with self._locks[what] if what else _nothing():
            self.counts[kind] += 1
            self.active[kind] += 1
            try:
                yield
            finally:
                self.active[kind] -= 1

    @property
    def _is_alone(self) -> bool:
        """Whether no other fault lasts now."""
        return self.active.total() == 1

    def _note_takeover(self, seconds: float | None, is_alone: bool) -> None:
        if is_alone and self._is_alone:
            assert seconds is not None, f"no process took over within {2 * TAKEOVER_S:g} s"
            self.takeovers_s.append(seconds)

    async def _leader(self) -> Node:
        """One that leads a shard; one that ingests, if none leads for long."""
        deadline = deadlines.now() + TAKEOVER_S
        while not (leaders := await self._deployment.leaders()) and deadlines.now() < deadline:
            await asyncio.sleep(0.1)
        return self._draw.choice(
            sorted(set(leaders.values()), key=lambda node: node.name) or self._deployment.ingesting
        )

    async def _follower(self) -> Node:
        leaders = await self._deployment.leaders()
        return self._draw.choice([node for node in self._deployment.ingesting if node not in leaders.values()])


@asynccontextmanager
async def _nothing():
    yield
