"""Clients that were cut off come back, to the same process or another: what they show is what a reload would show."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable

import pytest
import websockets

from tests import deadlines
from tests.chaos.charts import EXTENDED, Chart, Subscription
from tests.chaos.deployment import Deployment, Node
from tests.chaos.judge import Judge

pytestmark = pytest.mark.usefixtures("postgres", "redis", "daemon")

SPEED = 30.0
START_S = 60.0
TAKEOVER_S = 12.0  # another leads, and all processes know it
AWAY_S = 90.0  # of the market
MOMENT_S = 0.1  # of the wall
WITHIN_S = 20.0  # of the machine; a process may still be starting
HEAL_S = 30.0


class Visitor:
    """A client that comes and goes as the test decides, and asks for everything that an extended server offers."""

    def __init__(self, subscription: Subscription, home: Node) -> None:
        self.chart = Chart(subscription)
        self.home = home
        self.is_connected = False
        self._reading: asyncio.Task[None] | None = None

    async def visit(self, node: Node) -> bool:
        """Connect and wait for what is shown first; return whether it was only what changed."""
        request, resumed = self.chart.connected(), self.chart.resumed
        self._reading = asyncio.ensure_future(self._read(node, request))
        async with deadlines.timeout(WITHIN_S):
            while not self.chart.is_initialized:
                assert not self._reading.done(), self._reading.exception()
                await asyncio.sleep(0.01)
        self.is_connected = True
        return self.chart.resumed > resumed

    async def leave(self) -> None:
        """Vanish without a word."""
        self.is_connected = False
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self._reading = None

    async def _read(self, node: Node, request: dict[str, object]) -> None:
        url = f"ws://127.0.0.1:{node.port}/"
        async with await _connect_patiently(url) as ws:
            try:
                await ws.send(json.dumps(request))
                async for text in ws:
                    self.chart.take(str(text))
            finally:
                ws.transport.abort()


async def _connect_patiently(url: str) -> websockets.ClientConnection:
    """Connect as soon as the process accepts connections: one that was just restarted needs a while.

    On its fast clock a busy machine is soon too slow for a handshake: then it closes the connection.
    """
    while True:
        with contextlib.suppress(ConnectionRefusedError, websockets.InvalidMessage):
            return await websockets.connect(url, max_size=None)
        await asyncio.sleep(0.05)


class Gathering:
    """Visitors of every serving process, in several rooms, and the judge of what they show."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        subscriptions = [
            Subscription(str(symbol), interval, more=tuple(EXTENDED))
            for symbol in deployment.symbols
            for interval in ("1m", "5m", "1h")
        ]
        self.visitors = [Visitor(subscription, node) for subscription in subscriptions for node in deployment.serving]
        self.judge = Judge(deployment, self.visitors)
        self._step = 1  # first all go elsewhere, then every second one, and so on

    async def begin(self) -> None:
        """Let all come."""
        await asyncio.gather(*(visitor.visit(visitor.home) for visitor in self.visitors))

    async def disconnect_for(
        self, seconds: float, *, at_boundary: bool, meanwhile: Callable[[], None] = lambda: None
    ) -> list[bool]:
        """Disconnect all for some time, around the beginning of a minute or between two; call `meanwhile` in between.

        All and every second one, by turns, reconnect to the next process. Return for each whether it received only
        the changes.
        """
        serving, minute_s = self.deployment.serving, 60.0 / self.deployment.clock.speed
        to_boundary_s = self.deployment.to_boundary_s()
        await asyncio.sleep((to_boundary_s + (-seconds / 2 if at_boundary else minute_s / 3)) % minute_s)
        await asyncio.gather(*(visitor.leave() for visitor in self.visitors))
        meanwhile()
        await asyncio.sleep(seconds)
        for visitor in self.visitors[:: self._step]:
            visitor.home = serving[(serving.index(visitor.home) + 1) % len(serving)]
        self._step = 3 - self._step
        return await asyncio.gather(*(visitor.visit(visitor.home) for visitor in self.visitors))

    async def right(self) -> None:
        """Every chart is a fresh one, letter by letter, and no client received a wrong message."""
        await self.judge.until_right(HEAL_S)
        wrong = self.judge.misbehaved()
        assert not wrong, "\n".join(wrong)

    async def end(self) -> None:
        await asyncio.gather(*(visitor.leave() for visitor in self.visitors))


async def test_a_client_that_comes_back_shows_what_a_reload_would(tmp_path):
    async with Deployment(tmp_path, ingest=1, serve=1, speed=SPEED) as deployment:
        for node in deployment.nodes:
            deployment.start(node)
        await Judge(deployment, []).until_right(START_S)
        together = Gathering(deployment)
        try:
            await together.begin()
            await together.right()
            for seconds in (MOMENT_S, AWAY_S / SPEED):
                for at_boundary in (True, False):
                    resumed = await together.disconnect_for(seconds, at_boundary=at_boundary)
                    # a process may itself be catching up
                    assert sum(resumed) > len(resumed) / 2, f"{seconds:.1f} s: {resumed}"
                    await together.right()
            for node, seconds in ((deployment.serving[0], AWAY_S / SPEED), (await leader(deployment), TAKEOVER_S)):
                resumed = await together.disconnect_for(seconds, at_boundary=True, meanwhile=restart(deployment, node))
                assert sum(resumed) > len(resumed) / 2, f"{node.name} was restarted: {resumed}"
                await together.right()
        finally:
            await together.end()


async def leader(deployment: Deployment) -> Node:
    """Return the process that reads the exchange."""
    while not (leaders := await deployment.leaders()):
        await asyncio.sleep(0.1)
    return leaders[0]


def restart(deployment: Deployment, node: Node) -> Callable[[], None]:
    """Kills a process and starts it again."""

    def do() -> None:
        assert node.process is not None
        node.signal(signal.SIGKILL)
        node.process.wait()
        deployment.start(node)

    return do
