"""The path that a reverse proxy leaves before candled's own paths."""

from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import Application


class PrefixedApplication(Application):
    """Answers at every path with and without a prefix: proxies ask with it, probes of the process itself without.

    Answers hold relative references only, so that they are right for any prefix, also one that a proxy strips.
    """

    def __init__(self, handlers: Any, prefix: str, **settings: Any) -> None:
        super().__init__(handlers, **settings)
        self._prefix = prefix

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return the handler of the path behind the prefix."""
        if request.path == self._prefix or request.path.startswith(f"{self._prefix}/"):
            request.path = request.path[len(self._prefix) :] or "/"
        return super().find_handler(request, **kwargs)
