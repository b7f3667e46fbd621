"""The JavaScript clients below `/clients/`: the very files of the repository's `clients/js`, installed beside."""

import importlib.resources
from typing import Any

from .handlers import StaticHandler


class ClientsHandler(StaticHandler):
    """A module that a page of any origin may import."""

    def set_extra_headers(self, path: str) -> None:
        super().set_extra_headers(path)
        self.set_header("Access-Control-Allow-Origin", "*")


def make_route() -> tuple[str, type[Any], dict[str, Any]]:
    """The route of the JavaScript clients."""
    folder = importlib.resources.files("candled_clients") / "js"
    return r"/clients/([\w-]+\.js)", ClientsHandler, {"path": str(folder)}
