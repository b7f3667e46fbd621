"""The rows of the journal as lines, and the search for such lines in any file.

A line is the CRC-32 of the rest in 8 hexadecimal digits, a space, and a JSON array of exchange, symbol, opening time,
open, high, low, close, volume, quote volume or null, `as_of_ms`, `final`, `rev` and `src`, with numbers as text. The
first journals were text files `NUMBER.rows` with the line `candled journal 1` (their rows end with `final`) or
`candled journal 2` before the rows.
"""

import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec

from candled.model import Candle, MarketKey, Symbol

from .pending_rows import Row

HEADERS = (b"candled journal 1\n", b"candled journal 2\n")

_LINE_AT_MOST = 4096  # a row takes 100 to 200 bytes
_LINE = re.compile(rb"candled journal [12]\n|[0-9a-f]{8} \[[^\n]{1,%d}\]\n" % (_LINE_AT_MOST - 20))
_BLOCK = 2**20


class _Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    exchange: str
    symbol: str
    open_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal | None
    as_of_ms: int
    final: bool
    rev: int = 0
    src: str = ""


_record_decoder = msgspec.json.Decoder(_Record)
_record_encoder = msgspec.json.Encoder()


def encode(row: Row) -> bytes:
    """Encode a row as one line, including its end."""
    market, candle = row
    text = _record_encoder.encode((market.exchange, str(market.symbol), *candle))
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> Row | None:
    """Decode a line from `encode`; return None for anything else, even if only one bit differs."""
    text = line[9:-1]
    if line != b"%08x %s\n" % (zlib.crc32(text), text):
        return None
    try:
        exchange, symbol, *fields = msgspec.structs.astuple(_record_decoder.decode(text))
        return MarketKey(exchange, Symbol.parse(symbol)), Candle(*fields)
    except (ValueError, msgspec.DecodeError):
        return None


def find_lines(path: Path) -> Iterator[bytes]:
    """Yield the intact lines of a file, header included: of a text file as well as of a damaged SQLite file."""
    rest = b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            text, end = rest + block, 0
            for match in _LINE.finditer(text):
                end = match.end()
                if match[0] in HEADERS or decode(match[0]) is not None:
                    yield match[0]
            rest = text[max(end, len(text) - _LINE_AT_MOST) :]
