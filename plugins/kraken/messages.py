"""Write and read the frames and rows of Kraken's public API (WebSocket V2, REST), without sockets or clocks.

Sources: docs.kraken.com ("OHLC" of WebSocket V2, "Get OHLC Data", "Get Tradable Asset Pairs", "Get Ticker
Information"); recorded frames, listed in tests/plugins/kraken/frames/README.md.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

from candled import (
    Candle,
    Event,
    ExchangeError,
    InvalidCandle,
    Market,
    MarketState,
    Pong,
    Subscribed,
    Symbol,
    Unavailable,
    find_symbol,
    parse_object,
    read_candles,
    reading,
    reject_symbol,
    take_cells,
    write_object,
)

PING = '{"method":"ping"}'

#: Kraken's names of intervals, in minutes. Its weeks are left out: they do not begin on Monday.
INTERVALS: Mapping[str, str] = {"1m": "1", "5m": "5", "15m": "15", "30m": "30", "1h": "60", "4h": "240", "1D": "1440"}

# REST and the list of markets use names of their own for two coins.
_REST_COINS = {"BTC": "XBT", "DOGE": "XDG"}
_COINS = {rest: coin for coin, rest in _REST_COINS.items()}
_STATES: Mapping[str, MarketState] = {"online": "trading", "limit_only": "trading", "post_only": "upcoming"}
_RETRY_LATER = ("EAPI:Rate limit", "EGeneral:Too many requests", "EService:", "EGeneral:Temporary lockout")
_TOO_MANY = ("EAPI:Rate limit", "EGeneral:Too many requests", "EGeneral:Temporary lockout")
_CELLS = ("open", "high", "low", "close", "volume")


def pair_of(symbol: Symbol) -> str:
    """Return the name of a pair for REST: `XBTUSD`. The WebSocket calls it `BTC/USD`, as `str(symbol)` does.

    A contract keeps its own text, which Kraken refuses.
    """
    if symbol.settle:
        return str(symbol)
    return f"{_REST_COINS.get(symbol.base, symbol.base)}{_REST_COINS.get(symbol.quote, symbol.quote)}"


# ---------------------------------------------------------------- WebSocket


def command_frame(method: str, names: Sequence[str]) -> str:
    """Return the frame of `method`, `subscribe` or `unsubscribe`, for the minute candles of markets."""
    params: dict[str, Any] = {"channel": "ohlc", "symbol": names, "interval": 1}
    if method == "subscribe":
        params["snapshot"] = True
    return write_object({"method": method, "params": params})


def read_frame(frame: str | bytes, symbols: Mapping[str, Symbol]) -> list[Event]:
    """Return the events of one frame. `symbols` are the subscribed markets, by Kraken's names.

    A candle's `as_of_ms` is the frame's send time. Prices and volumes are JSON numbers. Kraken marks no minute as
    closed.

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    message = parse_object(frame)
    channel = message.get("channel")
    if channel in ("heartbeat", "status"):
        return []
    if channel != "ohlc":
        return _read_answer(message, symbols)
    try:
        rows, sent_ms = message.get("data"), _read_ms(message.get("timestamp"))
    except ValueError as error:
        raise ExchangeError(f"expected a send time, got {frame[:200]!r}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ExchangeError(f"expected rows, got {frame[:200]!r}")
    by_name: dict[str, list[Any]] = {}
    for row in rows:
        by_name.setdefault(str(row.get("symbol")), []).append(row)
    is_snapshot, read = message.get("type") == "snapshot", partial(_read_candle, sent_ms=sent_ms)
    return [
        read_candles(find_symbol(symbols, name), some, read, open_ms=_opening_of, snapshot=is_snapshot)
        for name, some in by_name.items()
    ]


def _read_answer(message: Mapping[str, Any], symbols: Mapping[str, Symbol]) -> list[Event]:
    method, result = message.get("method"), message.get("result")
    if method == "pong":
        return [Pong()]
    if method == "unsubscribe":
        return []
    if message.get("success") is True and isinstance(result, dict):
        return [Subscribed(find_symbol(symbols, result.get("symbol")))]
    if "error" not in message:
        raise ExchangeError(f"expected candles or an answer, got {str(message)[:200]}")
    return [reject_symbol(symbols, message.get("symbol"), str(message["error"]))]


def _read_candle(row: Mapping[str, Any], sent_ms: int) -> Candle:
    if row.get("interval") != 1:
        raise InvalidCandle(f"expected a candle of one minute, got {str(row)[:200]}")
    return Candle.parse(_opening_of(row), *(row[name] for name in _CELLS), as_of_ms=sent_ms)


def _opening_of(row: Mapping[str, Any]) -> int:
    return _read_ms(row.get("interval_begin"))  # `timestamp` is its end


def _read_ms(text: Any) -> int:
    """Return a time such as `2026-08-12T19:28:43.952985558Z` in UTC epoch milliseconds.

    Raises:
        ValueError: the text is no time, or names no time zone.
    """
    moment = datetime.fromisoformat(str(text))
    if moment.tzinfo is None:
        raise ValueError(f"expected a time with its zone, got {text!r}")
    return round(moment.timestamp() * 1000)


# ---------------------------------------------------------------- REST


def read_envelope(body: Any) -> dict[str, Any]:
    """Return the `result` of an answer.

    Raises:
        Unavailable: Kraken is busy or out of order.
        ExchangeError: Kraken refuses the request, or the body is not as documented.
    """
    if not isinstance(body, dict) or not isinstance(body.get("error"), list):
        raise ExchangeError(f"expected an object with errors, got {str(body)[:200]}")
    if body["error"]:
        problem = f"Kraken answered {body['error'][0]}"
        is_passing = str(body["error"][0]).startswith(_RETRY_LATER)
        raise Unavailable(problem) if is_passing else ExchangeError(problem)
    result = body.get("result")
    if not isinstance(result, dict):
        raise ExchangeError(f"expected a result, got {str(body)[:200]}")
    return result


def is_too_many(body: Any) -> bool:
    """Return True if an answer means that the address sent too many requests."""
    errors = body.get("error") if isinstance(body, dict) else None
    return isinstance(errors, list) and any(str(error).startswith(_TOO_MANY) for error in errors)


def rows_of(result: Mapping[str, Any]) -> list[Any]:
    """Return the rows of an answer about one pair. Their key is Kraken's own name for it, such as `XXBTZUSD`.

    Raises:
        ExchangeError: there are rows of no pair, or of several.
    """
    found = [rows for name, rows in result.items() if name != "last"]
    if len(found) != 1 or not isinstance(found[0], list):
        raise ExchangeError(f"expected the rows of one pair, got {str(result)[:200]}")
    return found[0]


def read_row(row: Any) -> Candle:
    """Return the candle in a row: opening time in seconds, open, high, low, close, average price, base volume.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    _, opened, high, low, close, _, volume = take_cells(row, 7)
    return Candle.parse(row_ms(row), opened, high, low, close, volume)


def row_ms(row: Sequence[Any]) -> int:
    """Return the opening time of a row, UTC epoch milliseconds."""
    return int(row[0]) * 1000


def read_markets(pairs: Mapping[str, Any], tickers: Mapping[str, Any]) -> list[Market]:
    """Return the markets in the answers of `AssetPairs` and `Ticker`, whose keys are Kraken's own names of pairs.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    with reading("a market"):
        found = (_read_market(entry, tickers.get(name)) for name, entry in pairs.items())
        return [market for market in found if market is not None]


def _read_market(entry: Mapping[str, Any], ticker: Mapping[str, Any] | None) -> Market | None:
    base, _, quote = entry.get("wsname", "").partition("/")  # `XBT/USD`
    if not base or not quote:  # a dark pool
        return None
    tick = entry.get("tick_size")
    return Market(
        symbol=Symbol(_COINS.get(base, base), _COINS.get(quote, quote)),
        price_decimals=int(entry["pair_decimals"]),
        volume_decimals=int(entry["lot_decimals"]),
        tick_size=Decimal(tick) if tick else None,
        status=_STATES.get(entry.get("status", "online"), "suspended"),
        # the volume of 24 hours times its average price
        quote_volume_24h=None if ticker is None else Decimal(ticker["v"][1]) * Decimal(ticker["p"][1]),
    )
