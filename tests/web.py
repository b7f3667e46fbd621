"""A web server for one handler, in the running loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler


@asynccontextmanager
async def serving(handler: type[RequestHandler]) -> AsyncIterator[str]:
    """Serve `handler` at `/` on a free port; yield the address."""
    socket, port = bind_unused_port()
    server = HTTPServer(Application([(r"/", handler)], log_function=lambda _: None))
    server.add_socket(socket)
    yield f"http://127.0.0.1:{port}/"
    server.stop()
