"""The REST API below `/api/`."""

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any
from urllib.parse import urlencode

from candled.api.queries import MOST_BARS, BarQuery, Headers, HistoryRequest, PrintedPage, WrittenPage
from candled.errors import CandledError
from candled.exchange import Clock
from candled.model import DAY_MS, END_OF_TIME_MS, MINUTE, MINUTE_MS, Candle, Gap, Interval, MarketKey, Range, iso_ms
from candled.model.gaps import split_by_day
from candled.serve.content_coding import ContentCoding
from candled.serve.hot_path import HotReply, HotRequest
from candled.transport.library_internals import break_off

from . import operations
from .bar_answers import BarHandler, StreamedOnly
from .context import ApiContext
from .encoding_turns import encode_slices
from .formats import CONTENT_TYPES, Format, make_format
from .handler import IMMUTABLE, Handler, cache_control
from .operations import Operation
from .parameters import refuse_unknown
from .printers import CSV, json_printer, ndjson_printer, page_printer

logger = logging.getLogger(__name__)

_SEVERAL_MS = 7 * DAY_MS
_GAPS_LISTED = 50  # gaps of one day


class RestHandler(Handler):
    """A resource of the REST API."""

    def initialize(self, operation: Operation, **shared: Any) -> None:  # type: ignore[override]
        """Store the operation."""
        super().initialize(operation=operation, **shared)
        self.operation = operation

    def read_query(self) -> dict[str, Any]:
        """Return the values of the query's parameters.

        Raises:
            ApiError: one is invalid or unknown.
        """
        return self.operation.read_query(self.request.query_arguments)

    def market_parameter(self, values: Mapping[str, Any]) -> MarketKey:
        """Return the market of a query.

        Raises:
            ApiError: it is not served.
        """
        return self.source.catalog.find_market(values["exchange"], values["symbol"])


class Candles(BarHandler, RestHandler):
    """`/api/candles`: bars of one market."""

    @classmethod
    def parse_query(cls, request: HotRequest, sources: Mapping[str, Any]) -> BarQuery:
        """Return the request for bars of a query.

        Raises:
            ApiError: it is invalid, or for a format that is only streamed.
        """
        values = sources["operation"].read_query(request.arguments)
        query = cls._query(sources["source"].catalog.find_market(values["exchange"], values["symbol"]), values)
        if query is None:
            raise StreamedOnly(400, "invalid_parameter", "format: expected one that is not streamed")
        return query

    @classmethod
    def _query(cls, market: MarketKey, values: Mapping[str, Any]) -> BarQuery | None:
        """Return a request for a page of bars; None for the complete range, or a format that is not printed."""
        name = values["format"]
        if name == "json":
            return cls._json_query(market, values)
        if values["limit"] is None or name == "arrow":
            return None
        printer = CSV if name == "csv" else ndjson_printer(values["numbers"])
        head = make_format(name, market, values["interval"]).begin()
        return BarQuery(
            market,
            values["interval"],
            printer,
            _asked(values),
            lambda page: head + page.columns[0] + b"\n" if page.last_ms is not None else head,
            lambda *_: (),
            CONTENT_TYPES[name],
        )

    @staticmethod
    def _json_query(market: MarketKey, values: Mapping[str, Any]) -> BarQuery:
        head = _json_head(market, values["interval"])
        next_path = _next_path(market, values)

        def headers(page: PrintedPage, _: int) -> Headers:
            following = next_path(page)
            return () if following is None else (("Link", f'<{following}>; rel="next"'),)

        def body(page: PrintedPage) -> bytes:
            return _json_body(head, page, next_path(page))

        printer = json_printer(values["numbers"])
        return BarQuery(market, values["interval"], printer, _asked(values), body, headers, variant=values["limit"])

    async def answer(self) -> None:
        """Answer with a page of bars, or stream the complete range."""
        values = self.read_query()
        market = self.market_parameter(values)
        name, query = values["format"], self._query(market, values)
        if query is not None:
            await self.answer_bars(query)
            return
        if values["limit"] is None:
            await self._stream_range(market, values)
            return
        page = await self.source.pages.read_page(market, values["interval"], _asked(values))
        self.set_cache_headers(page.is_final)
        form = make_format(name, market, values["interval"], values["numbers"])
        self.set_header("Content-Type", CONTENT_TYPES[name])
        bars = await self._encode(form, page.bars)
        self.write_body(form.begin() + bars + form.end())

    async def _encode(self, form: Format, bars: Sequence[Candle]) -> bytes:
        return b"".join(await encode_slices(bars, form.encode_bars, self.source.clock))

    async def _stream_range(self, market: MarketKey, values: Mapping[str, Any]) -> None:
        """Write the complete range page by page, as fast as the client reads it."""
        form = make_format(values["format"], market, values["interval"], values["numbers"])
        self.set_header("Content-Type", CONTENT_TYPES[values["format"]])
        self.set_header("Cache-Control", "no-store")
        pages = self.source.pages.walk_pages(market, values["interval"], _asked(values))
        waiting, has_begun = form.begin(), False
        try:
            async for page in pages:  # the first one is read before sending, so that the answer can still be an error
                has_begun = True
                self.charge_read(len(page.bars))
                is_taken = await self.send_part(waiting + await self._encode(form, page.bars))
                if not is_taken or self.request.method == "HEAD":  # a HEAD only needs the headers
                    return
                waiting = b""
        except CandledError:
            if not has_begun:
                raise
            logger.warning("%s: answer broken off, the store cannot be read", self.request.path)
            break_off(self)
            return
        await self.send_part(form.end())


class Pages(BarHandler, RestHandler):
    """`/api/pages`: the bars of one aligned page, under an address whose answer never changes."""

    @classmethod
    def parse_query(cls, request: HotRequest, sources: Mapping[str, Any]) -> BarQuery:
        """See `BarHandler.parse_query`."""
        values = sources["operation"].read_query(request.arguments)
        source: ApiContext = sources["source"]
        market, interval = source.catalog.find_market(values["exchange"], values["symbol"]), values["interval"]
        length_ms = MOST_BARS * interval.ms
        start_ms = min(values["page"] * length_ms, END_OF_TIME_MS)
        end_ms = min(start_ms + length_ms, END_OF_TIME_MS)
        head = _json_head(market, interval)

        def body(page: PrintedPage) -> bytes:
            has_more = end_ms <= source.clock.now_ms()
            following = _address(market, values, page=values["page"] + 1) if has_more else None
            return _json_body(head, replace(page, has_more=has_more, position=None), following)

        return BarQuery(
            market,
            interval,
            page_printer(values["numbers"]),
            HistoryRequest(MOST_BARS, start_ms, end_ms, newest_first=False),
            body,
            lambda *_: (),
            has_revision=True,
            wanted_revision=values["rev"],
            address=lambda rev: _address(market, values, rev, page=values["page"]),
        )

    @classmethod
    def reply_unread(cls, query: BarQuery, known: str, coding: ContentCoding) -> HotReply | None:
        """Return 304 if the client has the answer of this address, which never changes."""
        tag = f'"{query.wanted_revision}"'
        if query.wanted_revision is None or tag not in coding.plain_tags(known):
            return None
        coded = coding.tag_of(tag)
        headers = (("Cache-Control", IMMUTABLE), ("Etag", coded if coded in known else tag))
        return HotReply(304, query.content_type, headers, b"")

    @classmethod
    def make_reply(cls, query: BarQuery, written: WrittenPage, now_ms: int) -> HotReply:
        """Return the page, or a redirect to the address of its current revision."""
        revision = None if written.revision is None else written.revision.strip('"')
        if revision != query.wanted_revision:
            location = ("Location", query.address(revision))
            return HotReply(302, "text/html; charset=UTF-8", (("Cache-Control", cache_control(False)), location), b"")
        reply = super().make_reply(query, written, now_ms)
        control = cache_control(False) if revision is None else IMMUTABLE
        return reply._replace(headers=(("Cache-Control", control), *reply.headers[1:]))


class Symbols(RestHandler):
    """`/api/symbols`: the served markets."""

    async def answer(self) -> None:
        """Answer with the served markets."""
        wanted = self.read_query()["exchange"]
        if wanted is not None:
            self.source.catalog.find_exchange(wanted)
        await self.write_kept((self.source.catalog.version, wanted), partial(self._describe, wanted))

    async def _describe(self, wanted: str | None) -> operations.Symbols:
        source = self.source
        markets = [key for key in source.catalog.markets if wanted in (None, key.exchange)]
        tickers = {key: source.catalog.ticker_of(key) for key in markets}  # before the catalog changes
        return operations.Symbols(
            [
                operations.describe_symbol(key, ticker, source.decimals(key), source.facts(key))
                async for key, ticker in source.spread(tickers.items())
            ]
        )


class Intervals(RestHandler):
    """`/api/intervals`: the served intervals."""

    async def answer(self) -> None:
        """Answer with the served intervals."""
        self.read_query()
        self.set_cache_headers(False)
        served = self.source.catalog.intervals
        self.write_json(operations.Intervals([operations.Interval(name, one.ms) for name, one in served.items()]))


class Exchanges(RestHandler):
    """`/api/exchanges`: the exchanges."""

    async def answer(self) -> None:
        """Answer with the exchanges."""
        self.read_query()
        catalog = self.source.catalog
        counts = Counter(key.exchange for key in catalog.markets)
        found = [
            operations.Exchange(name, name == catalog.default, counts[name], self.source.is_simulated(name))
            for name in catalog.exchanges
        ]
        self.set_cache_headers(False)
        self.write_json(operations.Exchanges(found))


class Coverage(RestHandler):
    """`/api/coverage`: a market's stored minutes and gaps by day."""

    async def answer(self) -> None:
        """Answer with the stored minutes and gaps of each day."""
        values = self.read_query()
        market = self.market_parameter(values)
        period = _period(values, self.source.clock, operations.DEFAULT_DAYS * DAY_MS, operations.MOST_DAYS * DAY_MS)
        complete_ms = await self.source.stored.complete_from(market)
        since_ms = await self.source.stored.served_from(market)
        days: list[operations.CoveredDay] = []
        if since_ms is not None:
            kept_ms = await self.source.stored.kept_from()
            span = Range(max(period.start_ms, since_ms, kept_ms), period.end_ms)
            self.charge_read((span.end_ms - span.start_ms) // DAY_MS)
            found = await self.source.stored.find_gaps(market, span)
            days = [_covered_day(day, some) for day, some in split_by_day(found, span)]
        self.set_cache_headers(False)
        complete_from = None if complete_ms is None else iso_ms(complete_ms)
        self.write_json(operations.Coverage(market.exchange, str(market.symbol), complete_from, days))


class Gaps(RestHandler):
    """`/api/gaps`: the gaps of markets."""

    async def answer(self) -> None:
        """Answer with the gaps of one or several markets."""
        values = self.read_query()
        if values["symbol"] is not None:
            markets, most_ms = [self.market_parameter(values)], operations.MOST_DAYS * DAY_MS
        else:
            wanted = None if values["exchange"] is None else self.source.catalog.find_exchange(values["exchange"])
            markets = [key for key in self.source.catalog.markets if wanted in (None, key.exchange)]
            most_ms = _SEVERAL_MS
        period = _period(values, self.source.clock, _SEVERAL_MS, most_ms)
        limit = values["limit"]
        found: list[tuple[Gap, MarketKey]] = []
        for market in markets:
            self.charge_read(0)
            found += [(gap, market) for gap in await self._newest_gaps(market, period, limit + 1)]
        found.sort(key=lambda one: one[0].start_ms, reverse=True)
        self.set_cache_headers(False)
        self.write_json(operations.Gaps([_gap(*one) for one in found[:limit]], len(found) > limit))

    async def _newest_gaps(self, market: MarketKey, period: Range, limit: int) -> Sequence[Gap]:
        """Return a market's newest gaps: at least `limit`, or all of them if there are fewer."""
        since_ms = await self.source.stored.served_from(market)
        if since_ms is None:
            return []
        span = Range(max(period.start_ms, since_ms), period.end_ms)
        return await self.source.stored.find_gaps(market, span, limit=limit)


class Description(Handler):
    """`/api/openapi.json`: the OpenAPI description."""

    def initialize(self, description: Callable[[], Awaitable[bytes]], **shared: Any) -> None:  # type: ignore[override]
        """Store the function that returns the text for the markets that are served now."""
        super().initialize(**shared)
        self.description = description

    async def answer(self) -> None:
        """Answer with the OpenAPI description."""
        refuse_unknown((), self.request.query_arguments)
        await self.write_kept(self.source.catalog.version, self.description, inf)


def _asked(values: Mapping[str, Any]) -> HistoryRequest:
    """Return the request for bars that the values of a query describe."""
    end_ms = END_OF_TIME_MS if values["to"] is None else values["to"]
    return HistoryRequest(
        values["limit"] or operations.DEFAULT_BARS, values["from"] or 0, end_ms, newest_first=values["from"] is None
    )


def _json_head(market: MarketKey, interval: Interval) -> bytes:
    facts = {"exchange": market.exchange, "symbol": str(market.symbol), "interval": str(interval)}
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"))[:-1].encode()


def _json_body(head: bytes, page: PrintedPage, following: str | None) -> bytes:
    oldest = "null" if page.first_ms is None else f'"{iso_ms(page.first_ms)}"'
    more = (
        f'"hasMore":{"true" if page.has_more else "false"},"oldest":{oldest}'
        f',"next":{"null" if following is None else json.dumps(following)}'
    )
    if page.position is not None:
        more += f',"epoch":{json.dumps(page.position.epoch)},"seq":{page.position.seq}'
    return b'%b,"bars":[%b],%b}' % (head, page.columns[0], more.encode())


def _next_path(market: MarketKey, values: Mapping[str, Any]) -> Callable[[PrintedPage], str | None]:
    """Return a function that returns the address of the page after a given one, relative to this request's address.

    It returns None if there is no such page.
    """
    part = {} if values["limit"] is None else {"limit": values["limit"]}
    start = _address(market, values, **part)
    end = "" if values["from"] is None or values["to"] is None else f"&to={values['to']}"
    length_ms = values["interval"].ms

    def next_path(page: PrintedPage) -> str | None:
        if not page.has_more or page.last_ms is None:
            return None
        if values["from"] is None:
            return f"{start}&to={page.first_ms}"
        return f"{start}&from={page.last_ms + length_ms}{end}"

    return next_path


def _address(market: MarketKey, values: Mapping[str, Any], rev: str | None = None, **part: int) -> str:
    """Return the address of other bars, relative to the request's address. `part` is the `limit` or the `page`."""
    asked = {"symbol": market.symbol, "interval": values["interval"], "exchange": market.exchange, **part}
    if values["numbers"]:
        asked["numbers"] = "string"
    if rev is not None:
        asked["rev"] = rev
    return f"?{urlencode(asked, safe='/:')}"


def _period(values: Mapping[str, Any], clock: Clock, default_ms: int, most_ms: int) -> Range:
    """Return the range of minutes of a request about gaps. All of them can be expected in the store."""
    now_ms = clock.now_ms() - MINUTE_MS  # the last minute may not have arrived yet
    end_ms = MINUTE.floor(now_ms if values["to"] is None else min(values["to"], now_ms))
    start_ms = end_ms - default_ms if values["from"] is None else values["from"]
    return Range(MINUTE.floor(max(start_ms, end_ms - most_ms, 0)), end_ms)


def _covered_day(day: Range, found: Sequence[Gap]) -> operations.CoveredDay:
    expected = (day.end_ms - day.start_ms) // MINUTE_MS
    holes = [operations.DayGap(*_gap_values(gap)) for gap in found[:_GAPS_LISTED]]
    stored = expected - sum(gap.minute_count for gap in found)
    return operations.CoveredDay(iso_ms(day.start_ms)[:10], stored, expected, len(found), holes)


def _gap(gap: Gap, market: MarketKey) -> operations.Gap:
    next_try = None if gap.retry_ms is None else iso_ms(gap.retry_ms)
    return operations.Gap(*_gap_values(gap), market.exchange, str(market.symbol), gap.attempts, next_try)


def _gap_values(gap: Gap) -> tuple[str, str, int, str]:
    return iso_ms(gap.start_ms), iso_ms(gap.end_ms), gap.minute_count, gap.reason
