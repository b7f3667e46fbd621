"""An exchange that does not exist, its page, and its server, which does not do all that the page says.

The page has four mistakes, which the kit must find with a plugin that follows it: `t` is the end of a minute; of too
many bars the newest are returned, newest first; the volumes over REST are interchanged; `x` comes ten seconds before
the end of a minute, and other versions follow.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from tornado.web import RequestHandler
from websockets import ConnectionClosed

from candled.exchange import Clock
from candled.model import MINUTE, MINUTE_MS
from tests.fakes.tapes import Synthetic, grown
from tests.plugins.local import socket_server, web_server

PAGE = """
# Brinemark market data

Times are in seconds unless a name ends in `_ms`. Prices and volumes are text.

**Markets**: `GET /ids` -> `{"ids": [{"id": "BTC_USDT", "base": "BTC", "quote": "USDT", "step": "0.01"}]}`.

**Subscription**: send `{"type": "sub", "ids": ["BTC_USDT"]}`. The answer is `{"type": "sub.ok", "id": "BTC_USDT"}` for
each market, or `{"type": "sub.err", "id": "X_Y", "why": "unknown id"}`. We send `{"type": "hb", "n": 7}` every 20
seconds; answer `{"type": "hb.ack", "n": 7}`.

**Bars**: `{"type": "bar", "id": "BTC_USDT", "sent_ms": 1760000012345, "bar": {"t": 1760000000, "o": "1", "h": "2", "l":
"1", "c": "2", "v": "10.5", "x": false}}`, several times a minute. `t` is the time at which the minute opens. `v` is in
base currency. `x` is true in the last version of a bar, which no version follows. A minute without trades has a bar.

**History**: `GET /bars?id=BTC_USDT&from=1760000000&to=1760011940` -> `{"sent_ms": 1760000012345, "bars": [[t, o, h, l,
c, v, w], …]}`, as above, with `w` in quote currency. `from` and `to` are compared with the opening time, and both are
inclusive. Oldest first. At most 100 bars are returned, the oldest of the range; ask for the next ones.
"""
"""The description that the author has."""

MOST = 100
NAME = "BTC_USDT"


class Brinemark:
    """The server on free ports, on the times of a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.settings: list[str] = []
        self._tape = Synthetic(5)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        handler = type("Handler", (_Rest,), {"server": self})
        async with socket_server(self._stream) as ws_url, web_server((r"/(ids|bars)", handler)) as rest_url:
            self.settings = [f"ws_url={ws_url}", f"rest_url={rest_url}"]
            yield

    def values(self, open_ms: int, now_ms: int) -> list[str]:
        row = grown(self._tape.row(open_ms), now_ms - open_ms)
        return [str(one) for one in (row.open, row.high, row.low, row.close, row.volume, row.quote_volume)]

    async def _stream(self, peer: Any) -> None:
        async for text in peer:
            message = json.loads(text)
            if message["type"] != "sub":
                continue
            for name in message["ids"]:
                if name == NAME:
                    await peer.send(json.dumps({"type": "sub.ok", "id": name}))
                    with contextlib.suppress(ConnectionClosed):
                        await self._push(peer)
                else:
                    await peer.send(json.dumps({"type": "sub.err", "id": name, "why": "unknown id"}))

    async def _push(self, peer: Any) -> None:
        open_ms = MINUTE.floor(self.clock.now_ms())
        for number in range(10**9):
            now_ms = self.clock.now_ms()
            if number % 4 == 0:
                await peer.send(json.dumps({"type": "hb", "n": number}))
            while open_ms + MINUTE_MS <= now_ms:
                await self._push_bar(peer, open_ms, now_ms)
                open_ms += MINUTE_MS
            await self._push_bar(peer, open_ms, now_ms)
            await self.clock.sleep(5)

    async def _push_bar(self, peer: Any, open_ms: int, now_ms: int) -> None:
        bar = dict(zip("ohlcv", self.values(open_ms, now_ms), strict=False))
        is_early = now_ms >= open_ms + MINUTE_MS - 10_000
        bar |= {"t": (open_ms + MINUTE_MS) // 1000, "x": is_early}
        await peer.send(json.dumps({"type": "bar", "id": NAME, "sent_ms": now_ms, "bar": bar}))


class _Rest(RequestHandler):
    server: Brinemark

    def get(self, path: str) -> None:
        if path == "ids":
            self.finish({"ids": [{"id": NAME, "base": "BTC", "quote": "USDT", "step": "0.01"}]})
        elif self.get_argument("id") != NAME:
            self.set_status(404)
            self.finish({"error": "unknown id"})
        else:
            self._send_bars(int(self.get_argument("from")) * 1000, int(self.get_argument("to")) * 1000)

    def _send_bars(self, from_ms: int, to_ms: int) -> None:
        now_ms = self.server.clock.now_ms()
        newest_ms = min(MINUTE.floor(to_ms), MINUTE.floor(now_ms))
        bars = []
        for open_ms in range(newest_ms, max(from_ms - 1, newest_ms - MOST * MINUTE_MS), -MINUTE_MS):
            *prices, volume, quote_volume = self.server.values(open_ms, now_ms)
            bars.append([(open_ms + MINUTE_MS) // 1000, *prices, quote_volume, volume])
        self.finish(json.dumps({"sent_ms": now_ms, "bars": bars}))
