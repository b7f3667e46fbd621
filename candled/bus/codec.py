"""Messages as JSON, and the names of channels and keys. Other programs use them too: docs/reference/bus.md."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct, field

from candled.bus import FeedMetadata, HistoryChanged, Message, MinuteChanged, StateChanged
from candled.errors import InvalidCandle
from candled.model import (
    MAX_DIGITS,
    MINUTE_MS,
    YEAR_10000_MS,
    Candle,
    Decimals,
    Market,
    MarketKey,
    MarketState,
    Position,
    Range,
    State,
    Symbol,
    decimal_text,
    iso_ms,
    parse_iso_ms,
)
from candled.model.decimals import is_bounded
from candled.model.texts import printable

MAX_BYTES = 64 * 1024  # of a message, and of a market's key
_MAX_HEARTBEAT_BYTES = 4 * 1024 * 1024  # enough for some tens of thousands of markets
MAX_LIST_BYTES = 4 * 1024 * 1024  # of an exchange's list of markets
MAX_LISTED = 10_000  # markets of a list
_MAX_COUNT = 2**53  # beyond this, Redis's scripts do not count exactly
_MAX_REASON, _MAX_PROBLEM = 40, 300


class BadMessage(ValueError):
    """A received message does not have the documented form."""


class FutureMessage(BadMessage):
    """A message contains a time in the future."""


# Characters of a symbol that mean something in the name of a channel or key: `:` separates its parts.
_ESCAPED = str.maketrans({sign: f"%{ord(sign):02X}" for sign in "%{}:"})


class Names:
    """The names of channels and keys. `prefix` precedes all of them; `default` is the default exchange.

    A Redis Cluster chooses the server of a name by its part in braces. So the keys of a market are on the server of its
    channel, and the keys of a shard on the server of its heartbeat.
    """

    def __init__(self, prefix: str, default: str, shards: int) -> None:
        self._prefix = prefix
        self._default = default
        self._shards = shards

    def candles_channel(self, market: MarketKey) -> str:
        """Return `candles:BTC/USDT:1m`, or `candles:kraken:BTC/USDT:1m` if kraken is not the default exchange."""
        exchange = "" if market.exchange == self._default else f"{market.exchange}:"
        symbol = str(market.symbol).translate(_ESCAPED)
        return f"{self._prefix}candles:{exchange}{symbol}:1m"

    def newest_key(self, market: MarketKey) -> str:
        """Return the key of the newest minutes of a market."""
        return f"{{{self.candles_channel(market)}}}:newest"

    def fence_key(self, market: MarketKey) -> str:
        """Return the key of the highest token that has published to the market's channel."""
        return f"{{{self.candles_channel(market)}}}:fence"

    def lease_key(self, shard: int) -> str:
        """Return the key of a shard's lease, which contains a token and a process."""
        return f"{self._shard_key(shard)}:lease"

    def token_key(self, shard: int) -> str:
        """Return the key of the last token that was assigned for a shard."""
        return f"{self._shard_key(shard)}:token"

    def heartbeat_channel(self, shard: int) -> str:
        """Return the channel of a shard's heartbeat."""
        return f"{self._shard_key(shard)}:heartbeat"

    def markets_key(self, exchange: str) -> str:
        """Return the key of an exchange's list of markets."""
        return f"{self._markets_key(exchange)}:list"

    def markets_fence_key(self, exchange: str) -> str:
        """Return the key of the highest token that has published the list of markets."""
        return f"{self._markets_key(exchange)}:fence"

    def markets_channel(self, exchange: str) -> str:
        """Return the channel of the notices that an exchange's list of markets has changed."""
        return f"{self._markets_key(exchange)}:changed"

    @property
    def processes_key(self) -> str:
        """The key of the set of processes that ingest."""
        return f"{self._prefix}candled:processes"

    @property
    def processes_list_key(self) -> str:
        """The key of the list of all processes, a sorted set by the time of their last announcement."""
        return self.process_key("list")

    def process_key(self, process: str) -> str:
        """Return the key of the facts that a process announces about itself, on the server of the list of processes."""
        return f"{self._prefix}candled:{{processes}}:{process}"

    def budget_key(self, host: str) -> str:
        """Return the key of the request budget of an exchange's host."""
        return f"{self._prefix}candled:budget:{host}"

    def count_key(self, key: str) -> str:
        """Return the key of a client's request count within a window."""
        return f"{self._prefix}candled:count:{key}"

    def demand_key(self, exchange: str) -> str:
        """Return the key of the markets on demand of an exchange, a sorted set by the time of their last use."""
        return f"{self._prefix}candled:demand:{exchange}"

    def delisted_key(self, exchange: str) -> str:
        """Return the key of the delisted markets that clients use, a sorted set by the time of their last use."""
        return f"{self._prefix}candled:demand:{exchange}:delisted"

    def listed_key(self, exchange: str) -> str:
        """Return the key of the symbols that an exchange lists, a line each."""
        return f"{self._prefix}candled:listed:{exchange}"

    def _markets_key(self, exchange: str) -> str:
        return f"{self._prefix}candled:{{markets-{exchange}}}"

    def _shard_key(self, shard: int) -> str:
        return f"{self._prefix}candled:{{shard-{shard}-of-{self._shards}}}"


def private_channel(near: str, process: str) -> str:
    """Return a process's private channel. In a cluster it is on the same server as the channel `near`."""
    return f"{near}:{process}" if "{" in near else f"{{{near}}}:{process}"


def epoch_of(shard: int, token: int, process: str = "") -> str:
    """Return the name of a feed. `process` distinguishes feeds that began without a token."""
    return f"{shard}.{token}{f'.{process}' if process else ''}"


@lru_cache(maxsize=1024)
def token_of(epoch: str) -> int:
    """Return the token in the name of a feed, 0 if there is none. A greater one is later."""
    parts = epoch.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else 0


# ---------------------------------------------------------------- forms

# One struct per message, for both directions. The constraints hold for received messages. Keys with their default value
# are left out, except those with a `default_factory`.
_Time = Annotated[int, Meta(ge=0, lt=YEAR_10000_MS)] | str
_Count = Annotated[int, Meta(ge=0, le=_MAX_COUNT)]
_Digits = Annotated[int, Meta(ge=0, le=MAX_DIGITS)]
_Epoch = Annotated[str, Meta(max_length=64, pattern=r"^[0-9]{1,9}\.([0-9]{1,15}|[0-8][0-9]{15})(\.[0-9a-f]+)?\Z")]


class _Form(Struct, kw_only=True, rename="camel", omit_defaults=True):
    exchange: str | None = None
    symbol: str | None = None
    interval: str | None = None
    epoch: _Epoch = ""
    seq: _Count = 0
    watermark: _Time | None = None
    gap: tuple[_Time, _Time] | None = None
    logged: Annotated[int, Meta(ge=-1, le=_MAX_COUNT)] = -1
    complete_from: _Time | None = None


class _Candle(_Form, tag="candle"):
    time: _Time
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal | None = None
    final: bool = field(default_factory=bool)
    as_of: _Time | None = None
    rev: Annotated[int, Meta(ge=0, le=10**6)] = field(default_factory=int)
    src: Annotated[str, Meta(max_length=32)] = field(default_factory=str)


class _HistoryChanged(_Form, tag="healed"):
    from_: _Time = field(name="from")
    until: _Time


class _State(_Form, tag="state"):
    state: State | None = None
    since: _Time = 0
    reason: str = ""
    problem: str = field(default="", name="trouble")
    price_decimals: _Digits | None = None
    volume_decimals: _Digits | None = None


class _Newest(_State, tag=False):
    candles: list[_Candle] = field(default_factory=list)


class Heartbeat(Struct, frozen=True, rename="camel", omit_defaults=True, tag="heartbeat"):
    """The number of the last message on each channel of a shard, and the newest exchange time in these messages."""

    shard: _Count
    epoch: _Epoch
    seqs: Mapping[str, _Count]
    as_of: _Time = 0

    @property
    def as_of_ms(self) -> int:
        """The newest exchange time, UTC epoch milliseconds; 0 if there is none."""
        return _ms(self.as_of)


class ListNotice(Struct, frozen=True, tag="markets"):
    """The notice that an exchange's list of markets was published. Read its key, unless you have this position."""

    exchange: Annotated[str, Meta(max_length=64)]
    epoch: _Epoch
    seq: _Count

    @property
    def position(self) -> Position:
        """The position of the list."""
        return Position(self.epoch, self.seq)


class _ListedMarket(Struct, rename="camel", omit_defaults=True):
    symbol: Annotated[str, Meta(max_length=128)]
    #: Absent if the exchange has not listed the market so far; then all other keys are too.
    status: MarketState | None = None
    price_decimals: _Digits | None = None
    volume_decimals: _Digits | None = None
    tick_size: Decimal | None = None
    listed: _Time | None = None
    delisted: _Time | None = None
    quote_volume_24h: Decimal | None = field(default=None, name="quoteVolume24h")
    former: Annotated[str, Meta(max_length=128)] | None = None


class _MarketList(Struct, rename="camel"):
    exchange: str
    epoch: _Epoch
    seq: _Count
    markets: Annotated[list[_ListedMarket], Meta(max_length=MAX_LISTED)]


@dataclass(frozen=True, slots=True)
class MarketList:
    """The markets that the leader of an exchange chose, with their facts."""

    #: The position of the list: the name of the feed of lists, and the number of this one.
    position: Position
    #: The facts of each market, in order of choice; None if the exchange's list does not have it so far.
    markets: Mapping[Symbol, Market | None]


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest state of a market, stored in its key."""

    #: The position of the market's feed that these values belong to.
    position: Position
    #: The newest minutes, oldest first.
    candles: tuple[Candle, ...] = ()
    #: The metadata of the newest message with candles or about history.
    metadata: FeedMetadata = FeedMetadata()
    #: The time since which history is complete except for known gaps, UTC epoch milliseconds; None if unknown.
    complete_from_ms: int | None = None
    #: The newest state of the feed; None if none was published.
    state: StateChanged | None = None


_encode = msgspec.json.Encoder().encode
_decode_form = msgspec.json.Decoder(_Candle | _HistoryChanged | _State).decode
_decode_candle = msgspec.json.Decoder(_Candle).decode
_decode_newest = msgspec.json.Decoder(_Newest).decode
_decode_list = msgspec.json.Decoder(_MarketList).decode
_decode_notice = msgspec.json.Decoder(ListNotice).decode
_decode_heartbeat = msgspec.json.Decoder(Heartbeat).decode


# ---------------------------------------------------------------- encoding


def encode_message(message: Message, position: Position) -> bytes:
    """Encode a message for publishing."""
    form: _Form
    if isinstance(message, MinuteChanged):
        form = _candle_form(message.candle)
        _set_metadata(form, message.metadata, None)
    elif isinstance(message, HistoryChanged):
        form = _HistoryChanged(iso_ms(message.start_ms), iso_ms(message.end_ms))
        _set_metadata(form, message.metadata, message.complete_from_ms)
    elif isinstance(message, StateChanged):
        form = _State(*_state_values(message))
    else:
        raise TypeError(f"{message} is not for other processes")
    form.exchange, form.symbol, form.interval = message.market.exchange, str(message.market.symbol), "1m"
    form.epoch, form.seq = position
    return _encode(form)


def encode_newest(newest: Newest) -> bytes:
    """Encode the value of a market's key."""
    form = _Newest(*(() if newest.state is None else _state_values(newest.state)))
    form.candles = [_candle_form(candle) for candle in newest.candles]
    form.epoch, form.seq = newest.position
    _set_metadata(form, newest.metadata, newest.complete_from_ms)
    return _encode(form)


def encode_heartbeat(shard: int, epoch: str, seqs: Mapping[str, int], as_of_ms: int = 0) -> bytes:
    """Encode a heartbeat."""
    return _encode(Heartbeat(shard, epoch, seqs, iso_ms(as_of_ms) if as_of_ms else 0))


def encode_notice(exchange: str, position: Position) -> bytes:
    """Encode the notice that an exchange's list of markets was published."""
    return _encode(ListNotice(exchange, *position))


def encode_market_list(exchange: str, position: Position, markets: Mapping[Symbol, Market | None]) -> bytes:
    """Encode the list of an exchange's markets."""
    listed = [_listed_form(symbol, facts) for symbol, facts in markets.items()]
    return _encode(_MarketList(exchange, *position, listed))


def _listed_form(symbol: Symbol, facts: Market | None) -> _ListedMarket:
    form = _ListedMarket(str(symbol))
    if facts is not None:
        form.status = facts.status
        form.price_decimals, form.volume_decimals = facts.decimals
        form.tick_size, form.quote_volume_24h = _number_form(facts.tick_size), _number_form(facts.quote_volume_24h)
        form.listed = None if facts.listed_ms is None else iso_ms(facts.listed_ms)
        form.delisted = None if facts.delisted_ms is None else iso_ms(facts.delisted_ms)
        form.former = None if facts.former is None else str(facts.former)
    return form


def _number_form(number: Decimal | None) -> Any:
    """Return a number without an exponent; None if it is unknown, or if a receiver would not accept it."""
    return Raw(decimal_text(number).encode()) if number is not None and _is_amount(number) else None


def _is_amount(number: Decimal) -> bool:
    return is_bounded(number) and number >= 0


def _candle_form(candle: Candle) -> _Candle:
    # msgspec's own form of a Decimal may have an exponent
    numbers: Any = [None if number is None else Raw(decimal_text(number).encode()) for number in candle.values]
    rest: Any = candle.final, iso_ms(candle.as_of_ms), candle.rev, candle.src
    return _Candle(iso_ms(candle.open_ms), *numbers, *rest)


def _set_metadata(form: _Form, metadata: FeedMetadata, complete_from_ms: int | None) -> None:
    form.logged = metadata.logged_seq
    form.watermark = None if metadata.watermark_ms is None else iso_ms(metadata.watermark_ms)
    form.gap = None if metadata.gap is None else (iso_ms(metadata.gap.start_ms), iso_ms(metadata.gap.end_ms))
    form.complete_from = None if complete_from_ms is None else iso_ms(complete_from_ms)


def _state_values(message: StateChanged) -> tuple[Any, ...]:
    return message.state, iso_ms(message.since_ms), message.reason, message.problem, *message.decimals


# ---------------------------------------------------------------- decoding


def decode_message(market: MarketKey, data: bytes, latest_ms: int = YEAR_10000_MS) -> tuple[Message, Position | None]:
    """Decode a message from a market's channel. Unknown keys are ignored. A minute of another program has no position.

    Raises:
        BadMessage: it does not have the documented form.
        FutureMessage: it contains a time after `latest_ms`.
    """
    with _checks(data, MAX_BYTES):
        try:
            form = _decode_form(data)
        except msgspec.ValidationError as error:
            if "missing required field `type`" not in str(error):
                raise
            form = _decode_candle(data)  # of another program
        expected = market.exchange, str(market.symbol), "1m"
        names = form.exchange or expected[0], form.symbol or expected[1], form.interval or expected[2]
        if names != expected:
            raise BadMessage(f"belongs to another market, {' '.join(name[:64] for name in names)}")
        position = Position(form.epoch, form.seq) if form.epoch and form.seq else None
        metadata, complete_from_ms = _metadata_of(form, latest_ms)
        if isinstance(form, _Candle):
            candle = _candle_of(form, latest_ms)
            if position is None and not candle.src:
                candle = candle._replace(src="live")
            return MinuteChanged(market, candle, metadata), position
        if position is None:
            raise BadMessage("only candles may come from other programs, without epoch and seq")
        if isinstance(form, _State):
            return _state_of(market, form, latest_ms), position
        return HistoryChanged(market, *_span(form.from_, form.until, latest_ms), complete_from_ms, metadata), position


def decode_newest(market: MarketKey, data: bytes, latest_ms: int = YEAR_10000_MS) -> Newest:
    """Decode the value of a market's key. Raises the errors of `decode_message`."""
    with _checks(data, MAX_BYTES):
        form = _decode_newest(data)
        candles = tuple(_candle_of(one, latest_ms) for one in form.candles)
        state = None if form.state is None else _state_of(market, form, latest_ms)
        return Newest(Position(form.epoch, form.seq), candles, *_metadata_of(form, latest_ms), state)


def decode_heartbeat(data: bytes) -> Heartbeat:
    """Decode a heartbeat. Raises `BadMessage`."""
    with _checks(data, _MAX_HEARTBEAT_BYTES):
        beat = _decode_heartbeat(data)
        _ms(beat.as_of)
        return beat


def decode_notice(data: bytes) -> ListNotice:
    """Decode the notice about a list of markets. Raises `BadMessage`."""
    with _checks(data, MAX_BYTES):
        return _decode_notice(data)


def decode_market_list(exchange: str, data: bytes) -> MarketList:
    """Decode the list of an exchange's markets. Raises `BadMessage`."""
    with _checks(data, MAX_LIST_BYTES):
        form = _decode_list(data)
        if form.exchange != exchange:
            raise BadMessage(f"belongs to another exchange, {form.exchange[:64]}")
        listed = [_listed_market(one) for one in form.markets]
        markets = dict(listed)
        if len(markets) < len(listed):
            raise BadMessage("expected each symbol once")
        return MarketList(Position(form.epoch, form.seq), markets)


def _listed_market(form: _ListedMarket) -> tuple[Symbol, Market | None]:
    symbol = Symbol.parse(form.symbol)
    if form.status is None:
        return symbol, None
    for number in (form.tick_size, form.quote_volume_24h):
        if number is not None and not _is_amount(number):
            raise BadMessage(f"expected an amount of at most {MAX_DIGITS} digits")
    return symbol, Market(
        symbol=symbol,
        price_decimals=form.price_decimals,
        volume_decimals=form.volume_decimals,
        tick_size=form.tick_size,
        status=form.status,
        listed_ms=None if form.listed is None else _ms(form.listed),
        delisted_ms=None if form.delisted is None else _ms(form.delisted),
        former=None if form.former is None else Symbol.parse(form.former),
        quote_volume_24h=form.quote_volume_24h,
    )


def parse_fence(data: bytes) -> tuple[int, int] | None:
    """Return the token and message number of a market's fence, or None if it does not have the documented form."""
    token, _, number = data.decode("ascii", "replace").partition(" ")
    if not token.isdecimal() or not (number or "0").isdecimal() or len(data) > 40:
        return None
    found = int(token), int(number or 0)
    return found if max(found) <= _MAX_COUNT else None


@contextmanager
def _checks(data: bytes, max_bytes: int) -> Iterator[None]:
    """Raise every error of a message as a `BadMessage`."""
    if len(data) > max_bytes:
        raise BadMessage(f"expected at most {max_bytes} bytes, got {len(data)}")
    try:
        yield
    except BadMessage:
        raise
    except (msgspec.MsgspecError, InvalidCandle, ValueError, ArithmeticError, RecursionError) as error:
        raise BadMessage(str(error)) from error


def _candle_of(form: _Candle, latest_ms: int) -> Candle:
    numbers = form.open, form.high, form.low, form.close, form.volume, form.quote_volume
    open_ms = _ms(form.time, latest_ms)
    # another program may send a final minute without `asOf`: it counts as seen to its end
    as_of_ms = _ms(open_ms + MINUTE_MS * form.final if form.as_of is None else form.as_of, latest_ms)
    return Candle(open_ms, *numbers, as_of_ms, form.final, form.rev, form.src).checked()


def _metadata_of(form: _Form, latest_ms: int) -> tuple[FeedMetadata, int | None]:
    """Return the metadata of a message, and the time since which history is complete."""
    watermark_ms = None if form.watermark is None else _ms(form.watermark, latest_ms)
    complete_from_ms = None if form.complete_from is None else _ms(form.complete_from, latest_ms)
    gap = None if form.gap is None else _span(*form.gap, latest_ms)
    return FeedMetadata(watermark_ms, gap, form.logged), complete_from_ms


def _state_of(market: MarketKey, form: _State, latest_ms: int) -> StateChanged:
    if form.state is None:
        raise BadMessage("expected a state")
    why = printable(form.reason, _MAX_REASON), printable(form.problem, _MAX_PROBLEM)
    decimals = Decimals(form.price_decimals, form.volume_decimals)
    return StateChanged(market, form.state, _ms(form.since, latest_ms), *why, decimals)


def _span(start: _Time, end: _Time, latest_ms: int) -> Range:
    """Return a range, which may end with the forming minute."""
    span = Range(_ms(start, latest_ms), _ms(end, latest_ms + MINUTE_MS))
    if span.end_ms < span.start_ms:
        raise BadMessage("expected a range that ends after it begins")
    return span


def _ms(time: _Time, latest_ms: int = YEAR_10000_MS) -> int:
    at_ms = time if isinstance(time, int) else parse_iso_ms(time)
    if not 0 <= at_ms < YEAR_10000_MS:
        raise BadMessage(f"expected a time from 1970 to 9999, got {str(time)[:32]}")
    if at_ms > latest_ms:
        raise FutureMessage(f"expected times up to {iso_ms(latest_ms)}, got {iso_ms(at_ms)}")
    return at_ms


def excerpt(data: Any) -> str:
    """Return the beginning of a message, for the log."""
    return repr(bytes(data[:120])) if isinstance(data, bytes | bytearray) else repr(data)[:120]
