"""The faults of an exchange, at random from a seed or from a script: a pure function of a symbol and a minute."""

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from candled import MINUTE_MS, Candle, Duration, Settings, Symbol, setting

KINDS = ("drop", "delay", "duplicate", "revise", "disconnect", "wrong_time", "skip")

_HOUR_MS = 60 * MINUTE_MS
_LIES_MS = (-_HOUR_MS, 60_000, _HOUR_MS, 24 * _HOUR_MS, 365 * 24 * _HOUR_MS)
_STEP = re.compile(r"\+(\d{1,6})m (\w+)(?: (\d{1,6})m)?(?: (\S+))?")
_DRAWS_KEPT = 10_000


class ScriptedFault(NamedTuple):
    """A step of a script."""

    #: The first minute with the fault, counted from the one in which the market clock started, which is 0.
    first: int
    kind: str
    #: The number of minutes with the fault.
    minutes: int
    #: None for every symbol.
    symbol: Symbol | None

    @classmethod
    def parse(cls, text: str) -> "ScriptedFault":
        """Read a step such as `+5m skip 3m BTC/USDT`.

        Raises:
            ValueError: it has another form, or no such fault or symbol exists.
        """
        match = _STEP.fullmatch(text)
        if match is None:
            raise ValueError("expected a step such as +5m drop, or +5m skip 3m BTC/USDT")
        first, kind, count, symbol = match.groups()
        if kind not in KINDS:
            raise ValueError(f"expected one of {', '.join(KINDS)}, got {kind}")
        return cls(int(first), kind, int(count or 1), Symbol.parse(symbol) if symbol else None)


def _check_step(text: str) -> str:
    ScriptedFault.parse(text)
    return text


def _share(help: str) -> float:
    share: float = setting(0.0, f"share of minutes {help}", ge=0.0, le=1.0)
    return share


class FaultSettings(Settings):
    """Settings under `exchanges.replay.faults`."""

    seed: int = setting(1, "random faults are drawn from it: the same seed has the same faults in the same minutes")
    drop: float = _share("that the stream does not send; the history has them")
    delay: float = _share("whose versions the stream sends late, by delay_by")
    delay_by: Duration = setting("20s", "how late, in market time")
    duplicate: float = _share("whose versions the stream sends twice")
    revise: float = _share("that have other values in the history than in the stream")
    disconnect: float = _share("in which the connection is lost")
    wrong_time: float = _share("whose versions carry a wrong time, up to a year ahead")
    skip: float = _share("that neither the stream nor the history has")
    script: tuple[Annotated[str, AfterValidator(_check_step)], ...] = setting(
        (), 'faults at fixed times after the start, such as "+5m skip 3m BTC/USDT"'
    )


class Faults:
    """Decides which faults a minute has."""

    def __init__(self, settings: FaultSettings) -> None:
        self._seed = settings.seed
        self._shares = {kind: getattr(settings, kind) for kind in KINDS if getattr(settings, kind)}
        self._script = tuple(map(ScriptedFault.parse, settings.script))
        self._start_ms = 0
        #: How late delayed versions are, in milliseconds.
        self.delay_ms = int(settings.delay_by.total_seconds() * 1000)
        # drawn once for all versions of a minute
        self.faults_of = lru_cache(_DRAWS_KEPT)(self._draw)

    def start_script(self, now_ms: int) -> None:
        """Count the times of the script from the minute of `now_ms` (UTC epoch ms)."""
        self._start_ms = now_ms - now_ms % MINUTE_MS
        self.faults_of.cache_clear()

    def disconnect_at(self, open_ms: int) -> int | None:
        """Return when the connection is lost in a minute, UTC epoch ms; None if it is not."""
        if not self._has_kind("disconnect", None, open_ms):
            return None
        return open_ms + self._random("moment", None, open_ms).randrange(MINUTE_MS)

    def lie_ms(self, symbol: Symbol, open_ms: int) -> int:
        """Return how wrong the times of a minute with `wrong_time` are, in milliseconds."""
        return self._random("lie", symbol, open_ms).choice(_LIES_MS)

    def correct_history(self, symbol: Symbol, minutes: Sequence[Candle], now_ms: int) -> list[Candle]:
        """Return the minutes as the history of a faulty exchange has them at `now_ms` (UTC epoch ms)."""
        if not self._shares and not self._script:
            return list(minutes)
        found: list[Candle] = []
        for minute in minutes:
            kinds = self.faults_of(symbol, minute.open_ms)
            if "skip" not in kinds:
                is_over = minute.open_ms + MINUTE_MS <= now_ms
                found.append(revised(minute) if "revise" in kinds and is_over else minute)
        return found

    def _draw(self, symbol: Symbol, open_ms: int) -> frozenset[str]:
        """Return the kinds of a minute's faults."""
        return frozenset(kind for kind in KINDS if self._has_kind(kind, symbol, open_ms))

    def _has_kind(self, kind: str, symbol: Symbol | None, open_ms: int) -> bool:
        minute = (open_ms - self._start_ms) // MINUTE_MS
        for one in self._script:
            is_due = one.kind == kind and one.first <= minute < one.first + one.minutes
            if is_due and (symbol is None or one.symbol in (None, symbol)):
                return True
        return kind in self._shares and self._random(kind, symbol, open_ms).random() < self._shares[kind]

    def _random(self, use: str, symbol: Symbol | None, open_ms: int) -> random.Random:
        return random.Random(f"{self._seed} {use} {symbol} {open_ms}")


class FaultyStream:
    """The versions of one symbol's minutes, as the stream of a faulty exchange sends them on one connection."""

    def __init__(self, faults: Faults, symbol: Symbol) -> None:
        self._faults = faults
        self._symbol = symbol
        # delayed versions, each with the time at which it is sent, UTC epoch ms
        self._delayed: list[tuple[int, Candle]] = []

    def pass_on(self, versions: Sequence[Candle], now_ms: int) -> list[tuple[Candle, ...]]:
        """Return the frames sent at `now_ms` (UTC epoch ms), given the versions made since the last call."""
        once: list[Candle] = []
        again: list[Candle] = []
        for version in versions:
            kinds = self._faults.faults_of(self._symbol, version.open_ms)
            if kinds & {"drop", "skip"}:
                continue
            if "wrong_time" in kinds:
                lie_ms = self._faults.lie_ms(self._symbol, version.open_ms)
                version = version._replace(as_of_ms=version.as_of_ms + lie_ms)
            if "delay" in kinds:
                self._delayed.append((now_ms + self._faults.delay_ms, version))
                continue
            once.append(version)
            if "duplicate" in kinds:
                again.append(version)
        late = [version for due_ms, version in self._delayed if due_ms <= now_ms]
        self._delayed = [one for one in self._delayed if one[0] > now_ms]
        return [tuple(frame) for frame in (once, again, late) if frame]


def revised(minute: Candle) -> Candle:
    """Return another version of a minute: twice the volume, and a higher high."""
    quote = minute.quote_volume
    return minute._replace(
        high=minute.high + max(minute.high - minute.low, minute.high / 64),
        volume=minute.volume * 2,
        quote_volume=None if quote is None else quote * 2,
    )
