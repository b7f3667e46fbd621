"""Binance: its addresses, budgets and weights."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from candled import (
    CommandFeed,
    ConnectionLimits,
    Event,
    Evidence,
    Exchange,
    Http,
    HttpRejected,
    HttpUrl,
    Interval,
    Market,
    RequestBudget,
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

_USED_WEIGHT = "X-MBX-USED-WEIGHT-1M"
_FIREWALL_PAUSE_S = 300.0


class BinanceSettings(Settings):
    """Settings of the Binance spot exchange."""

    ws_url: WebSocketUrl = setting("wss://stream.binance.com:9443/ws", "the WebSocket for raw or combined streams")
    rest_url: HttpUrl = setting("https://api.binance.com", "the REST API, without a path")
    symbols_per_connection: int = setting(200, "symbols on one connection; Binance refuses above 1024", ge=1, le=1024)


class BinanceUsdmSettings(Settings):
    """Settings of Binance's USD-M contracts."""

    ws_url: WebSocketUrl = setting(
        "wss://fstream.binance.com/market/ws", "the WebSocket; without /market, Binance accepts candles and sends none"
    )
    rest_url: HttpUrl = setting("https://fapi.binance.com", "the REST API, without a path")
    symbols_per_connection: int = setting(
        200, "symbols on one connection; Binance's pages name 200 and 1024 as its limit", ge=1, le=1024
    )


class BinanceFeed(CommandFeed):
    """One connection to Binance's market streams.

    Binance pings with protocol frames, which the daemon answers. It closes every connection after 24 hours, and
    announces a shutdown of its server about ten minutes before.
    """

    lifetime_s = 23.5 * 3600
    commands = ("SUBSCRIBE", "UNSUBSCRIBE")
    symbols_per_frame = 50
    kind: ClassVar[messages.Kind] = "spot"

    def name_symbol(self, symbol: Symbol) -> str:
        """Return Binance's name of a symbol."""
        return messages.name_of(symbol, self.kind)

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command."""
        return messages.command_frame(command, symbols, self.kind, self.requests)

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.by_name, self.requests)


class BinanceUsdmFeed(BinanceFeed):
    """One connection to the streams of Binance's USD-M contracts."""

    kind = "usdm"


class Binance(Exchange):
    """Binance's spot market.

    Binance prints a flat row for a minute without trades. It allows a weight of 6,000 per minute and address, and shows
    the weight that all programs at the address have used.
    """

    name = "binance"
    evidence = Evidence(
        markets="spot",
        stream="recorded",
        boundary="recorded",
        rest="recorded",
        closed_mark="x",
        answers={"finality": "boundary_spot.txt", "currency": "boundary_spot.txt"},
    )
    bypass_reasons = skip_without("markets", "refusal", "together", "versions")
    Settings: ClassVar[type[Any]] = BinanceSettings
    feed_class = BinanceFeed
    request_budgets: ClassVar[Mapping[str, RequestBudget]] = {
        "weight": RequestBudget(limit=6000, used_header=_USED_WEIGHT)
    }
    max_history_minutes = 1000
    intervals = messages.INTERVALS
    publishes_empty_candles = True
    kind: ClassVar[messages.Kind] = "spot"
    #: The path before the name of an endpoint.
    api: ClassVar[str] = "/api/v3"
    #: The weight of a request for candles, with any number of rows up to `max_history_minutes`.
    candles_weight: ClassVar[float] = 2.0
    #: Binance counts five frames a second on a connection, those that answer its pings among them.
    limits = ConnectionLimits(frames_per_s=2.5)
    #: Leaves out markets that are not traded, and permissions: the list then has 3 MB instead of 15.
    info_query: ClassVar[Mapping[str, str]] = {"symbolStatus": "TRADING", "showPermissionSets": "false"}
    tickers_query: ClassVar[Mapping[str, str]] = {"type": "MINI"}
    #: The weights of `exchangeInfo` and of `ticker/24hr` for all markets.
    list_weights: ClassVar[tuple[float, float]] = (20.0, 80.0)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets."""
        info_weight, tickers_weight = self.list_weights
        info = await self._fetch_endpoint(http, "exchangeInfo", self.info_query, info_weight)
        tickers = await self._fetch_endpoint(http, "ticker/24hr", self.tickers_query, tickers_weight)
        return messages.read_markets(info, tickers)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return Binance's bars. It compares both bounds with opening times."""
        query = {
            "symbol": messages.name_of(symbol, self.kind),
            "interval": self.intervals[str(interval)],
            "startTime": str(start_ms),
            "endTime": str(end_ms - 1),
            "limit": str(self.max_history_minutes),
        }
        body = await self._fetch_endpoint(http, "klines", query, self.candles_weight)
        return await read_rows_in_slices(body, messages.read_row, self.clock)

    async def _fetch_endpoint(self, http: Http, endpoint: str, query: Mapping[str, str], weight: float) -> Any:
        url = f"{self.settings.rest_url.rstrip('/')}{self.api}/{endpoint}"
        try:
            return await http.get_json(url, query, weight=weight, budget="weight")
        except HttpRejected as error:
            if error.status != 403:
                raise
            http.pause_requests(url, _FIREWALL_PAUSE_S)
            raise Unavailable("Binance's firewall refuses requests from this address (403)") from error


class BinanceUsdm(Binance):
    """Binance's perpetual contracts that are settled in USDT or USDC."""

    name = "binance-usdm"
    evidence = Evidence(
        markets="perpetual contracts in USDT and USDC",
        stream="recorded",
        boundary="recorded",
        rest="documented",
        closed_mark="x",
        answers={"finality": "boundary_usdm.txt", "currency": "boundary_usdm.txt"},
    )
    bypass_reasons = skip_without("markets", "refusal", "together")
    Settings = BinanceUsdmSettings
    feed_class = BinanceUsdmFeed
    request_budgets: ClassVar[Mapping[str, RequestBudget]] = {
        "weight": RequestBudget(limit=2400, used_header=_USED_WEIGHT)
    }
    max_history_minutes = 499  # the most rows for a weight of 2; up to 1,000 weigh 5
    kind = "usdm"
    api = "/fapi/v1"
    limits = ConnectionLimits(frames_per_s=5.0)
    info_query: ClassVar[Mapping[str, str]] = {}
    tickers_query: ClassVar[Mapping[str, str]] = {}
    list_weights = (1.0, 40.0)
