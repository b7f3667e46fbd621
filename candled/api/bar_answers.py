"""Answers with bars, the same in every dialect: read the query, print the page, set the headers for caches."""

from collections.abc import Mapping, Sequence
from typing import Any

from candled.serve.hot_path import HotReply, HotRequest
from candled.serve.rate_limit import RateLimit

from .context import ApiContext
from .errors import ApiError
from .handler import AccessPolicy, Handler, cache_control
from .pages import BarQuery, PrintedPage


class BarHandler(Handler):
    """A resource that answers with bars, if possible from memory and without a handler. Subclasses read the query."""

    @classmethod
    def read_bars(
        cls, arguments: Mapping[str, Sequence[bytes]], headers: Mapping[str, str], sources: Mapping[str, Any]
    ) -> BarQuery:
        """Return the request for bars of a query. `sources` are the arguments of the route.

        Raises:
            ApiError: it is invalid.
        """
        raise NotImplementedError

    @classmethod
    def answer_now(
        cls, request: HotRequest, peer: str, *, access: AccessPolicy, limit: RateLimit, **sources: Any
    ) -> HotReply | None:
        """Return the answer if memory has the bars and the rate limit allows the request, else None."""
        headers = request.headers
        source: ApiContext = sources["source"]
        query: BarQuery | None = request.query
        if query is None:
            try:
                query = request.query = cls.read_bars(request.arguments, headers, sources)
            except ApiError:
                return None
        known = headers.get("if-none-match", "")
        written = source.pages.written_now(query, known)
        if written is None:
            return None
        limit_result = limit.check_now(access.client_address(peer, headers.get("x-forwarded-for")))
        if limit_result is None:
            return None
        page, body = written
        tag = str(page.tag)
        return HotReply(
            304 if tag in known else 200,
            query.content_type,
            (
                ("Cache-Control", cache_control(page.is_final)),
                *access.cors_headers(headers.get("origin")).items(),
                *limit_result.headers.items(),
                *cls.count_headers(limit_result.count),
                *query.headers(page, source.clock.now_ms()),
                ("Etag", tag),
            ),
            body,
        )

    async def answer_bars(self, query: BarQuery, source: ApiContext) -> PrintedPage:
        """Answer with a page of bars, or with 304."""
        page = await source.pages.printed(
            query.market, query.interval, query.printer, query.asked, self.request.headers.get("If-None-Match", "")
        )
        self.set_cache_headers(page.is_final)
        for name, value in query.headers(page, source.clock.now_ms()):
            self.set_header(name, value)
        if page.tag is not None:
            self.set_header("Etag", page.tag)
        if page.is_known:
            self.set_status(304)
        else:
            self.set_header("Content-Type", query.content_type)
            self.write(query.write(page))
        return page
