"""Clients on sockets: they notice a dead connection, come back with growing pauses, and some go elsewhere then."""

import asyncio
import contextlib
import json
import random
from collections.abc import Sequence

import websockets

from tests import deadlines
from tests.chaos.charts import Chart, Subscription, bars_of
from tests.chaos.deployment import Node

_WITHIN_S = 4.0
_FIRST_WAIT_S, _MOST_WAIT_S = 0.1, 2.0


class Viewer:
    """One client with one chart, on the front of one process or, like behind a balancer, of any of `nodes`."""

    def __init__(self, subscription: Subscription, nodes: Sequence[Node], draw: random.Random) -> None:
        self.chart = Chart(subscription)
        self.connections = 0
        self.is_connected = False
        self._nodes = nodes
        self._draw = draw
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Go away.

        Raises:
            Exception: whatever ended it before.
        """
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            node = self._draw.choice(self._nodes)
            with contextlib.suppress(OSError, TimeoutError, websockets.WebSocketException):
                await self._watch(node)
                wait_s = _FIRST_WAIT_S
            self.is_connected = False
            await asyncio.sleep(self._draw.uniform(wait_s / 2, wait_s))
            wait_s = min(_MOST_WAIT_S, 2 * wait_s)

    async def _watch(self, node: Node) -> None:
        host, port = node.front.address
        async with websockets.connect(
            f"ws://{host}:{port}/",
            max_size=None, open_timeout=_WITHIN_S, ping_interval=2.0, ping_timeout=_WITHIN_S, close_timeout=0.2,
        ) as ws:  # fmt: skip
            self.connections += 1
            await ws.send(json.dumps(self.chart.connected()))
            with contextlib.suppress(websockets.ConnectionClosed):
                async for text in ws:
                    self.chart.take(str(text))
                    self.is_connected = self.chart.is_initialized


async def fresh(node: Node, subscription: Subscription) -> list[tuple[str, str]]:
    """What a new client of a process is shown, straight from it."""
    async with websockets.connect(f"ws://127.0.0.1:{node.port}/", max_size=None, open_timeout=_WITHIN_S) as ws:
        await ws.send(json.dumps(subscription.request))
        async with deadlines.timeout(_WITHIN_S):
            async for text in ws:
                if json.loads(text)["type"] == "initial":
                    return bars_of(str(text))
    raise OSError("the connection ended without an initial")
