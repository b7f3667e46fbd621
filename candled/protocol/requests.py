"""Read the messages from clients as values. The error texts are exactly those of docs/reference/protocol.md."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from candled.errors import ClientError
from candled.model import YEAR_10000_MS, Interval, MarketKey, PatternTopic, Symbol, Topic, parse_iso_ms
from candled.universe import MarketsChanged

from .messages import FIELDS, NUMBERS, PLAIN, Options, RequestId, Resume, quoted

DEFAULT_BARS = 100
MOST_BARS = 1000
DEFAULT_PAGE = 500
_SHOWN = 64  # characters of a client's own text that an error repeats
_LISTED = 20  # symbols an error lists
_LONGEST_ID = 64
_LONGEST_PATTERN = 256
_INTEGER = 2**63  # limit of a signed 64-bit integer

INVALID_FORMAT = "Invalid message format"
# Codes of errors; 107 is any other.
INTERNAL, UNAUTHORIZED, UNKNOWN, NOT_ALLOWED, LIMIT, NOT_AVAILABLE, TOO_MANY = 100, 101, 102, 103, 106, 108, 111


class RequestError(ClientError):
    """An invalid or refused request. Its text is the error message for the client.

    `code` is one of docs/reference/protocol.md. `temporary` is True if the same request may succeed later. `request_id`
    is the client's `id` of the request, if it gave one.
    """

    def __init__(self, message: str, *, code: int = 107, temporary: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.temporary = temporary
        self.request_id: RequestId = None


class UnknownMarket(RequestError):
    """A request about a symbol that is not served. `read_again` reads it again after the symbol was added.

    Raises:
        RequestError: by `read_again`, the request is still invalid.
    """

    def __init__(self, message: str, exchange: str, symbol: str, interval: Interval | None) -> None:
        super().__init__(message, code=UNKNOWN)
        self.exchange = exchange
        self.symbol = symbol
        #: None if it is not served.
        self.interval = interval
        #: None if the request cannot be answered later, as for `unsubscribe`.
        self.read_again: Callable[[], Request] | None = None


def market_removed(market: MarketKey, new: Symbol | None) -> RequestError:
    """Return the error for the subscribers of a market that is not served any more, with its `new` symbol if any."""
    more = "" if new is None else f"; the exchange has renamed it to {new}"
    return RequestError(f"Market removed: {market.symbol} is not served any more{more}", code=UNKNOWN)


def not_allowed(text: object) -> RequestError:
    """Return the error for a market, pattern or interval that a client's token does not allow."""
    return RequestError(f"Not allowed with this token: {text}", code=NOT_ALLOWED)


def invalid_pattern(pattern: str, reason: str) -> RequestError:
    """Return the error for an invalid pattern, with the reason in words."""
    more = "" if reason.startswith("expected") else f"; {reason}"
    return RequestError(
        f"Invalid symbol: {_shown(pattern)}. Expected a symbol, or a pattern such as */USDT or /^BTC/{more}"
    )


class Subscribe(msgspec.Struct, frozen=True):
    """A request for `bars` bars of a topic, and then its updates."""

    topic: Topic
    bars: int
    options: Options = PLAIN
    status: bool = False
    resume: Resume | None = None
    id: RequestId = None


class SubscribePattern(msgspec.Struct, frozen=True):
    """A request for the closed bars of all markets that a pattern selects, and with `markets` for their list."""

    topic: PatternTopic
    options: Options
    markets: bool = False
    id: RequestId = None


class SubscribeMany(msgspec.Struct, frozen=True):
    """Several subscriptions in one message. An invalid one does not affect the others.

    Each is read when its turn comes: a message may have thousands.
    """

    wanted: Iterator[Subscribe | SubscribePattern | RequestError]
    id: RequestId = None


class Unsubscribe(msgspec.Struct, frozen=True):
    """A request for no more updates of a topic."""

    topic: Topic | PatternTopic
    id: RequestId = None


class Ping(msgspec.Struct, frozen=True):
    """A request for a `pong`."""

    id: RequestId = None


class ListSubscriptions(msgspec.Struct, frozen=True):
    """A request for the list of the client's subscriptions."""

    id: RequestId = None


class GetHistory(msgspec.Struct, frozen=True):
    """A request for up to `limit` bars that begin before `before_ms`, or before now if that is None."""

    topic: Topic
    before_ms: int | None
    limit: int
    fields: int = 0
    id: RequestId = None


Request = Subscribe | SubscribePattern | SubscribeMany | Unsubscribe | Ping | ListSubscriptions | GetHistory


class _Message(msgspec.Struct):
    """All keys of all messages, with values of any type: the checks below produce the documented error texts."""

    type: Any = None
    symbol: Any = None
    interval: Any = None
    exchange: Any = msgspec.UNSET
    initialBars: Any = DEFAULT_BARS
    id: Any = msgspec.UNSET
    fields: Any = msgspec.UNSET
    numbers: Any = "number"
    mode: Any = "all"
    status: Any = False
    corrections: Any = False
    markets: Any = False
    resume: Any = msgspec.UNSET
    subscriptions: Any = msgspec.UNSET
    before: Any = msgspec.UNSET
    limit: Any = DEFAULT_PAGE


# The keys that each of several subscriptions may set for itself.
_OF_ONE = {
    "symbol", "interval", "exchange", "initialBars", "fields", "numbers", "mode", "status", "corrections", "markets",
    "resume",
}  # fmt: skip


class RequestCodec:
    """Decodes requests about the markets and intervals served here. The first exchange is the default."""

    def __init__(self, markets: Mapping[str, Sequence[Symbol]], intervals: Iterable[Interval]) -> None:
        self._markets = {name: {str(symbol): symbol for symbol in symbols} for name, symbols in markets.items()}
        self._default = next(iter(self._markets))
        self._intervals = {str(interval): interval for interval in intervals}
        #: The new symbols of markets that were renamed, by exchange and former symbol. No market has the former symbol
        #: now.
        self._renamed: dict[tuple[str, str], Symbol] = {}
        self._decoder = msgspec.json.Decoder(_Message)
        self._topics: dict[Any, Topic] = {}
        for name, symbols in self._markets.items():
            for symbol in symbols.values():
                self._topics |= self._topics_of(MarketKey(name, symbol))

    def set_exchanges(self, names: Iterable[str]) -> None:
        """Replace the exchanges. New ones have no markets yet; removed ones must have none left. The first stays."""
        self._markets = {name: self._markets.get(name, {}) for name in names}

    def add_intervals(self, intervals: Iterable[Interval]) -> None:
        """Accept requests about further intervals of all markets."""
        known = self._intervals | {str(interval): interval for interval in intervals}
        self._intervals = dict(sorted(known.items(), key=lambda item: item[1]))
        for name, symbols in self._markets.items():
            for symbol in symbols.values():
                self._topics |= self._topics_of(MarketKey(name, symbol))

    def on_markets_changed(self, change: MarketsChanged) -> None:
        """Accept requests about new markets, and no more about removed ones."""
        symbols = self._markets[change.exchange]
        for symbol in change.removed:
            del symbols[str(symbol)]
            for key in self._topics_of(MarketKey(change.exchange, symbol)):
                del self._topics[key]
        for symbol in change.added:
            symbols[str(symbol)] = symbol
            self._topics |= self._topics_of(MarketKey(change.exchange, symbol))

    def set_renamed(self, renamed: Mapping[MarketKey, MarketKey]) -> None:
        """Name the new symbol in errors about a former one. `renamed` has the markets by their former names."""
        self._renamed = {(former.exchange, str(former.symbol)): market.symbol for former, market in renamed.items()}

    def new_symbol(self, market: MarketKey) -> Symbol | None:
        """Return the new symbol of a market that was renamed and is not served any more; None if it was not renamed."""
        return self._renamed.get((market.exchange, str(market.symbol)))

    def _topics_of(self, market: MarketKey) -> dict[Any, Topic]:
        """Return the topics of a market by the keys of messages that name them."""
        names = (market.exchange, msgspec.UNSET) if market.exchange == self._default else (market.exchange,)
        return {
            (name, str(market.symbol), text): Topic(market, interval)
            for name in names
            for text, interval in self._intervals.items()
        }

    def room_name(self, topic: Topic) -> str:
        """Return a topic's name in statistics: `BTC/USDT:5m`, with the exchange in front unless it is the default."""
        prefix = "" if topic.market.exchange == self._default else f"{topic.market.exchange}:"
        return f"{prefix}{topic.market.symbol}:{topic.interval}"

    def symbols(self, exchange: str) -> Iterable[Symbol]:
        """Return the symbols that are served at an exchange, which must be one of the configured ones."""
        return self._markets[exchange].values()

    def pattern_name(self, topic: PatternTopic) -> str:
        """Return the name of a pattern room in statistics: `*/USDT:5m`, with the exchange as in `room_name`."""
        prefix = "" if topic.exchange == self._default else f"{topic.exchange}:"
        return f"{prefix}{topic.pattern}:{topic.interval}"

    def topic_head(self, topic: Topic) -> str:
        """Return the keys that name a message's topic. The exchange is left out if it is the default."""
        return f'{self.market_head(topic.market)},"interval":"{topic.interval}"'

    def market_head(self, market: MarketKey) -> str:
        """Return the keys that name a message's market. The exchange is left out if it is the default."""
        return self._head(market.exchange, f'"symbol":{quoted(str(market.symbol))}')

    def request_head(self, topic: PatternTopic) -> str:
        """Return the keys that name a pattern room in answers, as the request does."""
        return self._head(topic.exchange, f'"symbol":{quoted(topic.pattern)},"interval":"{topic.interval}"')

    def pattern_head(self, topic: PatternTopic) -> str:
        """Return the keys that name a pattern room in its own messages, which are about several markets."""
        return self._head(topic.exchange, f'"pattern":{quoted(topic.pattern)},"interval":"{topic.interval}"')

    def pattern_bar_head(self, topic: PatternTopic, symbol: Symbol) -> str:
        """Return the keys that name a market and the pattern room in which its bar is sent."""
        names = f'"pattern":{quoted(topic.pattern)},"symbol":{quoted(str(symbol))}'
        return self._head(topic.exchange, f'{names},"interval":"{topic.interval}"')

    def _head(self, exchange: str, names: str) -> str:
        return names if exchange == self._default else f'"exchange":{quoted(exchange)},{names}'

    def decode_request(self, message: str | bytes) -> Request:
        """Decode one client message.

        Raises:
            RequestError: the message is invalid; text and `request_id` are those of the error message to reply with.
        """
        if isinstance(message, bytes):
            raise RequestError(INVALID_FORMAT)
        try:
            decoded = self._decoder.decode(message)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise RequestError(INVALID_FORMAT) from error
        request_id: RequestId = None
        try:
            request_id = None if decoded.id is msgspec.UNSET else read_request_id(decoded.id)
            return self._read_request(decoded, request_id)
        except RequestError as error:
            error.request_id = request_id
            if isinstance(error, UnknownMarket) and decoded.type == "history":
                error.read_again = partial(self._read_request, decoded, request_id)
            raise
        except RecursionError as error:  # decoded, but nested too deeply to be printed in an error
            raise RequestError(INVALID_FORMAT) from error

    def read_subscription(self, fields: Mapping[str, Any]) -> Subscribe | SubscribePattern:
        """Return a subscription, given the fields of its message.

        Raises:
            RequestError: a field is invalid.
        """
        return self._read_subscribe(_Message(**fields), None)

    def name_of(self, message: str | bytes) -> RequestId:
        """Return the `id` of a request that is refused unread; None if it cannot be found."""
        try:
            decoded = self._decoder.decode(message)
            return None if decoded.id is msgspec.UNSET else read_request_id(decoded.id)
        except (msgspec.DecodeError, UnicodeError, RecursionError, RequestError):
            return None

    def _read_request(self, decoded: _Message, request_id: RequestId) -> Request:
        match decoded.type:
            case "ping":
                return Ping(request_id)
            case "subscribe" if decoded.subscriptions is not msgspec.UNSET:
                return self._read_many(decoded, request_id)
            case "subscribe":
                return self._read_subscribe(decoded, request_id)
            case "unsubscribe":
                return Unsubscribe(self._read_room(decoded), request_id)
            case "list":
                return ListSubscriptions(request_id)
            case "history":
                topic, before_ms = self._read_topic(decoded), None
                if decoded.before is not msgspec.UNSET:
                    before_ms = _time_ms("before", decoded.before)
                fields = _fields(decoded.fields) | _numbers(decoded.numbers)
                return GetHistory(topic, before_ms, _page_size(decoded.limit), fields, request_id)
            case str(other):
                raise RequestError(f"Unknown message type: {_shown(other)}")
            case _:
                raise RequestError(INVALID_FORMAT)

    def _read_subscribe(self, decoded: _Message, request_id: RequestId) -> Subscribe | SubscribePattern:
        try:
            topic = self._read_room(decoded)
        except UnknownMarket as error:
            error.read_again = partial(self._read_subscribe, decoded, request_id)
            raise
        bars = _bars(decoded.initialBars)
        options, resume = PLAIN, None
        asks = decoded.fields is not msgspec.UNSET or decoded.numbers != "number"
        if asks or decoded.mode != "all" or decoded.corrections is not False:
            fields = _fields(decoded.fields) | _numbers(decoded.numbers)
            options = Options(fields, _closed(decoded.mode), _flag("corrections", decoded.corrections))
        if decoded.resume is not msgspec.UNSET:
            resume = _resume(decoded.resume)
        status, markets = _flag("status", decoded.status), _flag("markets", decoded.markets)
        if isinstance(topic, PatternTopic):
            _check_pattern(decoded, options)
            return SubscribePattern(topic, options, markets, request_id)
        if markets:
            raise RequestError("Invalid markets: true. Expected a pattern as symbol, such as *")
        return Subscribe(topic, bars, options, status, resume, request_id)

    def _read_many(self, decoded: _Message, request_id: RequestId) -> SubscribeMany:
        if not isinstance(decoded.subscriptions, list) or not decoded.subscriptions:
            raise RequestError(INVALID_FORMAT)
        shared = {key: _shortened(getattr(decoded, key), read) for key, read in _SHARED.items()}
        shared_by_all = msgspec.structs.replace(decoded, **shared)
        return SubscribeMany(self._read_each(decoded.subscriptions, shared_by_all, request_id), request_id)

    def _read_each(
        self, subscriptions: Sequence[Any], shared: _Message, request_id: RequestId
    ) -> Iterator[Subscribe | SubscribePattern | RequestError]:
        for one in subscriptions:
            try:
                if not isinstance(one, dict):
                    raise RequestError(INVALID_FORMAT)
                own = {key: value for key, value in one.items() if key in _OF_ONE}
                entry = msgspec.structs.replace(shared, **own)
                yield self._read_subscribe(entry, request_id)
            except RequestError as error:
                error.request_id = request_id
                yield error
            except RecursionError:  # nested too deeply to be printed in an error
                yield RequestError(INVALID_FORMAT)

    def _read_room(self, decoded: _Message) -> Topic | PatternTopic:
        """Return the topic of a room: of a market, or of a pattern if no market has that name."""
        symbol, exchange = decoded.symbol, self._default if decoded.exchange is msgspec.UNSET else decoded.exchange
        if not (isinstance(symbol, str) and isinstance(exchange, str) and exchange in self._markets):
            return self._read_topic(decoded)
        if symbol in self._markets[exchange] or not _is_pattern(symbol):
            return self._read_topic(decoded)
        if len(symbol) > _LONGEST_PATTERN:
            raise invalid_pattern(symbol, f"at most {_LONGEST_PATTERN} characters")
        if not isinstance(decoded.interval, str):
            raise RequestError(INVALID_FORMAT)
        interval = self._intervals.get(decoded.interval)
        if interval is None:
            raise self._unknown_interval(decoded.interval)
        return PatternTopic(exchange, symbol, interval)

    def _read_topic(self, decoded: _Message) -> Topic:
        try:
            return self._topics[decoded.exchange, decoded.symbol, decoded.interval]
        except (KeyError, TypeError):
            pass
        exchange = self._default if decoded.exchange is msgspec.UNSET else decoded.exchange
        symbol, interval = decoded.symbol, decoded.interval
        if not (isinstance(symbol, str) and isinstance(interval, str) and isinstance(exchange, str)):
            raise RequestError(INVALID_FORMAT)
        if exchange not in self._markets:
            raise RequestError(f"Invalid exchange: {_shown(exchange)}. Valid: {', '.join(self._markets)}", code=UNKNOWN)
        symbols = self._markets[exchange]
        if symbol not in symbols:
            renamed = self._renamed.get((exchange, symbol))
            hint = f"The exchange has renamed it to {renamed}." if renamed else choice_text(list(symbols))
            raise UnknownMarket(
                f"Invalid symbol: {_shown(symbol)}. {hint}", exchange, symbol, self._intervals.get(interval)
            )
        raise self._unknown_interval(interval)

    def _unknown_interval(self, interval: str) -> RequestError:
        return RequestError(f"Invalid interval: {_shown(interval)}. Valid: {', '.join(self._intervals)}", code=UNKNOWN)


# ---------------------------------------------------------------- single keys


def _bars(count: Any) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise RequestError(f"Invalid initialBars: {_json(count)}. Expected a whole number from 0 to {MOST_BARS}")
    return min(count, MOST_BARS)


def _page_size(limit: Any) -> int:
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST_BARS:
        raise RequestError(f"Invalid limit: {_json(limit)}. Expected a whole number from 1 to {MOST_BARS}")
    return limit


def read_request_id(given: Any) -> RequestId:
    """Return the `id` of a request.

    Raises:
        RequestError: it has another type, or is too long.
    """
    if isinstance(given, str) and len(given) <= _LONGEST_ID:
        return given
    if isinstance(given, int) and not isinstance(given, bool) and -_INTEGER <= given < _INTEGER:
        return given
    raise RequestError(f"Invalid id: {_json(given)}. Expected an integer or at most {_LONGEST_ID} characters")


def _fields(given: Any) -> int:
    if given is msgspec.UNSET:
        return 0
    if not isinstance(given, list) or not all(isinstance(one, str) and one in FIELDS for one in given):
        raise RequestError(f"Invalid fields: {_json(given)}. Valid: {', '.join(FIELDS)}")
    return sum(FIELDS[one] for one in set(given))


def _numbers(given: Any) -> int:
    if not isinstance(given, str) or given not in NUMBERS:
        raise RequestError(f"Invalid numbers: {_json(given)}. Valid: {', '.join(NUMBERS)}")
    return NUMBERS[given]


def _closed(mode: Any) -> bool:
    if mode not in ("all", "closed"):
        raise RequestError(f"Invalid mode: {_json(mode)}. Valid: all, closed")
    return bool(mode == "closed")


def _is_pattern(symbol: str) -> bool:
    return "*" in symbol or symbol.startswith(("!", "/"))


def _check_pattern(decoded: _Message, options: Options) -> None:
    """Refuse the options that a pattern room does not have."""
    if not options.on_close:
        raise RequestError('Invalid mode: "all". Valid with a pattern: closed')
    if decoded.status:
        raise RequestError("Invalid status: true. Not available with a pattern")
    if decoded.resume is not msgspec.UNSET:
        raise RequestError(f"Invalid resume: {_json(decoded.resume)}. Not available with a pattern")


def _flag(name: str, given: Any) -> bool:
    if isinstance(given, bool):
        return given
    if name == "markets":
        raise RequestError(f"Invalid markets: {_json(given)}. Expected true or false")
    if name == "status":
        raise RequestError(f"Invalid status: {_json(given)}. Expected true or false")
    raise RequestError(f"Invalid corrections: {_json(given)}. Expected true or false")


def _resume(given: Any) -> Resume:
    epoch, seq, time = map(given.get, ("epoch", "seq", "time")) if isinstance(given, dict) else (None, None, None)
    if isinstance(epoch, str) and len(epoch) <= _LONGEST_ID and type(seq) is int and 0 <= seq < _INTEGER:
        return Resume(epoch, seq, _time_ms("resume.time", time))
    raise RequestError(f"Invalid resume: {_json(given)}. Expected epoch, seq and time as the server sent them")


def _time_ms(name: str, given: Any) -> int:
    """Return a time, given as ISO 8601 or epoch milliseconds, in ms."""
    at_ms = given if isinstance(given, int) and not isinstance(given, bool) else -1
    if isinstance(given, str) and len(given) <= _LONGEST_ID:
        try:
            at_ms = parse_iso_ms(given)
        except (ValueError, OverflowError):
            at_ms = -1
    if 0 <= at_ms < YEAR_10000_MS:
        return at_ms
    if name == "before":
        raise RequestError(f"Invalid before: {_json(given)}. Expected an ISO 8601 time or epoch milliseconds")
    raise RequestError(f"Invalid resume.time: {_json(given)}. Expected an ISO 8601 time or epoch milliseconds")


_SHARED: Mapping[str, Callable[[Any], Any]] = {
    "initialBars": _bars, "fields": _fields, "numbers": _numbers, "mode": _closed,
    "status": partial(_flag, "status"), "corrections": partial(_flag, "corrections"),
    "markets": partial(_flag, "markets"), "resume": _resume,
}  # fmt: skip


def _shortened(given: Any, read: Callable[[Any], Any]) -> Any:
    """Return a shorter equivalent of a value that every subscription of a message reads."""
    if not isinstance(given, str | list | dict):
        return given
    try:
        read(given)
    except RequestError:
        text = msgspec.json.encode(given).decode()
        return given if len(text) <= _SHOWN else msgspec.Raw(text[: _SHOWN + 1].encode())
    return list(set(given)) if isinstance(given, list) else given


# ---------------------------------------------------------------- error texts


def choice_text(symbols: Sequence[str]) -> str:
    """Return the end of an error about a symbol: the symbols that are served."""
    if not symbols:
        return "None is served now."
    if len(symbols) == 1:
        return f"Only {symbols[0]} is supported."
    more = f" and {len(symbols) - _LISTED} more" if len(symbols) > _LISTED else ""
    return f"Valid: {', '.join(symbols[:_LISTED])}{more}"


def _json(given: Any) -> str:
    return _shown(msgspec.json.encode(given).decode())


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
