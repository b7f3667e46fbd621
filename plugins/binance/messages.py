"""Write and read the frames and rows of Binance's public API, without sockets or clocks.

Sources: binance/binance-spot-api-docs (web-socket-streams.md, rest-api.md, filters.md), developers.binance.com
("USDⓈ-M Futures", market data); recorded frames, listed in tests/plugins/binance/frames/README.md.
"""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from candled import (
    Candle,
    ClosingSoon,
    Event,
    ExchangeError,
    InvalidCandle,
    Market,
    MarketState,
    SubscribeRequests,
    Symbol,
    find_symbol,
    parse_object,
    read_candles,
)

MOST_STREAMS = 50  # per frame

Kind = Literal["spot", "usdm"]

#: Binance's names of intervals. Days and weeks begin at 00:00 UTC, weeks on Monday.
INTERVALS: Mapping[str, str] = {
    **{name: name for name in ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h")},
    **{"1D": "1d", "1W": "1w"},
}

_STATES: Mapping[str, MarketState] = {
    "TRADING": "trading",
    "PENDING_TRADING": "upcoming",
    **dict.fromkeys(("SETTLING", "CLOSE", "PRE_DELIVERING", "DELIVERING", "DELIVERED", "PRE_SETTLE"), "delisted"),
}
_COLUMNS = 8
_STREAM = "kline_1m"


def name_of(symbol: Symbol, kind: Kind) -> str:
    """Return Binance's name of a market, which is the same for a spot pair and for its perpetual contract: `BTCUSDT`.

    Markets of another kind keep their own text, and so do contracts that expire: Binance has no such name.
    """
    return f"{symbol.base}{symbol.quote}" if symbol.settle == ("" if kind == "spot" else symbol.quote) else str(symbol)


# ---------------------------------------------------------------- WebSocket


def command_frames(method: str, symbols: Sequence[Symbol], kind: Kind, requests: SubscribeRequests) -> list[str]:
    """Return the frames of `method`, `SUBSCRIBE` or `UNSUBSCRIBE`, for the minute candles of `symbols`."""
    frames = []
    for first in range(0, len(symbols), MOST_STREAMS):
        group = symbols[first : first + MOST_STREAMS]
        streams = [f"{name_of(symbol, kind).lower()}@{_STREAM}" for symbol in group]
        number = requests.add_request(group if method == "SUBSCRIBE" else ())
        frames.append(json.dumps({"method": method, "params": streams, "id": number}, separators=(",", ":")))
    return frames


def read_frame(frame: str | bytes, symbols: Mapping[str, Symbol], requests: SubscribeRequests) -> list[Event]:
    """Return the events of one frame of a raw or a combined stream. `symbols` are the markets, by Binance's names.

    Binance marks the last version of a minute (`x`). A candle's `as_of_ms` is the frame's send time.

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    message = parse_object(frame)
    if "id" in message:
        return _read_answer(message, requests)
    data = message.get("data", message)
    data = data.get("event", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise ExchangeError(f"expected an event, got {frame[:200]!r}")
    if data.get("e") == "serverShutdown":
        return [ClosingSoon("the server is about to shut down")]
    row = data.get("k")
    if data.get("e") != "kline" or not isinstance(row, dict) or row.get("i") != "1m":
        raise ExchangeError(f"expected a candle of 1m, got {frame[:200]!r}")
    symbol = find_symbol(symbols, data.get("s"))
    sent_ms = data.get("E")
    if not isinstance(sent_ms, int):
        raise ExchangeError(f"expected a send time, got {frame[:200]!r}")
    return [read_candles(symbol, [row], lambda one: _read_kline(one, sent_ms), open_ms=lambda one: int(one["t"]))]


def _read_answer(message: Mapping[str, Any], requests: SubscribeRequests) -> list[Event]:
    number, error = message["id"], message.get("error", message)
    if "result" in message or not isinstance(error, dict):
        return requests.accept(number)
    return requests.reject(number, f"{error.get('code')} {error.get('msg')}")


def _read_kline(row: Mapping[str, Any], sent_ms: int) -> Candle:
    cells = (row[name] for name in "tohlcvq")
    return Candle.parse(*cells, as_of_ms=sent_ms, final=row["x"] is True)


# ---------------------------------------------------------------- REST


def read_row(row: Any) -> Candle:
    """Return the candle in a row: opening time, open, high, low, close, base volume, closing time, quote volume.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    if not isinstance(row, list) or len(row) < _COLUMNS:
        raise InvalidCandle(f"expected a row of {_COLUMNS} columns or more, got {str(row)[:200]}")
    open_ms, opened, high, low, close, volume, _, quote = row[:_COLUMNS]
    return Candle.parse(open_ms, opened, high, low, close, volume, quote)


def read_rows_of(body: Any) -> list[Any]:
    """Return the rows of an answer.

    Raises:
        ExchangeError: the answer is not a list.
    """
    if not isinstance(body, list):
        raise ExchangeError(f"expected a list of rows, got {str(body)[:200]}")
    return body


def read_markets(info: Any, tickers: Any) -> list[Market]:
    """Return the markets in the answers of `exchangeInfo` and `ticker/24hr`. Contracts that expire are left out.

    Raises:
        ExchangeError: the answers are not as documented.
    """
    try:
        volumes = {one["symbol"]: Decimal(one["quoteVolume"]) for one in tickers}
        found = (_read_market(one, volumes) for one in info["symbols"])
        return [market for market in found if market is not None]
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ExchangeError(f"a market is not as documented: {error!r}") from error


def _read_market(entry: Mapping[str, Any], volumes: Mapping[str, Decimal]) -> Market | None:
    symbol = Symbol(entry["baseAsset"], entry["quoteAsset"], entry.get("marginAsset", ""))
    if name_of(symbol, "usdm" if symbol.settle else "spot") != entry["symbol"]:
        return None
    filters = {one["filterType"]: one for one in entry["filters"]}
    return Market(
        symbol=symbol,
        volume_decimals=_places(filters.get("LOT_SIZE", {}).get("stepSize")),
        # `pricePrecision` is not the tick
        tick_size=Decimal(filters["PRICE_FILTER"]["tickSize"]) if "PRICE_FILTER" in filters else None,
        status=_STATES.get(entry["status"], "suspended"),
        listed_ms=entry.get("onboardDate"),
        quote_volume_24h=volumes.get(entry["symbol"]),
    )


def _places(step: str | None) -> int | None:
    """Return the decimal places of a step, without the zeros at its end; None if there is none."""
    return None if step is None else max(0, -int(Decimal(step).normalize().as_tuple().exponent))
