"""Answers with bars, the same in every dialect: read the query, print the page, set the headers for caches."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from candled.api.queries import BarQuery, WrittenPage
from candled.serve.content_coding import ContentCoding, choose_coding
from candled.serve.hot_path import HotReply, HotRequest, set_headers
from candled.serve.rate_limit import UNLIMITED, RateLimit, RateLimitResult

from .context import ApiContext
from .errors import ApiError, UnknownSymbol
from .handler import IMMUTABLE, SMALL, TOO_MANY_REQUESTS, AccessPolicy, DialectContext, Handler, cache_control


class StreamedOnly(ApiError):
    """A valid request whose answer is written in parts."""


class BarHandler(Handler, ABC):
    """A resource that answers with bars, if possible from memory and without a handler. Subclasses read the query."""

    def bar_query(self) -> BarQuery:
        """Return this request's query.

        Raises:
            ApiError: it is invalid.
        """
        request = self.request
        return self.parse_query(HotRequest(request.path, request.query_arguments, request.headers), self.sources)

    @classmethod
    @abstractmethod
    def parse_query(cls, request: HotRequest, sources: Mapping[str, Any]) -> BarQuery:
        """Read the query of an HTTP request for bars. `sources` are the arguments of the route.

        Raises:
            ApiError: it is invalid.
        """

    @classmethod
    def answer_now(cls, request: HotRequest, peer: str, *, dialect: DialectContext, **sources: Any) -> HotReply | None:
        """Return the answer if memory has the bars and the rate limit allows the request, else None."""
        if not request.reads:
            return super().answer_now(request, peer, dialect=dialect)
        access, limit = dialect.access, dialect.limit
        source: ApiContext = sources["source"]
        kept = cls._find_kept(request, limit, source)
        if kept is not None:
            return kept
        headers = request.headers
        coding = choose_coding(headers.get("accept-encoding"), dialect.compress_from)
        if coding is None:
            return None
        address = access.client_address(peer, headers.get("x-forwarded-for"))
        refused = None if limit.exempts_cached else limit.refuse_now(address)
        if refused is not None:
            return cls.reply_too_many(request, refused, coding, access)
        query = cls._query_of(request, sources)
        if isinstance(query, ApiError):
            if isinstance(query, StreamedOnly) or (isinstance(query, UnknownSymbol) and source.may_be_offered(query)):
                return None
            return cls.refuse_now(query, request, peer, dialect)
        if source.note_request(query.market):
            return None
        state = _state_of(query, source)
        reply = cls._reply_now(query, headers.get("if-none-match", ""), coding, source)
        if reply is None:
            return None
        if limit.exempts_cached and _is_cached(reply):
            limit_result = UNLIMITED
        else:
            counted = limit.check_now(address)
            if counted is None:
                return None
            limit_result = counted
            if not counted.allowed:
                return cls.reply_too_many(request, counted, coding, access)
        first, *others = reply.headers
        shared = access.cors_headers(headers.get("origin")).items()
        numbers = (*limit_result.headers.items(), *cls.count_headers(limit_result.count))
        reply = HotReply(reply.status, reply.content_type, (first, *shared), reply.body, numbers, others)
        request.kept = (state, reply) if reply.status == 304 and not limit.requests else None
        return reply

    @classmethod
    def _find_kept(cls, request: HotRequest, limit: RateLimit, source: ApiContext) -> HotReply | None:
        """Return the small answer that was made last time, if it is still right and no limit counts the request."""
        kept, query = request.kept, request.query and request.query[1]
        if kept is None or limit.requests or not isinstance(query, BarQuery):
            return None
        if source.note_request(query.market) or kept[0] != _state_of(query, source):
            return None
        return kept[1]

    @classmethod
    def _query_of(cls, request: HotRequest, sources: Mapping[str, Any]) -> BarQuery | ApiError:
        """Return the query of a request or the error of an invalid one.

        It is read once for all requests with the same bytes, and again if the markets have changed.
        """
        known: tuple[int, BarQuery | ApiError] | None = request.query
        version = sources["source"].catalog.version
        if known is None or known[0] != version:
            try:
                known = version, cls.parse_query(request, sources)
            except ApiError as refusal:
                known = version, refusal.with_traceback(None)
            request.query = known
        return known[1]

    @classmethod
    def reply_too_many(
        cls, request: HotRequest, result: RateLimitResult, coding: ContentCoding, access: AccessPolicy
    ) -> HotReply | None:
        """Return the answer to a request over the limit; None if its handler must answer."""
        if coding.applies_to(SMALL):
            return None
        return request.reply_once(result, lambda: cls.reply_refusal(TOO_MANY_REQUESTS, result, request.headers, access))

    @classmethod
    def reply_unread(cls, query: BarQuery, known: str, coding: ContentCoding) -> HotReply | None:
        """Return an answer that needs no bars, if there is one."""
        return None

    @classmethod
    def make_reply(cls, query: BarQuery, written: WrittenPage, now_ms: int) -> HotReply:
        """Return the answer without the headers for origins and limits. `Cache-Control` is the first header."""
        page, body, coding, tag, _ = written
        headers = [("Cache-Control", cache_control(page.is_final)), *query.headers(page, now_ms)]
        if coding:
            headers.append(("Content-Encoding", coding))
        if tag is not None:
            headers.append(("Etag", tag))
        return HotReply(304 if body is None else 200, query.content_type, headers, body or b"")

    @classmethod
    def _reply_now(cls, query: BarQuery, known: str, coding: ContentCoding, source: ApiContext) -> HotReply | None:
        reply = cls.reply_unread(query, known, coding)
        if reply is None:
            written = source.pages.written_now(query, known, coding)
            if written is not None and written.tag is not None:
                reply = cls.make_reply(query, written, source.clock.now_ms())
        return reply

    def is_exempt(self) -> bool:
        """Return True if the settings exempt answers from memory, and this is one."""
        if not self.limit.exempts_cached:
            return False
        try:
            query = self.bar_query()
        except ApiError:
            return False
        reply = self._reply_now(query, self.request.headers.get("If-None-Match", ""), self.coding, self.source)
        return reply is not None and _is_cached(reply)

    async def answer(self) -> None:
        """Answer with the bars of this request's query."""
        await self.answer_bars(self.bar_query())

    async def answer_bars(self, query: BarQuery) -> WrittenPage | None:
        """Answer with a page of bars, or with 304. Return the page if it was needed."""
        known = self.request.headers.get("If-None-Match", "")
        if self.source.note_request(query.market) and self.source.wait_for_bars is not None:
            await self.source.wait_for_bars(query.market, query.interval, query.asked.limit)
        reply, written = self.reply_unread(query, known, self.coding), None
        if reply is None:
            written = self.source.pages.written_now(query, known, self.coding)
            if written is None:
                self.charge_read(query.asked.limit)
                written = await self.source.pages.written(query, known, self.coding)
            reply = self.make_reply(query, written, self.source.clock.now_ms())
        self.set_status(reply.status)
        set_headers(self, reply.headers)
        if reply.status == 200:
            self.set_header("Content-Type", reply.content_type)
            self.write(reply.body)
        return written


def _state_of(query: BarQuery, source: ApiContext) -> tuple[object, ...]:
    """Return a value that is equal to a former one only if the answer to a query has not changed since."""
    # the second belongs to it because of the header `Age`
    return source.catalog.version, source.pages.state_of(query), source.clock.now_ms() // 1000


def _is_cached(reply: HotReply) -> bool:
    """Return True if a client or a cache has the answer, or keeps it forever."""
    return reply.status == 304 or reply.headers[0][1] == IMMUTABLE
