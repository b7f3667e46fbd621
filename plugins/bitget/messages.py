"""Write and read the frames and rows of Bitget's classic API (V2), without sockets or clocks.

Sources: bitget.com/api-doc, pages "Websocket API", "Candlestick Channel" (spot and contract), "Get Candle Data", "Get
History Candle Data", "Get Symbols"; and captured frames, listed in tests/plugins/bitget/frames/README.md.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import chain, pairwise, repeat
from typing import Any, NamedTuple

from candled import (
    Candle,
    Candles,
    Clock,
    Event,
    ExchangeError,
    FeedError,
    Interval,
    InvalidCandle,
    InvalidRow,
    Market,
    MarketState,
    Pong,
    Row,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    check_code,
    parse_object,
    read_rows,
    read_rows_in_slices,
    reading,
    write_object,
)

CHANNEL = "candle1m"
MINUTE = Interval.parse("1m")
PING = "ping"

_SUCCESS = "00000"
_RETRY_LATER = frozenset({"429", "40010", "40910", "40015", "40725", "45001"})
_SUBSCRIPTION_REFUSED = frozenset({"30001", "30016"})
_CONNECTION_CLOSED = "30007"
_SOCKET_QUOTE_COLUMN = (6,)


@dataclass(frozen=True, kw_only=True)
class ProductType:
    """The names that one kind of market uses for paths, fields and values."""

    #: Bitget's `instType` of the markets, in frames.
    inst_type: str
    #: `settle` of the symbols of its markets.
    settle: str
    #: The path of the candles of recent minutes.
    candles_path: str
    #: The path of older minutes, and of longer bars.
    history_path: str
    #: The path of the list of markets.
    markets_path: str
    #: The last 24 hours of all markets.
    tickers_path: str
    #: Sent with every candle request.
    query: Mapping[str, str]
    #: Names of the intervals with boundaries in UTC. From six hours on, Bitget's plain names mean UTC+8, and only
    #: those with `utc` mean UTC.
    granularities: Mapping[str, str]
    #: Sent with each request for the list of markets, and for the tickers.
    markets_query: Mapping[str, str]
    #: The field of a listed market that has the number of decimal places of prices.
    price_decimals: str
    #: The field of a listed market that has the number of decimal places of volumes.
    volume_decimals: str
    #: The field of a listed market that has its state.
    status: str
    #: The states of markets by Bitget's words. Other words mean that a market does not trade.
    states: Mapping[str, MarketState]
    #: The smallest price step, in units of the last decimal place; empty if Bitget does not publish it.
    tick: str
    #: The field of a listed market that has the start of trading.
    listed: str
    #: Columns of a REST row that may contain the quote volume, the documented one first.
    quote_columns: tuple[int, ...]


_IN_UTC = {"6h": "6Hutc", "12h": "12Hutc", "1D": "1Dutc", "1W": "1Wutc"}

SPOT = ProductType(
    inst_type="SPOT",
    settle="",
    candles_path="/api/v2/spot/market/candles",
    history_path="/api/v2/spot/market/history-candles",
    markets_path="/api/v2/spot/public/symbols",
    tickers_path="/api/v2/spot/market/tickers",
    query={},
    # Spot refuses `1m`, the name that futures use.
    granularities={
        **{"1m": "1min", "3m": "3min", "5m": "5min", "15m": "15min", "30m": "30min", "1h": "1h", "4h": "4h"},
        **_IN_UTC,
    },
    markets_query={},
    price_decimals="pricePrecision",
    volume_decimals="quantityPrecision",
    status="status",
    states={"online": "trading", "halt": "suspended", "offline": "delisted"},
    tick="",
    listed="openTime",
    # The current documentation has USDT volume, then quote volume; older pages and several clients have the reverse.
    quote_columns=(7, 6),
)
USDT_FUTURES = ProductType(
    inst_type="USDT-FUTURES",
    settle="USDT",
    candles_path="/api/v2/mix/market/candles",
    history_path="/api/v2/mix/market/history-candles",
    markets_path="/api/v2/mix/market/contracts",
    tickers_path="/api/v2/mix/market/tickers",
    query={"productType": "USDT-FUTURES"},
    granularities={
        **{"1m": "1m", "3m": "3m", "5m": "5m", "15m": "15m", "30m": "30m", "1h": "1H", "2h": "2H", "4h": "4H"},
        **_IN_UTC,
    },
    markets_query={"productType": "USDT-FUTURES"},
    price_decimals="pricePlace",
    volume_decimals="volumePlace",
    status="symbolStatus",
    states={"normal": "trading", "listed": "upcoming", "off": "delisted"},
    tick="priceEndStep",
    listed="launchTime",
    quote_columns=(6,),
)
PRODUCT_TYPES: Mapping[str, ProductType] = {"spot": SPOT, "usdt-futures": USDT_FUTURES}


class Instrument(NamedTuple):
    """A market as Bitget names it. A spot pair and its perpetual contract have the same `inst_id`, `BTCUSDT`."""

    product: ProductType
    #: It can't be parsed, because nothing marks the end of the base.
    inst_id: str

    @property
    def key(self) -> "InstrumentKey":
        """The pair that identifies the market in frames."""
        return self.product.inst_type, self.inst_id


#: `instType` and `instId` of a market.
InstrumentKey = tuple[str, str]


def find_instrument(symbol: Symbol, products: Sequence[ProductType]) -> Instrument:
    """Return Bitget's names of a market of one of `products`.

    A symbol of another kind (not in `products`, dated, or settled in another coin) keeps its own text: Bitget has no
    market of that name and refuses it.
    """
    for product in products:
        if product.settle == symbol.settle:
            return Instrument(product, f"{symbol.base}{symbol.quote}".upper())
    return Instrument(products[0], str(symbol).upper())


# ---------------------------------------------------------------- WebSocket


def command_frame(op: str, markets: Iterable[InstrumentKey]) -> str:
    """Return the frame of `op`, `subscribe` or `unsubscribe`, for the minute candles of `markets`."""
    args = [{"instType": inst_type, "channel": CHANNEL, "instId": inst_id} for inst_type, inst_id in markets]
    return write_object({"op": op, "args": args})


def read_frame(text: str | bytes, symbols: Mapping[InstrumentKey, Symbol]) -> list[Event]:
    """Return the events of one frame of the public WebSocket. `symbols` are the subscribed markets, by Bitget's names.

    Candles are never marked as closed. Their `as_of_ms` is the frame's send time. Rows that cannot be candles are
    returned as `invalid`, together with the valid ones.

    Raises:
        ExchangeError: the frame is not as documented, or is about a market that was not subscribed.
    """
    if text == "pong":
        return [Pong()]
    message = parse_object(text)
    if "event" in message:
        return _read_event(message, symbols)
    if message.get("action") in ("snapshot", "update"):
        return _read_push(message, symbols)
    raise ExchangeError(f"expected an event or a push, got {_shorten(text)}")


def _read_event(message: Mapping[str, Any], symbols: Mapping[InstrumentKey, Symbol]) -> list[Event]:
    event = message["event"]
    if event == "subscribe":
        return [Subscribed(_symbol_of(message, symbols))]
    if event == "unsubscribe":
        return []
    if event != "error":
        raise ExchangeError(f"expected subscribe, unsubscribe or error, got the event {event!r}")
    code = str(message.get("code"))  # a number in some messages, text in others
    reason = f"{code} {message.get('msg')}"
    if code in _SUBSCRIPTION_REFUSED and message.get("arg"):
        return [SubscriptionRejected(_symbol_of(message, symbols), reason)]
    return [FeedError(reason, reconnect=code == _CONNECTION_CLOSED)]


def _read_push(message: Mapping[str, Any], symbols: Mapping[InstrumentKey, Symbol]) -> list[Event]:
    symbol = _symbol_of(message, symbols)
    rows, sent_ms, snapshot = message.get("data"), message.get("ts"), message["action"] == "snapshot"
    if not isinstance(rows, list) or not isinstance(sent_ms, int | str):
        raise ExchangeError(f"expected rows and a send time for {symbol}, got {_shorten(str(message))}")
    as_of_ms = read_ms(sent_ms)
    read = partial(read_row, quote_columns=_SOCKET_QUOTE_COLUMN, as_of_ms=as_of_ms)
    read_all = partial(_read_plain_rows, quote_columns=_SOCKET_QUOTE_COLUMN, as_of_ms=as_of_ms)
    found = read_rows(rows, read, open_ms=_opening_of, read_all=read_all)
    candles = sorted((row for row in found if isinstance(row, Candle)), key=lambda candle: candle.open_ms)
    invalid = tuple(row for row in found if isinstance(row, InvalidRow))
    return [Candles(symbol, tuple(candles), snapshot, invalid)] if found or snapshot else []


def _symbol_of(message: Mapping[str, Any], symbols: Mapping[InstrumentKey, Symbol]) -> Symbol:
    arg = message.get("arg")
    if not isinstance(arg, dict) or arg.get("channel") != CHANNEL:
        raise ExchangeError(f"expected an arg of {CHANNEL}, got {_shorten(str(message))}")
    inst_type, inst_id = arg.get("instType"), arg.get("instId")
    symbol = symbols.get((str(inst_type), str(inst_id).upper()))
    if symbol is None:
        raise ExchangeError(f"got a message about {inst_type} {inst_id!r}, which was not subscribed")
    return symbol


# ---------------------------------------------------------------- REST


def read_envelope(body: Any) -> tuple[list[Any], int]:
    """Return the `data` of an answer, and the exchange's clock in UTC epoch milliseconds.

    Raises:
        Unavailable: Bitget is busy or out of order.
        ExchangeError: Bitget refuses the request, or the body is not as documented.
    """
    check_code(body, "Bitget", _SUCCESS, _RETRY_LATER)
    rows = body.get("data")
    if rows is None:  # a newly listed market
        rows = []
    if not isinstance(rows, list):
        raise ExchangeError(f"expected a list of data, got {_shorten(str(body))}")
    return rows, read_ms(body.get("requestTime"))


def refuse_failure(body: Any) -> None:
    """Raise the error that an answer's code means. Successes, and bodies that are not Bitget's, pass.

    Raises:
        Unavailable, ExchangeError: as `read_envelope`.
    """
    if isinstance(body, dict) and "code" in body:
        check_code(body, "Bitget", _SUCCESS, _RETRY_LATER)


async def read_page(
    body: Any, product: ProductType, end_ms: int, clock: Clock, interval: Interval = MINUTE
) -> list[Row]:
    """Return the bars of an answer, oldest first, to a request for bars of `interval` up to `end_ms`.

    Some endpoints include the bar at `end_ms`, others exclude it. An invalid row, or a single one later than requested,
    does not affect the others.

    Raises:
        Unavailable, ExchangeError: as `read_envelope`; rows that are too far apart or later than requested; days that
            do not begin at 00:00 UTC.
    """
    rows, as_of_ms = read_envelope(body)
    read = partial(read_row, quote_columns=product.quote_columns, as_of_ms=as_of_ms)
    read_all = partial(_read_plain_rows, quote_columns=product.quote_columns, as_of_ms=as_of_ms)
    page = _without_repeated(await read_rows_in_slices(rows, read, clock, open_ms=_opening_of, read_all=read_all))
    times = sorted({row.open_ms for row in page if isinstance(row, Candle)})
    late = [open_ms for open_ms in times if open_ms > end_ms]
    if late and (len(late) > 1 or len(times) <= 2):
        raise ExchangeError(f"asked for bars of {interval} before {end_ms}, got one at {late[-1]}")
    if off := [open_ms for open_ms in times if open_ms != interval.floor(open_ms)]:  # a day that begins in UTC+8
        raise ExchangeError(f"expected bars of {interval} on their boundaries, got one at {off[0]}")
    steps = [later - earlier for earlier, later in pairwise(times)]
    if len(steps) > 1 and min(steps) > interval.ms:  # Bitget once answered an unknown interval with another one
        raise ExchangeError(f"expected bars of {interval}, got rows {min(steps)} ms apart")
    return in_order(row for row in page if row.open_ms is None or row.open_ms <= end_ms)


def _without_repeated(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without duplicates. Only rows of the same time are compared: hashing a candle takes 8 µs."""
    counts = Counter(row.open_ms for row in rows)
    if len(counts) == len(rows):
        return list(rows)
    seen: set[Row] = set()
    found: list[Row] = []
    for row in rows:
        if counts[row.open_ms] > 1:
            if row in seen:
                continue
            seen.add(row)
        found.append(row)
    return found


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return the rows sorted by time, those without a time first."""
    return sorted(rows, key=lambda row: -1 if row.open_ms is None else row.open_ms)


def oldest_of(rows: Iterable[Row], earliest_ms: int, interval: Interval) -> int | None:
    """Return how far back a page reaches, in ms; None for a page without rows.

    A row before `earliest_ms` without a neighbour has a wrong time, so the page does not reach back to it.
    """
    times = {row.open_ms for row in rows if row.open_ms is not None}
    return min(
        (at_ms for at_ms in times if at_ms >= earliest_ms or {at_ms - interval.ms, at_ms + interval.ms} & times),
        default=None,
    )


def strict(row: Row) -> Candle:
    """Return the row if it is a candle.

    Raises:
        InvalidCandle: it is not.
    """
    if isinstance(row, InvalidRow):
        raise InvalidCandle(row.reason)
    return row


def _opening_of(row: Any) -> int:
    return _whole(row[0])


def read_row(row: Any, quote_columns: Sequence[int], as_of_ms: int) -> Candle:
    """Return the candle in a row: opening time, open, high, low, close, base volume, and the quote volume.

    The quote volume is in one of `quote_columns`. Cells are text; numbers are accepted too. Other columns are ignored.

    Raises:
        InvalidCandle: the row has another form, or is not a possible candle.
    """
    if not isinstance(row, list) or len(row) < _COLUMNS:
        raise InvalidCandle(f"expected a row of {_COLUMNS} columns or more, got {str(row)[:200]}")
    cells = [row[column] for column in quote_columns if len(row) > column]
    if len(cells) > 1 and cells[1:] == cells[:-1]:  # the usual case
        del cells[1:]
    quotes = [number for cell in cells if (number := _finite_number(cell)) is not None]
    if not quotes:
        raise InvalidCandle(f"expected a quote volume in one of the columns {quote_columns}, got {str(row)[:200]}")
    opened, high, low, close, volume = _numbers(row[1:_COLUMNS])
    try:
        # If the columns differ, one is in USDT. The quote volume is the one closest to price times volume.
        quote = quotes[0] if len(quotes) == 1 else min(quotes, key=lambda one: abs(one - close * volume))
    except ArithmeticError as error:
        raise InvalidCandle(f"expected finite numbers, got {str(row)[:200]}") from error
    return Candle(_whole(row[0]), opened, high, low, close, volume, quote, as_of_ms).checked()


def _read_plain_rows(rows: Sequence[Any], quote_columns: Sequence[int], as_of_ms: int) -> list[Candle] | None:
    """Return the candles of plain rows, unchecked, in a third of the time of `read_row`.

    In plain rows all cells are text, and all `quote_columns` have the same quote volume.

    Returns:
        None if a row has another form.
    """
    try:
        columns = list(zip(*rows, strict=True))
        quotes = {columns[column] for column in quote_columns if column < len(columns)}
        texts = [*columns[:_COLUMNS], *quotes]
        is_plain = max(map(len, chain(*texts))) <= _MOST_DIGITS and "".join(columns[0]).isdecimal()
        if not is_plain or len(quotes) != 1 or {*map(type, rows)} != {list} or {*map(type, chain(*texts))} != {str}:
            return None
        times, *numbers = texts
        values = [map(Decimal, column) for column in numbers]
        rest = (repeat(as_of_ms), repeat(False), repeat(0), repeat(""))
        return [Candle._make(row) for row in zip(map(int, times), *values, *rest, strict=False)]
    except (TypeError, ValueError, LookupError, ArithmeticError):
        return None


_COLUMNS = 6  # in every row: the opening time, four prices, the base volume


def _number(cell: Any) -> Decimal:
    """Return a number exactly as printed.

    Raises:
        InvalidCandle: the cell is not a number.
    """
    if type(cell) not in _PRINTED or len(str(cell)) > _MOST_DIGITS:
        raise InvalidCandle(f"expected a number, got {str(cell)[:_MOST_DIGITS]!r}")
    try:
        return Decimal(cell)
    except ArithmeticError as error:
        raise InvalidCandle(f"expected a number, got {cell!r}") from error


_PRINTED = (str, int, Decimal)
_MOST_DIGITS = 60
_TIME_DIGITS = 13


def _numbers(cells: Sequence[Any]) -> list[Decimal]:
    """Return `_number` of each cell."""
    try:
        if len("".join(cells)) <= _MOST_DIGITS:  # texts, none of them too long: the usual case, in half the time
            return list(map(Decimal, cells))
    except (TypeError, ArithmeticError):
        pass
    return list(map(_number, cells))


def _finite_number(cell: Any) -> Decimal | None:
    try:
        number = _number(cell)
    except InvalidCandle:
        return None
    return number if number.is_finite() else None


def _whole(cell: Any) -> int:
    """Return an opening time, in milliseconds.

    Raises:
        InvalidCandle: the cell is not a whole number.
    """
    if type(cell) is str and len(cell) <= _TIME_DIGITS and cell.isascii() and cell.isdigit():  # nearly every one
        return int(cell)
    number = _number(cell)
    if not number.is_finite() or number.adjusted() > _MOST_DIGITS or number != number.to_integral_value():
        raise InvalidCandle(f"expected a time in milliseconds, got {cell!r}")
    return int(number)


def read_markets(body: Any, tickers: Any, product: ProductType) -> list[Market]:
    """Return the markets in the answers of the list of markets and of `tickers`.

    The tickers have `symbol` and `quoteVolume`, the volume of 24 hours in quote currency. Source: Bitget's
    documentation of API v2, "Get Ticker Information" (spot) and "Get All Tickers" (contracts).

    Raises:
        Unavailable, ExchangeError: as `read_envelope`; an entry without the documented fields.
    """
    (entries, _), (shown, _) = read_envelope(body), read_envelope(tickers)
    with reading("a market"):
        volumes = {one["symbol"]: one["quoteVolume"] for one in shown}
        return [
            _read_market(entry, product, volumes.get(entry["symbol"])) for entry in entries if _is_plain(entry, product)
        ]


def _is_plain(entry: Mapping[str, Any], product: ProductType) -> bool:
    """Return True if the market's name is made from its coins; that excludes dated contracts."""
    return bool(entry["symbol"] == find_instrument(_symbol(entry, product), [product]).inst_id)


def _symbol(entry: Mapping[str, Any], product: ProductType) -> Symbol:
    return Symbol(entry["baseCoin"], entry["quoteCoin"], product.settle)


def _read_market(entry: Mapping[str, Any], product: ProductType, volume: str | None) -> Market:
    price_decimals = int(entry[product.price_decimals])
    return Market(
        symbol=_symbol(entry, product),
        price_decimals=price_decimals,
        volume_decimals=int(entry[product.volume_decimals]),
        tick_size=_tick_size(entry.get(product.tick) or "1", price_decimals),
        status=product.states.get(entry[product.status], "suspended"),
        listed_ms=_listed_ms(entry.get(product.listed)),
        quote_volume_24h=_finite_number(volume),
    )


def _tick_size(steps: Any, price_decimals: int) -> Decimal | None:
    """Return the smallest price step, given in units of the last decimal place; None if it is not credible."""
    return Decimal(int(steps)).scaleb(-price_decimals) if 0 <= price_decimals < _MOST_DIGITS else None


def _listed_ms(value: Any) -> int | None:
    """Return when trading began, in ms; None if Bitget sends empty text or 0."""
    try:
        return int(value) or None
    except (TypeError, ValueError):
        return None


def read_ms(value: Any) -> int:
    """Return a time in UTC epoch milliseconds, given as a number or as text.

    Raises:
        ExchangeError: it is neither.
    """
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ExchangeError(f"expected a time in milliseconds, got {value!r}") from error


def _shorten(text: str | bytes) -> str:
    return repr(text[:120])
