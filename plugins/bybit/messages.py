"""Write and read the frames and rows of Bybit's public API (V5), without sockets or clocks.

Sources: bybit-exchange/docs (v5: "Kline" of WebSocket and market, "Get Instruments Info", "Rate Limit"); recorded
frames, listed in tests/plugins/bybit/frames/README.md.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Literal

from candled import (
    Candle,
    Event,
    ExchangeError,
    Market,
    MarketState,
    Pong,
    SubscribeRequests,
    Symbol,
    check_code,
    parse_object,
    read_candles,
    reading,
    take_cells,
    write_object,
)

PING = '{"op":"ping"}'
Category = Literal["spot", "linear", "inverse"]

#: Bybit's names of intervals. Days and weeks begin at 00:00 UTC, weeks on Monday.
INTERVALS: Mapping[str, str] = {
    **{"1m": "1", "3m": "3", "5m": "5", "15m": "15", "30m": "30"},
    **{"1h": "60", "2h": "120", "4h": "240", "6h": "360", "12h": "720", "1D": "D", "1W": "W"},
}

_SUCCESS = "0"
_TOO_MANY = frozenset({"10006", "10018"})
_RETRY_LATER = frozenset({*_TOO_MANY, "10000", "10016", "10019"})
_STATES: Mapping[str, MarketState] = {
    **{"Trading": "trading", "PreLaunch": "upcoming"},
    **{"Settling": "delisted", "Delivering": "delisted", "Closed": "delisted"},
}
_TOPIC = "kline.1."


def name_of(symbol: Symbol, category: Category) -> str:
    """Return Bybit's name of a market: `BTCUSDT`, or `BTCPERP` for a contract settled in USDC.

    The names of spot pairs and linear contracts are the same. Markets of another category keep their own text, which
    Bybit refuses, and so do contracts that expire.
    """
    if symbol.settle != {"spot": "", "linear": symbol.quote, "inverse": symbol.base}[category]:
        return str(symbol)
    return f"{symbol.base}PERP" if symbol.settle == "USDC" else f"{symbol.base}{symbol.quote}"


# ---------------------------------------------------------------- WebSocket


def command_frame(op: str, symbols: Sequence[Symbol], category: Category, requests: SubscribeRequests) -> str:
    """Return the frame of `op`, `subscribe` or `unsubscribe`, for the minute candles of `symbols`."""
    number = requests.add_request(symbols if op == "subscribe" else ())
    args = [_TOPIC + name_of(symbol, category) for symbol in symbols]
    return write_object({"op": op, "req_id": str(number), "args": args})


def read_frame(
    frame: str | bytes, category: Category, symbols: Mapping[str, Symbol], requests: SubscribeRequests
) -> list[Event]:
    """Return the events of one frame. `symbols` are the subscribed markets, by Bybit's names.

    Bybit marks the last version of a minute (`confirm`). A candle's `as_of_ms` is the frame's send time.

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    message = parse_object(frame)
    if "topic" not in message:
        return _read_answer(message, requests)
    topic, sent_ms = str(message["topic"]), message.get("ts")
    symbol = symbols.get(topic.removeprefix(_TOPIC)) if topic.startswith(_TOPIC) else None
    if symbol is None:
        raise ExchangeError(f"got a message about {topic!r}, which was not subscribed")
    if not isinstance(sent_ms, int):
        raise ExchangeError(f"expected a send time, got {frame[:200]!r}")
    read = partial(_read_kline, category=category, sent_ms=sent_ms)
    return [read_candles(symbol, message.get("data"), read, open_ms=lambda row: int(row["start"]))]


def _read_answer(message: Mapping[str, Any], requests: SubscribeRequests) -> list[Event]:
    op, text = message.get("op"), message.get("ret_msg")
    if op == "pong" or text == "pong":
        return [Pong()]
    if "success" not in message:
        raise ExchangeError(f"expected an answer or candles, got {str(message)[:200]}")
    if message["success"] is True:
        return requests.accept(message.get("req_id"))
    return requests.reject(message.get("req_id"), str(text))


def _read_kline(row: Mapping[str, Any], category: Category, sent_ms: int) -> Candle:
    opened, high, low, close = (row[name] for name in ("open", "high", "low", "close"))
    base, quote = _volumes(row["volume"], row["turnover"], category)
    final = row["confirm"] is True
    return Candle.parse(row["start"], opened, high, low, close, base, quote, as_of_ms=sent_ms, final=final)


def _volumes(volume: str, turnover: str, category: Category) -> tuple[str, str]:
    """Return base and quote volume. The `volume` of an inverse contract is in dollars, and its `turnover` in coins."""
    return (turnover, volume) if category == "inverse" else (volume, turnover)


# ---------------------------------------------------------------- REST


def read_envelope(body: Any) -> tuple[dict[str, Any], int]:
    """Return the `result` of an answer, and the exchange's clock in UTC epoch milliseconds.

    Raises:
        Unavailable: Bybit is busy or out of order.
        ExchangeError: Bybit refuses the request, or the body is not as documented.
    """
    check_code(body, "Bybit", _SUCCESS, _RETRY_LATER, code="retCode", text="retMsg")
    result = body.get("result")
    try:
        now_ms = int(body["time"])
    except (LookupError, TypeError, ValueError) as error:
        raise ExchangeError(f"expected the exchange's time, got {str(body)[:200]}") from error
    if not isinstance(result, dict) or not isinstance(result.get("list"), list):
        raise ExchangeError(f"expected a list in the result, got {str(body)[:200]}")
    return result, now_ms


def is_too_many(body: Any) -> bool:
    """Return True if an answer means that the address sent too many requests."""
    return isinstance(body, dict) and str(body.get("retCode")) in _TOO_MANY


def read_row(row: Any, category: Category, now_ms: int) -> Candle:
    """Return the candle in a row: opening time, open, high, low, close, volume, turnover.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    open_ms, opened, high, low, close, volume, turnover = take_cells(row, 7)
    base, quote = _volumes(volume, turnover, category)
    return Candle.parse(open_ms, opened, high, low, close, base, quote, as_of_ms=now_ms)


def read_markets(entries: Sequence[Any], tickers: Sequence[Any], category: Category) -> list[Market]:
    """Return the markets in the lists of `instruments-info` and `tickers`. Contracts that expire are left out.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    volumes_in = "volume24h" if category == "inverse" else "turnover24h"
    with reading("a market"):
        volumes = {one["symbol"]: Decimal(one[volumes_in] or 0) for one in tickers}
        found = (_read_market(one, category, volumes) for one in entries)
        return [market for market in found if market is not None]


def _read_market(entry: Mapping[str, Any], category: Category, volumes: Mapping[str, Decimal]) -> Market | None:
    settle = "" if category == "spot" else entry["settleCoin"]
    symbol = Symbol(entry["baseCoin"], entry["quoteCoin"], settle)
    if name_of(symbol, category) != entry["symbol"]:
        return None
    lots = entry["lotSizeFilter"]
    # the step of an inverse contract is in dollars
    step = lots.get("basePrecision") if category == "spot" else lots.get("qtyStep") if category == "linear" else None
    return Market(
        symbol=symbol,
        volume_step=None if step is None else Decimal(step),
        tick_size=Decimal(entry["priceFilter"]["tickSize"]),
        status=_STATES.get(entry["status"], "suspended"),
        listed_ms=int(entry.get("launchTime") or 0) or None,
        quote_volume_24h=volumes.get(entry["symbol"]),
    )
