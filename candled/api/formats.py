"""Bars as JSON, NDJSON, CSV and Arrow, a page at a time. Numbers are exact in all of them."""

import importlib
import io
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Protocol

import msgspec

from candled.model import Candle, Interval, MarketKey, decimal_text
from candled.protocol.messages import FINAL, bar_text

from .errors import ApiError

NUMBERS = ("open", "high", "low", "close", "volume", "quote_volume")
COLUMNS = ("time_ms", *NUMBERS, "final")
CONTENT_TYPES = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "arrow": "application/vnd.apache.arrow.stream",
}


class Format(Protocol):
    """Writes bars in one format: a beginning, a part for each page, an end."""

    def begin(self) -> bytes: ...
    def page(self, bars: Sequence[Candle]) -> bytes: ...
    def end(self) -> bytes: ...


def json_number(number: Decimal, numbers: int = 0) -> msgspec.Raw:
    """Return a decimal as an exact JSON number without exponent, with `STRINGS` as a string."""
    return msgspec.Raw((f'"{decimal_text(number)}"' if numbers else decimal_text(number)).encode())


def json_bar(bar: Candle, numbers: int = 0) -> str:
    """Return a bar as on the WebSocket, and whether it is final; with `STRINGS` its numbers are strings."""
    return bar_text(bar, FINAL | numbers, final=bar.final)


class Ndjson:
    """A JSON object a line."""

    def __init__(self, numbers: int = 0) -> None:
        self._numbers = numbers

    def begin(self) -> bytes:
        return b""

    def page(self, bars: Sequence[Candle]) -> bytes:
        return "".join(f"{json_bar(bar, self._numbers)}\n" for bar in bars).encode()

    def end(self) -> bytes:
        return b""


class Csv:
    """The columns of `candled export` and `candled import`; an absent quote volume is empty."""

    def begin(self) -> bytes:
        return (",".join(COLUMNS) + "\n").encode()

    def page(self, bars: Sequence[Candle]) -> bytes:
        return "".join(
            f"{bar.open_ms},{','.join(_cell(number) or '' for number in bar.values)},{_yes(bar.final)}\n"
            for bar in bars
        ).encode()

    def end(self) -> bytes:
        return b""


class Arrow:
    """An Arrow IPC stream, a record batch a page.

    Numbers are strings, as in the Parquet files of `candled export`: a decimal column has one scale for all its rows,
    which would add or cut digits.

    Raises:
        Refusal: pyarrow is not installed.
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
        return self._sink.take_bytes()

    def page(self, bars: Sequence[Candle]) -> bytes:
        columns: list[list[Any]] = [[bar.open_ms for bar in bars]]
        columns += [[_cell(bar.values[index]) for bar in bars] for index in range(len(NUMBERS))]
        columns += [[bar.final for bar in bars]]
        arrays = [self._arrow.array(cells, field.type) for cells, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))
        return self._sink.take_bytes()

    def end(self) -> bytes:
        self._writer.close()
        return self._sink.take_bytes()


class _Sink(io.RawIOBase):
    """A file that hands out what was written to it."""

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
    """Return the format of that name; `numbers` matters to NDJSON only, the others have strings anyway.

    Raises:
        Refusal: it needs what is not installed.
    """
    if name == "arrow":
        return Arrow(market, interval)
    return Csv() if name == "csv" else Ndjson(numbers)


def _cell(number: Any) -> str | None:
    return None if number is None else decimal_text(number)


def _yes(is_so: bool) -> str:
    return "true" if is_so else "false"
