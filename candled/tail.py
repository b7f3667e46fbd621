"""`candled tail`: a client in the terminal that prints bars as they move and reconnects by itself."""

import json
import sys
from decimal import Decimal
from typing import Any, TextIO

from tornado.httpclient import HTTPError
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

from candled.clock import SystemClock
from candled.exchange import Clock
from candled.ingest.backoff import Backoff
from candled.model import decimal_text

_LARGEST_MESSAGE = 16 * 1024 * 1024


class Tail:
    """Follows one symbol and interval: the running bar in place on a terminal, elsewhere a line for each change."""

    def __init__(
        self,
        url: str,
        symbol: str,
        interval: str,
        exchange: str | None,
        bars: int,
        *,
        out: TextIO | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._url = url
        self._request = {"type": "subscribe", "symbol": symbol, "interval": interval, "initialBars": bars}
        if exchange is not None:
            self._request["exchange"] = exchange
        self._out = out or sys.stdout
        self._clock = clock or SystemClock()
        self._printer = Printer(self._out, in_place=self._out.isatty())

    async def run(self) -> int:
        """Follow until interrupted; 2 if the server refuses what was asked for."""
        backoff = Backoff(first_s=0.5, most_s=30.0)
        while True:
            try:
                socket = await websocket_connect(self._url, max_message_size=_LARGEST_MESSAGE, ping_interval=30)
            except (OSError, HTTPError, WebSocketError, ValueError) as error:
                reason = str(error)
            else:
                try:
                    refusal = await self._follow(socket, backoff)
                finally:
                    socket.close()
                if refusal is not None:
                    print(f"candled: {refusal}", file=sys.stderr)
                    return 2
                reason = "the connection was closed"
            wait_s = backoff.failed()
            self._printer.note(f"{self._url}: {reason}; next attempt in {wait_s:.1f} s")
            await self._clock.sleep(wait_s)

    async def _follow(self, socket: WebSocketClientConnection, backoff: Backoff) -> str | None:
        """Print until the connection ends; the server's error if it refused."""
        await socket.write_message(json.dumps(self._request))
        while (text := await socket.read_message()) is not None:
            message = json.loads(text, parse_float=Decimal, parse_int=Decimal)
            if message["type"] == "error":
                return str(message["message"])
            if message["type"] == "initial":
                backoff.succeeded()
                self._printer.initial(message["bars"])
            elif message["type"] == "update":
                self._printer.update(message["bar"])
        return None


class Printer:
    """Writes bars, one line each; the running one is overwritten where that is possible."""

    def __init__(self, out: TextIO, *, in_place: bool) -> None:
        self._out = out
        self._in_place = in_place
        self._running: str | None = None  # the time of the bar whose line is not ended yet

    def initial(self, bars: list[dict[str, Any]]) -> None:
        """Print the bars there are."""
        self._end_line()
        for bar in bars:
            self.update(bar)

    def update(self, bar: dict[str, Any]) -> None:
        """Print a bar that moved, or the next one."""
        if self._running not in (None, bar["time"]):
            self._end_line()
        self._running = bar["time"]
        self._out.write(f"\r\x1b[K{line(bar)}" if self._in_place else f"{line(bar)}\n")
        self._out.flush()

    def note(self, text: str) -> None:
        """Print a remark on a line of its own."""
        self._end_line()
        self._out.write(f"-- {text}\n")
        self._out.flush()

    def _end_line(self) -> None:
        if self._running is not None and self._in_place:
            self._out.write("\n")
        self._running = None


def line(bar: dict[str, Any]) -> str:
    """One bar as a line: time, open, high, low, close and volume."""
    numbers = (
        f"{letter} {decimal_text(bar[key])}"
        for letter, key in zip("OHLC", ("open", "high", "low", "close"), strict=True)
    )
    return f"{bar['time'][:16].replace('T', ' ')}  {'  '.join(numbers)}  V {decimal_text(bar['volume'])}"
