"""`candled tail`: prints bars in the terminal as they change, and reconnects automatically."""

import sys
from collections.abc import Iterable
from datetime import datetime
from typing import TextIO

from candled.client import Bar, Client, RequestRejected
from candled.exchange import Clock
from candled.model import decimal_text
from candled.settings import without_passwords
from candled.tasks import Backoff

_REMEMBERED = 1000  # bars whose last printed line is kept, so that it is not printed again


async def tail(
    url: str,
    symbol: str,
    interval: str,
    exchange: str | None,
    bars: int,
    *,
    out: TextIO | None = None,
    clock: Clock | None = None,
) -> int:
    """Follow the bars of a server until cancelled; return 2 if it rejects the subscription."""
    out = out or sys.stdout
    printer, status = Printer(out, in_place=out.isatty()), None
    try:
        async with Client(url, clock=clock, backoff=Backoff(first_s=0.5, most_s=30.0)) as client:
            stream = client.bars(symbol, interval, exchange=exchange, initial_bars=bars, corrections=True)
            async for changed in stream.changes():
                printer.print_bars(changed)
                if stream.status is not status:
                    status = stream.status
                    if status.retry_s is not None:
                        again = f"connecting again in {status.retry_s:.1f} s"
                        printer.print_note(f"{without_passwords(url)}: {status.message}; {again}")
                    elif status.state == "loading" and status.message:
                        printer.print_note(status.message)
    except RequestRejected as error:
        printer.end_line()
        print(f"candled: {printable(str(error))}", file=sys.stderr)
    return 2


class Printer:
    """Writes bars, one line for each change. With `in_place`, the newest line is overwritten while its bar changes.

    A bar that has not changed since it was printed, for instance after a reconnect, is not printed again.
    """

    def __init__(self, out: TextIO, *, in_place: bool) -> None:
        self._out = out
        self._in_place = in_place
        self._printed: dict[datetime, str] = {}
        self._open_time: datetime | None = None  # of the bar whose line has not ended yet

    def print_bars(self, bars: Iterable[Bar]) -> None:
        """Print those of the bars that changed, oldest first."""
        for bar in bars:
            text = line(bar)
            if self._printed.get(bar.time) != text:
                self._print_line(bar.time, text)
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

    def _print_line(self, time: datetime, text: str) -> None:
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
    prices = "  ".join(
        f"{key[0].upper()} {decimal_text(getattr(bar, key))}" for key in ("open", "high", "low", "close")
    )
    return f"{bar.time:%Y-%m-%d %H:%M}  {prices}  V {decimal_text(bar.volume)}"
