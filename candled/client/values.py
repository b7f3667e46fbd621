"""What the client gives: bars with exact numbers and aware times, and the state of a stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, overload

from candled.errors import CandledError
from candled.model import iso_ms, parse_iso_ms

if TYPE_CHECKING:
    import pandas
    import polars

State = Literal[
    "connecting", "loading", "live", "quiet", "polling", "stale", "warming", "recovering", "lost", "refused", "closed"
]  # fmt: skip


class RequestRejected(CandledError):
    """The server refuses what was asked for, and asking again will not change it.

    `code` is the server's number for it, or None where it says none.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar that opens at `time`, in UTC. The numbers are exactly those that the server printed.

    `quote_volume` is None where the exchange does not send it. `final`: the bar is over and its late versions had
    their chance; None where the server does not say. `rev` is how often it was revised after that, `src` where it
    came from: `live`, `rest`, `backfill` or `agg`.
    """

    time: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal | None = None
    final: bool | None = None
    rev: int = 0
    src: str = ""

    @classmethod
    def from_wire(cls, bar: Mapping[str, Any]) -> "Bar":
        """A bar of the wire, its numbers parsed as `Decimal`."""
        open_, high, low, close, volume = (_number(bar[key]) for key in ("open", "high", "low", "close", "volume"))
        quote = _number(bar["quoteVolume"]) if "quoteVolume" in bar else None
        final, rev, src = bar.get("final"), int(bar.get("rev", 0)), str(bar.get("src", ""))
        return cls(moment(bar["time"]), open_, high, low, close, volume, quote, final, rev, src)


@dataclass(frozen=True, slots=True)
class Status:
    """How a stream stands, in one word.

    `since`: when the feed began to be so, where the server tells. `reason`: why it is not `live`, one word of
    docs/how-to/troubleshooting.md. `retry_s`: with `lost`, the seconds until the next
    attempt. `message`: with `lost` and `refused`, why.
    """

    state: State
    since: datetime | None = None
    retry_s: float | None = None
    message: str = ""
    reason: str = ""


class Bars(Sequence[Bar]):
    """Bars, oldest first and each once; a frame of polars or pandas if that is installed."""

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
        """A polars frame: `time` with UTC, numbers as float64, one row a bar."""
        import polars

        floats = dict.fromkeys(_NUMBERS, polars.Float64)
        return polars.DataFrame(self._as_columns(), schema_overrides={"time": polars.Datetime("ms", "UTC"), **floats})

    def to_pandas(self) -> "pandas.DataFrame":
        """A pandas frame with `time` as its index, numbers as float64, one row a bar."""
        import pandas

        columns = self._as_columns()
        index = pandas.DatetimeIndex(columns.pop("time"), name="time", tz="UTC")
        return pandas.DataFrame(columns, index=index)

    def _as_columns(self) -> dict[str, list[Any]]:
        """One list a field; prices and volumes as floats, which frames calculate with."""
        rows = [asdict(bar) for bar in self._bars]
        columns = {field.name: [row[field.name] for row in rows] for field in fields(Bar)}
        for name in _NUMBERS:
            columns[name] = [None if number is None else float(number) for number in columns[name]]
        return columns


_NUMBERS = ("open", "high", "low", "close", "volume", "quote_volume")


def wire_time(at: datetime | int | str) -> str:
    """A time of the caller as the wire has it: an aware datetime, epoch milliseconds, or ISO 8601 text.

    Raises:
        ValueError: a datetime without a time zone, or no time at all.
    """
    if isinstance(at, str):
        return iso_ms(parse_iso_ms(at))
    if isinstance(at, int):
        return iso_ms(at)
    if at.tzinfo is None:
        raise ValueError(f"expected a datetime with a time zone, such as datetime(..., tzinfo=UTC); got {at!r}")
    return iso_ms(parse_iso_ms(at.isoformat()))


def moment(time: str) -> datetime:
    """A time of the wire."""
    return datetime.fromisoformat(iso_ms(parse_iso_ms(time)))


def _number(number: Any) -> Decimal:
    if not isinstance(number, Decimal):
        raise TypeError(f"expected a number, got {number!r}")
    return number
