"""Write and read the frames and rows of OKX's public API (V5), without sockets or clocks.

Sources: okx.com/docs-v5, "WS / Candlesticks channel", "Get candlesticks", "Get candlesticks history", "Get
instruments", "Get tickers", "Error Code"; the order of columns and the meaning of each volume as ccxt 4.5.90 reads
them (`okx.py`, `parse_ohlcv`); recorded frames, listed in tests/plugins/okx/frames/README.md.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Literal

from candled import (
    Candle,
    ClosingSoon,
    Event,
    ExchangeError,
    FeedError,
    Market,
    MarketState,
    Pong,
    Subscribed,
    Symbol,
    check_code,
    find_symbol,
    parse_object,
    read_candles,
    reading,
    reject_symbol,
    take_cells,
    write_object,
)

PING = "ping"
CHANNEL = "candle1m"

#: OKX's names of intervals with boundaries in UTC. From six hours on, names without `utc` mean UTC+8.
INTERVALS: Mapping[str, str] = {
    **{name: name for name in ("1m", "3m", "5m", "15m", "30m")},
    **{"1h": "1H", "2h": "2H", "4h": "4H", "6h": "6Hutc", "12h": "12Hutc", "1D": "1Dutc", "1W": "1Wutc"},
}

InstType = Literal["SPOT", "SWAP"]

TOO_MANY_REQUESTS = "50011"
_SUCCESS = "0"
_RETRY_LATER = frozenset({TOO_MANY_REQUESTS, "50001", "50004", "50013", "50026", "50040", "50061"})
_CLOSING_SOON = "64008"
_NAMED = re.compile(r"instId:\s*([^\s,]+)")
_STATES: Mapping[str, MarketState] = {"live": "trading", "suspend": "suspended", "preopen": "upcoming"}
_COLUMNS = 7


def inst_type_of(symbol: Symbol) -> InstType:
    """Return the kind of market that a symbol names."""
    return "SWAP" if symbol.settle else "SPOT"


def inst_id_of(symbol: Symbol) -> str:
    """Return OKX's name of a market: `BTC-USDT`, or `BTC-USDT-SWAP` for a perpetual contract.

    A contract that expires, or that is settled in another coin, keeps its own text: OKX refuses it.
    """
    if symbol.settle and symbol.settle not in (symbol.base, symbol.quote):
        return str(symbol)
    return f"{symbol.base}-{symbol.quote}-SWAP" if symbol.settle else f"{symbol.base}-{symbol.quote}"


# ---------------------------------------------------------------- WebSocket


def command_frame(op: str, inst_ids: Iterable[str]) -> str:
    """Return the frame of `op`, `subscribe` or `unsubscribe`, for the minute candles of markets."""
    return write_object({"op": op, "args": [{"channel": CHANNEL, "instId": inst_id} for inst_id in inst_ids]})


def read_frame(frame: str | bytes, symbols: Mapping[str, Symbol]) -> list[Event]:
    """Return the events of one frame of the business WebSocket. `symbols` are the subscribed markets, by OKX's names.

    OKX sends no time with its candles. It marks the last version of a minute (`confirm`).

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    if frame == "pong":
        return [Pong()]
    message = parse_object(frame)
    if "event" in message:
        return _read_event(message, symbols)
    symbol = _symbol_of(message.get("arg"), symbols)
    read = partial(read_row, inst_type=inst_type_of(symbol))
    return [read_candles(symbol, message.get("data"), read)]


def _read_event(message: Mapping[str, Any], symbols: Mapping[str, Symbol]) -> list[Event]:
    event, code = message["event"], str(message.get("code"))
    if event == "subscribe":
        return [Subscribed(_symbol_of(message.get("arg"), symbols))]
    if event == "unsubscribe":
        return []
    reason = f"{code} {message.get('msg')}"
    if event == "notice":
        return [ClosingSoon(reason) if code == _CLOSING_SOON else FeedError(reason)]
    if event != "error":
        raise ExchangeError(f"expected subscribe, unsubscribe, notice or error, got the event {event!r}")
    named = _NAMED.search(reason)  # only the text names the market
    return [reject_symbol(symbols, named and named[1], reason)]


def _symbol_of(arg: Any, symbols: Mapping[str, Symbol]) -> Symbol:
    if not isinstance(arg, dict) or arg.get("channel") != CHANNEL:
        raise ExchangeError(f"expected an arg of {CHANNEL}, got {str(arg)[:200]}")
    return find_symbol(symbols, arg.get("instId"))


def read_row(row: Any, inst_type: InstType) -> Candle:
    """Return the candle in a row: opening time, open, high, low, close, three volumes, and whether the bar is over.

    The volumes are `vol`, `volCcy` and `volCcyQuote`. The base volume of spot pairs is `vol`. That of contracts is
    `volCcy`, because their `vol` counts contracts. Older rows end with `volCcy`, the quote volume of a spot pair.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    open_ms, opened, high, low, close, vol, vol_ccy = take_cells(row, _COLUMNS)
    volume, quote = (vol, vol_ccy) if inst_type == "SPOT" else (vol_ccy, None)
    if len(row) > _COLUMNS:
        quote = row[_COLUMNS]
    return Candle.parse(open_ms, opened, high, low, close, volume, quote, final=row[-1] == "1" and len(row) > 8)


# ---------------------------------------------------------------- REST


def read_envelope(body: Any) -> list[Any]:
    """Return the `data` of an answer.

    Raises:
        Unavailable: OKX is busy or out of order.
        ExchangeError: OKX refuses the request, or the body is not as documented.
    """
    check_code(body, "OKX", _SUCCESS, _RETRY_LATER)
    data = body.get("data")
    if not isinstance(data, list):
        raise ExchangeError(f"expected a list of data, got {str(body)[:200]}")
    return data


def is_too_many(body: Any) -> bool:
    """Return True if an answer means that the address sent too many requests."""
    return isinstance(body, dict) and str(body.get("code")) == TOO_MANY_REQUESTS


def read_markets(instruments: Any, tickers: Any, inst_type: InstType) -> list[Market]:
    """Return the markets in the answers of `instruments` and `tickers`.

    Contracts that expire, and entries of upcoming contracts without the usual fields, are left out.

    Raises:
        Unavailable, ExchangeError: as `read_envelope`; an entry without the documented fields.
    """
    with reading("a market"):
        volumes = {one["instId"]: _quote_volume(one, inst_type) for one in read_envelope(tickers)}
        found = (_read_market(one, inst_type, volumes) for one in read_envelope(instruments))
        return [market for market in found if market is not None]


def _read_market(entry: Mapping[str, Any], inst_type: InstType, volumes: Mapping[str, Decimal]) -> Market | None:
    if inst_type == "SPOT":
        base, quote, settle = entry.get("baseCcy"), entry.get("quoteCcy"), ""
    else:  # the fields for coins are empty
        base, _, quote = (entry.get("uly") or "").partition("-")
        settle = entry.get("settleCcy", "")
    if not base or not quote or (inst_type == "SWAP" and not settle):
        return None
    symbol = Symbol(base, quote, settle)
    if inst_id_of(symbol) != entry["instId"]:
        return None
    return Market(
        symbol=symbol,
        volume_step=_volume_step(entry, inst_type),
        tick_size=Decimal(entry["tickSz"]) if entry.get("tickSz") else None,
        status=_STATES.get(entry["state"], "suspended"),
        # the start of continuous trading, after an auction; not every market has one
        listed_ms=int(entry.get("contTdSwTime") or entry.get("listTime") or 0) or None,
        quote_volume_24h=volumes.get(entry["instId"]),
    )


def _volume_step(entry: Mapping[str, Any], inst_type: InstType) -> Decimal | None:
    """Return the smallest step of base volumes: a lot, times the base coins in one contract (`ctVal`)."""
    if not entry.get("lotSz"):
        return None
    if inst_type == "SPOT":
        return Decimal(entry["lotSz"])
    if entry.get("ctValCcy") != entry["uly"].partition("-")[0]:  # a contract of so many dollars
        return None
    return Decimal(entry["lotSz"]) * Decimal(entry["ctVal"])


def _quote_volume(ticker: Mapping[str, Any], inst_type: InstType) -> Decimal:
    """Return the volume of 24 hours: `volCcy24h` is in quote coins for spot pairs, in base coins for contracts."""
    volume = Decimal(ticker.get("volCcy24h") or 0)
    return volume if inst_type == "SPOT" else volume * Decimal(ticker.get("last") or 0)
