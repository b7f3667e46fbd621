"""Write and read the frames and rows of MEXC's public APIs (spot V3, contract V1), without sockets or clocks.

Sources: mexcdevelop/apidocs (spot_v3_en: "Websocket Market Streams", "Kline/Candlestick Data", "Exchange Information";
contract_v1_en: "K-line Data", "Contract Information"), ccxt's samples of contracts. No recorded frame was found.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from candled import (
    Candle,
    Event,
    ExchangeError,
    FeedError,
    Market,
    MarketState,
    Pong,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    Unavailable,
    base_volume,
    find_symbol,
    parse_object,
    read_candles,
    reading,
    take_cells,
    write_object,
)

PING = '{"method":"PING"}'
CONTRACT_PING = '{"method":"ping"}'

#: MEXC's names of intervals. Its weeks are left out, because their first day is not documented.
INTERVALS: Mapping[str, str] = {
    **{"1m": "1m", "5m": "5m", "15m": "15m", "30m": "30m", "1h": "60m", "4h": "4h", "1D": "1d"},
}

#: MEXC's names of intervals of contracts, without weeks.
CONTRACT_INTERVALS: Mapping[str, str] = {
    **{"1m": "Min1", "5m": "Min5", "15m": "Min15", "30m": "Min30", "1h": "Min60", "4h": "Hour4", "8h": "Hour8"},
    "1D": "Day1",
}

_TOO_OFTEN = 510
_CONTRACT_COLUMNS = ("time", "open", "high", "low", "close", "vol", "amount")
_CONTRACT_STATES: Mapping[int, MarketState] = {0: "trading", 2: "delisted", 3: "delisted"}
_PREFIX, _SUFFIX = "spot@public.kline.v3.api.pb@", "@Min1"
_STATES: Mapping[str, MarketState] = {"1": "trading", "2": "suspended", "3": "delisted"}


def name_of(symbol: Symbol) -> str:
    """Return MEXC's name of a spot pair, `BTCUSDT`. A contract keeps its own text, which MEXC refuses."""
    return f"{symbol.base}{symbol.quote}" if not symbol.settle else str(symbol)


# ---------------------------------------------------------------- WebSocket


def channel_of(symbol: Symbol) -> str:
    """Return the channel of the minute candles of a market."""
    return f"{_PREFIX}{name_of(symbol)}{_SUFFIX}"


def command_frame(method: str, symbols: Sequence[Symbol]) -> str:
    """Return the frame of `method`, `SUBSCRIPTION` or `UNSUBSCRIPTION`, for the minute candles of `symbols`."""
    return write_object({"method": method, "params": list(map(channel_of, symbols))})


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

    def read(row: Any) -> Candle:
        prices = row.openingPrice, row.highestPrice, row.lowestPrice, row.closingPrice
        return Candle.parse(open_ms(row), *prices, row.volume, row.amount, as_of_ms=push.createTime)

    def open_ms(row: Any) -> int:
        return int(row.windowStart) * 1000

    return [read_candles(find_symbol(symbols, push.channel), [push.publicSpotKline], read, open_ms=open_ms)]


# ---------------------------------------------------------------- REST


def read_row(row: Any) -> Candle:
    """Return the candle in a row: opening time, open, high, low, close, base volume, closing time, quote volume.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    open_ms, opened, high, low, close, volume, _, quote = take_cells(row, 8)
    return Candle.parse(open_ms, opened, high, low, close, volume, quote)


def read_markets(info: Any, tickers: Any) -> list[Market]:
    """Return the markets in the answers of `exchangeInfo` and `ticker/24hr`, whose quote volume may be null.

    Raises:
        ExchangeError: the answers are not as documented.
    """
    with reading("a market"):
        volumes = {one["symbol"]: one.get("quoteVolume") for one in tickers}
        return [_read_market(one, volumes.get(one["symbol"])) for one in info["symbols"]]


def _read_market(entry: Mapping[str, Any], volume: Any) -> Market:
    return Market(
        symbol=Symbol(entry["baseAsset"], entry["quoteAsset"]),
        price_decimals=int(entry["quoteAssetPrecision"]),
        volume_decimals=int(entry["baseAssetPrecision"]),
        status=_STATES.get(str(entry["status"]), "suspended"),
        quote_volume_24h=None if volume is None else Decimal(volume),
    )


# ---------------------------------------------------------------- contracts


def contract_name(symbol: Symbol) -> str:
    """Return MEXC's name of a perpetual contract in USDT, `BTC_USDT`. Others keep a text that MEXC refuses."""
    return f"{symbol.base}_USDT" if (symbol.quote, symbol.settle) == ("USDT", "USDT") else str(symbol)


def contract_frame(method: str, symbol: Symbol) -> str:
    """Return the frame of `method`, `sub.kline` or `unsub.kline`, for one market."""
    return write_object({"method": method, "param": {"symbol": contract_name(symbol), "interval": "Min1"}})


def read_contract_frame(frame: str | bytes, symbols: Mapping[str, Symbol], sizes: Mapping[str, Decimal]) -> list[Event]:
    """Return the events of a frame about contracts. `symbols` are the subscribed markets, by MEXC's names.

    `sizes` are the base coins in a contract. Acknowledgements may name no market, and errors name none.

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    message = parse_object(frame)
    channel, data = message.get("channel"), message.get("data")
    if channel == "pong":
        return [Pong()]
    if channel == "rs.error":
        return [FeedError(str(data))]
    if channel in ("rs.sub.kline", "rs.unsub.kline"):
        param = message.get("param")
        named = symbols.get(str(param.get("symbol"))) if isinstance(param, dict) else None
        return [Subscribed(named)] if named is not None and channel == "rs.sub.kline" else []
    name, sent_ms = str(message.get("symbol")), message.get("ts")
    is_candle = channel == "push.kline" and isinstance(data, dict) and data.get("interval") == "Min1"
    if not is_candle or not isinstance(sent_ms, int):
        raise ExchangeError(f"expected a candle of a minute, got {frame[:200]!r}")
    if name not in symbols or name not in sizes:
        raise ExchangeError(f"got a candle of {name!r}, which was not subscribed, or whose size is unknown")

    def read(row: Mapping[str, Any]) -> Candle:
        volume = base_volume(row["q"], sizes[name])
        opened, high, low, close = (row[key] for key in "ohlc")
        return Candle.parse(open_ms(row), opened, high, low, close, volume, row["a"], as_of_ms=sent_ms)

    def open_ms(row: Mapping[str, Any]) -> int:
        return int(row["t"]) * 1000

    return [read_candles(symbols[name], [data], read, open_ms=open_ms)]


def read_contract_envelope(body: Any) -> Any:
    """Return the `data` of an answer about contracts.

    Raises:
        Unavailable: there were too many requests.
        ExchangeError: MEXC refuses the request, or the body is not as documented.
    """
    if not isinstance(body, dict) or body.get("success") is not True or "data" not in body:
        problem = f"expected an answer with data, got {str(body)[:200]}"
        raise Unavailable(problem) if is_too_often(body) else ExchangeError(problem)
    return body["data"]


def is_too_often(body: Any) -> bool:
    """Return True if an answer means that the address sent too many requests."""
    return isinstance(body, dict) and body.get("code") == _TOO_OFTEN


def contract_rows(data: Any) -> list[tuple[Any, ...]]:
    """Return the rows of an answer that has columns.

    Raises:
        ExchangeError: a column is missing, or shorter than another one.
    """
    try:
        return list(zip(*(data[name] for name in _CONTRACT_COLUMNS), strict=True))
    except (LookupError, TypeError, ValueError) as error:
        raise ExchangeError(f"expected columns of the same length, got {str(data)[:200]}") from error


def read_contract_row(row: Sequence[Any], size: Decimal) -> Candle:
    """Return the candle in a row: opening time in s, open, high, low, close, contracts, quote volume.

    Raises:
        InvalidCandle: the row is not a possible candle.
    """
    _, opened, high, low, close, contracts, quote = row
    return Candle.parse(contract_row_ms(row), opened, high, low, close, base_volume(contracts, size), quote)


def contract_row_ms(row: Sequence[Any]) -> int:
    """Return the opening time of a row about a contract, UTC epoch milliseconds."""
    return int(row[0]) * 1000


def read_sizes(contracts: Any) -> dict[str, Decimal]:
    """Return the base coins in one contract of each market in the data of `contract/detail`.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    with reading("a contract"):
        return {one["symbol"]: Decimal(one["contractSize"]) for one in contracts}


def read_contracts(contracts: Any, tickers: Any) -> list[Market]:
    """Return the contracts in USDT in the data of `contract/detail` and `contract/ticker`.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    with reading("a contract"):
        volumes = {one["symbol"]: Decimal(one.get("amount24") or 0) for one in tickers}
        return [
            Market(
                symbol=Symbol(one["baseCoin"], one["quoteCoin"], "USDT"),
                tick_size=Decimal(one["priceUnit"]),
                volume_step=Decimal(one["contractSize"]),
                status=_CONTRACT_STATES.get(one["state"], "suspended"),
                quote_volume_24h=volumes.get(one["symbol"]),
            )
            for one in contracts
            if one["settleCoin"] == "USDT"
        ]
