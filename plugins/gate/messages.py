"""Write and read the frames and rows of Gate's public API (V4), without sockets or clocks.

Sources: gateio/gateapi-python (docs: SpotApi, FuturesApi, CurrencyPair, Contract); gate.com, "Spot WebSocket v4" and
"Futures WebSocket v4", channel candlesticks; recorded frames, listed in tests/plugins/gate/frames/README.md.
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
    Pong,
    SubscribeRequests,
    Symbol,
    base_volume,
    find_symbol,
    parse_object,
    read_candles,
    reading,
    take_cells,
    take_list,
    write_object,
)

Kind = Literal["spot", "futures"]

#: Gate's names of intervals. Its weeks are left out: they do not begin on Monday.
INTERVALS: Mapping[str, str] = {
    **{name: name for name in ("1m", "5m", "15m", "30m", "1h", "4h", "8h")},
    "1D": "1d",
}

_PREFIX = "1m_"


def name_of(symbol: Symbol, kind: Kind) -> str:
    """Return Gate's name of a market, the same for a spot pair and its contract in USDT: `BTC_USDT`.

    Markets of another kind keep their own text, which Gate refuses, and so do contracts that expire.
    """
    return f"{symbol.base}_{symbol.quote}" if symbol.settle == ("" if kind == "spot" else "USDT") else str(symbol)


# ---------------------------------------------------------------- WebSocket


def command_frame(event: str, kind: Kind, symbols: Sequence[Symbol], requests: SubscribeRequests, now_ms: int) -> str:
    """Return the frame of `event`, `subscribe` or `unsubscribe`, for one market."""
    return write_object(
        {
            "time": now_ms // 1000,
            "id": requests.add_request(symbols if event == "subscribe" else ()),
            "channel": f"{kind}.candlesticks",
            "event": event,
            "payload": ["1m", name_of(symbols[0], kind)],
        }
    )


def ping_frame(kind: Kind, now_ms: int) -> str:
    """Return a ping."""
    return write_object({"time": now_ms // 1000, "channel": f"{kind}.ping"})


def read_frame(
    frame: str | bytes, symbols: Mapping[str, Symbol], requests: SubscribeRequests, sizes: Mapping[str, Decimal] | None
) -> list[Event]:
    """Return the events of one frame. `symbols` are the subscribed markets, by Gate's names.

    `sizes` are the base coins in a contract; None for spot pairs. Gate marks the last version of a minute (`w`). A
    candle's `as_of_ms` is the frame's send time.

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    message = parse_object(frame)
    channel, event = str(message.get("channel")), message.get("event")
    if channel.endswith(".pong"):
        return [Pong()]
    if not channel.endswith(".candlesticks"):
        raise ExchangeError(f"expected candles or a pong, got {frame[:200]!r}")
    if event != "update":
        error = message.get("error")
        if isinstance(error, dict):
            return requests.reject(message.get("id"), f"{error.get('code')} {error.get('message')}")
        return requests.accept(message.get("id"))
    result, sent_ms = message.get("result"), _sent_ms(message)
    by_name: dict[str, list[Any]] = {}
    for row in result if isinstance(result, list) else [result]:
        if not isinstance(row, dict) or not str(row.get("n")).startswith(_PREFIX):
            raise ExchangeError(f"expected candles of 1m, got {frame[:200]!r}")
        by_name.setdefault(row["n"].removeprefix(_PREFIX), []).append(row)
    events: list[Event] = []
    for name, rows in by_name.items():
        symbol = find_symbol(symbols, name)
        size = None if sizes is None else _size_of(name, sizes)
        read = partial(_read_push, size=size, sent_ms=sent_ms)
        events.append(read_candles(symbol, rows, read, open_ms=opening_of))
    return events


def _sent_ms(message: Mapping[str, Any]) -> int:
    """Return the time of sending; older frames have it in seconds only."""
    precise, coarse = message.get("time_ms"), message.get("time")
    if isinstance(precise, int) and precise > 0:
        return precise
    if isinstance(coarse, int):
        return coarse * 1000
    raise ExchangeError(f"expected a time, got {str(message)[:200]}")


def _read_push(row: Mapping[str, Any], size: Decimal | None, sent_ms: int) -> Candle:
    # of a spot pair, `v` is the quote volume and `a` the base volume
    volume, quote = (row["a"], row["v"]) if size is None else (base_volume(row["v"], size), None)
    opened, high, low, close = (row[name] for name in "ohlc")
    final = row.get("w") is True
    return Candle.parse(opening_of(row), opened, high, low, close, volume, quote, as_of_ms=sent_ms, final=final)


def opening_of(row: Mapping[str, Any]) -> int:
    """Return the opening time of a row with names, UTC epoch milliseconds."""
    return int(row["t"]) * 1000


def _size_of(name: str, sizes: Mapping[str, Decimal]) -> Decimal:
    if name not in sizes:
        raise ExchangeError(f"the size of a contract of {name} is unknown")
    return sizes[name]


# ---------------------------------------------------------------- REST


def read_spot_row(row: Any) -> Candle:
    """Return the candle in a row: opening time in s, quote volume, close, high, low, open, base volume, closed.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    _, quote, close, high, low, opened, base = take_cells(row, 7)
    return Candle.parse(spot_row_ms(row), opened, high, low, close, base, quote)


def spot_row_ms(row: Sequence[Any]) -> int:
    """Return the opening time of a row of a spot pair, UTC epoch milliseconds."""
    return int(row[0]) * 1000


def read_futures_row(row: Mapping[str, Any], size: Decimal) -> Candle:
    """Return the candle in a contract's row, whose columns have names; `sum` is the quote volume.

    Raises:
        InvalidCandle: the row is not a possible candle.
    """
    volume = base_volume(row["v"], size)
    return Candle.parse(opening_of(row), row["o"], row["h"], row["l"], row["c"], volume, row["sum"])


def read_sizes(contracts: Any) -> dict[str, Decimal]:
    """Return the base coins in one contract of each market in an answer of `contracts`.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    with reading("a contract"):
        return {one["name"]: Decimal(one["quanto_multiplier"]) for one in take_list(contracts)}


def read_spot_markets(pairs: Any, tickers: Any) -> list[Market]:
    """Return the markets in the answers of `currency_pairs` and `tickers`.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    with reading("a market"):
        volumes = {one["currency_pair"]: Decimal(one["quote_volume"] or 0) for one in take_list(tickers)}
        return [
            Market(
                symbol=Symbol(one["base"], one["quote"]),
                price_decimals=int(one["precision"]),
                volume_decimals=int(one["amount_precision"]),
                status="suspended" if one["trade_status"] == "untradable" else "trading",
                listed_ms=int(one.get("buy_start") or 0) * 1000 or None,
                quote_volume_24h=volumes.get(one["id"]),
            )
            for one in take_list(pairs)
        ]


def read_futures_markets(contracts: Any, tickers: Any) -> list[Market]:
    """Return the markets in the answers of `contracts` and `tickers`.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    with reading("a market"):
        volumes = {one["contract"]: Decimal(one.get("volume_24h_quote") or 0) for one in take_list(tickers)}
        return [_read_contract(one, volumes) for one in take_list(contracts)]


def _read_contract(entry: Mapping[str, Any], volumes: Mapping[str, Decimal]) -> Market:
    base, _, quote = entry["name"].rpartition("_")
    return Market(
        symbol=Symbol(base, quote, "USDT"),
        volume_step=Decimal(entry["quanto_multiplier"]),
        tick_size=Decimal(entry["order_price_round"]),
        status="delisted" if entry.get("in_delisting") else "trading",
        listed_ms=int(entry.get("create_time") or 0) * 1000 or None,
        quote_volume_24h=volumes.get(entry["name"]),
    )
