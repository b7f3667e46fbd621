"""Bars as JSON, NDJSON, CSV and Arrow, part by part. Numbers are exact in all formats."""

import importlib
import io
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from candled.model import BarTexts, Candle, Interval, MarketKey, decimal_text
from candled.protocol.messages import FINAL, bar_text

from .errors import ApiError

NUMBERS = ("open", "high", "low", "close", "volume", "quote_volume")
COLUMNS = ("time_ms", *NUMBERS, "final")
CONTENT_TYPES = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "arrow": "application/vnd.apache.arrow.stream",
}


def json_number(number: Decimal, numbers: int = 0) -> msgspec.Raw:
    """Return a decimal as an exact JSON number without exponent; as a string with `STRINGS`."""
    return msgspec.Raw((f'"{decimal_text(number)}"' if numbers else decimal_text(number)).encode())


class Lines:
    """One line for each bar, after the line `head` if the format has one."""

    def __init__(self, line_of: Callable[[Candle], str], head: str = "") -> None:
        self._line_of = line_of
        self._head = head

    def begin(self) -> bytes:
        """Return the line with the names of the columns, or nothing."""
        return self._head.encode()

    def encode_bars(self, bars: Sequence[Candle]) -> bytes:
        """Return a line for each bar."""
        return "".join(f"{self._line_of(bar)}\n" for bar in bars).encode()

    def end(self) -> bytes:
        """Return nothing: lines have no end."""
        return b""


class Arrow:
    """An Arrow IPC stream with many record batches.

    Numbers are strings, as in the Parquet files of `candled export`. A decimal column has one scale for all rows, which
    would add or cut digits.

    Raises:
        ApiError: pyarrow is not installed.
    """

    def __init__(self, market: MarketKey, interval: Interval) -> None:
        try:
            self._arrow: Any = importlib.import_module("pyarrow")
        except ImportError:
            message = "format=arrow needs pyarrow on the server: pip install 'candled[parquet]'"
            raise ApiError(501, "format_unavailable", message) from None
        types = [self._arrow.int64(), *(self._arrow.string() for _ in NUMBERS), self._arrow.bool_()]
        self._schema = self._arrow.schema(
            list(zip(COLUMNS, types, strict=True)),
            metadata={"exchange": market.exchange, "symbol": str(market.symbol), "interval": str(interval)},
        )
        self._sink = _Sink()
        self._writer: Any = self._arrow.ipc.new_stream(self._sink, self._schema)

    def begin(self) -> bytes:
        """Return the schema."""
        return self._sink.take_bytes()

    def encode_bars(self, bars: Sequence[Candle]) -> bytes:
        """Return a record batch."""
        columns: list[list[Any]] = [[bar.open_ms for bar in bars]]
        columns += [[_cell(bar.values[index]) for bar in bars] for index in range(len(NUMBERS))]
        columns += [[bar.final for bar in bars]]
        arrays = [self._arrow.array(cells, field.type) for cells, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))
        return self._sink.take_bytes()

    def end(self) -> bytes:
        """Return the end of the stream."""
        self._writer.close()
        return self._sink.take_bytes()


Format = Lines | Arrow
"""Writes bars in one format: a header, parts with some bars each, and an end."""


class _Sink(io.RawIOBase):
    """A file whose written bytes can be taken out."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self._parts.append(bytes(part))
        return len(self._parts[-1])

    def take_bytes(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def make_format(name: str, market: MarketKey, interval: Interval, numbers: int = 0) -> Format:
    """Return the format of this name. `numbers` only affects NDJSON; CSV and Arrow use strings anyway.

    Raises:
        ApiError: the format needs a package that is not installed.
    """
    if name == "arrow":
        return Arrow(market, interval)
    if name == "csv":  # the columns of `candled export` and `candled import`; a missing quote volume is empty
        return Lines(lambda bar: csv_line(bar, bar.final), ",".join(COLUMNS) + "\n")
    return Lines(lambda bar: bar_text(bar, FINAL | numbers, final=bar.final))


def _cell(number: Any) -> str | None:
    return None if number is None else decimal_text(number)


def csv_line(bar: Candle, final: bool) -> str:
    """Return a bar's line of CSV without its end."""
    cells = ",".join("" if number is None else decimal_text(number) for number in bar[1:7])
    return f"{bar.open_ms},{cells},{'true' if final else 'false'}"


def final_csv_lines(bars: BarTexts) -> list[str]:
    """Return the lines of final bars."""
    quotes = ["" if quote is None else quote for quote in bars.quotes]
    return list(map("%d,%s,%s,%s,%s,%s,%s,true".__mod__, zip(*bars[:6], quotes, strict=True)))
