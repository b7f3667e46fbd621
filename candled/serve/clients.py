"""The JavaScript clients below `/clients/`: the repository's `clients/js` with their TypeScript types."""

import importlib.resources
from typing import Any

from .handlers import StaticHandler


class ClientsHandler(StaticHandler):
    """A module that pages of any origin may import."""

    def set_extra_headers(self, path: str) -> None:
        """Add the headers of static files, and let any origin read the file."""
        super().set_extra_headers(path)
        self.set_header("Access-Control-Allow-Origin", "*")

    def get_content_type(self) -> str:
        """Return TypeScript's content type for declarations. By their suffix (`.ts`), systems take them for videos."""
        is_types = self.absolute_path is not None and self.absolute_path.endswith(".ts")
        return "application/typescript; charset=utf-8" if is_types else super().get_content_type()


def make_route(settings: dict[str, Any]) -> tuple[str, type[Any], dict[str, Any]]:
    """Return the route of the JavaScript clients, with settings of `StaticHandler`."""
    folder = importlib.resources.files("candled_clients") / "js"
    return r"/clients/([\w-]+(?:\.js|\.d\.ts))", ClientsHandler, {"path": str(folder), **settings}
