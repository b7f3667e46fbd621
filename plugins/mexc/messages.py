"""MEXC's public spot API (V3) as frames and rows to candles and back, without sockets or clocks.

Sources: mexcdevelop/apidocs (spot_v3_en: "Websocket Market Streams", "Kline/Candlestick Data", "Exchange
Information"). No recorded frame was found.
"""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from candled import (
    Candle,
    Candles,
    Event,
    ExchangeError,
    FeedError,
    InvalidCandle,
    InvalidRow,
    Market,
    MarketState,
    Pong,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    parse_object,
)

PING = '{"method":"PING"}'
MOST_CHANNELS = 10  # per frame

#: MEXC's names of intervals. Its weeks are left out, because their first day is not documented.
INTERVALS: Mapping[str, str] = {
    **{"1m": "1m", "5m": "5m", "15m": "15m", "30m": "30m", "1h": "60m", "4h": "4h", "1D": "1d"},
}

_PREFIX, _SUFFIX = "spot@public.kline.v3.api.pb@", "@Min1"
_STATES: Mapping[str, MarketState] = {"1": "trading", "2": "suspended", "3": "delisted"}
_COLUMNS = 8


def name_of(symbol: Symbol) -> str:
    """Return MEXC's name of a spot pair, `BTCUSDT`. A contract keeps its own text, which MEXC refuses."""
    return f"{symbol.base}{symbol.quote}" if not symbol.settle else str(symbol)


# ---------------------------------------------------------------- WebSocket


def channel_of(symbol: Symbol) -> str:
    """Return the channel of the minute candles of a market."""
    return f"{_PREFIX}{name_of(symbol)}{_SUFFIX}"


def command_frames(method: str, symbols: Sequence[Symbol]) -> list[str]:
    """Return the frames of `method`, `SUBSCRIPTION` or `UNSUBSCRIPTION`, for the minute candles of `symbols`."""
    return [
        json.dumps(
            {"method": method, "params": [channel_of(symbol) for symbol in symbols[first : first + MOST_CHANNELS]]},
            separators=(",", ":"),
        )
        for first in range(0, len(symbols), MOST_CHANNELS)
    ]


def read_answer(frame: str, symbols: Mapping[str, Symbol]) -> list[Event]:
    """Return the events of a text frame. `symbols` are the subscribed markets, by channel.

    An acknowledgement has the channels in its text; so has a refusal, with other words and the same code 0.

    Raises:
        ExchangeError: the frame is not as documented.
    """
    text = parse_object(frame).get("msg")
    if not isinstance(text, str):
        raise ExchangeError(f"expected an answer, got {frame[:200]!r}")
    if text == "PONG":
        return [Pong()]
    named = [symbol for channel, symbol in symbols.items() if channel in text]
    if not named:
        return [FeedError(text)]
    if all(part.strip() in symbols for part in text.split(",")):
        return [Subscribed(symbol) for symbol in named]
    return [SubscriptionRejected(symbol, text) for symbol in named]


def read_push(push: Any, symbols: Mapping[str, Symbol]) -> list[Event]:
    """Return the candle of a decoded binary frame, a `PushDataV3ApiWrapper`.

    Its `as_of_ms` is the frame's send time. MEXC marks no minute as closed.

    Raises:
        ExchangeError: it is about a market that was not subscribed.
    """
    symbol = symbols.get(push.channel)
    if symbol is None:
        raise ExchangeError(f"got a message about {push.channel!r}, which was not subscribed")
    row = push.publicSpotKline
    open_ms = row.windowStart * 1000
    try:
        candle = Candle.parse(
            open_ms, row.openingPrice, row.highestPrice, row.lowestPrice, row.closingPrice, row.volume, row.amount,
            as_of_ms=push.createTime,
        )  # fmt: skip
    except InvalidCandle as error:
        return [Candles(symbol, (), invalid=(InvalidRow(open_ms, str(error)),))]
    return [Candles(symbol, (candle,))]


# ---------------------------------------------------------------- REST


def rows_of(body: Any) -> list[Any]:
    """Return the rows of an answer.

    Raises:
        ExchangeError: the answer is not a list.
    """
    if not isinstance(body, list):
        raise ExchangeError(f"expected a list of rows, got {str(body)[:200]}")
    return body


def read_row(row: Any) -> Candle:
    """Return the candle in a row: opening time, open, high, low, close, base volume, closing time, quote volume.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    if not isinstance(row, list) or len(row) < _COLUMNS:
        raise InvalidCandle(f"expected a row of {_COLUMNS} columns or more, got {str(row)[:200]}")
    open_ms, opened, high, low, close, volume, _, quote = row[:_COLUMNS]
    return Candle.parse(open_ms, opened, high, low, close, volume, quote)


def read_markets(info: Any, tickers: Any) -> list[Market]:
    """Return the markets in the answers of `exchangeInfo` and `ticker/24hr`, whose quote volume may be null.

    Raises:
        ExchangeError: the answers are not as documented.
    """
    try:
        volumes = {one["symbol"]: one.get("quoteVolume") for one in tickers}
        return [_read_market(one, volumes.get(one["symbol"])) for one in info["symbols"]]
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ExchangeError(f"a market is not as documented: {error!r}") from error


def _read_market(entry: Mapping[str, Any], volume: Any) -> Market:
    return Market(
        symbol=Symbol(entry["baseAsset"], entry["quoteAsset"]),
        price_decimals=int(entry["quoteAssetPrecision"]),
        volume_decimals=int(entry["baseAssetPrecision"]),
        status=_STATES.get(str(entry["status"]), "suspended"),
        quote_volume_24h=None if volume is None else Decimal(volume),
    )
