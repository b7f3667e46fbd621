"""The status page and its data: `/status` and `/status.json`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from candled.exchange import Clock
from candled.tasks import TaskSet

from .handlers import PAGE_HEADERS, STATIC, OwnHandler
from .kept_pages import KeptPage


class SharedPage:
    """An answer that takes several passes of the loop, made at most once in `lasts_s` for all clients together."""

    def __init__(self, clock: Clock, make: Callable[[], Awaitable[bytes]], lasts_s: float = 1.0) -> None:
        self._clock = clock
        self._make = make
        self._lasts_s = lasts_s
        self._until = float("-inf")
        self._tasks = TaskSet()
        self._making: asyncio.Task[KeptPage] | None = None

    async def find(self) -> KeptPage:
        """Return the answer, which is made again if it is older than `lasts_s`."""
        if self._making is None or (self._making.done() and self._clock.monotonic() >= self._until):
            self._making = self._tasks.start(self._make_page())
        return await asyncio.shield(self._making)  # others wait for it too

    async def _make_page(self) -> KeptPage:
        until = self._clock.monotonic() + self._lasts_s
        page = KeptPage(await self._make())
        self._until = until
        return page


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
        self, page: SharedPage, compress_from: int, open_headers: Sequence[tuple[str, str]] | None = None
    ) -> None:
        """Store the data, and the headers of answers with it."""
        self.page = page
        self.compress_from = compress_from
        self.open_headers = open_headers or OwnHandler.open_headers

    async def get(self) -> None:
        """Answer with the data of the last second."""
        page = await self.page.find()
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
    page, data = KeptPage(text.encode()), SharedPage(clock, render)
    return [
        ("/status", StatusHandler, {"page": page, "compress_from": compress_from}),
        (
            r"/status\.json",
            StatusDataHandler,
            {"page": data, "compress_from": compress_from, "open_headers": open_headers},
        ),
    ]
