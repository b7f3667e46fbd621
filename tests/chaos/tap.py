"""Listens on Redis beside the processes: who speaks for a shard, and whether two ever do at once."""

import asyncio
import contextlib
import json
from typing import Any

from redis import asyncio as aioredis
from redis.exceptions import RedisError

from candled.bus.codec import token_of
from tests import deadlines
from tests.redis_servers import RedisServer

_KEPT = 1000  # of each feed; what is older is not sent again


class Tap:
    """Hears every channel of one Redis server, over its restarts, straight from it.

    `wrong` has the violations. `published` counts candles. `restarted` is to be called where Redis loses its data:
    nothing is known of its fences after that.
    """

    def __init__(self, server: RedisServer) -> None:
        self.wrong: list[str] = []
        self.published = 0
        self.tokens: dict[str, int] = {}  # by channel, the newest that spoke
        self._server = server
        self._sent: dict[tuple[str, str], dict[int, bytes]] = {}  # by channel and epoch: number and message
        self._highest = 0
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Hear no more."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def restarted(self) -> None:
        """Redis has lost its data."""
        self.tokens.clear()
        self._sent.clear()

    async def next_feed(self, within_s: float) -> float | None:
        """Seconds until somebody speaks with a higher token than any process before; None: none does."""
        known, begun = self._highest, deadlines.now()
        while self._highest <= known:
            if deadlines.now() > begun + within_s:
                return None
            await asyncio.sleep(0.02)
        return deadlines.now() - begun

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self._listen()
            await asyncio.sleep(0.05)

    async def _listen(self) -> None:
        client = aioredis.Redis(host="127.0.0.1", port=self._server.port, socket_connect_timeout=1.0)
        pubsub = client.pubsub()
        try:
            await pubsub.psubscribe("candles:*")
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
                if message is not None and message["type"] == "pmessage":
                    self._received(message["channel"].decode(), message["data"])
        finally:
            for one in (pubsub, client):
                with contextlib.suppress(RedisError, OSError):
                    await one.aclose()

    def _received(self, channel: str, data: bytes) -> None:
        message: dict[str, Any] = json.loads(data)
        epoch, seq = message["epoch"], message["seq"]
        token, known = token_of(epoch), self.tokens.get(channel, 0)
        self.published += message["type"] == "candle"
        if token < known:
            self.wrong.append(f"{channel}: {epoch} speaks after token {known}: {message}")
        sent = self._sent.setdefault((channel, epoch), {})
        # After a lost answer, the same message may be sent again; a number that was left out may not.
        if sent.get(seq, data) != data or (seq not in sent and seq <= max(sent, default=0)):
            self.wrong.append(f"{channel}: {epoch} says another number {seq}: {message}")
        sent[seq] = data
        sent.pop(seq - _KEPT, None)
        self.tokens[channel] = max(token, known)
        self._highest = max(self._highest, token)
