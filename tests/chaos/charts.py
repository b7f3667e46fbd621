"""What a client shows: the documented client, and one that asks for everything beside it. Bars are kept as sent."""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from candled.model import Interval, iso_ms, parse_iso_ms

_BAR = re.compile(r'\{"time":"([^"]+)"[^{}]*\}')
_FINAL = re.compile(r',"final":(true|false)')
_SRC = re.compile(r',"src":"\w*"')
_REV = re.compile(r',"rev":(\d+)')
EXTENDED = {"fields": ["final", "seq", "rev", "src"], "corrections": True, "status": True}
KEYS = ("open", "high", "low", "close", "volume", "quoteVolume")


@dataclass(frozen=True)
class Subscription:
    """What is subscribed to; `more` are keys beside the documented ones."""

    symbol: str
    interval: str
    bars: int = 100
    more: tuple[str, ...] = ()

    @property
    def request(self) -> dict[str, Any]:
        request = {"type": "subscribe", "symbol": self.symbol, "interval": self.interval, "initialBars": self.bars}
        return request | {key: EXTENDED[key] for key in self.more} | ({"id": 1} if self.more else {})

    @property
    def length_ms(self) -> int:
        return Interval.parse(self.interval).ms

    def __str__(self) -> str:
        return f"{self.symbol} {self.interval}{'+' if self.more else ''}"


def bars_of(text: str) -> list[tuple[str, str]]:
    """The bars of a message, each with its time, letter by letter as they were sent."""
    return [(match[1], match[0]) for match in _BAR.finditer(text)]


def without_source(bars: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Bars but for `src`: two who read the exchange at once do not know whose statement was stored first."""
    return [(time, _SRC.sub("", bar)) for time, bar in bars]


def values_of(bar: str) -> tuple[Decimal | None, ...]:
    """The numbers of a bar."""
    numbers = json.loads(bar, parse_float=Decimal, parse_int=Decimal)
    return tuple(numbers.get(key) for key in KEYS)


def is_final(bar: str) -> bool:
    match = _FINAL.search(bar)
    return match is not None and match[1] == "true"


def rev_of(bar: str) -> int:
    match = _REV.search(bar)
    return 0 if match is None else int(match[1])


@dataclass
class Chart:
    """The state of one subscription over all its connections. Pure: it is given the texts that came.

    `wrong` has the violations, and `finals` the bars that were sent as final, with the values of that moment.
    """

    subscription: Subscription
    bars: list[tuple[str, str]] = field(default_factory=list)
    position: tuple[str, int] | None = None
    is_initialized: bool = False  # this connection's `initial` or `resumed` has come
    messages: int = 0
    initials: int = 0
    resumed: int = 0
    not_resumed: int = 0
    updates: int = 0
    corrections: int = 0
    finals: dict[str, tuple[str, int]] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    went_back: int = 0  # a connection began with an older newest bar than the one before it had shown

    def connected(self) -> dict[str, Any]:
        """A new connection: the request to send on it."""
        self.is_initialized = False
        if not self.subscription.more or self.position is None or not self.bars:
            return self.subscription.request
        epoch, seq = self.position
        return self.subscription.request | {"resume": {"epoch": epoch, "seq": seq, "time": self._resumes_at()}}

    def take(self, text: str) -> None:
        """Take one message."""
        self.messages += 1
        message = json.loads(text)
        match message["type"]:
            case "initial":
                self._initial(message, bars_of(text))
            case "resumed":
                self._resumed(message, bars_of(text))
            case "update":
                self._update(message, *bars_of(text))
            case "correction":
                self._correction(message, *bars_of(text))
            case "status":
                self.states.append(message["state"])
            case "error":
                if message["message"] != "Failed to subscribe to candles":
                    self._complain(text)
            case "subscribed" | "pong" | "bye":
                pass
            case _:
                self._complain(text)

    def window(self, fresh: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """What of the chart a fresh `initial` covers."""
        return self.bars[bisect_left(self.bars, fresh[0][0], key=lambda bar: bar[0]) :] if fresh else self.bars

    # ------------------------------------------------------------ messages

    def _initial(self, message: dict[str, Any], bars: list[tuple[str, str]]) -> None:
        self.initials += 1
        if message.get("recovered") is False:
            self.not_resumed += 1
        if self.bars and (not bars or bars[-1][0] < self.bars[-1][0]):
            if self.is_initialized:
                self._complain(f"an initial goes back from {self.bars[-1]} to {bars[-1:]}")
            self.went_back += 1
        self.is_initialized = True
        self.bars = bars
        self._note(message, bars)

    def _resumed(self, message: dict[str, Any], bars: list[tuple[str, str]]) -> None:
        self.resumed += 1
        if self.is_initialized or message["recovered"] is not True:
            self._complain(f"resumed comes {message}")
        self.is_initialized = True
        for bar in bars:
            self._put(bar)
        self._note(message, bars)

    def _update(self, message: dict[str, Any], bar: tuple[str, str]) -> None:
        self.updates += 1
        if not self.is_initialized:
            self._complain("an update came before its initial")
        newest = self.bars[-1] if self.bars else None
        if newest is not None and newest[0] == bar[0]:
            if values_of(bar[1])[4] < values_of(newest[1])[4] and rev_of(bar[1]) <= rev_of(newest[1]):
                self._complain(f"the volume goes back from {newest} to {bar}")
            self.bars[-1] = bar
        elif newest is None or newest[0] < bar[0]:
            self.bars.append(bar)
        else:
            self._complain(f"an update goes back from {newest} to {bar}")
        self._note(message, [bar])

    def _correction(self, message: dict[str, Any], bar: tuple[str, str]) -> None:
        self.corrections += 1
        if not self.is_initialized:
            self._complain("a correction came before its initial")
        self._put(bar)
        self._note(message, [bar])

    # ------------------------------------------------------------ inside

    def _put(self, bar: tuple[str, str]) -> None:
        index = bisect_left(self.bars, bar[0], key=lambda one: one[0])
        if index < len(self.bars) and self.bars[index][0] == bar[0]:
            self.bars[index] = bar
        else:
            self.bars.insert(index, bar)

    def _note(self, message: dict[str, Any], bars: Iterable[tuple[str, str]]) -> None:
        """Remember where in the feed this was, and the bars that were sent as final."""
        if "epoch" in message:
            self.position = message["epoch"], message["seq"]
        for time, bar in bars:
            if not is_final(bar):
                continue
            known, rev = self.finals.setdefault(time, (bar, rev_of(bar)))
            if values_of(known) != values_of(bar):
                if rev_of(bar) <= rev:
                    self._complain(f"sent as final: {known}, and then {bar}")
                self.finals[time] = bar, rev_of(bar)

    def _resumes_at(self) -> str:
        """When the oldest bar begins that is not final as far as is known here, or the newest."""
        unsettled = (time for time, bar in self.bars if '"final":false' in bar)
        return next(unsettled, self.bars[-1][0])

    def _complain(self, what: str) -> None:
        self.wrong.append(f"{self.subscription}: {what}")


def closed_before(bars: Iterable[tuple[str, str]], length_ms: int, until_ms: int) -> list[tuple[str, str]]:
    """The bars that ended by a time."""
    last = iso_ms(max(0, until_ms - length_ms))
    return [bar for bar in bars if bar[0] <= last]


def time_ms(bar: tuple[str, str]) -> int:
    return parse_iso_ms(bar[0])
