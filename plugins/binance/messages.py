"""Write and read the frames and rows of Binance's public API, without sockets or clocks.

Sources: binance/binance-spot-api-docs (web-socket-streams.md, rest-api.md, filters.md), developers.binance.com
("USDⓈ-M Futures", market data); recorded frames, listed in tests/plugins/binance/frames/README.md.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from candled import (
    Candle,
    ClosingSoon,
    Event,
    ExchangeError,
    Market,
    MarketState,
    SubscribeRequests,
    Symbol,
    find_symbol,
    parse_object,
    read_candles,
    reading,
    take_cells,
    write_object,
)

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
_STREAM = "kline_1m"


def name_of(symbol: Symbol, kind: Kind) -> str:
    """Return Binance's name of a market, which is the same for a spot pair and for its perpetual contract: `BTCUSDT`.

    Markets of another kind keep their own text, and so do contracts that expire: Binance has no such name.
    """
    return f"{symbol.base}{symbol.quote}" if symbol.settle == ("" if kind == "spot" else symbol.quote) else str(symbol)


# ---------------------------------------------------------------- WebSocket


def command_frame(method: str, symbols: Sequence[Symbol], kind: Kind, requests: SubscribeRequests) -> str:
    """Return the frame of `method`, `SUBSCRIBE` or `UNSUBSCRIBE`, for the minute candles of `symbols`."""
    streams = [f"{name_of(symbol, kind).lower()}@{_STREAM}" for symbol in symbols]
    number = requests.add_request(symbols if method == "SUBSCRIBE" else ())
    return write_object({"method": method, "params": streams, "id": number})


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
    open_ms, opened, high, low, close, volume, _, quote = take_cells(row, 8)
    return Candle.parse(open_ms, opened, high, low, close, volume, quote)


def read_markets(info: Any, tickers: Any) -> list[Market]:
    """Return the markets in the answers of `exchangeInfo` and `ticker/24hr`. Contracts that expire are left out.

    Raises:
        ExchangeError: the answers are not as documented.
    """
    with reading("a market"):
        volumes = {one["symbol"]: Decimal(one["quoteVolume"]) for one in tickers}
        found = (_read_market(one, volumes) for one in info["symbols"])
        return [market for market in found if market is not None]


def _read_market(entry: Mapping[str, Any], volumes: Mapping[str, Decimal]) -> Market | None:
    symbol = Symbol(entry["baseAsset"], entry["quoteAsset"], entry.get("marginAsset", ""))
    if name_of(symbol, "usdm" if symbol.settle else "spot") != entry["symbol"]:
        return None
    filters = {one["filterType"]: one for one in entry["filters"]}
    step = filters.get("LOT_SIZE", {}).get("stepSize")
    return Market(
        symbol=symbol,
        volume_step=None if step is None else Decimal(step),
        # `pricePrecision` is not the tick
        tick_size=Decimal(filters["PRICE_FILTER"]["tickSize"]) if "PRICE_FILTER" in filters else None,
        status=_STATES.get(entry["status"], "suspended"),
        listed_ms=entry.get("onboardDate"),
        quote_volume_24h=volumes.get(entry["symbol"]),
    )
