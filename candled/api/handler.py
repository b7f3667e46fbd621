"""The base of all API handlers: CORS, rate limits, caching and error answers."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from candled.addresses import client_of
from candled.errors import CandledError, StoreRejected, Unavailable
from candled.model import MarketKey
from candled.on_demand import DemandRefused
from candled.serve.connection_limiter import Network, client_address
from candled.serve.content_coding import CODINGS, PLAIN, choose_coding
from candled.serve.grants import grant_of, private, refusal_of
from candled.serve.hot_path import HotReply, HotRequest, implements, set_headers
from candled.serve.kept_pages import KeptPages
from candled.serve.rate_limit import HEADERS, TOO_MANY, UNLIMITED, RateLimit, RateLimitResult
from candled.serve.request_ids import HEADER, find_id, is_logged
from candled.transport.hot_stream import HotStream
from candled.transport.http_connections import REFUSED_S
from candled.transport.library_internals import break_off, error_reason, peer_address, stream_of
from candled.transport.work_budget import REFUSED, page_cost

from .errors import ApiError, UnknownSymbol

if TYPE_CHECKING:
    from .context import ApiContext
    from .offered_markets import OfferedMarkets

logger = logging.getLogger(__name__)

METHODS = "GET, HEAD, OPTIONS"
IMMUTABLE = "public, max-age=31536000, immutable"
EXPOSED = ", ".join((*HEADERS, "Age", "Link", "X-Candled-Last-Final", "X-MBX-USED-WEIGHT-1M"))
_FOR_NO_ORIGIN = {"Vary": "Origin, Accept-Encoding"}
_FOR_ANY_ORIGIN = {
    "Vary": "Accept-Encoding",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": EXPOSED,
}
_PREFLIGHT = (
    ("Allow", METHODS),
    ("Access-Control-Allow-Methods", METHODS),
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Max-Age", "600"),
)
_NAMES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
TOO_MANY_REQUESTS = ApiError(429, "too_many_requests", TOO_MANY)
_NO_METHOD = ApiError(405, "method_not_allowed", "Method Not Allowed", {"Allow": METHODS})
_STALLED_S = 30.0
SMALL = b" " * 1500  # no error has more bytes
_JSON, _HTML = "application/json; charset=utf-8", "text/html; charset=utf-8"


class AccessPolicy:
    """Decides which origins may read answers, and which address a request comes from."""

    def __init__(self, allowed_origins: tuple[str, ...], trusted: tuple[Network, ...]) -> None:
        self._origins = tuple(origin.lower() for origin in allowed_origins)
        self._trusted = trusted

    def cors_headers(self, origin: str | None) -> Mapping[str, str]:
        """Return the headers that let a page of `origin` read an answer; only `Vary` if it may not."""
        if "*" in self._origins:
            return _FOR_ANY_ORIGIN
        if origin is None or origin.lower() not in self._origins:
            return _FOR_NO_ORIGIN
        return {**_FOR_NO_ORIGIN, "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED}

    def client_address(self, peer: str, forwarded_for: str | None) -> str:
        """Return the client's address; `X-Forwarded-For` counts only from a trusted proxy."""
        return client_address(peer, forwarded_for, self._trusted)


@dataclass(frozen=True, slots=True)
class DialectContext:
    """The rules for all resources of a dialect, and the answers that are kept."""

    #: The origins that may read answers, and the proxies that are trusted.
    access: AccessPolicy
    #: The rate limit of the dialect's group of routes.
    limit: RateLimit
    #: The smallest body to compress, in bytes; 0 for none.
    compress_from: int
    #: The answers that requests share.
    pages: KeptPages


class Handler(RequestHandler):
    """A readable resource. Subclasses implement `answer`, and the error bodies of their dialect."""

    has_json_only = False  # True if 429 is JSON for every client
    has_waited = False  # for an exchange's list: once for a request, however many symbols it has

    def initialize(self, dialect: DialectContext, source: "ApiContext", **more: Any) -> None:
        """Store the rules of the dialect, the sources of answers, and all arguments that queries are read with."""
        self.source = source
        self.sources = {"source": source, **more}
        self.access, self.limit, self.pages = dialect.access, dialect.limit, dialect.pages
        self.limit_result = UNLIMITED
        accepted = choose_coding(self.request.headers.get("Accept-Encoding"), dialect.compress_from)
        self.coding = PLAIN if accepted is None else accepted
        self.accepts_no_coding = accepted is None

    async def answer(self) -> None:
        """Answer a GET. A HEAD gets the same without the body.

        Raises:
            ApiError: the client can act; `describe_error` describes the answer.
            Unavailable, StoreRejected: the store cannot be read; the answer is 503.
        """
        raise HTTPError(405)

    @classmethod
    def describe_error(cls, refusal: ApiError) -> tuple[int, Any]:
        """Return the status and the JSON of an error in this dialect."""
        return refusal.status, {"error": {"code": refusal.code, "message": str(refusal)}}

    def refuse_too_many(self, refusal: ApiError) -> None:
        """Write that the rate limit is exceeded: JSON if the client accepts it, else the plain sentence."""
        if self.has_json_only or "json" in self.request.headers.get("Accept", "").lower():
            self.write_json(self.describe_error(refusal)[1])
            return
        self.set_header("Content-Type", _HTML)
        self.write(TOO_MANY)

    @classmethod
    def refuse_now(cls, refusal: ApiError, request: HotRequest, peer: str, dialect: DialectContext) -> HotReply | None:
        """Count a request, and return the answer that refuses it; None if its handler must answer."""
        headers, prepared, access = request.headers, request.refusal, dialect.access
        if prepared is None or prepared[0] is not refusal:
            prepared = request.refusal = refusal, cls.reply_refusal(refusal, UNLIMITED, headers, access)
        reply = prepared[1]
        coding = choose_coding(headers.get("accept-encoding"), dialect.compress_from)
        if coding is None or coding.applies_to(SMALL) or (reply.status == 200 and "if-none-match" in headers):
            return None
        if request.method in cls.SUPPORTED_METHODS:
            result = dialect.limit.check_now(access.client_address(peer, headers.get("x-forwarded-for")))
        else:
            result = UNLIMITED  # Tornado refuses other methods before the limit counts them
        if result is None or result is UNLIMITED:
            return reply if result is UNLIMITED else None
        if not result.allowed:
            return request.reply_once(result, lambda: cls.reply_refusal(refusal, result, headers, access))
        status, content_type, shared, body, _, others = reply
        return HotReply(status, content_type, shared, body, result.headers.items(), others)

    @classmethod
    def answer_now(cls, request: HotRequest, peer: str, *, dialect: DialectContext, **sources: Any) -> HotReply | None:
        """Return the answer to a preflight, or to a method that no resource has; None if a method must answer."""
        if request.method == "OPTIONS":
            origin = dialect.access.cors_headers(request.headers.get("origin"))
            headers = (("Cache-Control", "no-store"), *origin.items(), *_PREFLIGHT)
            return request.reply_once(cls, lambda: HotReply(204, "", headers, b""))
        if implements(cls, request.method):
            return None
        return cls.refuse_now(_NO_METHOD, request, peer, dialect)

    @classmethod
    def reply_refusal(
        cls, refusal: ApiError, result: RateLimitResult, headers: Mapping[str, str], access: AccessPolicy
    ) -> HotReply:
        """Return the answer to a refused request: 429 if the rate limit refuses it, else that of `refusal`."""
        if not result.allowed:
            refusal = TOO_MANY_REQUESTS
        status, error = cls.describe_error(refusal)
        content_type, body = _JSON, msgspec.json.encode(error)
        if refusal.status == 429 and not cls.has_json_only and "json" not in headers.get("accept", "").lower():
            content_type, body = _HTML, TOO_MANY.encode()
        shared = ("Cache-Control", "no-store"), *access.cors_headers(headers.get("origin")).items()
        tag = (("Etag", f'"{hashlib.sha1(body).hexdigest()}"'),) if status == 200 else ()
        return HotReply(status, content_type, shared, body, result.headers.items(), (*refusal.headers.items(), *tag))

    def is_exempt(self) -> bool:
        """Return True if the rate limit does not count this request."""
        return False

    @classmethod
    def count_headers(cls, count: int) -> Iterable[tuple[str, str]]:
        """Return the headers that show the number of requests, besides those of the rate limit."""
        return ()

    # ------------------------------------------------------------ for subclasses

    def write_json(self, body: Any) -> None:
        """Write a value as JSON. Bytes are written as they are."""
        self.set_header("Content-Type", _JSON)
        self.write_body(body if isinstance(body, bytes) else msgspec.json.encode(body))

    async def write_kept(self, key: Hashable, make: Callable[[], Awaitable[Any]], lasts_s: float = 1.0) -> None:
        """Write a value as JSON. It is made at most once in `lasts_s`, and all requests with this key share it."""

        async def encode() -> bytes:
            body = await make()
            return body if isinstance(body, bytes) else msgspec.json.encode(body)

        page = await self.pages.find((type(self), key), encode, lasts_s)
        body, coding = page.encoded(self.coding)
        self.set_cache_headers(False)
        self.set_header("Content-Type", _JSON)
        if coding.name:
            self.set_header("Content-Encoding", coding.name)
        self.write(body)

    def write_body(self, body: bytes) -> None:
        """Write a complete body, compressed if that is worthwhile."""
        if self.coding.applies_to(body):
            self.set_header("Content-Encoding", self.coding.name)
        self.write(self.coding.encode(body))

    def charge_read(self, bars: int) -> None:
        """Charge the work of an answer that is not ready in memory, with `bars` bars or as much other data."""
        self.charge_work(page_cost(bars))

    def charge_work(self, cost: float) -> None:
        """Charge the budget of this request's client."""
        stream = stream_of(self.request)
        if isinstance(stream, HotStream):
            stream.charge_work(cost)

    def set_cache_headers(self, is_final: bool) -> None:
        """Set the header that limits how long caches keep the answer."""
        self.set_header("Cache-Control", cache_control(is_final))

    async def send_part(self, part: bytes | str) -> bool:
        """Write a part of a long answer and wait until it is sent.

        Returns:
            False if the client has disconnected or does not read.
        """
        self.write(part)
        try:
            await asyncio.wait_for(self.flush(), _STALLED_S)
        except (StreamClosedError, TimeoutError):
            break_off(self)
            return False
        stream = stream_of(self.request)
        if isinstance(stream, HotStream):
            await stream.pause()
        return True

    # ------------------------------------------------------------ calls from Tornado

    def set_default_headers(self) -> None:
        """Set the headers that all answers share."""
        self.set_header("Server", "candled")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    def set_header(self, name: str, value: Any) -> None:
        """Set a header. No shared cache may keep an answer for which the client needed a token."""
        super().set_header(name, value if grant_of(self.request) is None else private(name, value))

    async def prepare(self) -> None:
        """Count the request, and answer 429 if the rate limit is exceeded."""
        if self.request.method == "OPTIONS":
            self._put_common_headers()
            return
        address = self.access.client_address(peer_address(self.request), self.request.headers.get("X-Forwarded-For"))
        self.limit_result = UNLIMITED if self.is_exempt() else await self.limit.check_request(address)
        self._put_common_headers()
        stream = stream_of(self.request)
        is_allowed = self.limit_result.allowed
        if isinstance(stream, HotStream) and stream.work_wait_s == REFUSED:
            is_allowed = False
            self.set_header("Retry-After", str(REFUSED_S))
        if not is_allowed:
            self.set_status(429)
            if isinstance(stream, HotStream):
                stream.on_refused((self.request.uri or "").partition("?")[0])
            self.refuse_too_many(TOO_MANY_REQUESTS)
            self.finish()
            return
        refusal = refusal_of(self.request)
        if refusal is not None:
            self._reject(ApiError(refusal.status, refusal.code, str(refusal), refusal.headers))
            self.finish()

    async def get(self, *_: str) -> None:
        """Write the answer, or an error in this dialect."""
        try:
            if self.accepts_no_coding:
                raise ApiError(
                    406, "not_acceptable", f"Accept-Encoding: expected one of {', '.join(CODINGS)}, identity"
                )
            await self._answer_started()
        except ApiError as refusal:
            self._reject(refusal)
        except (Unavailable, StoreRejected) as error:
            logger.debug("%s: %s", self.request.path, error)  # the writer logs once that the store is unavailable
            self._reject(ApiError(503, "unavailable", "The store cannot be read now", {"Retry-After": "2"}))

    head = get

    async def _answer_started(self) -> None:
        """Answer, after starting the markets of the request that are not served and that clients may start."""
        started: set[MarketKey] = set()
        while True:
            try:
                await self.answer()
                return
            except UnknownSymbol as refusal:
                market = await self.start_offered(refusal, started)
                if market is None:
                    raise
                started.add(market)

    async def start_offered(self, refusal: UnknownSymbol, started: Collection[MarketKey] = ()) -> MarketKey | None:
        """Start the market of a refused request, which may have to wait for the exchange's list.

        Return None if clients may not start it, or it is in `started`.

        Raises:
            ApiError: it cannot be started now.
        """
        offered, grant = self.source.offered, grant_of(self.request)
        if offered is None:
            return None
        if not self.has_waited and (exchanges := offered.awaited_lists(refusal)):
            self.has_waited = True
            await offered.demand.wait_for_lists(exchanges)
        market = offered.find(refusal)
        if market is None or market in started or (grant is not None and not grant.allows_symbol(market.symbol)):
            return None
        await self._start_market(offered, market)
        return market

    async def _start_market(self, offered: "OfferedMarkets", market: MarketKey) -> None:
        address = self.access.client_address(peer_address(self.request), self.request.headers.get("X-Forwarded-For"))
        try:
            await offered.demand.start_market(market, client_of(address))
        except DemandRefused as refusal:
            raise ApiError(
                503, "too_many_markets", f"Too many markets on demand: {refusal}", {"Retry-After": "60"}
            ) from None
        except Unavailable as error:
            logger.warning("%s: %s", market, error)
            raise ApiError(503, "unavailable", f"Market not started: {market.symbol}", {"Retry-After": "2"}) from None

    async def options(self, *_: str) -> None:
        """Answer a browser's preflight, or a query for the allowed methods."""
        self.set_status(204)
        set_headers(self, _PREFLIGHT)

    def write_error(self, status_code: int, **_: Any) -> None:
        """Write an error raised by Tornado, or an internal one, in this dialect."""
        self._reject(ApiError(status_code, _NAMES.get(status_code, "internal"), error_reason(self)))
        if status_code == 405:
            self.set_header("Allow", METHODS)
        if is_logged(status_code):
            self.set_header(HEADER, find_id(self.request))
        self.finish()

    def _reject(self, refusal: ApiError) -> None:
        self.clear()
        self._put_common_headers()
        status, body = self.describe_error(refusal)
        self.set_status(status)
        set_headers(self, refusal.headers.items())
        self.write_json(body)

    def _put_common_headers(self) -> None:
        for headers in (self.access.cors_headers(self.request.headers.get("Origin")), self.limit_result.headers):
            set_headers(self, headers.items())

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log errors of the server only."""
        if isinstance(value, HTTPError) and value.status_code < 500:
            return  # the client got the error; requests must not be able to fill the log
        if isinstance(value, CandledError):
            logger.error("%s: %s", self.request.path, value)
        else:
            super().log_exception(typ, value, tb)


def cache_control(is_final: bool) -> str:
    """Return the header that lets caches keep a final answer for a minute, and revalidate any other one."""
    return "public, max-age=60" if is_final else "no-cache"


class NotFound(Handler):
    """An unknown path of a dialect."""

    @classmethod
    def refusal_of(cls, path: str) -> ApiError:
        """Return the error of an unknown path."""
        return ApiError(404, "not_found", f"Nothing is at {path[:200]}")

    async def answer(self) -> None:
        """Answer 404."""
        raise self.refusal_of(self.request.path)

    @classmethod
    def answer_now(cls, request: HotRequest, peer: str, *, dialect: DialectContext, **sources: Any) -> HotReply | None:
        """Return the 404 of `answer`; None if the handler must answer."""
        if not request.reads:
            return super().answer_now(request, peer, dialect=dialect)
        if request.query is None:
            request.query = cls.refusal_of(request.path)
        return cls.refuse_now(request.query, request, peer, dialect)
