"""Write and read the frames and rows of Hyperliquid's public API, without sockets or clocks.

Sources: hyperliquid.gitbook.io ("WebSocket", "Info endpoint", "Spot", "Rate limits"); hyperliquid-python-sdk, whose
issue 308 says how facts of spot pairs are matched; richkuo/go-trader issue 831 about pairs without tokens; recorded
frames, listed in tests/plugins/hyperliquid/frames/README.md.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from candled import (
    Candle,
    Event,
    ExchangeError,
    InvalidCandle,
    Market,
    Pong,
    Subscribed,
    Symbol,
    find_symbol,
    parse_object,
    read_candles,
    reading,
    reject_symbol,
    write_object,
)

PING = '{"method":"ping"}'

#: Hyperliquid's names of intervals. Its weeks are left out, because their first day is not documented.
INTERVALS: Mapping[str, str] = {
    **{name: name for name in ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "8h", "12h")},
    "1D": "1d",
}

_NAMED = re.compile(r'\\?"coin\\?":\s*\\?"([^"\\]+)')
_HARMLESS = "Already subscribed"
_USDC = "USDC"


def coin_of(symbol: Symbol, pairs: Mapping[Symbol, str]) -> str:
    """Return Hyperliquid's name of a market: the base coin of a perpetual contract, or the text in `pairs`.

    Other markets keep a text that Hyperliquid refuses.
    """
    if (symbol.quote, symbol.settle) == (_USDC, _USDC):
        return symbol.base
    return pairs.get(symbol, str(symbol))


# ---------------------------------------------------------------- WebSocket


def command_frame(method: str, coin: str) -> str:
    """Return the frame of `method`, `subscribe` or `unsubscribe`, for one market."""
    return write_object({"method": method, "subscription": {"type": "candle", "coin": coin, "interval": "1m"}})


def read_frame(frame: str | bytes, symbols: Mapping[str, Symbol]) -> list[Event]:
    """Return the events of one frame. `symbols` are the subscribed markets, by coin.

    Hyperliquid sends no time and no quote volume with its candles, and marks no minute as closed.

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    message = parse_object(frame)
    channel, data = message.get("channel"), message.get("data")
    if channel == "pong":
        return [Pong()]
    if channel == "error":
        return _read_error(str(data), symbols)
    if channel == "subscriptionResponse" and isinstance(data, dict):
        subscription = data.get("subscription")
        if data.get("method") == "unsubscribe":
            return []
        return [Subscribed(find_symbol(symbols, subscription.get("coin") if isinstance(subscription, dict) else None))]
    if channel != "candle" or not isinstance(data, dict):
        raise ExchangeError(f"expected a candle or an answer, got {frame[:200]!r}")
    return [read_candles(find_symbol(symbols, data.get("s")), [data], read_row, open_ms=opening_of)]


def _read_error(reason: str, symbols: Mapping[str, Symbol]) -> list[Event]:
    """Return the event of an error, whose text repeats the request."""
    if reason.startswith(_HARMLESS):
        return []
    named = _NAMED.search(reason)
    return [reject_symbol(symbols, named and named[1], reason)]


def read_row(row: Mapping[str, Any], interval: str = "1m") -> Candle:
    """Return the candle in a row.

    Raises:
        InvalidCandle: the row is of another interval, or not a possible candle.
    """
    if row["i"] != interval:
        raise InvalidCandle(f"expected a candle of {interval}, got {str(row)[:200]}")
    opened, high, low, close, volume = (row[name] for name in "ohlcv")
    return Candle.parse(row["t"], opened, high, low, close, volume)


def opening_of(row: Mapping[str, Any]) -> int:
    """Return the opening time of a row, UTC epoch milliseconds."""
    return int(row["t"])


# ---------------------------------------------------------------- REST


def read_markets(body: Any) -> list[Market]:
    """Return the markets in an answer to `metaAndAssetCtxs`: a list of contracts, and one of facts in the same order.

    The number of decimals of a price depends on the price, so it is unknown.

    Raises:
        ExchangeError: the answer is not as documented.
    """
    with reading("a market"):
        meta, contexts = body
        return [
            Market(
                symbol=Symbol(entry["name"], _USDC, _USDC),
                volume_decimals=int(entry["szDecimals"]),
                status="delisted" if entry.get("isDelisted") else "trading",
                quote_volume_24h=Decimal(context["dayNtlVlm"]),
            )
            for entry, context in zip(meta["universe"], contexts, strict=True)
        ]


def read_pairs(body: Any) -> dict[str, Market]:
    """Return the spot pairs in an answer to `spotMetaAndAssetCtxs`, by Hyperliquid's names: `PURR/USDC`, `@107`.

    A pair names its tokens by their indexes, which are not their places in the list. A pair whose tokens are not listed
    is left out, and so is a second pair whose tokens have the same names. The facts of a pair are found by its name, or
    else at the place of its index.

    Raises:
        ExchangeError: the answer is not as documented.
    """
    with reading("a spot pair"):
        meta, contexts = body
        tokens = {token["index"]: token for token in meta["tokens"]}
        facts = {context.get("coin", place): context for place, context in enumerate(contexts)}
        found: dict[Symbol, tuple[str, Market]] = {}
        for pair in meta["universe"]:
            base, quote = (tokens.get(index) for index in pair["tokens"])
            if base is None or quote is None:
                continue
            symbol, fact = Symbol(base["name"], quote["name"]), facts.get(pair["name"]) or facts.get(pair["index"])
            market = Market(
                symbol=symbol,
                volume_decimals=int(base["szDecimals"]),
                quote_volume_24h=None if fact is None else Decimal(fact["dayNtlVlm"]),
            )
            found.setdefault(symbol, (pair["name"], market))
    return dict(found.values())
