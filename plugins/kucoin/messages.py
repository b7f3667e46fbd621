"""Write and read the frames and rows of KuCoin's classic public API, without sockets or clocks.

Sources: Kucoin/kucoin-api-docs ("Apply connect token", "Klines" of WebSocket and REST, "Get Symbols List"),
Kucoin/kucoin-universal-sdk (futures_public, futures market) and ccxt's samples for contracts; recorded
frames, listed in tests/plugins/kucoin/frames/README.md.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

from candled import (
    Candle,
    Event,
    ExchangeError,
    FeedError,
    Market,
    Pong,
    Ready,
    SubscribeRequests,
    Symbol,
    base_volume,
    check_code,
    find_symbol,
    parse_object,
    read_candles,
    reading,
    take_cells,
    take_list,
    write_object,
)

#: KuCoin's names of intervals. Its weeks are left out, because their first day is not documented.
INTERVALS: Mapping[str, str] = {
    **{"1m": "1min", "3m": "3min", "5m": "5min", "15m": "15min", "30m": "30min"},
    **{"1h": "1hour", "2h": "2hour", "4h": "4hour", "6h": "6hour", "8h": "8hour", "12h": "12hour", "1D": "1day"},
}

#: The intervals of contracts, in minutes. Weeks are left out.
CONTRACT_INTERVALS: Mapping[str, str] = {
    **{"1m": "1", "5m": "5", "15m": "15", "30m": "30"},
    **{"1h": "60", "2h": "120", "4h": "240", "8h": "480", "12h": "720", "1D": "1440"},
}

_SUCCESS = "200000"
TOO_MANY = "429000"
_RETRY_LATER = frozenset({TOO_MANY, "500000", "503000"})
_TOPIC, _CONTRACT_TOPIC = "/market/candles:", "/contractMarket/limitCandle:"
_SUFFIX = "_1min"
_EXPIRED = "token is expired"
_YEAR_5138_MS = 10**14  # times above are in finer units


class Connection(NamedTuple):
    """The address of a connection, and its pings."""

    url: str
    ping_every_s: float
    pong_within_s: float


def name_of(symbol: Symbol) -> str:
    """Return KuCoin's name of a spot pair, `BTC-USDT`, or of a perpetual contract in USDT, `ETHUSDTM` or `XBTUSDTM`.

    Other contracts keep their own text, which KuCoin refuses.
    """
    if not symbol.settle:
        return f"{symbol.base}-{symbol.quote}"
    if (symbol.quote, symbol.settle) != ("USDT", "USDT"):
        return str(symbol)
    return f"{'XBT' if symbol.base == 'BTC' else symbol.base}USDTM"


# ---------------------------------------------------------------- WebSocket


def read_connection(answer: Any) -> Connection:
    """Return the connection that an answer of `bullet-public` describes.

    Raises:
        ExchangeError: the answer is not as documented.
    """
    try:
        (server, *_), token = answer["data"]["instanceServers"], answer["data"]["token"]
        return Connection(
            f"{server['endpoint']}?token={token}&connectId=1",
            server["pingInterval"] / 1000,
            server["pingTimeout"] / 1000,
        )
    except (LookupError, TypeError, ValueError) as error:  # the text must not contain the token
        raise ExchangeError(f"expected a token and servers, got {type(answer).__name__}: {error!r}") from error


def command_frame(kind: str, symbols: Sequence[Symbol], requests: SubscribeRequests) -> str:
    """Return the frame of `kind`, `subscribe` or `unsubscribe`, for the minute candles of `symbols`."""
    number = requests.add_request(symbols if kind == "subscribe" else ())
    prefix = _CONTRACT_TOPIC if symbols[0].settle else _TOPIC
    topic = prefix + ",".join(name_of(symbol) + _SUFFIX for symbol in symbols)
    # without `response`, KuCoin does not answer
    return write_object({"id": str(number), "type": kind, "topic": topic, "response": True})


def ping_frame(requests: SubscribeRequests) -> str:
    """Return a ping with a number of its own."""
    return write_object({"id": str(requests.add_request()), "type": "ping"})


def read_frame(
    frame: str | bytes,
    symbols: Mapping[str, Symbol],
    requests: SubscribeRequests,
    sizes: Mapping[str, Decimal] | None = None,
) -> list[Event]:
    """Return the events of one frame. `symbols` are the subscribed markets, by KuCoin's names.

    `sizes` are the base coins in a contract; None for spot pairs. A candle's `as_of_ms` is the frame's send time.
    KuCoin marks no minute as closed.

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    message = parse_object(frame)
    kind, number = message.get("type"), message.get("id")
    if kind == "welcome":
        return [Ready()]
    if kind == "pong":
        return [Pong()]
    if kind == "ack":
        return requests.accept(number)
    if kind == "error":
        reason = f"{message.get('code')} {message.get('data')}"
        return [FeedError(reason, reconnect=True)] if _EXPIRED in reason else requests.reject(number, reason)
    data, topic = message.get("data"), str(message.get("topic"))
    prefix = _TOPIC if sizes is None else _CONTRACT_TOPIC
    if kind != "message" or not isinstance(data, dict) or not topic.startswith(prefix) or not topic.endswith(_SUFFIX):
        raise ExchangeError(f"expected a candle of a minute, got {frame[:200]!r}")
    symbol = find_symbol(symbols, data.get("symbol"))
    sent_ms = _read_ms(data.get("time"))
    if sizes is None:
        read = partial(read_row, as_of_ms=sent_ms)
    elif data["symbol"] in sizes:
        read = partial(_read_contract_push, size=sizes[data["symbol"]], as_of_ms=sent_ms)
    else:
        raise ExchangeError(f"the size of a contract of {data['symbol']} is unknown")
    return [read_candles(symbol, [data.get("candles")], read, open_ms=opening_of)]


def _read_ms(time: Any) -> int:
    """Return a time in ms. KuCoin documents µs, but its frames have ns."""
    if not isinstance(time, int):
        raise ExchangeError(f"expected a time, got {str(time)[:60]!r}")
    sent: int = time
    while sent >= _YEAR_5138_MS:
        sent //= 1000
    return sent


def read_row(row: Any, as_of_ms: int = 0) -> Candle:
    """Return the candle in a row: opening time in s, open, close, high, low, base volume, quote volume.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    _, opened, close, high, low, volume, quote = take_cells(row, 7)
    return Candle.parse(opening_of(row), opened, high, low, close, volume, quote, as_of_ms=as_of_ms)


def _read_contract_push(row: Any, size: Decimal, as_of_ms: int) -> Candle:
    """Return the candle of a contract in a frame. Its sixth column is wrong, and the seventh has the contracts."""
    _, opened, close, high, low, _, contracts = take_cells(row, 7)
    return Candle.parse(
        opening_of(row), opened, high, low, close, base_volume(contracts, size), None, as_of_ms=as_of_ms
    )


def read_contract_row(row: Any, size: Decimal) -> Candle:
    """Return the candle of a contract in a row of REST: opening time in ms, open, high, low, close, contracts.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    open_ms, opened, high, low, close, contracts = take_cells(row, 6)
    return Candle.parse(open_ms, opened, high, low, close, base_volume(contracts, size))


def opening_of(row: Sequence[Any]) -> int:
    """Return the opening time of a row, UTC epoch milliseconds."""
    return int(row[0]) * 1000


# ---------------------------------------------------------------- REST


def read_envelope(body: Any) -> Any:
    """Return the `data` of an answer.

    Raises:
        Unavailable: KuCoin is busy or out of order.
        ExchangeError: KuCoin refuses the request, or the body is not as documented.
    """
    check_code(body, "KuCoin", _SUCCESS, _RETRY_LATER)
    return body.get("data")


def is_too_many(body: Any) -> bool:
    """Return True if an answer means that the address sent too many requests."""
    return isinstance(body, dict) and str(body.get("code")) == TOO_MANY


def read_markets(symbols: Any, tickers: Any) -> list[Market]:
    """Return the markets in the data of `symbols` and `allTickers`.

    A market's name never changes, but its coins may be renamed, so the name is used.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    with reading("a market"):
        volumes = {one["symbol"]: Decimal(one.get("volValue") or 0) for one in take_list(tickers["ticker"])}
        return [_read_market(one, volumes) for one in take_list(symbols)]


def _read_market(entry: Mapping[str, Any], volumes: Mapping[str, Decimal]) -> Market:
    base, quote = entry["symbol"].split("-")
    return Market(
        symbol=Symbol(base, quote),
        volume_step=Decimal(entry["baseIncrement"]),
        tick_size=Decimal(entry["priceIncrement"]),
        status="trading" if entry["enableTrading"] else "suspended",
        listed_ms=int(entry.get("tradingStartTime") or 0) or None,
        quote_volume_24h=volumes.get(entry["symbol"]),
    )


def read_sizes(contracts: Any) -> dict[str, Decimal]:
    """Return the base coins in one contract of each market in the data of `contracts/active`.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    with reading("a contract"):
        return {one["symbol"]: Decimal(one["multiplier"]) for one in take_list(contracts) if _is_perpetual(one)}


def read_contracts(contracts: Any) -> list[Market]:
    """Return the perpetual contracts in USDT in the data of `contracts/active`.

    Raises:
        ExchangeError: an entry without the documented fields.
    """
    with reading("a contract"):
        return [_read_contract(one) for one in take_list(contracts) if _is_perpetual(one)]


def _is_perpetual(entry: Mapping[str, Any]) -> bool:
    return entry["settleCurrency"] == "USDT" and not entry.get("expireDate") and not entry.get("isInverse")


def _read_contract(entry: Mapping[str, Any]) -> Market:
    base = "BTC" if entry["baseCurrency"] == "XBT" else entry["baseCurrency"]
    return Market(
        symbol=Symbol(base, entry["quoteCurrency"], "USDT"),
        volume_step=Decimal(entry["multiplier"]),
        tick_size=Decimal(entry["tickSize"]),
        status="trading" if entry["status"] == "Open" else "suspended",
        listed_ms=int(entry.get("firstOpenDate") or 0) or None,
        quote_volume_24h=Decimal(entry.get("turnoverOf24h") or 0),
    )
