"""Files of candles, CSV and Parquet: writes stored values exactly, and reads and checks row by row."""

import csv
import gzip
import importlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from candled.errors import ConfigError, InvalidCandle
from candled.model import DAY_MS, MINUTE, MINUTE_MS, Candle, Interval, MarketKey

NEEDED = ("time_ms", "open", "high", "low", "close", "volume")
OPTIONAL = ("quote_volume", "as_of_ms")
_IGNORED = ("trades", "final")
_NUMBERS = ("open", "high", "low", "close", "volume", "quote_volume")
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"

Write = Callable[[Sequence[Candle]], None]

# ---------------------------------------------------------------- writing


@contextmanager
def open_writer(output: str, kind: str, market: MarketKey, interval: Interval) -> Iterator[Write]:
    """Open a file, `-` for standard output, and yield a function that writes bars; `kind` is `csv` or `parquet`.

    A file gets its name only when the block has ended without an error, so there are no partial files. The same bars
    give the same bytes, also compressed.

    Raises:
        ConfigError: the file cannot be written, or pyarrow is missing.
    """
    if output == "-":
        _write_header(sys.stdout, interval)
        yield lambda bars: _write_csv(sys.stdout, bars, interval)
        return
    path = Path(output)
    special = path.exists() and not path.is_file()  # a pipe keeps its place
    target = path if special else path.with_name(f"{path.name}.part")
    try:
        with ExitStack() as stack:
            if kind == "parquet":
                yield _parquet_writer(stack, target, market, interval)
            else:
                text = _text_file(stack, target, zipped=path.name.endswith(".gz"))
                _write_header(text, interval)
                yield lambda bars: _write_csv(text, bars, interval)
        if not special:
            target.replace(path)
    except BaseException as error:
        if not special:
            target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def _text_file(stack: ExitStack, path: Path, *, zipped: bool) -> IO[str]:
    raw: IO[bytes] = stack.enter_context(path.open("wb"))
    if zipped:
        raw = cast(IO[bytes], stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)))
    return stack.enter_context(io.TextIOWrapper(raw, "utf-8", newline="\n"))


def _write_header(out: IO[str], interval: Interval) -> None:
    out.write(",".join(_columns(interval)) + "\n")


def _columns(interval: Interval) -> tuple[str, ...]:
    return NEEDED + (OPTIONAL if interval == MINUTE else OPTIONAL[:1])


def _write_csv(out: IO[str], bars: Sequence[Candle], interval: Interval) -> None:
    with_as_of = interval == MINUTE
    out.writelines(
        f"{bar.open_ms},{','.join(map(_text, bar.values))}{f',{bar.as_of_ms}' if with_as_of else ''}\n" for bar in bars
    )


def _text(number: Decimal | None) -> str:
    """Return every stored digit, trailing zeros too, without an exponent."""
    return "" if number is None else format(number, "f")


def _parquet_writer(stack: ExitStack, path: Path, market: MarketKey, interval: Interval) -> Write:
    """Return a writer of strings: a decimal column has one scale for all rows, which would add or cut zeros."""
    pyarrow, parquet = _pyarrow()
    times = [name for name in _columns(interval) if name not in _NUMBERS]
    schema = pyarrow.schema(
        [(name, pyarrow.int64() if name in times else pyarrow.string()) for name in _columns(interval)],
        metadata={"exchange": market.exchange, "symbol": str(market.symbol), "interval": str(interval)},
    )
    writer = stack.enter_context(parquet.ParquetWriter(str(path), schema, compression="zstd"))

    def write(bars: Sequence[Candle]) -> None:
        rows = [(bar.open_ms, *(None if n is None else _text(n) for n in bar.values), bar.as_of_ms) for bar in bars]
        if rows:
            columns = list(zip(*rows, strict=True))[: len(schema.names)]
            writer.write_table(pyarrow.table(list(map(list, columns)), schema=schema))

    return write


# ---------------------------------------------------------------- reading


class BadRow(NamedTuple):
    """A row that cannot be a candle: its place in the file, and the problem."""

    where: str
    problem: str


class _Table(NamedTuple):
    columns: Sequence[str]
    rows: Iterator[
        tuple[str, Sequence[str]]
    ]  # the place of each row, and its cells: an empty string for a missing value


def read_candles(path: Path, now_ms: int) -> Iterator[Candle | BadRow]:
    """Yield every row of a file as a final 1-minute candle or as a bad row, in the order of the file.

    The file is CSV, optionally compressed with gzip, or Parquet, as its first bytes show. Columns are `time_ms` (UTC
    epoch milliseconds), `open`, `high`, `low`, `close`, `volume`, and optionally `quote_volume` (blank is unknown, not
    0) and `as_of_ms`. Without `as_of_ms`, the end of the minute is used, so that a later version from the exchange is
    kept. Times must ascend. `now_ms` is the present: a minute that is not over is a bad row.

    Raises:
        ConfigError: the file cannot be read, or is not of that form.
    """
    with _open_table(path) as table:
        pick = _picker(path, table.columns)
        newest_ms = -1
        for where, cells in table.rows:
            try:
                if len(cells) != len(table.columns):
                    raise InvalidCandle(f"expected {len(table.columns)} columns, got {len(cells)}")
                candle = _candle(pick(cells), now_ms)
                if candle.open_ms <= newest_ms:
                    raise InvalidCandle(f"expected a time after {newest_ms}, got {candle.open_ms}")
            except InvalidCandle as error:
                yield BadRow(where, str(error))
                continue
            newest_ms = candle.open_ms
            yield candle


def has_as_of(path: Path) -> bool:
    """Return True if the file has a column `as_of_ms`, which only exports of minutes have.

    Raises:
        ConfigError: as `read_candles`.
    """
    with _open_table(path) as table:
        return "as_of_ms" in table.columns


def _picker(path: Path, columns: Sequence[str]) -> Callable[[Sequence[str]], Sequence[str]]:
    """Return a function that picks the cells of NEEDED and OPTIONAL from a row, empty for a missing column."""
    problems = [f"no column {name}" for name in NEEDED if name not in columns]
    problems += [f"unknown column {name!r}" for name in columns if name not in NEEDED + OPTIONAL + _IGNORED]
    problems += [f"column {name} is listed twice" for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if problems:
        expected = f"{','.join(NEEDED)}[,{'][,'.join(OPTIONAL)}]"
        raise ConfigError([f"{path}: {problem}; expected {expected}" for problem in problems[:3]])
    places = [columns.index(name) if name in columns else len(columns) for name in NEEDED + OPTIONAL]
    take: Callable[[Sequence[str]], Sequence[str]] = itemgetter(*places)
    return lambda cells: take((*cells, ""))


def _candle(cells: Sequence[str], now_ms: int) -> Candle:
    time_ms, opened, high, low, close, volume, quote_volume, as_of = cells
    candle = Candle.parse(time_ms, opened, high, low, close, volume, quote_volume or None, final=True)
    end_ms = candle.open_ms + MINUTE_MS
    if end_ms > now_ms:
        raise InvalidCandle(f"expected a minute that is over, got {candle.open_ms}")
    if not as_of:
        return candle._replace(as_of_ms=end_ms)
    if not (as_of.isascii() and as_of.isdigit()) or int(as_of) > now_ms + DAY_MS:
        raise InvalidCandle(f"expected as_of_ms in epoch milliseconds, got {as_of!r}")
    return candle._replace(as_of_ms=int(as_of))


@contextmanager
def _open_table(path: Path) -> Iterator[_Table]:
    """Open a file; errors of reading within the block become a `ConfigError`."""
    try:
        with ExitStack() as stack:
            raw: IO[bytes] = stack.enter_context(path.open("rb"))
            magic = raw.read(len(_PARQUET))
            raw.seek(0)
            if magic == _PARQUET:
                yield stack.enter_context(_open_parquet(path))
                return
            if magic.startswith(_GZIP):
                raw = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
            reader = csv.reader(stack.enter_context(io.TextIOWrapper(raw, "utf-8-sig", newline="")))
            columns = next(reader, [])
            yield _Table(columns, ((f"line {reader.line_num}", cells) for cells in reader if cells))
    except (OSError, UnicodeDecodeError, csv.Error, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(f"{path}: cannot be read: {reason or error}") from error


@contextmanager
def _open_parquet(path: Path) -> Iterator[_Table]:
    pyarrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(str(path)) as file:
            yield _parquet_table(pyarrow, path, file)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _parquet_table(pyarrow: Any, path: Path, file: Any) -> _Table:
    metadata = file.schema_arrow.metadata or {}
    interval = metadata.get(b"interval", str(MINUTE).encode()).decode()
    if interval != str(MINUTE):
        raise ConfigError(f"{path}: bars of {interval}; only 1-minute candles can be imported")
    inexact = [field.name for field in file.schema_arrow if pyarrow.types.is_floating(field.type)]
    if inexact:
        raise ConfigError(f"{path}: {', '.join(inexact)}: binary floats are not exact; expected strings or decimals")
    return _Table(file.schema_arrow.names, _parquet_rows(file))


def _parquet_rows(file: Any) -> Iterator[tuple[str, Sequence[str]]]:
    number = 0
    for batch in file.iter_batches(batch_size=10_000):
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            number += 1
            yield f"row {number}", [_cell(cell) for cell in cells]


def _cell(cell: object) -> str:
    if cell is None:
        return ""
    return format(cell, "f") if isinstance(cell, Decimal) else str(cell)


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'candled[parquet]'") from error
