"""The undocumented names of Tornado and websockets, run against the installed releases."""

import asyncio

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.simple_httpclient import HTTPStreamClosedError
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler, websocket_connect
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from candled.transport import library_internals as internals


class Probe(RequestHandler):
    """Calls each function on a real request."""

    def get(self) -> None:
        assert isinstance(internals.stream_of(self.request), IOStream)
        assert internals.stream_of(self.request).socket.getpeername()[0] == internals.peer_address(self.request)
        assert not internals.is_finished(self)
        assert self.ui  # Tornado's own, with references to the handler
        internals.break_handler_cycle(self)
        assert not self.ui
        tail, size = internals.buffered_tail(internals.stream_of(self.request), 4)
        assert (tail, size > 4) == ((b"\r\n\r\n", True) if size else (b"", False))
        self.finish("followed" if internals.has_buffered_bytes(internals.stream_of(self.request)) else "fine")
        assert internals.is_finished(self)


class Fails(RequestHandler):
    def get(self) -> None:
        self.send_error(404)

    def write_error(self, status_code: int, **kwargs) -> None:
        self.finish(internals.error_reason(self))


class BreaksOff(RequestHandler):
    async def get(self) -> None:
        self.set_header("Content-Length", "1000")
        self.write("part")
        await self.flush()
        internals.break_off(self)
        assert internals.is_finished(self)


class Echo(WebSocketHandler):
    def get_websocket_protocol(self):
        protocol = super().get_websocket_protocol()
        return None if protocol is None else internals.check_close_codes(protocol)


@pytest.fixture
async def port():
    listening, port = bind_unused_port()
    server = HTTPServer(Application([("/probe", Probe), ("/fails", Fails), ("/breaks", BreaksOff), ("/ws", Echo)]))
    server.add_socket(listening)
    yield port
    server.stop()
    await server.close_all_connections()


@pytest.mark.parametrize(("path", "status", "body"), [("probe", 200, b"fine"), ("fails", 404, b"Not Found")])
async def test_requests_and_handlers(port, path, status, body):
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/{path}", raise_error=False)
    assert (answer.code, answer.body) == (status, body)


async def test_bytes_of_the_next_request_are_noticed(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /probe HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    assert await reader.readuntil(b"followed")
    assert await reader.readuntil(b"fine")
    writer.close()
    await writer.wait_closed()


async def test_an_answer_that_is_broken_off_is_no_complete_answer(port):
    with pytest.raises(HTTPStreamClosedError):
        await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/breaks")


@pytest.mark.parametrize(("code", "answered"), [(1000, 1000), (1005, 1002), (2999, 1002), (3000, 3000)])
async def test_an_invalid_close_code_is_answered_with_1002(port, code, answered):
    ws = await websocket_connect(f"ws://127.0.0.1:{port}/ws")
    ws.protocol._write_frame(True, 8, code.to_bytes(2, "big"))
    assert await ws.read_message() is None
    assert ws.close_code == answered
    ws.close()


def test_the_handshake_of_the_rfc():
    assert internals.accept_value("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_close_frame_may_come_between_fragments_and_the_parser_is_released():
    protocol = internals.FrameProtocol(state=State.OPEN)
    for frame in (Frame(Opcode.TEXT, b"part", fin=False), Frame(Opcode.CLOSE, b"\x03\xe8")):
        protocol.receive_data(frame.serialize(mask=True))
    assert protocol.close_rcvd.code == 1000
    assert protocol.parser_exc is None
    protocol.release()
    assert protocol.parser.gi_frame is None
    assert "parser" in vars(protocol)


def test_without_the_exception_the_same_close_frame_is_an_error():
    """Once websockets accepts it by itself, `FrameProtocol.recv_frame` can go."""
    protocol = internals.ServerProtocol(state=State.OPEN)
    for frame in (Frame(Opcode.TEXT, b"part", fin=False), Frame(Opcode.CLOSE, b"\x03\xe8")):
        protocol.receive_data(frame.serialize(mask=True))
    assert protocol.parser_exc is not None
