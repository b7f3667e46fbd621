"""Write and read the frames and rows of HTX's public API, without sockets or clocks.

Sources: huobiapi/docs (v1_en: "Heartbeat and Connection", "Market Candlestick", "Get Klines", "Get all Supported
Trading Symbol"); the types and samples of JKorf/HTX.Net and ccxt for contracts; recorded frames, listed in
tests/plugins/htx/frames/README.md.
"""

import json
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import Any

from candled import (
    Candle,
    Event,
    ExchangeError,
    Market,
    MarketState,
    Reply,
    Subscribed,
    Symbol,
    find_symbol,
    parse_object,
    read_candles,
    reading,
    reject_symbol,
)

#: HTX's names of intervals. Its days and weeks are left out: they begin in UTC+8.
INTERVALS: Mapping[str, str] = {
    **{"1m": "1min", "5m": "5min", "15m": "15min", "30m": "30min", "1h": "60min", "4h": "4hour"},
}

_STATES: Mapping[str, MarketState] = {"online": "trading", "pre-online": "upcoming", "offline": "delisted"}
# of contracts, as HTX numbers them; the others are suspended, or settled at the moment
_CONTRACT_STATES: Mapping[int, MarketState] = {0: "delisted", 1: "trading", 2: "upcoming"}
_CELLS = ("open", "high", "low", "close", "amount")  # `amount` is the base volume, also of contracts


def name_of(symbol: Symbol) -> str:
    """Return HTX's name of a spot pair, `btcusdt`, or of a perpetual contract in USDT, `BTC-USDT`.

    Other contracts keep their own text, which HTX refuses.
    """
    if symbol.settle:
        return f"{symbol.base}-USDT" if (symbol.quote, symbol.settle) == ("USDT", "USDT") else str(symbol)
    return f"{symbol.base}{symbol.quote}".lower()


# ---------------------------------------------------------------- WebSocket


def topic_of(symbol: Symbol) -> str:
    """Return the topic of the minute candles of a market."""
    return f"market.{name_of(symbol)}.kline.1min"


def command_frame(verb: str, symbol: Symbol) -> str:
    """Return the frame of `sub` or `unsub` (the `verb`) for a market. The topic is also its number."""
    topic = topic_of(symbol)
    return json.dumps({verb: topic, "id": topic}, separators=(",", ":"))


def read_frame(frame: str | bytes, symbols: Mapping[str, Symbol]) -> list[Event]:
    """Return the events of one decompressed frame. `symbols` are the subscribed markets, by topic.

    A candle's `as_of_ms` is the frame's send time. HTX marks no minute as closed, and sends pings by itself.

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    message = parse_object(frame)
    if "ping" in message:
        return [Reply(json.dumps({"pong": _whole(message["ping"])}))]
    if message.get("status") == "error":
        reason = f"{message.get('err-code')} {message.get('err-msg')}"
        return [reject_symbol(symbols, message.get("id"), reason)]
    if "subbed" in message:
        return [Subscribed(find_symbol(symbols, message["subbed"]))]
    if "unsubbed" in message:
        return []
    if "ch" not in message:
        raise ExchangeError(f"expected candles or an answer, got {frame[:200]!r}")
    symbol = find_symbol(symbols, message["ch"])
    read = partial(read_row, as_of_ms=_whole(message.get("ts")))
    return [read_candles(symbol, [message.get("tick")], read, open_ms=opening_of)]


def _whole(number: Any) -> int:
    if not isinstance(number, int):
        raise ExchangeError(f"expected a whole number, got {str(number)[:60]!r}")
    return number


def read_row(row: Mapping[str, Any], as_of_ms: int) -> Candle:
    """Return the candle in a row, whose numbers are JSON numbers with all their digits.

    The quote volume is `vol` of a spot pair. For a contract this is the number of contracts, and `trade_turnover` is
    the quote volume.

    Raises:
        InvalidCandle: the row is not a possible candle.
    """
    opened, high, low, close, amount = (row[name] for name in _CELLS)
    quote = row["trade_turnover"] if "trade_turnover" in row else row["vol"]
    return Candle.parse(opening_of(row), opened, high, low, close, amount, quote, as_of_ms=as_of_ms)


def opening_of(row: Mapping[str, Any]) -> int:
    """Return the opening time of a row, UTC epoch milliseconds."""
    return int(row["id"]) * 1000


# ---------------------------------------------------------------- REST


def read_envelope(body: Any) -> tuple[list[Any], int]:
    """Return the `data` of an answer, and the exchange's clock in UTC epoch milliseconds; 0 if it is not in the answer.

    Raises:
        ExchangeError: HTX refuses the request, or the body is not as documented.
    """
    if not isinstance(body, dict) or body.get("status") != "ok" or not isinstance(body.get("data"), list):
        reason = f"{body.get('err-code')} {body.get('err-msg')}" if isinstance(body, dict) else str(body)[:200]
        raise ExchangeError(f"HTX answered {reason}")
    now_ms = body.get("ts", 0)
    return body["data"], now_ms if isinstance(now_ms, int) else 0


def read_markets(symbols: Any, tickers: Any) -> list[Market]:
    """Return the markets in the answers of `common/symbols` and `market/tickers`.

    Raises:
        ExchangeError: as `read_envelope`; an entry without the documented fields.
    """
    with reading("a market"):
        volumes = {one["symbol"]: Decimal(one["vol"] or 0) for one in read_envelope(tickers)[0]}
        return [_read_market(one, volumes) for one in read_envelope(symbols)[0]]


def _read_market(entry: Mapping[str, Any], volumes: Mapping[str, Decimal]) -> Market:
    return Market(
        symbol=Symbol(entry["base-currency"].upper(), entry["quote-currency"].upper()),
        price_decimals=int(entry["price-precision"]),
        volume_decimals=int(entry["amount-precision"]),
        status=_STATES.get(entry["state"], "suspended"),
        quote_volume_24h=volumes.get(entry["symbol"]),
    )


def read_contracts(infos: Any, merged: Any) -> list[Market]:
    """Return the perpetual contracts in the answers of `swap_contract_info` and `market/detail/batch_merged`.

    Raises:
        ExchangeError: as `read_envelope`; an entry without the documented fields.
    """
    with reading("a contract"):
        volumes = {one["contract_code"]: Decimal(one.get("trade_turnover") or 0) for one in merged["ticks"]}
        entries = [one for one in read_envelope(infos)[0] if one.get("business_type", "swap") == "swap"]
        return [_read_contract(one, volumes) for one in entries]


def _read_contract(entry: Mapping[str, Any], volumes: Mapping[str, Decimal]) -> Market:
    base, _, quote = entry["contract_code"].rpartition("-")
    return Market(
        symbol=Symbol(base, quote, quote),
        tick_size=Decimal(entry["price_tick"]),
        volume_step=Decimal(entry["contract_size"]),
        status=_CONTRACT_STATES.get(entry["contract_status"], "suspended"),
        quote_volume_24h=volumes.get(entry["contract_code"]),
    )
