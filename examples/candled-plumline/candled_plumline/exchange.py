"""The public API of Plumline: WebSocket frames and REST rows to candles."""

import json
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from candled import (
    Candle,
    ConnectionLimits,
    Event,
    Exchange,
    ExchangeError,
    Http,
    HttpUrl,
    InvalidRow,
    Market,
    Reply,
    Settings,
    SocketFeed,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    WebSocketUrl,
    parse_object,
    read_candles,
    read_rows_in_slices,
    rows_within,
    setting,
)

_PAGE = 100  # rows


def market_name(symbol: Symbol) -> str:
    """Return the name that the exchange has for a symbol, for instance `BTC_USDT`."""
    return f"{symbol.base}_{symbol.quote}"


def read_row(row: Any, sent_ms: int) -> Candle:
    """Read a candle. Plumline's times of candles are in seconds, and `closed` marks the last version of a minute."""
    values = (row[key] for key in ("o", "h", "l", "c", "v", "q"))
    return Candle.parse(row["t"] * 1000, *values, as_of_ms=sent_ms, final=row["closed"] is True)


def opening_time(row: Any) -> int:
    """Return the opening time of a row that cannot be a candle, in milliseconds."""
    return int(row["t"]) * 1000


class PlumlineSettings(Settings):
    """The settings under `exchanges.plumline`."""

    ws_url: WebSocketUrl = setting("wss://stream.plumline.example/ws", "the public WebSocket")
    rest_url: HttpUrl = setting("https://api.plumline.example", "the REST API, without a path")


class PlumlineFeed(SocketFeed):
    """One WebSocket connection. Plumline pings its clients, so candled does not."""

    def name_symbol(self, symbol: Symbol) -> str:
        """Return the name that frames have for a symbol. `self.by_name` finds the symbol by this name."""
        return market_name(symbol)

    def subscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """Return the text frames that subscribe to the 1-minute candles of `symbols`."""
        return [json.dumps({"op": "subscribe", "market": market_name(symbol)}) for symbol in symbols]

    def unsubscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """Return the text frames that end the subscriptions to `symbols`."""
        return [json.dumps({"op": "unsubscribe", "market": market_name(symbol)}) for symbol in symbols]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of one frame from the exchange."""
        message = parse_object(frame)
        op, symbol = message.get("op"), self.by_name.get(message.get("market", ""))
        if op == "ping":
            return [Reply(json.dumps({"op": "pong", "id": message.get("id")}))]
        if symbol is None:
            if op in ("candle", "subscribed", "unsubscribed"):
                return []  # of a symbol that was removed
            raise ExchangeError(f"expected a frame with a market, got {frame[:200]!r}")
        if op == "subscribed":
            return [Subscribed(symbol)]
        if op == "rejected":
            return [SubscriptionRejected(symbol, str(message.get("reason")))]
        if op == "unsubscribed":
            return []
        sent_ms = message.get("sent")
        if op != "candle" or not isinstance(sent_ms, int):
            raise ExchangeError(f"expected a candle, got {frame[:200]!r}")
        rows = [message.get("candle")]
        return [read_candles(symbol, rows, lambda row: read_row(row, sent_ms), open_ms=opening_time)]


class Plumline(Exchange):
    """Plumline, as its documentation describes it."""

    name = "plumline"
    Settings = PlumlineSettings
    feed_class = PlumlineFeed
    limits = ConnectionLimits(symbols_per_connection=50, frames_per_s=5.0)
    requests_per_s = 5.0
    max_history_minutes = 300
    closed_flag = "final"
    publishes_empty_candles = True
    opens_at_previous_close = True

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return a `Market` for each symbol that the exchange lists."""
        body = await http.get_json(f"{self.settings.rest_url}/markets")
        try:
            return [
                Market(
                    symbol=Symbol(one["base"], one["quote"]),
                    tick_size=Decimal(one["price_step"]),
                    status="trading" if one["state"] == "open" else "suspended",
                )
                for one in body["markets"]
            ]
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise ExchangeError(f"expected a list of markets, got {str(body)[:200]}") from error

    async def fetch_history(self, http: Http, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle | InvalidRow]:
        """Return every minute with `start_ms <= open_ms < end_ms`. A page has the newest 100 rows before a time."""
        found: list[Candle | InvalidRow] = []
        while start_ms < end_ms:
            query = {"market": market_name(symbol), "before": str(end_ms // 1000), "limit": str(_PAGE)}
            body = await http.get_json(f"{self.settings.rest_url}/candles", query)
            try:
                rows, sent_ms = body["candles"], int(body["sent"])
            except (ValueError, LookupError, TypeError) as error:
                raise ExchangeError(f"expected a page of candles, got {str(body)[:200]}") from error
            page = await read_rows_in_slices(rows, partial(read_row, sent_ms=sent_ms), self.clock, open_ms=opening_time)
            found += rows_within(page, start_ms, end_ms)
            times = [row.open_ms for row in page if row.open_ms is not None and row.open_ms < end_ms]
            if len(rows) < _PAGE or not times:
                break
            end_ms = min(times)
        return found
