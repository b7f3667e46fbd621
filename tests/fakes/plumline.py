"""The exchange of examples/candled-plumline: candles of one market, by WebSocket and REST, on a given clock."""

import asyncio
import json
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from candled.exchange import Clock
from candled.model import MINUTE, MINUTE_MS

from .tapes import Synthetic, grown

MARKET = "BTC_USDT"
_PAGE = 100


class FakePlumline:
    """Plumline on a free port of 127.0.0.1. Pushes come every `push_every_s` of the clock's seconds."""

    def __init__(self, clock: Clock, *, push_every_s: float = 5.0) -> None:
        self.clock = clock
        self.push_every_s = push_every_s
        self._tape = Synthetic(11)
        self._server: HTTPServer | None = None
        self.port = 0
        self.pongs = 0

    async def __aenter__(self) -> "FakePlumline":
        application = Application(
            [(r"/ws", _Stream, {"fake": self}), (r"/markets", _Markets), (r"/candles", _Rows, {"fake": self})],
            log_function=lambda _: None,
        )
        sockets = bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self._server = HTTPServer(application)
        self._server.add_sockets(sockets)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.stop()
        await self._server.close_all_connections()

    @property
    def settings(self) -> dict[str, str]:
        """The settings that lead to it."""
        return {"ws_url": f"ws://127.0.0.1:{self.port}/ws", "rest_url": f"http://127.0.0.1:{self.port}"}

    def row(self, open_ms: int, now_ms: int) -> dict[str, Any]:
        row = grown(self._tape.row(open_ms), now_ms - open_ms)
        values = map(str, (row.open, row.high, row.low, row.close, row.volume, row.quote_volume))
        return {
            "t": open_ms // 1000,
            **dict(zip("ohlcvq", values, strict=True)),
            "closed": now_ms >= open_ms + MINUTE_MS,
        }

    def page(self, before_ms: int, limit: int) -> list[dict[str, Any]]:
        now_ms = self.clock.now_ms()
        newest_ms = min(MINUTE.floor(before_ms - 1), MINUTE.floor(now_ms))
        return [self.row(newest_ms - ago * MINUTE_MS, now_ms) for ago in range(limit)]


class _Markets(RequestHandler):
    def get(self) -> None:
        self.finish({"markets": [{"base": "BTC", "quote": "USDT", "price_step": "0.01", "state": "open"}]})


class _Rows(RequestHandler):
    def initialize(self, fake: FakePlumline) -> None:
        self._fake = fake

    def get(self) -> None:
        if self.get_argument("market") != MARKET:
            self.set_status(404)
            self.finish({"error": "unknown market"})
            return
        limit = min(int(self.get_argument("limit")), _PAGE)
        rows = self._fake.page(int(self.get_argument("before")) * 1000, limit)
        self.finish(json.dumps({"sent": self._fake.clock.now_ms(), "candles": rows}))


class _Stream(WebSocketHandler):
    def initialize(self, fake: FakePlumline) -> None:
        self._fake = fake
        self._pushing: asyncio.Task[None] | None = None

    async def on_message(self, message: str | bytes) -> None:
        frame = json.loads(message)
        if frame["op"] == "pong":
            self._fake.pongs += 1
        elif frame.get("market") != MARKET:
            await self.write_message({"op": "rejected", "market": frame.get("market"), "reason": "unknown market"})
        elif frame["op"] == "subscribe" and self._pushing is None:
            await self.write_message({"op": "subscribed", "market": MARKET})
            self._pushing = asyncio.create_task(self._push())

    def on_close(self) -> None:
        if self._pushing is not None:
            self._pushing.cancel()

    async def _push(self) -> None:
        clock = self._fake.clock
        open_ms = MINUTE.floor(clock.now_ms())
        for number in range(10**9):
            if number % 4 == 0:
                await self.write_message({"op": "ping", "id": number})
            now_ms = clock.now_ms()
            while open_ms + MINUTE_MS <= now_ms:
                await self._push_candle(open_ms, now_ms)
                open_ms += MINUTE_MS
            await self._push_candle(open_ms, now_ms)
            await clock.sleep(self._fake.push_every_s)

    async def _push_candle(self, open_ms: int, now_ms: int) -> None:
        candle = self._fake.row(open_ms, now_ms)
        await self.write_message({"op": "candle", "market": MARKET, "sent": now_ms, "candle": candle})
