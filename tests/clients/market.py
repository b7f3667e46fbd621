"""Two markets on a scripted server, and what may happen to them and to the connection."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

from tests.clients.scripted import TRUTH, Scripted

BTC = ("BTC/USDT", "5m")
ETH = ("ETH/USDT", "1m")


async def serving(extended: bool) -> AsyncIterator[Scripted]:
    server = await Scripted(extended=extended).start()
    server.make(*BTC, 300)
    server.make(*ETH, 50)
    yield server
    await server.stop()


def plain(bars: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What every server tells of bars."""
    return [{key: bar[key] for key in TRUTH} for bar in bars]


def times(bars: list[dict[str, Any]]) -> list[str]:
    """When bars open."""
    return [bar["time"] for bar in bars]


async def fault(server: Scripted, draw: random.Random) -> None:
    """Something happens at the market, and perhaps something to the connection."""
    topic = draw.choice([BTC, ETH])
    action = draw.choice([server.trade, server.open_next, lambda topic: server.correct(topic, -draw.randint(2, 9))])
    action(topic)
    match draw.randint(0, 14):
        case 0:
            server.drop()
        case 1:
            server.delay_s = draw.choice([0.0, 0.03])
        case 2:
            server.silent = not server.silent
            if not server.silent:
                server.drop()
        case 3:
            server.misorders = not server.misorders
        case 4:
            await server.stop(bye_ms=draw.choice([None, 30]))
            server.begin_epoch(forget=draw.random() < 0.5)
            await server.start()
    await asyncio.sleep(draw.choice([0, 0, 0.01, 0.05]))


async def calm(server: Scripted) -> None:
    """The faults are over, and one more trade comes."""
    if server.silent:
        server.silent = False
        server.drop()
    server.misorders, server.delay_s = False, 0.0
    await asyncio.sleep(0.3)
    server.trade(BTC)
    server.trade(ETH)
