"""Content codings of HTTP answers (RFC 9110, section 12.5.3): gzip, and zstd if its library is installed. Pure."""

import importlib
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

# 1,000 bars (115 KB) take 1 ms and shrink to a third; level 6 takes four times as long for a tenth less.
_LEVEL = 1
_GZIP = 16  # added to the window's size: with gzip's header
_ELEMENT = re.compile(
    r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*[qQ]=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?[ \t]*"
)


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP + zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


# the best one first
CODINGS: dict[str, Callable[[bytes], bytes]] = {"gzip": _gzip}
with suppress(ImportError):
    CODINGS = {"zstd": importlib.import_module("zstandard").ZstdCompressor(level=_LEVEL).compress, **CODINGS}


class ContentCoding(NamedTuple):
    """The coding of answers to one client. A body smaller than `smallest` bytes is sent as it is."""

    #: Empty if the client accepts none, or prefers none.
    name: str
    smallest: int

    def encode(self, body: bytes) -> bytes:
        """Return the body in this coding, or unchanged if that is not worthwhile."""
        return CODINGS[self.name](body) if self.applies_to(body) else body

    def applies_to(self, body: bytes) -> bool:
        """Return True if `encode` changes the body."""
        return bool(self.name) and len(body) >= max(self.smallest, 1)

    def tag_of(self, tag: str) -> str:
        """Return the ETag of a body in this coding, given that of the plain body."""
        return f'{tag[:-1]}-{self.name}"' if self.name else tag

    def plain_tags(self, tags: str) -> str:
        """Return an `If-None-Match` with the ETags of plain bodies instead of those in this coding."""
        return tags.replace(f'-{self.name}"', '"') if self.name else tags


PLAIN = ContentCoding("", 0)


@lru_cache(maxsize=1024)
def choose_coding(accept: str | None, smallest: int) -> ContentCoding | None:
    """Return the coding for a client's `Accept-Encoding`; None if it accepts neither a coding nor a plain body.

    `smallest` is the size from which bodies are compressed; 0 for none, unless the client refuses plain bodies.
    """
    if accept is None:
        return PLAIN
    weights: dict[str, float] = {}
    for element in accept.split(","):
        match = _ELEMENT.fullmatch(element)
        if match is not None:
            weights.setdefault(match[1].lower().removeprefix("x-"), float(match[2] or "1"))
    others = weights.get("*", 0.0)
    plain = weights.get("identity", weights.get("*", 1e-3))  # accepted, though less than any coding that is named
    best = max(CODINGS, key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    if not plain:
        return ContentCoding(best, 0) if weight else None
    if not smallest or weight < plain or not weight:
        return PLAIN
    return ContentCoding(best, smallest)


@lru_cache(maxsize=64)
def encode_once(coding: ContentCoding, body: bytes) -> bytes:
    """Return the encoded body of one of the few resources that rarely change."""
    return coding.encode(body)
