"""The status page and its data: `/status` and `/status.json`."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from candled.exchange import Clock

from .handlers import PAGE_HEADERS, STATIC, OwnHandler
from .kept_pages import KeptPage, KeptPages


class StatusHandler(OwnHandler):
    """`/status`: the page, which reads the data again and again."""

    def initialize(self, page: KeptPage, compress_from: int) -> None:
        """Store the page."""
        self.page = page
        self.compress_from = compress_from

    def get(self) -> None:
        """Answer with the page."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        for name, value in PAGE_HEADERS.items():
            self.set_header(name, value)
        self.finish_page(self.page, self.compress_from)

    head = get


class StatusDataHandler(OwnHandler):
    """`/status.json`: the data of the status page."""

    def initialize(
        self,
        find_page: Callable[[], Awaitable[KeptPage]],
        compress_from: int,
        open_headers: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        """Store the function that returns the data, and the headers of answers with it."""
        self.find_page = find_page
        self.compress_from = compress_from
        self.open_headers = open_headers or OwnHandler.open_headers

    async def get(self) -> None:
        """Answer with the data of the last second."""
        page = await self.find_page()
        self.set_json_headers()
        self.finish_page(page, self.compress_from)

    head = get


def make_status_routes(
    clock: Clock,
    render: Callable[[], Awaitable[bytes]],
    compress_from: int,
    open_headers: Sequence[tuple[str, str]] | None = None,
    *,
    has_chart: bool = False,
) -> list[tuple[str, type[Any], dict[str, Any]]]:
    """Return the routes of the status page, whose data `render` returns.

    The page also needs `make_static_route`. With `has_chart`, the port has the chart page, and markets are links to it.
    """
    text = (STATIC / "status.html").read_text("utf-8").replace("__CHART__", "yes" if has_chart else "no")
    page, find_data = KeptPage(text.encode()), partial(KeptPages(clock).find, "data", render)
    return [
        ("/status", StatusHandler, {"page": page, "compress_from": compress_from}),
        (
            r"/status\.json",
            StatusDataHandler,
            {"find_page": find_data, "compress_from": compress_from, "open_headers": open_headers},
        ),
    ]
