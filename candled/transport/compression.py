"""Compress large frames with permessage-deflate, once for all clients, without a compressor per connection.

Even if compression was negotiated, a frame may be sent uncompressed (RFC 7692, section 6), and every client can read a
frame compressed with a new context. So updates are never compressed, and an idle connection needs no extra memory.
"""

import zlib
from collections.abc import Iterable

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension

from candled.protocol.frames import Frame, header, header_of

WORTH_IT = 2048  # smallest frame to compress, in bytes
# 1,000 bars (120 KB) take about 1 ms and shrink to a quarter; level 6 takes four times as long and reaches a fifth.
_LEVEL = 1
_RSV1 = 0x40
_factory = ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)


def agree(offers: str) -> tuple[str, list[Extension]]:
    """Negotiate a client's `Sec-WebSocket-Extensions`; return the answering header and the extensions.

    Both are empty if no offer is accepted.
    """
    try:
        parsed = parse_extension(offers)
    except InvalidHeader:
        return "", []
    for name, parameters in parsed:
        if name == _factory.name and not _limits_window(parameters):
            try:
                answer, extension = _factory.process_request_params(parameters, [])
            except NegotiationError:
                continue
            return build_extension([(_factory.name, answer)]), [extension]
    return "", []


def _limits_window(parameters: Iterable[tuple[str, str | None]]) -> bool:
    """Return True if the client can only read frames with a smaller window than the shared one."""
    return any(name == "server_max_window_bits" and value != "15" for name, value in parameters)


def deflated(frame: bytes) -> bytes:
    """Return the frame compressed if it is large enough, else unchanged. A frame is compressed only once."""
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
