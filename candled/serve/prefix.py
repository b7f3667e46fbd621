"""Serve candled's paths below a prefix that a reverse proxy leaves in place."""

from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import Application


class PrefixedApplication(Application):
    """Answers all paths with and without the prefix: proxies use it, probes of the process itself don't.

    Answers contain only relative references, so they work with any prefix, including one that a proxy strips.
    """

    def __init__(self, handlers: Any, prefix: str, **settings: Any) -> None:
        super().__init__(handlers, **settings)
        self._prefix = prefix

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return the handler of the path behind the prefix."""
        if request.path == self._prefix or request.path.startswith(f"{self._prefix}/"):
            request.path = request.path[len(self._prefix) :] or "/"
        return super().find_handler(request, **kwargs)
