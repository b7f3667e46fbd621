"""`candled tail`: a client in the terminal that prints bars as they move and connects again by itself."""

import json
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, TextIO

from tornado.httpclient import HTTPError
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

from candled.clock import SystemClock
from candled.exchange import Clock
from candled.ingest.backoff import Backoff
from candled.model import decimal_text
from candled.settings import without_passwords

_REMEMBERED = 1000  # bars whose last printed line is known, so that it is not printed again
_REFUSAL = "Invalid"  # how the protocol's errors begin that asking again will not change
_PING_EVERY_S = 30

Bar = Mapping[str, Any]
"""A bar as it came: `time` in ISO 8601, the numbers as `Decimal`."""


class _NotSubscribed(Exception):
    """The server could not answer now; its text."""


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
        """Follow until cancelled; 2 if the server refuses what was asked for."""
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
        """Print until the connection ends; return the server's error if it refused the subscription for good."""
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
                case "error" if not subscribed:  # nothing more would come
                    raise _NotSubscribed(message["message"])
                case "error":
                    self._printer.print_note(message["message"])
        return None


class Printer:
    """Writes bars: with `in_place` the newest line is overwritten while its bar moves, else each change is a line.

    A bar that stands as it was printed last is not printed again, as after a connection that was lost.
    """

    def __init__(self, out: TextIO, *, in_place: bool) -> None:
        self._out = out
        self._in_place = in_place
        self._printed: dict[str, str] = {}
        self._open_time: str | None = None  # of the bar whose line has not ended yet

    def print_bars(self, bars: Iterable[Bar]) -> None:
        """Print what changed of these bars, oldest first."""
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
        """Go to a fresh line."""
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
    """A text of somebody else on one line, without characters that would steer the terminal."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def line(bar: Bar) -> str:
    """One bar as text: opening time (UTC, to the minute), open, high, low, close and volume, all digits."""
    prices = "  ".join(f"{key[0].upper()} {decimal_text(bar[key])}" for key in ("open", "high", "low", "close"))
    return f"{printable(bar['time'][:16]).replace('T', ' ')}  {prices}  V {decimal_text(bar['volume'])}"
