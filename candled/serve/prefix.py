"""Serve candled's paths below a prefix that a reverse proxy leaves in place."""

from typing import Any

from tornado.httputil import HTTPConnection, HTTPMessageDelegate, HTTPServerRequest
from tornado.web import Application

from candled.transport.hot_stream import HotStream


class PrefixedApplication(Application):
    """Answers all paths with and without the prefix: proxies use it, probes of the process itself don't.

    Answers contain only relative references, so they work with any prefix, including one that a proxy strips.
    """

    def __init__(self, handlers: Any, prefix: str, **settings: Any) -> None:
        super().__init__(handlers, **settings)
        self._prefix = prefix

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Begin to read a request, unless the stream can answer it."""
        stream = getattr(request_conn, "stream", None)
        if isinstance(stream, HotStream):
            stream.expect_request()
        return super().start_request(server_conn, request_conn)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return the handler of the path behind the prefix."""
        stream = getattr(request.connection, "stream", None)
        if isinstance(stream, HotStream):
            stream.on_request()
        if request.path == self._prefix or request.path.startswith(f"{self._prefix}/"):
            request.path = request.path[len(self._prefix) :] or "/"
        return super().find_handler(request, **kwargs)
