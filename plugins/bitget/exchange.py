"""Bitget: its addresses, the distribution of symbols over connections, and the paging of history."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from candled import (
    Candle,
    Clock,
    CommandFeed,
    ConnectionLimits,
    Distinct,
    Event,
    Evidence,
    Exchange,
    ExchangeError,
    Feed,
    Http,
    HttpUrl,
    Interval,
    Market,
    Row,
    Settings,
    Symbol,
    WebSocketUrl,
    rows_within,
    setting,
    skip_without,
)

from . import messages
from .messages import MINUTE, PRODUCT_TYPES, Instrument, InstrumentKey, ProductType

# `candles` reaches back "about one month", measured as 30.6 days; earlier requests get empty lists.
_RECENT_MS = 30 * 86_400_000 - 3_600_000
_RECENT_PAGE = 1000
_HISTORY_PAGE = 200
_HISTORY_PAGE_MS = 90 * 86_400_000  # the longest page, with any limit


class BitgetSettings(Settings):
    """Settings of the Bitget exchange."""

    markets: Distinct[Literal["spot", "usdt-futures"]] = setting(
        ("spot",), "the kinds of markets to read: spot pairs, and perpetual contracts settled in USDT", min_length=1
    )
    ws_url: WebSocketUrl = setting("wss://ws.bitget.com/v2/ws/public", "the public WebSocket")
    rest_url: HttpUrl = setting("https://api.bitget.com", "the REST API, without a path")
    symbols_per_connection: int = setting(
        50, "symbols on one connection; Bitget recommends at most 50 and refuses above 1000", ge=1, le=1000
    )


class BitgetFeed(CommandFeed):
    """One connection to Bitget's public WebSocket.

    Bitget closes a connection that has not sent the text `ping` for two minutes, even while data flow, and every
    connection after 24 hours. It also closes connections that send more than ten frames a second. A subscription starts
    with a snapshot of 500 minutes.
    """

    ping = messages.PING
    ping_every_s = 20.0
    lifetime_s = 23.5 * 3600
    snapshot = True
    symbols_per_frame = 10  # of at most 4,096 bytes

    def __init__(self, url: str, symbols: Sequence[Symbol], products: Sequence[ProductType]) -> None:
        super().__init__(url, symbols)
        self._products = products
        self._symbols: dict[InstrumentKey, Symbol] = {}

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command. Symbols stay known after they were removed."""
        named = {messages.find_instrument(symbol, self._products).key: symbol for symbol in symbols}
        self._symbols |= named
        return messages.command_frame(command, named)

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self._symbols)


class Bitget(Exchange):
    """Bitget's spot market and its perpetual contracts settled in USDT, over the classic API (V2).

    Bitget prints a flat row for a minute without trades, and opens every candle at the close of the one before. It
    allows 20 requests a second per endpoint, and 300 attempts to connect in 5 minutes per address.
    """

    name = "bitget"
    evidence = Evidence(
        markets="spot, perpetual contracts in USDT",
        stream="recorded",
        rest="recorded",
        answers={"currency": "rest_rows_spot.json", "limits": "rest_too_many_requests.json"},
    )
    bypass_reasons = skip_without("refusal")
    Settings = BitgetSettings
    requests_per_s = 10.0
    # One less than a page of `candles`, because the row at the end of the window may count too.
    max_history_minutes = _RECENT_PAGE - 1
    publishes_empty_candles = True
    opens_at_previous_close = True
    limits = ConnectionLimits(frames_per_s=5.0, attempts_per_minute=30.0)

    def __init__(self, settings: BitgetSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self._products = [PRODUCT_TYPES[name] for name in settings.markets]

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets of all configured kinds."""
        found: list[Market] = []
        for product in self._products:
            body = await self._get_data(http, product.markets_path, product.markets_query)
            tickers = await self._get_data(http, product.tickers_path, product.markets_query)
            found += messages.read_markets(body, tickers, product)
        return found

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return the feed of one connection."""
        return BitgetFeed(self.settings.ws_url, symbols, self._products)

    async def fetch_history(self, http: Http, symbol: Symbol, start_ms: int, end_ms: int) -> Sequence[Row]:
        """Return the minutes in `[start_ms, end_ms)`, recent ones from `candles`, others from `history-candles`."""
        recent = start_ms >= self.now_ms() - _RECENT_MS
        market = messages.find_instrument(symbol, self._products)
        path = market.product.candles_path if recent else market.product.history_path
        return await self._fetch_pages(
            http, path, _RECENT_PAGE if recent else _HISTORY_PAGE, market, MINUTE, start_ms, end_ms
        )

    async def fetch_bars(
        self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int
    ) -> list[Candle] | None:
        """Return bars in UTC (`1Dutc`, `1Wutc`) from `history-candles`, which reaches back to the listing."""
        market = messages.find_instrument(symbol, self._products)
        if str(interval) not in market.product.granularities:
            return None
        most = min(_HISTORY_PAGE, _HISTORY_PAGE_MS // interval.ms)
        rows = await self._fetch_pages(http, market.product.history_path, most, market, interval, start_ms, end_ms)
        return [messages.strict(row) for row in rows]

    async def _fetch_pages(
        self, http: Http, path: str, most: int, market: Instrument, interval: Interval, start_ms: int, end_ms: int
    ) -> list[Row]:
        """Page back from `end_ms`. Each page of `most` bars ends at the oldest bar of the page before it.

        `history-candles` excludes the bar at `endTime`, `candles` includes it. So pages of either leave no gap, and
        duplicates are dropped. A page without new bars may be a gap of the exchange that is longer than a page, so the
        next one starts a page earlier.
        """
        found: list[Row] = []
        while end_ms > start_ms:
            limit = min(most, (end_ms - start_ms) // interval.ms + 1)
            page = await self._fetch_page(http, path, market, interval, end_ms, limit)
            earliest_ms = end_ms - (limit - 1) * interval.ms
            found += rows_within(page, start_ms, end_ms)
            oldest_ms = messages.oldest_of(page, earliest_ms, interval)
            if oldest_ms is None or oldest_ms >= end_ms:
                end_ms = earliest_ms
            elif oldest_ms <= start_ms:
                break
            else:
                end_ms = oldest_ms
        return messages.in_order(found)

    async def _fetch_page(
        self, http: Http, path: str, market: Instrument, interval: Interval, end_ms: int, limit: int
    ) -> list[Row]:
        # `startTime` is left out: beside `endTime` and `limit` it has no effect, except that a window wider than
        # `limit` is answered with a different window.
        query = {
            **market.product.query,
            "granularity": market.product.granularities[str(interval)],
            "symbol": market.inst_id,
            "endTime": str(end_ms),
            "limit": str(limit),
        }
        body = await self._get_data(http, path, query)
        return await messages.read_page(body, market.product, end_ms, self.clock, interval)

    async def _get_data(self, http: Http, path: str, query: Mapping[str, str]) -> Any:
        try:
            return await http.get_json(self.settings.rest_url.rstrip("/") + path, query)
        except ExchangeError as error:
            # Bitget explains an error in the body. Its code may also mean that a retry can succeed.
            messages.refuse_failure(getattr(error, "body", None))
            raise
