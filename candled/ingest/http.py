"""Requests to exchanges: one budget per host, `Retry-After` is obeyed, and only JSON is accepted."""

import codecs
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.simple_httpclient import HTTPStreamClosedError, SimpleAsyncHTTPClient

from candled.budget import Budget, LocalBudget, MakeBudget
from candled.errors import ExchangeError, HttpRejected, Unavailable
from candled.exchange import Clock, HttpAnswer, RequestBudget
from candled.proxies import Proxies
from candled.tasks import LoopTurns
from candled.token_bucket import MOST_CLOSED_S

from .tunnel import TunnelingTCPClient

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_FIRST_PENALTY_S = 2.0
_MOST_PENALTY_S = 120.0
_MOST_DOUBLINGS = 9  # of a pause; 2 to the power of thousands of refusals is no float
#: The longest body, before and after decompression.
_MAX_BODY_BYTES = 4 * 1024 * 1024
_LONG_BODY_BYTES = 16 * 1024  # parsing a longer one, and reading its rows, may take milliseconds
_MAX_LISTS = 200_000  # lists and objects: `[[],[],…]` takes 30 times its length in memory
_MAX_COMMAS = 400_000  # a million decimal numbers take half a second and 100 MB
_MOST_USED = 0.9  # of a limit: then candled waits for the next period, so that other programs can go on
TOO_MANY = (418, 429)  # 418 is Binance's answer to clients that go on after 429


class HttpClient:
    """The `candled.exchange.Http` of one exchange. Each host has a budget of `requests_per_s`, and the named `budgets`.

    `budget` returns the budget of a host, which other clients share. Without it, the budgets belong to this client
    alone. `proxies` are those from the settings.
    """

    def __init__(
        self,
        clock: Clock,
        requests_per_s: float,
        budget: MakeBudget | None = None,
        proxies: Proxies | None = None,
        budgets: Mapping[str, RequestBudget] = MappingProxyType({}),
    ) -> None:
        self._clock = clock
        self._limits = budgets
        self._rate = requests_per_s
        self._budget = budget or self._own_budget
        self._client = SimpleAsyncHTTPClient(force_instance=True, max_clients=8, max_buffer_size=_MAX_BODY_BYTES)
        self._proxies = proxies or Proxies()
        self._client.tcp_client = TunnelingTCPClient(self._proxies)
        self._hosts: dict[str, _Host] = {}
        #: For long bodies of JSON. Clients may wait for one, so the turns do not wait long.
        self._turns = LoopTurns(clock, most_busy_s=0.1)
        #: The requests by the status of their answer; `none` without an answer.
        self.statuses: Counter[str] = Counter()
        #: Called with the `Date` of each response in UTC epoch ms, and the times of request and response in
        #: milliseconds of the steady clock.
        self.on_date: Callable[[int, int, int], None] | None = None
        #: Called with each response, before it is read.
        self.on_response: Callable[[HTTPResponse], None] | None = None

    async def get_json(
        self, url: str, params: Mapping[str, str] | None = None, *, weight: float = 1.0, budget: str = ""
    ) -> Any:
        """Fetch `url` with GET; see `candled.exchange.Http.get_json`."""
        full = f"{url}?{urlencode(params)}" if params else url
        return await self._fetch(HTTPRequest(full), weight, budget)

    async def post_json(self, url: str, body: Any = None, *, weight: float = 1.0, budget: str = "") -> Any:
        """Send `body` with POST; see `candled.exchange.Http.post_json`."""
        data = b"" if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        return await self._fetch(HTTPRequest(url, "POST", headers, data), weight, budget)

    async def fetch_text(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        weight: float = 1.0,
        budget: str = "",
    ) -> HttpAnswer:
        """Send a request of any method; see `candled.exchange.Http.fetch_text`."""
        request = HTTPRequest(url, method, dict(headers or {}), body, allow_nonstandard_methods=True)
        response = await self._send_request(request, weight, budget)
        if response.code >= 500:
            raise Unavailable(f"{_host_of(url)} answered {response.code}: {_excerpt(response.body)}")
        if _is_excessive(response.body):
            raise ExchangeError(f"{_host_of(url)} sent more lists or commas than candled reads")
        return HttpAnswer(response.code, response.headers, response.body.decode("utf-8", "replace"))

    def find_proxy(self, url: str) -> str | None:
        """Return the proxy for a socket; see `candled.exchange.Http.find_proxy`."""
        parts = urlsplit(url)
        is_secure = parts.scheme in ("https", "wss")
        port = parts.port or (443 if is_secure else 80)
        proxy = self._proxies.choose(parts.hostname or "", port, is_secure=is_secure)
        return None if proxy is None else proxy.full_text

    def pause_requests(self, url: str, seconds: float) -> None:
        """Send no requests for some time; see `candled.exchange.Http.pause_requests`."""
        name = _host_of(url)
        logger.warning("%s asked for a pause: no requests for %.0f s", name, seconds)
        self._host(name).budget.close_for(max(0.0, seconds))

    async def _fetch(self, request: HTTPRequest, weight: float, budget: str) -> Any:
        response = await self._send_request(request, weight, budget)
        kind = response.headers.get("Content-Type")
        is_long = len(response.body) > _LONG_BODY_BYTES
        async with self._turns.take() if is_long else contextlib.nullcontext():
            return read_answer(_host_of(request.url), response.code, kind, response.body)

    async def _send_request(self, request: HTTPRequest, weight: float, budget: str) -> HTTPResponse:
        """Send a request within its budget, and return the answer, unless it asks for a pause.

        Raises:
            Unavailable: as in `candled.exchange.Http.get_json`, except that 5xx is returned.
        """
        name = _host_of(request.url)
        host = self._host(name)
        named = host.named(budget) if budget else None
        # the host's own budget is closed if the host asked for a pause
        await host.budget.acquire(weight if named is None else 0.0)
        if named is not None:
            await named.acquire(weight)
        host.requests += 1
        asked = self._clock.monotonic()
        request.connect_timeout = request.request_timeout = _TIMEOUT_S
        request.follow_redirects = False
        try:
            response = await self._client.fetch(request, raise_error=False)
        except (OSError, HTTPClientError) as error:
            self.statuses["none"] += 1
            raise Unavailable(f"cannot reach {name}: {error}") from error
        self.statuses[_status_name(response.code)] += 1
        if self.on_response is not None:
            self.on_response(response)
        if response.code == 599:  # Tornado's own status: no response
            is_closed = isinstance(response.error, HTTPStreamClosedError)
            or_long = f", or the body has more than {_MAX_BODY_BYTES} bytes" if is_closed else ""
            raise Unavailable(f"cannot reach {name}: {response.error}{or_long}") from response.error
        date_ms = _date_ms(response.headers)
        if date_ms is not None and self.on_date is not None:
            self.on_date(date_ms, round(asked * 1000), round(self._clock.monotonic() * 1000))
        if named is not None:
            self._pause_if_used(f"{name}, budget {budget}", named, self._limits[budget], response.headers, date_ms)
        self._obey_pause(name, host, response)
        return response

    def describe(self) -> dict[str, Any]:
        """Return for `/health`: each host's requests, the share of its budget left, and how long it is closed."""
        return {
            name: {
                "requests": host.requests,
                "budgetLeft": round(host.budget.remaining_share(), 3),
                "closedForSeconds": round(host.budget.closed_for(), 1),
                "budgets": {budget: round(one.remaining_share(), 3) for budget, one in host.by_name.items()},
            }
            for name, host in self._hosts.items()
        }

    def is_busy(self) -> bool:
        """Return whether less than half of some host's budget is left."""
        return any(
            budget.remaining_share() < 0.5
            for host in self._hosts.values()
            for budget in (host.budget, *host.by_name.values())
        )

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    def _host(self, name: str) -> "_Host":
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(name, self._budget(name, self._rate), self._budget, self._limits)
        return host

    def _pause_if_used(
        self, name: str, budget: Budget, limit: RequestBudget, headers: Mapping[str, str], date_ms: int | None
    ) -> None:
        """Wait for the exchange's next period if it reports that little is left of this one."""
        used = _used_share(limit, headers)
        if used is not None and used >= _MOST_USED:
            period_ms = max(1, round(limit.period_s * 1000))
            now_ms = self._clock.now_ms() if date_ms is None else date_ms
            wait_s = (period_ms - now_ms % period_ms) / 1000
            logger.info("%s: %.0f %% is used, no requests for %.1f s", name, 100 * used, wait_s)
            budget.close_for(wait_s)

    def _own_budget(self, name: str, rate: float) -> Budget:
        return LocalBudget(self._clock, rate)

    def _obey_pause(self, name: str, host: "_Host", response: HTTPResponse) -> None:
        if response.code not in TOO_MANY:
            host.penalties = 0
            return
        wait_s = _retry_after_s(response.headers.get("Retry-After"), self._clock.now_ms())
        if wait_s is None:
            wait_s = min(_MOST_PENALTY_S, _FIRST_PENALTY_S * 2.0 ** min(host.penalties, _MOST_DOUBLINGS))
        host.penalties += 1
        host.budget.close_for(wait_s)
        logger.warning("%s answered %d: no requests for %.0f s", name, response.code, wait_s)
        raise Unavailable(f"{name} answered {response.code}, too many requests", retry_after_s=wait_s)


def read_answer(host: str, status: int, kind: str | None, content: bytes) -> Any:
    """Return the parsed body of an answer, other than 418 and 429. `kind` is its content type.

    Raises:
        Unavailable, ExchangeError: as in `candled.exchange.Http.get_json`.
    """
    body = _parse(content)
    if status >= 500:
        raise Unavailable(f"{host} answered {status}: {_excerpt(content)}")
    if body is None:
        raise ExchangeError(f"expected JSON from {host}, got {status} {kind or 'no content type'}: {_excerpt(content)}")
    if status >= 300:
        raise HttpRejected(f"{host} answered {status}: {_excerpt(content)}", status=status, body=body)
    return body


class _Host:
    def __init__(self, name: str, budget: Budget, make: MakeBudget, limits: Mapping[str, RequestBudget]) -> None:
        self._name = name
        self._make = make
        self._limits = limits
        self.budget = budget
        self.by_name: dict[str, Budget] = {}
        self.requests = 0
        self.penalties = 0

    def named(self, budget: str) -> Budget:
        """Return one of the host's named budgets.

        Raises:
            ExchangeError: the plugin declares no budget of that name.
        """
        if budget not in self.by_name:
            if budget not in self._limits:
                raise ExchangeError(f"expected a budget of {', '.join(self._limits) or 'none'}, got {budget}")
            limit = self._limits[budget]
            rate = limit.limit * limit.share / limit.period_s
            self.by_name[budget] = self._make(f"{self._name}/{budget}", rate)
        return self.by_name[budget]


def _status_name(code: int) -> str:
    """Return a status for metrics: `none` without an answer, `invalid` for a number that is no status."""
    if code == 599:  # Tornado's own
        return "none"
    return str(code) if 100 <= code < 599 else "invalid"


def _used_share(limit: RequestBudget, headers: Mapping[str, str]) -> float | None:
    """Return the share of a limit that the exchange reports as used; None if it reports none."""
    try:
        if limit.used_header is not None and limit.used_header in headers:
            return float(headers[limit.used_header]) / limit.limit
        if limit.remaining_header is not None and limit.remaining_header in headers:
            return 1.0 - float(headers[limit.remaining_header]) / limit.limit
    except ValueError:
        return None
    return None


def _host_of(url: str) -> str:
    """Return the host of a URL, with its port unless that is the default, in one normalized form."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    return host.removesuffix({"https": ":443", "http": ":80"}.get(parts.scheme.lower(), ""))


_decode = msgspec.json.Decoder(float_hook=Decimal).decode


def _is_excessive(body: bytes) -> bool:
    return body.count(b"[") + body.count(b"{") > _MAX_LISTS or body.count(b",") > _MAX_COMMAS


def _parse(body: bytes) -> Any:
    if _is_excessive(body):
        return None
    try:
        return _decode(body.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):  # also for characters that cannot be encoded again
        return None


def _excerpt(body: bytes) -> str:
    return repr(body[:120].decode("utf-8", "replace"))


def _date_ms(headers: Mapping[str, str]) -> int | None:
    """Return the server's clock by `Date` (RFC 9110, 6.6.1) plus `Age` if cached; None if missing or invalid."""
    try:
        made = parsedate_to_datetime(headers["Date"])
        return round(made.timestamp() * 1000) + 1000 * int(headers.get("Age", 0))
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def _retry_after_s(header: str | None, now_ms: int) -> float | None:
    """Return the seconds in `Retry-After`, an hour at most, also if it is a date (RFC 9110, 10.2.3).

    None if it is missing or invalid.
    """
    if header is None:
        return None
    try:
        try:
            wait_s = float(header)
        except ValueError:
            wait_s = parsedate_to_datetime(header).timestamp() - now_ms / 1000
    except (ValueError, TypeError, OverflowError):
        return None
    return None if math.isnan(wait_s) else min(max(0.0, wait_s), MOST_CLOSED_S)
