"""Coinbase: its addresses, and candles made from trades."""

from collections.abc import Mapping, Sequence
from typing import Any

from candled import (
    ConnectionLimits,
    Event,
    Evidence,
    Exchange,
    ExchangeError,
    FeedError,
    Http,
    HttpUrl,
    Interval,
    InvalidCandle,
    Market,
    Row,
    Settings,
    SocketFeed,
    Subscribed,
    Symbol,
    TradeBars,
    WebSocketUrl,
    read_rows_in_slices,
    setting,
    skip_without,
)

from . import messages

_PAGE = 290  # rows; above 300 Coinbase refuses, and both bounds may count


class CoinbaseSettings(Settings):
    """Settings of the Coinbase exchange."""

    ws_url: WebSocketUrl = setting("wss://advanced-trade-ws.coinbase.com", "the public WebSocket of Advanced Trade")
    rest_url: HttpUrl = setting("https://api.coinbase.com", "the REST API, without a path")
    symbols_per_connection: int = setting(30, "symbols on one connection", ge=1, le=1000)


class CoinbaseFeed(SocketFeed):
    """One connection to Coinbase's market data.

    Coinbase has live candles of five minutes only, so the candles of a minute are made from its trades. Its frames are
    numbered: a number that is left out is a loss, and the forming minute is then left to REST.
    """

    def __init__(self, url: str, symbols: Sequence[Symbol]) -> None:
        self._bars: dict[str, tuple[Symbol, TradeBars]] = {}
        self._next = 0
        #: The products whose subscription was acknowledged on this connection.
        self._subscribed: set[str] = set()
        super().__init__(url, symbols)

    def set_symbols(self, symbols: Sequence[Symbol]) -> None:
        """Carry `symbols`, and keep the trades of those that stay."""
        super().set_symbols(symbols)
        self._subscribed &= self.by_name.keys()
        self._bars = {name: self._bars.get(name, (symbol, TradeBars(symbol))) for name, symbol in self.by_name.items()}

    name_symbol = staticmethod(messages.product_of)

    def subscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """Return the frames that subscribe to the trades of `symbols`, and to the heartbeats of their connection."""
        return [messages.command_frame("subscribe", channel, symbols) for channel in ("market_trades", "heartbeats")]

    def unsubscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """Return the frame that unsubscribes from the trades of `symbols`."""
        return [messages.command_frame("unsubscribe", "market_trades", symbols)]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        message = messages.read_frame(frame)
        if isinstance(message, FeedError):
            return [message]
        if message.sequence != self._next:  # a new connection, or a loss
            self._subscribed.clear()
            for _, bars in self._bars.values():
                bars.begin_at(message.sent_ms)
        self._next = message.sequence + 1
        events: list[Event] = []
        for name in message.products:  # all subscriptions of the connection, each time
            if name in self._bars and name not in self._subscribed:
                self._subscribed.add(name)
                symbol, bars = self._bars[name]
                bars.begin_at(message.sent_ms)  # earlier trades of the minute were not seen
                events.append(Subscribed(symbol))
        changed = self._add_trades(message) or [bars for _, bars in self._bars.values()]
        for bars in changed:
            events += bars.take_candles(message.sent_ms)
        return events

    def _add_trades(self, message: messages.Message) -> list[TradeBars]:
        """Add the trades of a frame, and return the bars that they belong to.

        Raises:
            ExchangeError: none of them is of a subscribed product.
        """
        changed: dict[str, TradeBars] = {}
        for name, at_ms, price, size, number in message.trades:
            if name not in self._bars:
                continue
            bars = changed[name] = self._bars[name][1]
            try:
                bars.add_trade(at_ms, price, size, number)
            except InvalidCandle:  # the minute lacks a trade now
                bars.begin_at(message.sent_ms)
        if message.trades and not changed:
            raise ExchangeError(f"got trades of {message.trades[0].product_id!r}, which was not subscribed")
        return list(changed.values())


class Coinbase(Exchange):
    """Coinbase's spot market, over Advanced Trade. It has no candle for a minute without trades."""

    name = "coinbase"
    evidence = Evidence(markets="spot", stream="documented", rest="documented")
    bypass_reasons = skip_without("markets", "refusal", "together", "frames", "versions", "boundary")
    Settings = CoinbaseSettings
    feed_class = CoinbaseFeed
    requests_per_s = 5.0  # Coinbase allows ten per second and address
    max_history_minutes = _PAGE
    intervals = messages.INTERVALS
    limits = ConnectionLimits(frames_per_s=4.0, attempts_per_minute=30.0)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed spot pairs."""
        return messages.read_markets(await self._fetch_products(http, "", {"product_type": "SPOT"}))

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return Coinbase's bars. Some from before the start may be among them."""
        query = {
            "start": str(start_ms // 1000),
            "end": str(end_ms // 1000 - 1),
            "granularity": self.intervals[str(interval)],
        }
        body = await self._fetch_products(http, f"/{messages.product_of(symbol)}/candles", query)
        return await read_rows_in_slices(
            messages.rows_of(body), messages.read_row, self.clock, open_ms=messages.opening_of
        )

    async def _fetch_products(self, http: Http, path: str, query: Mapping[str, str]) -> Any:
        return await http.get_json(
            f"{self.settings.rest_url.rstrip('/')}/api/v3/brokerage/market/products{path}", query
        )
