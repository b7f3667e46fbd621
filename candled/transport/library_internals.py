"""Every use of names that Tornado, websockets and Python do not document.

`tests/transport/test_library_internals.py` runs each of them, so that a release that changes one fails a test.
"""

import socket
import ssl

from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream, SSLIOStream
from tornado.util import ObjectDict
from tornado.web import RequestHandler
from tornado.websocket import WebSocketProtocol, WebSocketProtocol13
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

_CLOSE_CODES = {1000, 1001, 1002, 1003, *range(1007, 1015)}


def stream_of(request: HTTPServerRequest) -> IOStream:
    """Return the stream of a request's connection."""
    stream: IOStream = request.connection.stream  # type: ignore[union-attr]
    return stream


def has_buffered_bytes(stream: IOStream) -> bool:
    """Return True if a stream has bytes from the socket that are not parsed yet."""
    return stream._read_buffer_size > 0


def buffered_tail(stream: IOStream, most: int) -> tuple[bytes, int]:
    """Return the last of the bytes that are not parsed yet, at most `most`, and the number of all of them."""
    return bytes(stream._read_buffer[-most:]), stream._read_buffer_size


def watch_with(stream: IOStream, loop: object) -> None:
    """Let an object with the methods of Tornado's loop watch a stream's socket."""
    state, stream._state = stream._state, None
    if state is not None:  # a stream with TLS has begun to wait for its handshake
        stream.io_loop.remove_handler(stream.fileno())
    stream.io_loop = loop  # type: ignore[assignment]
    if state is not None:
        stream._add_io_state(state & ~stream.io_loop.ERROR)


def is_accepting(stream: SSLIOStream) -> bool:
    """Return True until the handshake of TLS is complete."""
    return stream._ssl_accepting


def take_tls_socket(stream: SSLIOStream) -> tuple[ssl.SSLSocket, bytes]:
    """Take the socket out of a stream, and close the stream; return it with the bytes that were read already."""
    early = bytes(stream._read_buffer[: stream._read_buffer_size])
    if stream._state is not None:
        stream.io_loop.remove_handler(stream.fileno())
        stream._state = None
    taken, stream.socket = stream.socket, socket.socket()  # type: ignore[assignment]  # only to be closed
    stream.close()
    return taken, early


def certificate_end(path: str) -> int:
    """Return the time at which the first certificate of a PEM file expires, in Unix seconds."""
    decoded = ssl._ssl._test_decode_cert(path)  # type: ignore[attr-defined]
    return int(ssl.cert_time_to_seconds(decoded["notAfter"]))


def peer_address(request: HTTPServerRequest) -> str:
    """Return the address of the socket's other end, which may be a proxy."""
    peer = request.connection.context.address  # type: ignore[union-attr]
    return peer[0] if isinstance(peer, tuple) else str(peer)


def error_reason(handler: RequestHandler) -> str:
    """Return the text for the status of an error answer."""
    return handler._reason


def is_finished(handler: RequestHandler) -> bool:
    """Return True if the answer is complete or broken off."""
    return handler._finished


def break_off(handler: RequestHandler) -> None:
    """Close the connection in the middle of an answer, so that no client takes a part for the complete answer."""
    handler._finished = True
    stream_of(handler.request).close()


def accept_value(key: str) -> str:
    """Return the `Sec-WebSocket-Accept` for a client's key."""
    return WebSocketProtocol13.compute_accept_value(key)


def break_handler_cycle(handler: RequestHandler) -> None:
    """Break a reference cycle that Tornado breaks only if it closes the connection itself."""
    handler.ui = ObjectDict()


def check_close_codes(protocol: WebSocketProtocol) -> WebSocketProtocol:
    """Make a protocol of Tornado answer an invalid close code with 1002 instead of echoing it."""
    close = protocol.close

    def close_checked(code: int | None = None, reason: str | None = None) -> None:
        if protocol.client_terminated and code is not None and not is_valid_close_code(code):
            code = 1002
        close(code, reason)

    protocol.close = close_checked  # type: ignore[method-assign]
    return protocol


def is_valid_close_code(code: int) -> bool:
    """Return True if a close code may be sent in a frame (RFC 6455, section 7.4, and IANA's register)."""
    return code in _CLOSE_CODES or 3000 <= code < 5000


class FrameProtocol(ServerProtocol):
    """Accepts a close frame between the fragments of a message as a regular end (Autobahn, case 7.1.5)."""

    def recv_frame(self, frame: Frame) -> None:
        """Process a frame; a close frame ends a fragmented message."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)

    @property
    def sent_code(self) -> int | None:
        """The code of the close frame that was sent; None before."""
        return None if self.close_sent is None else self.close_sent.code

    def release(self) -> None:
        """Break the reference cycles of the protocol and its parser, and of an error's traceback."""
        self.parser.close()
        self.parser_exc = None
