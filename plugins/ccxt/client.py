"""ccxt's classes, with candled's HTTP client and exact numbers."""

import json
from contextvars import ContextVar
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

from candled import ConfigError, Exchange, ExchangeError, Http, HttpAnswer, Unavailable

from .messages import PrintedFloat

BUDGET = "ccxt"
"""The request budget with ccxt's weights."""

_PAUSE_S = 10.0  # after a refusal that is no 429
_ACCEPT = "accept-encoding"  # Tornado's client decompresses only gzip, and asks for it itself

_cost: ContextVar[float] = ContextVar("cost", default=1.0)


def make_client(name: str, kind: str, exchange: Exchange) -> Any:
    """Return an object of ccxt's class for an exchange, for markets of a `kind`. It makes no connection yet.

    ccxt imports all its classes, which takes a second.

    Raises:
        ConfigError: ccxt is not installed, or has no such exchange.
    """
    try:
        streaming, plain = import_module("ccxt.pro"), import_module("ccxt.async_support")
    except ImportError as error:
        raise ConfigError(f"{exchange.name} needs ccxt: pip install 'candled[ccxt]'") from error
    if name not in plain.exchanges:
        near = get_close_matches(name, plain.exchanges, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"exchange: expected one that ccxt {plain.__version__} knows, got {name!r}{hint}")
    base = getattr(streaming if name in streaming.exchanges else plain, name)
    made = type(name, (_Client, base), {})(
        {
            "number": str,
            "enableRateLimit": True,
            "timeout_on_exit": 0,
            "options": {"defaultType": kind, "tradesLimit": 10_000},
        }
    )
    made.has["fetchCurrencies"] = False  # one more request, for facts that are not used
    made.milliseconds = exchange.now_ms
    made.errors = plain
    made.http = None
    return made


class _Client:
    """Overrides of ccxt's base class.

    ccxt's limiter passes the weight of a request on, and candled's HTTP client waits for the budget. JSON numbers with
    a point become text.
    """

    http: Http | None
    errors: Any

    async def throttle(self, cost: float | None = None) -> None:
        """Remember the weight of the next request of this task."""
        _cost.set(1.0 if cost is None else float(cost))

    async def fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        """Send a request with candled's HTTP client, and read the answer as ccxt does.

        Raises:
            Unavailable: as `Http.get_json`.
            Exception: ccxt's own errors.
        """
        one: Any = self
        if self.http is None:
            raise Unavailable("there is no HTTP client yet")
        sent = {name: value for name, value in one.prepare_request_headers(headers).items() if name.lower() != _ACCEPT}
        answer = await self.http.fetch_text(
            url, method=method, headers=sent, body=body, weight=_cost.get(), budget=BUDGET
        )
        try:
            return self._read_answer(answer, url, method, sent, body)
        except self.errors.RateLimitExceeded:
            self.http.pause_requests(url, _PAUSE_S)
            raise

    def _read_answer(self, answer: HttpAnswer, url: str, method: str, headers: dict[str, str], body: Any) -> Any:
        one: Any = self
        text = one.on_rest_response(answer.status, "", url, method, answer.headers, answer.text, headers, body)
        parsed = one.parse_json(text)
        one.last_response_headers = dict(answer.headers)
        one.handle_errors(answer.status, "", url, method, one.last_response_headers, text, parsed, headers, body)
        one.handle_http_status_code(answer.status, "", url, method, text)
        return text if parsed is None else parsed

    @staticmethod
    def safe_float(values: Any, key: Any, default: Any = None) -> Any:
        """Return a number of an answer as a float that keeps its text. Some classes of ccxt read candles with it."""
        try:
            value = values[key]
            return PrintedFloat(value if isinstance(value, str) else str(value))
        except (LookupError, TypeError, ValueError):
            return default

    def on_json_response(self, text: str) -> Any:
        """Parse an answer with exact numbers."""
        return parse_exactly(text)

    def client(self, url: str) -> Any:
        """Return the connection to an address, through candled's proxy, and with exact numbers in its frames."""
        one: Any = self
        proxy = None if self.http is None else self.http.find_proxy(url)
        if proxy is not None:
            setattr(one, "wsSocksProxy" if proxy.startswith("socks") else "wssProxy", proxy)
        made: Any = super().client(url)  # type: ignore[misc]
        made.handle_text_or_binary_message = partial(_read_frame, made)
        return made


def parse_exactly(text: str | bytes) -> Any:
    """Parse JSON. A number with a point or an exponent becomes its text.

    Raises:
        ValueError: the text is not JSON.
    """
    return json.loads(text, parse_float=str, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"expected a number, got {name}")


def _read_frame(connection: Any, data: str | bytes) -> None:
    """Pass a frame to ccxt, as its own connection does."""
    if isinstance(data, bytes) and connection.decompressBinary:
        data = data.decode()
    is_json = isinstance(data, str) and data[:1] in ("{", "[") and len(data) > 1
    connection.on_message_callback(connection, parse_exactly(data) if is_json else data)


def translate_error(error: Exception, errors: Any) -> Exception:
    """Return candled's error for one of ccxt's. Others are returned as they are."""
    if isinstance(error, errors.NetworkError):  # also too many requests, and maintenance
        return Unavailable(f"{type(error).__name__}: {error}"[:300])
    if isinstance(error, errors.BaseError):
        return ExchangeError(f"{type(error).__name__}: {error}"[:300])
    return error
