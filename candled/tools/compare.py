"""Comparisons of bars: with those of another source, and with their own minutes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any

from candled.errors import InvalidCandle
from candled.model import MINUTE, Candle, Interval, MarketKey, decimal_text, iso_ms, sources
from candled.store.batch import fold_bars

_NAMES = ("open", "high", "low", "close", "volume", "quoteVolume")
# By check: the text for an unexpected bar, the text for a missing one, and the source of the expected values.
_TEXTS = {
    "rollup": ("no minute lies in it, but it is stored", "is not stored, though there are minutes", "by its minutes"),
    "exchange": (
        "is stored, but the exchange does not have it",
        "is not stored, but the exchange has it",
        "at the exchange",
    ),
    "memory": ("is shown, but not stored", "is stored, but not shown", "in the store"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A wrong bar."""

    #: The check that failed: `minute` (an impossible candle), `neighbour` (a minute that contradicts the one before),
    #: `rollup` (a stored bar differs from its minutes), `exchange` (a stored bar differs from the exchange's) or
    #: `memory` (a bar that a daemon shows differs from the stored one).
    check: str
    #: The market of the bar.
    market: MarketKey
    #: The interval of the bar.
    interval: Interval
    #: Opening time of the bar, UTC epoch milliseconds; 0 if its time is not valid.
    open_ms: int
    #: The right bar; None if no bar should exist, or with `problem`.
    expected: Candle | None = None
    #: The wrong bar; None if it is missing, or with `problem`.
    found: Candle | None = None
    #: The reason for which the bar is wrong, in words; empty if the two bars show it.
    problem: str = ""
    #: The text of a time that is not valid; otherwise empty.
    time: str = ""

    def __str__(self) -> str:
        return f"{self.market} {self.interval} {self._when()}: {self._describe()}"

    def _when(self) -> str:
        return self.time or iso_ms(self.open_ms)

    def _describe(self) -> str:
        if self.problem:
            return self.problem
        unexpected, missing, source = _TEXTS[self.check]
        if self.expected is None:
            return unexpected
        if self.found is None:
            return missing
        differences = [
            f"{name} is {_text(found)}, {source} {_text(expected)}"
            for name, expected, found in zip(_NAMES, self.expected.values, self.found.values, strict=True)
            if expected != found
        ]
        if not differences:
            differences = [f"rev is {self.found.rev}, {source} {self.expected.rev}"]
        return ", ".join(differences)

    def as_plain(self) -> dict[str, Any]:
        """Return the difference as JSON values; numbers are strings, so that they are exact."""
        plain: dict[str, Any] = {
            "difference": self.check,
            **self.market.describe(),
            "interval": str(self.interval),
            "time": self._when(),
        }
        if self.problem:
            return {**plain, "problem": self.problem}
        return {**plain, "expected": _plain(self.expected), "found": _plain(self.found)}


def _text(number: Decimal | None) -> str:
    return "absent" if number is None else decimal_text(number)


def _plain(bar: Candle | None) -> dict[str, str | int | None] | None:
    if bar is None:
        return None
    plain: dict[str, str | int | None] = {
        name: None if n is None else decimal_text(n) for name, n in zip(_NAMES, bar.values, strict=True)
    }
    if bar.rev:
        plain["rev"] = bar.rev
    return plain


def compare(
    check: str,
    market: MarketKey,
    interval: Interval,
    expected: Iterable[Candle],
    found: Iterable[Candle],
    *,
    quote_may_be_absent: bool = False,
    revisions: bool = False,
) -> list[Difference]:
    """Return the bars of `found` that differ from `expected`, oldest first. Numbers are compared exactly (10.0 is 10).

    With `quote_may_be_absent`, a quote volume that only one side has is no difference. With `revisions`, a different
    `rev` is one.
    """
    found_bars, expected_bars = {bar.open_ms: bar for bar in found}, {bar.open_ms: bar for bar in expected}
    return [
        Difference(
            check=check,
            market=market,
            interval=interval,
            open_ms=open_ms,
            expected=expected_bars.get(open_ms),
            found=found_bars.get(open_ms),
        )
        for open_ms in sorted(found_bars.keys() | expected_bars.keys())
        if not _same(expected_bars.get(open_ms), found_bars.get(open_ms), quote_may_be_absent, revisions)
    ]


def _same(one: Candle | None, other: Candle | None, quote_may_be_absent: bool, revisions: bool) -> bool:
    if one is None or other is None or (revisions and one.rev != other.rev):
        return False
    if quote_may_be_absent and (one.quote_volume is None or other.quote_volume is None):
        return one.values[:-1] == other.values[:-1]
    return one.values == other.values


def recompute(minutes: Sequence[Candle], intervals: Iterable[Interval]) -> Mapping[Interval, list[Candle]]:
    """Return the bars of each of `intervals` above 1m, aggregated from `minutes`, oldest first."""
    bars: dict[Interval, list[Candle]] = {MINUTE: list(minutes)}
    for interval, source in sources(intervals).items():
        bars[interval] = fold_bars(bars[source], interval)
    del bars[MINUTE]
    return bars


def impossible(market: MarketKey, minutes: Iterable[Candle]) -> list[Difference]:
    """Return the minutes with impossible values."""
    wrong = []
    for minute in minutes:
        try:
            minute.checked()
        except InvalidCandle as error:
            wrong.append(
                Difference(check="minute", market=market, interval=MINUTE, open_ms=minute.open_ms, problem=str(error))
            )
    return wrong


def contradictions(market: MarketKey, minutes: Iterable[Candle]) -> list[Difference]:
    """Return the minutes that do not open at the previous close, if the exchange promises that all do.

    Imported minutes may come from another exchange and are not compared.
    """
    wrong = []
    for before, minute in pairwise(minutes):
        adjoin = before.open_ms + MINUTE.ms == minute.open_ms and before.src and minute.src
        if adjoin and before.close != minute.open:
            problem = (
                f"opens at {decimal_text(minute.open)}, though the minute before closed at "
                f"{decimal_text(before.close)}: one of the two is wrong"
            )
            wrong.append(
                Difference(check="neighbour", market=market, interval=MINUTE, open_ms=minute.open_ms, problem=problem)
            )
    return wrong
