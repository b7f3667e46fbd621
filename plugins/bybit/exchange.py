"""Bybit: its addresses and budgets."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from candled import (
    CommandFeed,
    Event,
    Evidence,
    Exchange,
    Http,
    HttpRejected,
    HttpUrl,
    Interval,
    Market,
    Row,
    Settings,
    Symbol,
    Unavailable,
    WebSocketUrl,
    read_rows_in_slices,
    setting,
    skip_without,
)

from . import messages

_PAGE = 1000
_PAUSE_S = 5.0  # the period of Bybit's limit
_BAN_S = 600.0  # after a 403, Bybit asks for ten minutes without requests


class BybitSettings(Settings):
    """Settings of the Bybit spot exchange."""

    ws_url: WebSocketUrl = setting("wss://stream.bybit.com/v5/public/spot", "the public WebSocket for spot pairs")
    rest_url: HttpUrl = setting("https://api.bybit.com", "the REST API, without a path")
    symbols_per_connection: int = setting(100, "symbols on one connection", ge=1, le=1000)


class BybitLinearSettings(BybitSettings):
    """Settings of Bybit's linear contracts."""

    ws_url: WebSocketUrl = setting("wss://stream.bybit.com/v5/public/linear", "the WebSocket for linear contracts")


class BybitInverseSettings(BybitSettings):
    """Settings of Bybit's inverse contracts."""

    ws_url: WebSocketUrl = setting("wss://stream.bybit.com/v5/public/inverse", "the WebSocket for inverse contracts")


class BybitFeed(CommandFeed):
    """One connection to a public WebSocket of Bybit, which asks for a ping every 20 seconds."""

    ping = messages.PING
    symbols_per_frame = 10  # a limit of spot
    category: ClassVar[messages.Category] = "spot"

    def name_symbol(self, symbol: Symbol) -> str:
        """Return Bybit's name of a symbol."""
        return messages.name_of(symbol, self.category)

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command."""
        return messages.command_frame(command, symbols, self.category, self.requests)

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.category, self.by_name, self.requests)


class BybitLinearFeed(BybitFeed):
    """One connection to the WebSocket for linear contracts."""

    category = "linear"


class BybitInverseFeed(BybitFeed):
    """One connection to the WebSocket for inverse contracts."""

    category = "inverse"


class Bybit(Exchange):
    """Bybit's spot market. Bybit allows 600 requests in 5 seconds per address."""

    name = "bybit"
    evidence = Evidence(
        markets="spot", stream="recorded", boundary="documented", rest="documented", closed_mark="confirm"
    )
    bypass_reasons = skip_without("markets", "refusal", "together", "boundary")
    Settings: ClassVar[type[Any]] = BybitSettings
    feed_class = BybitFeed
    requests_per_s = 20.0
    max_history_minutes = _PAGE
    intervals = messages.INTERVALS
    category: ClassVar[messages.Category] = "spot"

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets, which come in pages, except those of spot."""
        query = {"category": self.category, "limit": "1000"}
        entries: list[Any] = []
        cursor = ""
        while True:
            page = {**query, "cursor": cursor} if cursor else query
            result, _ = messages.read_envelope(await self._fetch_market_data(http, "instruments-info", page))
            entries += result["list"]
            last, cursor = cursor, str(result.get("nextPageCursor") or "")
            if not cursor or cursor == last or not result["list"]:
                break
        tickers, _ = messages.read_envelope(await self._fetch_market_data(http, "tickers", {"category": self.category}))
        return messages.read_markets(entries, tickers["list"], self.category)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return Bybit's bars. Both bounds are inclusive."""
        query = {
            "category": self.category,  # without it, Bybit answers about linear contracts
            "symbol": messages.name_of(symbol, self.category),
            "interval": self.intervals[str(interval)],
            "start": str(start_ms),
            "end": str(end_ms - 1),
            "limit": str(_PAGE),
        }
        result, now_ms = messages.read_envelope(await self._fetch_market_data(http, "kline", query))
        read = partial(messages.read_row, category=self.category, now_ms=now_ms)
        return await read_rows_in_slices(result["list"], read, self.clock)

    async def _fetch_market_data(self, http: Http, endpoint: str, query: Mapping[str, str]) -> Any:
        url = f"{self.settings.rest_url.rstrip('/')}/v5/market/{endpoint}"
        try:
            body = await http.get_json(url, query)
        except HttpRejected as error:
            if error.status != 403:
                raise
            http.pause_requests(url, _BAN_S)
            raise Unavailable("Bybit refuses requests from this address for ten minutes (403)") from error
        if messages.is_too_many(body):
            http.pause_requests(url, _PAUSE_S)
        return body


class BybitLinear(Bybit):
    """Bybit's perpetual contracts that are settled in USDT or USDC."""

    name = "bybit-linear"
    evidence = Evidence(
        markets="perpetual contracts in USDT and USDC",
        stream="documented",
        boundary="documented",
        rest="recorded",
        closed_mark="confirm",
    )
    bypass_reasons = skip_without("markets", "refusal", "together", "frames", "versions", "boundary")
    Settings = BybitLinearSettings
    feed_class = BybitLinearFeed
    category = "linear"


class BybitInverse(Bybit):
    """Bybit's perpetual contracts that are settled in their base coin."""

    name = "bybit-inverse"
    evidence = Evidence(
        markets="perpetual contracts in their base coin",
        stream="documented",
        boundary="documented",
        rest="documented",
        closed_mark="confirm",
    )
    bypass_reasons = skip_without("markets", "refusal", "together", "frames", "versions", "boundary")
    Settings = BybitInverseSettings
    feed_class = BybitInverseFeed
    category = "inverse"
