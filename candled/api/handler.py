"""What every answer has in common: who may read it, how often, and what a refusal looks like."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from candled.errors import CandledError, StoreRejected, Unavailable
from candled.serve.connection_limiter import Network, client_address
from candled.serve.rate_limit import HEADERS, TOO_MANY, RateLimit, RateLimitResult

from .errors import ApiError

logger = logging.getLogger(__name__)

METHODS = "GET, HEAD, OPTIONS"
EXPOSED = ", ".join((*HEADERS, "Age", "Link", "X-Candled-Last-Final", "X-MBX-USED-WEIGHT-1M"))
_NAMES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
_STALLED_S = 30.0


class AccessPolicy:
    """Who may read answers, and whose address a request has."""

    def __init__(self, allowed_origins: tuple[str, ...], trusted: tuple[Network, ...]) -> None:
        self._origins = tuple(origin.lower() for origin in allowed_origins)
        self._trusted = trusted

    def cors_headers(self, origin: str | None) -> Mapping[str, str]:
        """The headers that let a page of `origin` read an answer; none of them if it may not."""
        if "*" in self._origins:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": EXPOSED}
        if origin is None or origin.lower() not in self._origins:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": EXPOSED,
        }

    def client_address(self, peer: str, forwarded_for: str | None) -> str:
        """The client's address, as far as it can be believed."""
        return client_address(peer, forwarded_for, self._trusted)


class Handler(RequestHandler):
    """A resource that can be read. Subclasses write `answer`, and how their dialect refuses."""

    def initialize(self, gate: AccessPolicy, limit: RateLimit, **_: Any) -> None:
        self.gate = gate
        self.limit = limit
        self.verdict = RateLimitResult(True, 0, {})

    async def answer(self) -> None:
        """Answer a GET; a HEAD gets the same without the body.

        Raises:
            Refusal, Unavailable: see `refuse`.
        """
        raise HTTPError(405)

    def write_error_body(self, refusal: ApiError) -> None:
        """Write what cannot be answered."""
        self.write_json({"error": {"code": refusal.code, "message": str(refusal)}})

    def refuse_too_many(self, refusal: ApiError) -> None:
        """Write that the address has asked too often: JSON where the client asks for it, else the bare sentence."""
        if "json" in self.request.headers.get("Accept", "").lower():
            self.write_error_body(refusal)
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.write(TOO_MANY)

    # ------------------------------------------------------------ for subclasses

    def write_json(self, body: Any) -> None:
        """Write a value as JSON, or bytes that are JSON already."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.write(body if isinstance(body, bytes) else msgspec.json.encode(body))

    @property
    def known_tags(self) -> str:
        """The ETags of answers that the client has; `*` means nothing to a server that answers only reads."""
        return self.request.headers.get("If-None-Match", "")

    def tag(self, tag: str | None, is_known: bool) -> bool:
        """Give the answer an ETag; return whether it is 304 because the client has it: write nothing then."""
        if tag is not None:
            self.set_header("Etag", tag)
        if is_known:
            self.set_status(304)
        return is_known

    def set_cache_headers(self, settled: bool) -> None:
        """Let caches keep an answer for a minute if it is settled; otherwise they ask each time whether it changed."""
        self.set_header("Cache-Control", "public, max-age=60" if settled else "no-cache")

    async def send_part(self, part: bytes | str) -> bool:
        """Write a part of a long answer and wait until the client takes it; False when it is gone or reads no more."""
        self.write(part)
        try:
            await asyncio.wait_for(self.flush(), _STALLED_S)
        except (StreamClosedError, TimeoutError):
            self.abort()
            return False
        return True

    def abort(self) -> None:
        """Break off an answer under way, so that nobody takes its beginning for the whole."""
        self._finished = True
        self.request.connection.stream.close()  # type: ignore[union-attr]

    # ------------------------------------------------------------ Tornado's

    def set_default_headers(self) -> None:
        self.set_header("Server", "candled")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    async def prepare(self) -> None:
        if self.request.method == "OPTIONS":
            self._put_common_headers()
            return
        peer = self.request.connection.context.address  # type: ignore[union-attr]
        address = self.gate.client_address(
            peer[0] if isinstance(peer, tuple) else str(peer), self.request.headers.get("X-Forwarded-For")
        )
        self.verdict = await self.limit.check_request(address)
        self._put_common_headers()
        if not self.verdict.allowed:
            self.set_status(429)
            self.refuse_too_many(ApiError(429, "too_many_requests", TOO_MANY))
            self.finish()

    async def get(self, *_: str) -> None:
        try:
            await self.answer()
        except ApiError as refusal:
            self._reject(refusal)
        except (Unavailable, StoreRejected) as error:
            logger.debug("%s: %s", self.request.path, error)  # the writer says once that the store is away
            self._reject(ApiError(503, "unavailable", "The store cannot be read now", {"Retry-After": "2"}))

    head = get

    async def options(self, *_: str) -> None:
        """A preflight of a browser, or anybody who wants to know what can be asked."""
        self.set_status(204)
        self.set_header("Allow", METHODS)
        self.set_header("Access-Control-Allow-Methods", METHODS)
        self.set_header("Access-Control-Allow-Headers", "*")
        self.set_header("Access-Control-Max-Age", "600")

    def write_error(self, status_code: int, **_: Any) -> None:
        """What Tornado itself refuses, and mistakes of ours."""
        self._reject(ApiError(status_code, _NAMES.get(status_code, "internal"), self._reason))
        if status_code == 405:
            self.set_header("Allow", METHODS)
        self.finish()

    def _reject(self, refusal: ApiError) -> None:
        self.clear()
        self._put_common_headers()
        self.set_status(refusal.status)
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        self.write_error_body(refusal)

    def _put_common_headers(self) -> None:
        for headers in (self.gate.cors_headers(self.request.headers.get("Origin")), self.verdict.headers):
            for name, value in headers.items():
                self.set_header(name, value)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, HTTPError) and value.status_code < 500:
            return  # the client was told; whoever can send requests must not fill our log
        if isinstance(value, CandledError):
            logger.error("%s: %s", self.request.path, value)
        else:
            super().log_exception(typ, value, tb)


class NotFound(Handler):
    """A path of a dialect that means nothing there."""

    async def answer(self) -> None:
        raise ApiError(404, "not_found", f"Nothing is at {self.request.path[:200]}")
