"""Write and read the frames and rows of Coinbase's public Advanced Trade API, without sockets or clocks.

Sources: docs.cdp.coinbase.com ("Market Trades Channel", "Heartbeats Channel", "Get Public Product Candles", "List
Public Products"). No recorded frame with trades was found.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from candled import Candle, ExchangeError, FeedError, Market, Symbol, parse_object, reading, write_object

#: Coinbase's names of intervals. It has no weeks.
INTERVALS: Mapping[str, str] = {
    **{"1m": "ONE_MINUTE", "5m": "FIVE_MINUTE", "15m": "FIFTEEN_MINUTE", "30m": "THIRTY_MINUTE"},
    **{"1h": "ONE_HOUR", "2h": "TWO_HOUR", "6h": "SIX_HOUR", "1D": "ONE_DAY"},
}

_CELLS = ("open", "high", "low", "close", "volume")


class Trade(NamedTuple):
    """A trade of a product. `at_ms` is UTC epoch milliseconds."""

    product_id: str
    at_ms: int
    price: str
    size: str
    number: int


class Message(NamedTuple):
    """A frame. `products` are those of a reply to a subscription; `sequence` counts the frames of a connection."""

    sequence: int
    sent_ms: int
    trades: Sequence[Trade] = ()
    products: Sequence[str] = ()


def product_of(symbol: Symbol) -> str:
    """Return Coinbase's name of a spot pair, `BTC-USD`. A contract keeps its own text, which Coinbase refuses."""
    return f"{symbol.base}-{symbol.quote}" if not symbol.settle else str(symbol)


# ---------------------------------------------------------------- WebSocket


def command_frame(kind: str, channel: str, symbols: Sequence[Symbol]) -> str:
    """Return the frame of `kind`, `subscribe` or `unsubscribe`, for `market_trades`, or for `heartbeats`.

    Heartbeats keep a quiet channel open.
    """
    return write_object({"type": kind, "channel": channel, "product_ids": list(map(product_of, symbols))})


def read_frame(frame: str | bytes) -> Message | FeedError:
    """Return the trades of a frame, or the error that it reports.

    Raises:
        ExchangeError: the frame is not as documented.
    """
    message = parse_object(frame)
    if message.get("type") == "error":
        return FeedError(str(message.get("message")))
    try:
        sequence, sent_ms = int(message["sequence_num"]), read_ms(message["timestamp"])
        channel, events = message["channel"], message["events"]
        if channel == "market_trades":
            trades = [_read_trade(one) for event in events for one in event["trades"]]
            if len(trades) > 1:
                trades.sort(key=lambda one: (one.at_ms, one.number))
            return Message(sequence, sent_ms, trades)
        if channel == "subscriptions":
            names = [name for event in events for name in event["subscriptions"].get("market_trades", ())]
            return Message(sequence, sent_ms, products=names)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ExchangeError(f"expected trades, got {frame[:200]!r}") from error
    if channel != "heartbeats":
        raise ExchangeError(f"expected trades, got {frame[:200]!r}")
    return Message(sequence, sent_ms)


def _read_trade(trade: Mapping[str, Any]) -> Trade:
    return Trade(
        trade["product_id"], read_ms(trade["time"]), str(trade["price"]), str(trade["size"]), int(trade["trade_id"])
    )


def read_ms(text: Any) -> int:
    """Return a time such as `2023-06-09T20:19:35.39625135Z` in UTC epoch milliseconds.

    Raises:
        ValueError: the text is no time, or names no time zone.
    """
    moment = datetime.fromisoformat(str(text))
    if moment.tzinfo is None:
        raise ValueError(f"expected a time with its zone, got {text!r}")
    return int(moment.timestamp() * 1000)


# ---------------------------------------------------------------- REST


def rows_of(body: Any) -> list[Any]:
    """Return the rows of an answer.

    Raises:
        ExchangeError: the answer has none.
    """
    rows = body.get("candles") if isinstance(body, dict) else None
    if not isinstance(rows, list):
        raise ExchangeError(f"expected candles, got {str(body)[:200]}")
    return rows


def read_row(row: Mapping[str, Any]) -> Candle:
    """Return the candle in a row, which has no quote volume.

    Raises:
        InvalidCandle: the row is not a possible candle.
    """
    opened, high, low, close, volume = (row[name] for name in _CELLS)
    return Candle.parse(opening_of(row), opened, high, low, close, volume)


def opening_of(row: Mapping[str, Any]) -> int:
    """Return the opening time of a row, UTC epoch milliseconds."""
    return int(row["start"]) * 1000


def read_markets(body: Any) -> list[Market]:
    """Return the markets in an answer of `market/products`.

    A product that is an alias of another one (`BTC-USDC` of `BTC-USD`) is left out: its frames name the other one.

    Raises:
        ExchangeError: the answer is not as documented.
    """
    with reading("a market"):
        return [_read_market(one) for one in body["products"] if not one.get("alias")]


def _read_market(entry: Mapping[str, Any]) -> Market:
    is_open = entry["status"] == "online" and not entry.get("is_disabled") and not entry.get("trading_disabled")
    volume = entry.get("approximate_quote_24h_volume")
    return Market(
        symbol=Symbol(entry["base_currency_id"], entry["quote_currency_id"]),
        volume_step=Decimal(entry["base_increment"]),
        tick_size=Decimal(entry["price_increment"]),
        status="trading" if is_open and not entry.get("view_only") else "suspended",
        listed_ms=read_ms(entry["new_at"]) if entry.get("new_at") else None,
        quote_volume_24h=Decimal(volume) if volume else None,
    )
