"""The status page and its data: `/status` and `/status.json`."""

from collections.abc import Awaitable, Callable
from functools import partial

from .handlers import STATIC, OwnHandler, PortContext
from .hot_path import Route
from .kept_pages import KeptPage


class StatusHandler(OwnHandler):
    """`/status`: the page, which reads the data again and again."""

    def initialize(self, page: KeptPage, compress_from: int) -> None:
        """Store the page."""
        self.page = page
        self.compress_from = compress_from

    def get(self) -> None:
        """Answer with the page."""
        self.finish_html(self.page, self.compress_from)

    head = get


class StatusDataHandler(OwnHandler):
    """`/status.json`: the data of the status page."""

    def initialize(self, context: PortContext, find_page: Callable[[], Awaitable[KeptPage]]) -> None:
        """Store the port's context, and the function that returns the data."""
        self.find_page = find_page
        self.compress_from, self.open_headers = context.compress_from, context.open_headers

    async def get(self) -> None:
        """Answer with the data of the last second."""
        self.finish_data(await self.find_page(), self.compress_from)

    head = get


def make_status_routes(
    context: PortContext, render: Callable[[], Awaitable[bytes]], *, has_chart: bool = False
) -> list[Route]:
    """Return the routes of the status page, whose data `render` returns.

    The page also needs `make_static_route`. With `has_chart`, the port has the chart page, and markets are links to it.
    """
    text = (STATIC / "status.html").read_text("utf-8").replace("__CHART__", "yes" if has_chart else "no")
    page, find_data = KeptPage(text.encode()), partial(context.pages.find, "data", render)
    return [
        ("/status", StatusHandler, {"page": page, "compress_from": context.compress_from}),
        (r"/status\.json", StatusDataHandler, {"context": context, "find_page": find_data}),
    ]
