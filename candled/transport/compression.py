"""permessage-deflate without a compressor per connection: what is large is compressed once, for everybody who gets it.

A frame may be sent uncompressed although compression was agreed (RFC 7692, section 6), and one that was compressed
from a fresh context can be read by all. So updates are never compressed, and connections that wait cost nothing more.
"""

import zlib
from collections.abc import Iterable

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension
from websockets.typing import ExtensionHeader

from candled.protocol.frames import Frame, header, header_of

WORTH_IT = 2048  # bytes of a frame
_LEVEL = 1  # about 1 ms for the 120 KB of 1,000 bars, to a quarter; level 6 takes four times as long, to a fifth
_RSV1 = 0x40
_factory = ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)


def agree(offers: str) -> tuple[str, list[Extension]]:
    """Answer a client's `Sec-WebSocket-Extensions`: the header to send ("" for none), and what it means."""
    for name, parameters in _parsed(offers):
        if name == _factory.name and not _limits_window(parameters):
            try:
                answer, extension = _factory.process_request_params(parameters, [])
            except NegotiationError:
                continue
            return build_extension([(_factory.name, answer)]), [extension]
    return "", []


def _parsed(offers: str) -> list[ExtensionHeader]:
    try:
        return parse_extension(offers)
    except InvalidHeader:
        return []


def _limits_window(parameters: Iterable[tuple[str, str | None]]) -> bool:
    """Whether the client can read only frames from a smaller window than the one that all share."""
    return any(name == "server_max_window_bits" and value != "15" for name, value in parameters)


def deflated(frame: bytes) -> bytes:
    """The same message compressed, if it is large enough to be worth it; computed once for each frame."""
    if len(frame) < WORTH_IT or not isinstance(frame, Frame):
        return frame
    known: bytes | None = frame.__dict__.get("deflated")
    if known is None:
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        payload = memoryview(frame)[len(header_of(frame)) :]
        body = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        body = body.removesuffix(b"\x00\x00\xff\xff")
        known = frame.__dict__["deflated"] = bytes((frame[0] | _RSV1,)) + header(len(body))[1:] + body
    return known
