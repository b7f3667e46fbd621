"""Personal details in frames and answers, which a recording must not contain: addresses, keys, cookies and tokens."""

import gzip
import ipaddress
import re
import zlib

from candled.errors import ExchangeError
from candled.exchange import Compression
from candled.ingest.decompression import TooLarge, decompress

REDACTED = "redacted"
"""The text in place of a secret."""

_MOST_BYTES = 4 * 1024 * 1024
# Names of fields and of parameters in a query, without underscores and hyphens.
_SECRET = re.compile(
    r"secret|passw|passphrase|signature|apikey|accesskey|listenkey|cookie|authorization|jwt|email|^sign$", re.IGNORECASE
)
# These may also name a coin: only a long value is a secret.
_AMBIGUOUS = re.compile(
    r"token|key$|session|auth|^conn(ection)?id$|clientid|userid|^uid$|account|address", re.IGNORECASE
)
_LONG = 16

_FIELD = re.compile(r'("([A-Za-z_-]{2,40})"\s*:\s*")((?:[^"\\]|\\.)*)(?=")')
_PARAMETER = re.compile(r"(?<=[?&])(([A-Za-z_-]{2,40})=)([^&#\s\"\\]+)")
_USER = re.compile(r"(?<=://)[^/@\s\"\\]+@")
_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?=[\da-f:]*:[\da-f:]*:)[\da-f:]{2,39})(?![\w.])", re.IGNORECASE
)


def redact_text(text: str) -> str:
    """Return a frame, an address or an answer in which each personal detail is replaced.

    All other characters stay as they are.
    """
    text = _FIELD.sub(_redact_value, text)
    text = _PARAMETER.sub(_redact_value, text)
    return _ADDRESS.sub(_redact_address, _USER.sub("", text))


def redact_binary(data: bytes, compression: Compression | None) -> bytes:
    """Do the same as `redact_text` with a binary frame. Without a personal detail, or text, return it as it is."""
    try:
        content = data if compression is None else decompress(data, compression, _MOST_BYTES)
        text = content.decode("utf-8")
    except (ExchangeError, TooLarge, UnicodeDecodeError):
        return data
    found = redact_text(text)
    return data if found == text else compress(found.encode(), compression)


def compress(content: bytes, compression: Compression | None) -> bytes:
    """Return the bytes of a binary frame as an exchange with this compression sends them."""
    if compression == "gzip":
        return gzip.compress(content, mtime=0)
    if compression == "zlib":
        return zlib.compress(content)
    if compression == "deflate":
        stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return stream.compress(content) + stream.flush()
    return content


def _redact_value(found: re.Match[str]) -> str:
    before, name, value = found.groups()
    plain = name.replace("_", "").replace("-", "")
    is_secret = _SECRET.search(plain) or (len(value) >= _LONG and _AMBIGUOUS.search(plain))
    return before + (REDACTED if value and is_secret else value)


def _redact_address(found: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:  # a time, or a number of a version
        return found[0]
    if address.is_loopback or address.is_unspecified:
        return found[0]
    return "0.0.0.0" if address.version == 4 else "::"
