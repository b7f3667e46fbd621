"""Bars in a few dozen bytes each, without loss. A candle with its decimals takes about 800 bytes."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow, Underflow
from functools import lru_cache
from itertools import repeat, starmap
from operator import add, mul, sub
from struct import Struct
from struct import error as does_not_fit
from typing import Any

from candled.model import Candle

_EXACT = Context(prec=200, traps=[Inexact, Overflow, Underflow, InvalidOperation])  # only zeros may be cut off
_scale, _whole, _multiply = _EXACT.scaleb, _EXACT.to_integral_exact, _EXACT.multiply
_CODES = ("b", "h", "i", "q", "12s")  # encodings of a field; the last one is an integer of 12 bytes
_BITS = (7, 15, 31, 63, 95)  # the capacity of each besides the sign
_WIDE = len(_CODES) - 1
_MANY = 8  # bars; fewer are encoded faster one by one
_SAMPLE = 16  # of many bars to insert, one of so many shows their digits
_NOT_A_ROW = (ArithmeticError, ValueError, KeyError, does_not_fit)

_SOURCES = ("", "live", "rest", "backfill", "agg", "trades")
_NUMBERS = {source: number << 3 for number, source in enumerate(_SOURCES)}
_FINAL, _HAS_QUOTE, _ODD = 1, 2, 4
# the flags of bars with a quote volume that are not odd, and their meaning
_PLAIN = frozenset(number | _HAS_QUOTE | is_final for number in _NUMBERS.values() for is_final in (0, _FINAL))
_IS_FINAL = {flags: flags & _FINAL == _FINAL for flags in _PLAIN}
_SOURCE_OF = {flags: _SOURCES[flags >> 3] for flags in _PLAIN}
_ODD_ROW = (0, 0, 0, 0, 0, 0, 0, 0, _ODD)
# fields of a group have one width, those of the first three groups also one number of decimals
_GROUPS = (0, 0, 0, 0, 1, 2, 3, 4, 5)


class _Shape:
    """The encoding of rows: decimals of prices, volume and quote volume, and the width of each group of fields."""

    __slots__ = ("decimals", "struct", "units", "wide", "widths")

    def __init__(self, decimals: tuple[int, int, int], widths: tuple[int, ...]) -> None:
        self.decimals = decimals
        self.widths = widths
        self.struct = Struct("<" + "".join(_CODES[widths[group]] for group in _GROUPS))
        self.units = tuple(Decimal((0, (1,), -digits)) for digits in decimals)  # the value of one unit of each integer
        self.wide = tuple(field for field, group in enumerate(_GROUPS) if widths[group] == _WIDE)

    def pack_row(self, numbers: Sequence[int]) -> bytes:
        """Encode the fields of a row.

        Raises:
            struct.error, OverflowError: a number does not fit.
        """
        if not self.wide:
            return self.struct.pack(*numbers)
        fields: list[int | bytes] = list(numbers)
        for field in self.wide:
            fields[field] = numbers[field].to_bytes(12, "little", signed=True)
        return self.struct.pack(*fields)

    def pack_bars(self, bars: Sequence[Candle]) -> bytes:
        """Encode many bars, oldest first.

        Raises:
            ArithmeticError, ValueError, KeyError, struct.error: as `_integers` and `pack_row`.
        """
        if self.wide or len(bars) < _MANY or any(bar.quote_volume is None for bar in bars):
            return b"".join([self.pack_row(_integers(bar, self.decimals)) for bar in bars])
        # column by column, which takes half the time of many
        times, *prices, volumes, quotes, stamps, finals, revs, sources = zip(*bars, strict=True)
        price, volume, quote = self.decimals
        columns = zip((*prices, volumes, quotes), (price, price, price, price, volume, quote), strict=True)
        numbers = [map(int, map(_whole, map(_scale, column, repeat(digits)))) for column, digits in columns]
        flags = [_NUMBERS[source] | _HAS_QUOTE | final for source, final in zip(sources, finals, strict=True)]
        return b"".join(self.pack_columns([*numbers, map(sub, stamps, times), revs, flags]))

    def pack_columns(self, columns: Sequence[Iterable[int]]) -> Iterable[bytes]:
        """Encode many rows, given by columns.

        Raises:
            struct.error, OverflowError: as `pack_row`, while the result is read.
        """
        rows = zip(*columns, strict=True)
        return map(self.pack_row, rows) if self.wide else starmap(self.struct.pack, rows)

    def unpack_rows(self, rows: bytes | bytearray | memoryview) -> Iterator[Sequence[int]]:
        """Decode many rows of `pack_row`."""
        fields = self.struct.iter_unpack(rows)
        return map(self._narrowed, fields) if self.wide else fields

    def unpack_row(self, rows: bytearray, index: int) -> Sequence[int]:
        """Decode one row of `pack_row`."""
        fields = self.struct.unpack_from(rows, index * self.struct.size)
        return self._narrowed(fields) if self.wide else fields

    def _narrowed(self, fields: Sequence[Any]) -> Sequence[int]:
        numbers = list(fields)
        for field in self.wide:
            numbers[field] = int.from_bytes(fields[field], "little", signed=True)
        return numbers


_shape = lru_cache(maxsize=1024)(_Shape)  # a few dozen are in use, each by many


class PackedBars:
    """Encoded bars, oldest first. The caller keeps their opening times.

    All rows have one shape, which is widened when a bar needs more digits. A bar that does not fit into 12 bytes per
    number is kept as an object.
    """

    __slots__ = ("_odd", "_rows", "_shape")

    def __init__(self) -> None:
        self._shape = _shape((0, 0, 0), (0, 0, 0, 0, 0, 0))
        self._rows = bytearray()
        self._odd: dict[int, Candle] = {}

    def __len__(self) -> int:
        return len(self._rows) // self._shape.struct.size

    @property
    def decimals(self) -> tuple[int, int, int]:
        """The largest number of decimals of prices, volumes and quote volumes of any bar so far."""
        return self._shape.decimals

    def get_bar(self, index: int, open_ms: int) -> Candle:
        """Return one bar, which opens at `open_ms`."""
        return self._make_bar(open_ms, self._shape.unpack_row(self._rows, index), *self._shape.units)

    def get_bars(self, first: int, times: Sequence[int]) -> list[Candle]:
        """Return the bars from index `first` on, which open at `times`."""
        shape, size = self._shape, self._shape.struct.size
        rows = list(shape.unpack_rows(memoryview(self._rows)[first * size : (first + len(times)) * size]))
        if not rows:
            return []
        *numbers, ages, revs, flags = zip(*rows, strict=True)
        if set(flags) - _PLAIN:
            return [self._make_bar(open_ms, row, *shape.units) for open_ms, row in zip(times, rows, strict=True)]
        # column by column, which takes half the time
        units = (shape.units[group] for group in _GROUPS)
        values = [map(_multiply, column, repeat(unit)) for column, unit in zip(numbers, units, strict=False)]
        stamps = map(add, times, ages)
        finals, sources = map(_IS_FINAL.__getitem__, flags), map(_SOURCE_OF.__getitem__, flags)
        return list(map(Candle._make, zip(times, *values, stamps, finals, revs, sources, strict=True)))

    def insert_bars(self, index: int, bars: Sequence[Candle]) -> None:
        """Insert bars before the one at `index`."""
        for sample in (bars[::_SAMPLE], bars):  # the shape is nearly always wide enough for all of them then
            if self._try_insert(index, bars):
                return
            for bar in sample:
                self._fit_bar(bar)
        if not self._try_insert(index, bars):
            for at, bar in enumerate(bars, index):
                self._put_rows(at, 0, self._pack_bar(bar))

    def replace_bar(self, index: int, bar: Candle) -> None:
        """Replace a bar by another with the same opening time."""
        self._odd.pop(bar.open_ms, None)
        self._put_rows(index, 1, self._pack_bar(bar))

    def drop_oldest(self, count: int, times: Iterable[int]) -> None:
        """Drop the oldest `count` bars, which open at `times`."""
        if self._odd:
            for open_ms in times:
                self._odd.pop(open_ms, None)
        del self._rows[: count * self._shape.struct.size]

    # ------------------------------------------------------------ inside

    def _make_bar(self, open_ms: int, row: Sequence[int], price: Decimal, volume: Decimal, quote: Decimal) -> Candle:
        opened, high, low, close, amount, turnover, age_ms, rev, flags = row
        if flags & _ODD:
            return self._odd[open_ms]
        return Candle(
            open_ms,
            _multiply(opened, price),
            _multiply(high, price),
            _multiply(low, price),
            _multiply(close, price),
            _multiply(amount, volume),
            _multiply(turnover, quote) if flags & _HAS_QUOTE else None,
            open_ms + age_ms,
            flags & _FINAL == _FINAL,
            rev,
            _SOURCES[flags >> 3],
        )

    def _put_rows(self, index: int, count: int, rows: bytes) -> None:
        """Replace `count` rows by others."""
        size = self._shape.struct.size
        self._rows[index * size : (index + count) * size] = rows

    def _try_insert(self, index: int, bars: Sequence[Candle]) -> bool:
        """Insert bars if all of them fit into the present shape; return whether they do."""
        try:
            rows = self._shape.pack_bars(bars)
        except _NOT_A_ROW:
            return False
        self._put_rows(index, 0, rows)
        return True

    def _pack_bar(self, bar: Candle) -> bytes:
        """Return a bar as a row, after widening the shape if needed."""
        row = self._fit_bar(bar)
        if row is None:
            self._odd[bar.open_ms] = bar
            row = self._shape.pack_row(_ODD_ROW)
        return row

    def _fit_bar(self, bar: Candle) -> bytes | None:
        """Return a bar as a row, after widening the shape if needed; None if it fits into no shape."""
        try:
            return self._shape.pack_row(_integers(bar, self._shape.decimals))
        except _NOT_A_ROW:
            fits = self._make_room(bar)
        return self._shape.pack_row(_integers(bar, self._shape.decimals)) if fits else None

    def _make_room(self, bar: Candle) -> bool:
        """Widen the shape so that this bar and all others fit; return whether that is possible."""
        shape = self._shape
        try:
            decimals = _decimals(bar, shape.decimals)
            least = _widths(zip(_integers(bar, decimals), strict=True), shape.widths)
            columns = list(zip(*shape.unpack_rows(self._rows), strict=True))
            for field, group in enumerate(_GROUPS[: len(columns)]):
                by = 10 ** (decimals[group] - shape.decimals[group]) if group < 3 else 1
                if by > 1:
                    columns[field] = tuple(map(mul, columns[field], repeat(by)))
            wider = _shape(decimals, least if decimals == shape.decimals else _widths(columns, least))
        except _NOT_A_ROW:
            return False
        if wider is not shape:
            self._rows = bytearray(b"".join(wider.pack_columns(columns)))
            self._shape = wider
        return True


def _integers(bar: Candle, decimals: Sequence[int]) -> tuple[int, ...]:
    """Return the fields of a bar as integers.

    Raises:
        ArithmeticError, ValueError, KeyError: a number has more digits, or a field has an unsupported value.
    """
    open_ms, open_, high, low, close, amount, turnover, as_of_ms, final, rev, source = bar
    price, volume, quote = decimals
    return (
        int(_whole(_scale(open_, price))),
        int(_whole(_scale(high, price))),
        int(_whole(_scale(low, price))),
        int(_whole(_scale(close, price))),
        int(_whole(_scale(amount, volume))),
        0 if turnover is None else int(_whole(_scale(turnover, quote))),
        as_of_ms - open_ms,
        rev,
        _NUMBERS[source] | (0 if turnover is None else _HAS_QUOTE) | final,
    )


def _decimals(bar: Candle, at_least: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the decimals needed for prices, volume and quote volume."""
    price, volume, quote = at_least
    return (
        max(price, *map(digits_after_point, bar[1:5])),
        max(volume, digits_after_point(bar.volume)),
        quote if bar.quote_volume is None else max(quote, digits_after_point(bar.quote_volume)),
    )


def digits_after_point(number: Decimal) -> int:
    """Return the number of digits that a number needs after the point; negative if it ends with zeros before it."""
    return -int(_EXACT.normalize(number).as_tuple().exponent)


def _widths(columns: Iterable[Sequence[int]], at_least: Sequence[int]) -> tuple[int, ...]:
    """Return the required width of each group of fields; without columns, `at_least`.

    Raises:
        OverflowError: a field needs more than 12 bytes.
    """
    widths = list(at_least)
    for group, column in zip(_GROUPS, columns, strict=False):
        bits = max(max(column).bit_length(), (~min(column)).bit_length())
        width = bisect_left(_BITS, bits)
        if width > _WIDE:
            raise OverflowError(f"{bits} bits and a sign")
        widths[group] = max(widths[group], width)
    return tuple(widths)
