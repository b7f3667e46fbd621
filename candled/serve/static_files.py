"""The page's files below `/static/`, and the JavaScript clients with their TypeScript types below `/clients/`."""

import importlib.resources

from tornado.web import HTTPError, StaticFileHandler

from .content_coding import PLAIN, choose_coding, encode_once
from .handlers import STATIC, OwnHandler
from .hot_path import Route


class StaticHandler(OwnHandler, StaticFileHandler):
    """The page's files. A browser checks on each use if they have changed."""

    def parse_url_path(self, url_path: str) -> str:
        """Return the path of a file; answer 404 for one that no file can have."""
        if "\0" in url_path:
            raise HTTPError(404)
        return super().parse_url_path(url_path)

    def initialize(self, path: str, compress_from: int) -> None:  # type: ignore[override]
        """Store the folder and the smallest file to compress. Parts of files are never compressed."""
        super().initialize(path)
        headers = self.request.headers
        accepted = choose_coding(headers.get("Accept-Encoding"), compress_from)
        self._coding = PLAIN if accepted is None or "Range" in headers else accepted

    async def get(self, path: str, include_body: bool = True) -> None:
        """Answer with the file."""
        self.path = self.parse_url_path(path)
        self.absolute_path = self.validate_absolute_path(self.root, self.get_absolute_path(self.root, self.path))
        size = 0 if self.absolute_path is None else self.get_content_size()
        if not self._coding.name or size < max(self._coding.smallest, 1):
            self._coding = PLAIN
            await super().get(path, include_body)
            return
        self.modified = self.get_modified_time()
        self.set_headers()
        self.clear_header("Accept-Ranges")
        if self.should_return_304():
            self.set_status(304)
            return
        self.set_header("Content-Encoding", self._coding.name)
        self.write(encode_once(self._coding, b"".join(self.get_content(str(self.absolute_path)))))

    def compute_etag(self) -> str | None:
        """Return the ETag of the file in this coding."""
        tag = super().compute_etag()
        return None if tag is None else self._coding.tag_of(tag)

    def set_extra_headers(self, path: str) -> None:
        """Make browsers revalidate the file."""
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Vary", "Accept-Encoding")


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


def make_static_route(compress_from: int) -> Route:
    """Return the route of the pages' files; see `StaticHandler`."""
    return r"/static/(.*)", StaticHandler, {"path": str(STATIC), "compress_from": compress_from}


def make_clients_route(compress_from: int) -> Route:
    """Return the route of the JavaScript clients."""
    folder = importlib.resources.files("candled_clients") / "js"
    arguments = {"path": str(folder), "compress_from": compress_from}
    return r"/clients/([\w-]+(?:\.js|\.d\.ts))", ClientsHandler, arguments
