"""`candled tail`: a client for the terminal that prints bars as they change and reconnects automatically."""

import json
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, TextIO

from tornado.httpclient import HTTPError
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

from candled.clock import SystemClock
from candled.exchange import Clock
from candled.model import decimal_text
from candled.settings import without_passwords
from candled.tasks import Backoff

_REMEMBERED = 1000  # bars whose last printed line is kept, so that it is not printed again
_REFUSAL = "Invalid"  # start of the protocol's errors that a retry does not change
_PING_EVERY_S = 30

Bar = Mapping[str, Any]
"""A bar as received: `time` in ISO 8601, numbers as `Decimal`."""


class _NotSubscribed(Exception):
    """The server cannot answer now; the text is its error."""


class Tail:
    """Follows one symbol and interval of a server at a `ws://` or `wss://` address."""

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
        out = out or sys.stdout
        self._clock = clock or SystemClock()
        self._printer = Printer(out, in_place=out.isatty())
        self._backoff = Backoff(first_s=0.5, most_s=30.0)

    async def run(self) -> int:
        """Follow until cancelled; return 2 if the server rejects the subscription."""
        while True:
            try:
                refusal = await self._run_connection()
                reason = "the connection was closed"
            except (OSError, HTTPError, WebSocketError, _NotSubscribed) as error:
                refusal, reason = None, str(error)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
                refusal, reason = None, "the server does not speak candled's protocol"
            if refusal is not None:
                self._printer.end_line()
                print(f"candled: {printable(refusal)}", file=sys.stderr)
                return 2
            wait_s = self._backoff.on_failure()
            self._printer.print_note(f"{without_passwords(self._url)}: {reason}; connecting again in {wait_s:.1f} s")
            await self._clock.sleep(wait_s)

    async def _run_connection(self) -> str | None:
        """Print until the connection ends; return the server's error if it rejected the subscription permanently."""
        socket = await websocket_connect(self._url, ping_interval=_PING_EVERY_S)
        try:
            await socket.write_message(json.dumps(self._request))
            return await self._follow_socket(socket)
        finally:
            socket.close()

    async def _follow_socket(self, socket: WebSocketClientConnection) -> str | None:
        subscribed = False
        while (text := await socket.read_message()) is not None:
            message = json.loads(text, parse_float=Decimal, parse_int=Decimal)
            match message["type"]:
                case "initial":
                    subscribed = True
                    self._backoff.on_success()
                    self._printer.print_bars(message["bars"])
                case "update":
                    self._printer.print_bars([message["bar"]])
                case "error" if message["message"].startswith(_REFUSAL):
                    return str(message["message"])
                case "error" if not subscribed:  # no updates would follow
                    raise _NotSubscribed(message["message"])
                case "error":
                    self._printer.print_note(message["message"])
        return None


class Printer:
    """Writes bars: with `in_place` the newest line is overwritten while its bar changes, else each change is a line.

    A bar that has not changed since it was printed, for instance after a reconnect, is not printed again.
    """

    def __init__(self, out: TextIO, *, in_place: bool) -> None:
        self._out = out
        self._in_place = in_place
        self._printed: dict[str, str] = {}
        self._open_time: str | None = None  # of the bar whose line has not ended yet

    def print_bars(self, bars: Iterable[Bar]) -> None:
        """Print those of the bars that changed, oldest first."""
        for bar in bars:
            text = line(bar)
            if self._printed.get(bar["time"]) != text:
                self._print_line(bar["time"], text)
        while len(self._printed) > _REMEMBERED:
            del self._printed[next(iter(self._printed))]
        self._out.flush()

    def print_note(self, text: str) -> None:
        """Print a remark on a line of its own."""
        self.end_line()
        self._out.write(f"-- {printable(text)}\n")
        self._out.flush()

    def end_line(self) -> None:
        """Start a new line."""
        if self._open_time is not None:
            self._out.write("\n")
            self._open_time = None

    def _print_line(self, time: str, text: str) -> None:
        self._printed[time] = text
        if not self._in_place:
            self._out.write(f"{text}\n")
            return
        if self._open_time != time:
            self.end_line()
        self._out.write(f"\r\x1b[K{text}")
        self._open_time = time


def printable(text: str) -> str:
    """Return a text of the server as one line, without characters that control the terminal."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def line(bar: Bar) -> str:
    """Return a bar as text: opening time (UTC, to the minute), open, high, low, close and volume, all digits."""
    prices = "  ".join(f"{key[0].upper()} {decimal_text(bar[key])}" for key in ("open", "high", "low", "close"))
    return f"{printable(bar['time'][:16]).replace('T', ' ')}  {prices}  V {decimal_text(bar['volume'])}"
