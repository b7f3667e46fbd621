"""The client's values: bars with exact numbers and aware times, and the status of a stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from candled.errors import CandledError
from candled.model import iso_ms, parse_iso_ms

if TYPE_CHECKING:
    import pandas
    import polars

State = Literal[
    "connecting", "loading", "live", "quiet", "polling", "stale", "warming", "recovering", "lost", "refused", "closed"
]  # fmt: skip


class RequestRejected(CandledError):
    """A request that the server refuses, and would refuse again.

    `code` is the server's error code; None if it sent none.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class ConnectionEnded(RequestRejected):
    """The connection has ended, and the client does not connect again."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar. The numbers are exactly those that the server sent."""

    #: When the bar opens, in UTC.
    time: datetime
    #: The first price, in the quote currency.
    open: Decimal
    #: The highest price.
    high: Decimal
    #: The lowest price.
    low: Decimal
    #: The last price so far; of a final bar, the last one.
    close: Decimal
    #: The traded amount, in the base currency.
    volume: Decimal
    #: The traded amount in the quote currency; None if the exchange does not send it.
    quote_volume: Decimal | None = None
    #: True once the bar is over and the grace period for late updates has passed; None if the server does not send it.
    final: bool | None = None
    #: How often the bar was revised after it was final.
    rev: int = 0
    #: The source of the bar: `live`, `rest`, `backfill` or `agg`.
    src: str = ""

    @classmethod
    def from_wire(cls, bar: Mapping[str, Any]) -> "Bar":
        """Return a bar of a message whose numbers were parsed as `Decimal`."""
        open_, high, low, close, volume = (_number(bar[key]) for key in ("open", "high", "low", "close", "volume"))
        quote = _number(bar["quoteVolume"]) if "quoteVolume" in bar else None
        final, rev, src = bar.get("final"), int(bar.get("rev", 0)), str(bar.get("src", ""))
        return cls(moment(bar["time"]), open_, high, low, close, volume, quote, final, rev, src)


class MarketBar(NamedTuple):
    """A bar, and the symbol of its market."""

    symbol: str
    bar: Bar


@dataclass(frozen=True, slots=True)
class Status:
    """The status of a stream."""

    #: The state in one word.
    state: State
    #: When this state of the feed began; None if the server does not send it.
    since: datetime | None = None
    #: With `lost`: the seconds until the next attempt.
    retry_s: float | None = None
    #: With `lost` and `refused`, and with `loading` after a temporary error: the reason in words.
    message: str = ""
    #: Why the feed is not `live`: one word of docs/how-to/troubleshooting.md.
    reason: str = ""


class Bars(Sequence[Bar]):
    """Bars, oldest first and each once. You can convert them to a polars or pandas frame."""

    def __init__(self, bars: Sequence[Bar] = ()) -> None:
        self._bars = tuple(bars)

    def __len__(self) -> int:
        return len(self._bars)

    @overload
    def __getitem__(self, index: int) -> Bar: ...
    @overload
    def __getitem__(self, index: slice) -> "Bars": ...
    def __getitem__(self, index: int | slice) -> "Bar | Bars":
        return Bars(self._bars[index]) if isinstance(index, slice) else self._bars[index]

    def __iter__(self) -> Iterator[Bar]:
        return iter(self._bars)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._bars)

    def __repr__(self) -> str:
        ends = f"{self._bars[0].time:%Y-%m-%d %H:%M} to {self._bars[-1].time:%Y-%m-%d %H:%M}" if self._bars else "none"
        return f"<{len(self._bars)} bars, {ends}>"

    def to_polars(self) -> "polars.DataFrame":
        """Return a polars frame: one row per bar, `time` in UTC, numbers as float64."""
        import polars

        floats = dict.fromkeys(_NUMBERS, polars.Float64)
        return polars.DataFrame(self._as_columns(), schema_overrides={"time": polars.Datetime("ms", "UTC"), **floats})

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a pandas frame: one row per bar, `time` as its index, numbers as float64."""
        import pandas

        columns = self._as_columns()
        index = pandas.DatetimeIndex(columns.pop("time"), name="time", tz="UTC")
        return pandas.DataFrame(columns, index=index)

    def _as_columns(self) -> dict[str, list[Any]]:
        """Return one list per field, with prices and volumes as floats for calculations."""
        columns = {field.name: [getattr(bar, field.name) for bar in self._bars] for field in fields(Bar)}
        for name in _NUMBERS:
            columns[name] = [None if number is None else float(number) for number in columns[name]]
        return columns


_NUMBERS = ("open", "high", "low", "close", "volume", "quote_volume")


def wire_time(at: datetime | int | str) -> str:
    """Return a time for a message. `at` is an aware datetime, epoch milliseconds or ISO 8601 text.

    Raises:
        ValueError: a datetime without a time zone, or text that is not a time.
    """
    if isinstance(at, str):
        return iso_ms(parse_iso_ms(at))
    if isinstance(at, int):
        return iso_ms(at)
    if at.tzinfo is None:
        raise ValueError(f"expected a datetime with a time zone, such as datetime(..., tzinfo=UTC); got {at!r}")
    return iso_ms(parse_iso_ms(at.isoformat()))


def moment(time: str) -> datetime:
    """Return a message's time as an aware datetime."""
    return datetime.fromisoformat(iso_ms(parse_iso_ms(time)))


def _number(number: Any) -> Decimal:
    if not isinstance(number, Decimal):
        raise TypeError(f"expected a number, got {number!r}")
    return number
