"""Messages as JSON, and the names of channels and keys. Other programs use them too: docs/reference/bus.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec

from candled.errors import InvalidCandle
from candled.model import MINUTE_MS, STATES, Candle, Decimals, MarketKey, Range, decimal_text, iso_ms, parse_iso_ms

from .interface import FeedMetadata, HistoryChanged, Message, MinuteChanged, Position, StateChanged

_MOST_DIGITS = 100  # of a number from outside: 1e999999999 is short to write and long to print
_LONGEST_TROUBLE = 300
_LONGEST_REASON = 40
LARGEST = 64 * 1024  # bytes of a message, and of a market's key
_LARGEST_HEARTBEAT = 4 * 1024 * 1024  # enough for some tens of thousands of markets
_MOST = 2**53  # of numbers and tokens; beyond this, Redis's scripts do not count exactly
YEAR_10000_MS = 253_402_300_800_000
_quoted = msgspec.json.encode


class BadMessage(ValueError):
    """A received message does not have the documented form."""


class FutureMessage(BadMessage):
    """A message contains a time in the future."""


class Names:
    """The names of channels and keys. `prefix` precedes all of them; `default` is the first exchange.

    The parts in braces decide where a Redis Cluster stores a key. A market's keys are stored where its channel is, a
    shard's keys where its heartbeat is.
    """

    def __init__(self, prefix: str, default: str, shards: int) -> None:
        self._prefix = prefix
        self._default = default
        self._shards = shards

    def candles_channel(self, market: MarketKey) -> str:
        """Return `candles:BTC/USDT:1m`, or `candles:kraken:BTC/USDT:1m` if kraken is not the default exchange."""
        exchange = "" if market.exchange == self._default else f"{market.exchange}:"
        symbol = str(market.symbol).replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        return f"{self._prefix}candles:{exchange}{symbol}:1m"

    def newest_key(self, market: MarketKey) -> str:
        """Return the key of the newest minutes of a market."""
        return f"{{{self.candles_channel(market)}}}:newest"

    def fence_key(self, market: MarketKey) -> str:
        """Return the key of the highest token that has published to the market's channel."""
        return f"{{{self.candles_channel(market)}}}:fence"

    def lease_key(self, shard: int) -> str:
        """Return the key of a shard's lease: token and process."""
        return f"{self._shard_key(shard)}:lease"

    def token_key(self, shard: int) -> str:
        """Return the key of the last token that was assigned."""
        return f"{self._shard_key(shard)}:token"

    def heartbeat_channel(self, shard: int) -> str:
        """Return the channel of a shard's heartbeat."""
        return f"{self._shard_key(shard)}:heartbeat"

    @property
    def processes_key(self) -> str:
        """The key of the set of processes that ingest."""
        return f"{self._prefix}candled:processes"

    def budget_key(self, host: str) -> str:
        """Return the key of the request budget of an exchange's host."""
        return f"{self._prefix}candled:budget:{host}"

    def count_key(self, key: str) -> str:
        """Return the key of a client's request count within a window."""
        return f"{self._prefix}candled:count:{key}"

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


# ---------------------------------------------------------------- writing


def message_text(message: Message, position: Position) -> bytes:
    """Encode a message for publishing."""
    if isinstance(message, MinuteChanged):
        body = f'"type":"candle",{_candle_text(message.candle)}{_facts_text(message.facts)}'
    elif isinstance(message, HistoryChanged):
        since = "null" if message.complete_from_ms is None else f'"{iso_ms(message.complete_from_ms)}"'
        body = (
            f'"type":"healed","from":"{iso_ms(message.start_ms)}","until":"{iso_ms(message.end_ms)}"'
            f',"completeFrom":{since}{_facts_text(message.facts)}'
        )
    elif isinstance(message, StateChanged):
        body = f'"type":"state",{_state_text(message)}{_decimals_text(message.decimals)}'
    else:
        raise TypeError(f"{message} is not for other processes")
    market = message.market
    head = f'"exchange":{_text(market.exchange)},"symbol":{_text(str(market.symbol))},"interval":"1m"'
    place = f'"epoch":{_text(position.epoch)},"seq":{position.seq}'
    return f"{{{head},{place},{body}}}".encode()


def heartbeat_text(shard: int, epoch: str, seqs: Mapping[str, int], as_of_ms: int = 0) -> bytes:
    """Encode a heartbeat: the last message number of each channel of a shard, and the newest `asOf` among them."""
    as_of = {"asOf": iso_ms(as_of_ms)} if as_of_ms else {}
    return _quoted({"type": "heartbeat", "shard": shard, "epoch": epoch, **as_of, "seqs": seqs})


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The newest state of a market, stored in its key: its newest minutes, oldest first, metadata and feed state."""

    position: Position
    candles: tuple[Candle, ...] = ()
    facts: FeedMetadata = FeedMetadata()
    complete_from_ms: int | None = None
    state: str | None = None
    since_ms: int = 0
    reason: str = ""
    trouble: str = ""
    decimals: Decimals = Decimals()


def newest_text(newest: Newest) -> bytes:
    """Encode the value of a market's key."""
    position = newest.position
    since = "" if newest.complete_from_ms is None else f',"completeFrom":"{iso_ms(newest.complete_from_ms)}"'
    state = "" if newest.state is None else f",{_state_text(newest)}"
    state += _decimals_text(newest.decimals)
    candles = ",".join(f"{{{_candle_text(candle)}}}" for candle in newest.candles)
    place = f'"epoch":{_text(position.epoch)},"seq":{position.seq}'
    return f'{{{place}{_facts_text(newest.facts)}{since}{state},"candles":[{candles}]}}'.encode()


def _candle_text(candle: Candle) -> str:
    quote = "" if candle.quote_volume is None else f',"quoteVolume":{decimal_text(candle.quote_volume)}'
    return (
        f'"time":"{iso_ms(candle.open_ms)}","open":{decimal_text(candle.open)},"high":{decimal_text(candle.high)}'
        f',"low":{decimal_text(candle.low)},"close":{decimal_text(candle.close)}'
        f',"volume":{decimal_text(candle.volume)}{quote},"final":{"true" if candle.final else "false"}'
        f',"asOf":"{iso_ms(candle.as_of_ms)}","rev":{candle.rev},"src":{_text(candle.src)}'
    )


def _state_text(told: StateChanged | Newest) -> str:
    reason = f',"reason":{_text(told.reason)}' if told.reason else ""
    trouble = f',"trouble":{_text(told.trouble)}' if told.trouble else ""
    return f'"state":"{told.state}","since":"{iso_ms(told.since_ms)}"{reason}{trouble}'


def _facts_text(facts: FeedMetadata) -> str:
    settled = "" if facts.watermark_ms is None else f',"settled":"{iso_ms(facts.watermark_ms)}"'
    gap = "" if facts.gap is None else f',"gap":["{iso_ms(facts.gap.start_ms)}","{iso_ms(facts.gap.end_ms)}"]'
    return f'{settled}{gap},"logged":{facts.logged_seq}'


def _decimals_text(decimals: Decimals) -> str:
    named = (("priceDecimals", decimals.price), ("volumeDecimals", decimals.volume))
    return "".join(f',"{name}":{count}' for name, count in named if count is not None)


def _text(text: str) -> str:
    return _quoted(text).decode()


# ---------------------------------------------------------------- reading

Time = str | int
DigitCount = Annotated[int, msgspec.Meta(ge=0, le=_MOST_DIGITS)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
_Epoch = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^([0-9]{1,9}\.[0-9]{1,16}(\.[0-9a-f]+)?)?\Z")]


class _Facts(msgspec.Struct, rename="camel"):
    exchange: str | None = None
    symbol: str | None = None
    interval: str | None = None
    epoch: _Epoch = ""
    seq: _Number = 0
    settled: Time | None = None
    gap: tuple[Time, Time] | None = None
    logged: Annotated[int, msgspec.Meta(ge=-1, le=_MOST)] = -1
    complete_from: Time | None = None


class _Candle(_Facts, kw_only=True, rename="camel"):
    time: Time
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal | None = None
    final: bool = False
    as_of: Time | None = None
    rev: Annotated[int, msgspec.Meta(ge=0, le=10**6)] = 0
    src: Annotated[str, msgspec.Meta(max_length=32)] = ""


class _Kind(msgspec.Struct):
    type: str = "candle"


class _Healed(_Facts, kw_only=True):
    from_: Time = msgspec.field(name="from")
    until: Time


class _Decimals(_Facts, kw_only=True, rename="camel"):
    price_decimals: DigitCount | None = None
    volume_decimals: DigitCount | None = None


class _State(_Decimals, kw_only=True):
    state: str
    since: Time
    reason: str = ""
    trouble: str = ""


class _Newest(_Decimals, kw_only=True):
    candles: list[_Candle] = []
    state: str | None = None
    since: Time = 0
    reason: str = ""
    trouble: str = ""


class _Heartbeat(msgspec.Struct, rename="camel"):
    shard: _Number
    epoch: _Epoch
    seqs: dict[str, _Number]
    as_of: Time | None = None


class Heartbeat(NamedTuple):
    """The last message number of each channel of a shard's feed, and the newest exchange time in them (0 if none)."""

    shard: int
    epoch: str
    seqs: Mapping[str, int]
    as_of_ms: int = 0


_kind = msgspec.json.Decoder(_Kind)
_minute = msgspec.json.Decoder(_Candle)
_healed = msgspec.json.Decoder(_Healed)
_state = msgspec.json.Decoder(_State)
_newest = msgspec.json.Decoder(_Newest)
_heartbeat = msgspec.json.Decoder(_Heartbeat)


def read_message(market: MarketKey, data: bytes, latest_ms: int = YEAR_10000_MS) -> tuple[Message, Position | None]:
    """Decode a message from a market's channel. Unknown keys are ignored. Minutes of other programs have no position.

    Raises:
        BadMessage: it does not have the documented form.
        FutureMessage: it contains a time after `latest_ms`.
    """
    _bounded(data, LARGEST)
    try:
        kind = _kind.decode(data).type
        if kind == "candle":
            minute = _minute.decode(data)
            candle, facts = _candle(minute), _facts(minute)
            _present(latest_ms, candle.open_ms, candle.as_of_ms, *_times(facts))
            return _heard(MinuteChanged(market, candle, facts), minute)
        if kind == "healed":
            healed = _healed.decode(data)
            since_ms = None if healed.complete_from is None else _ms(healed.complete_from)
            span, facts = _range(healed.from_, healed.until), _facts(healed)
            _present(latest_ms, span.start_ms, span.end_ms - MINUTE_MS, since_ms or 0, *_times(facts))
            return _heard(HistoryChanged(market, *span, since_ms, facts), healed)
        if kind == "state":
            state = _state.decode(data)
            _present(latest_ms, _ms(state.since))
            why = _line(state.reason, _LONGEST_REASON), _line(state.trouble, _LONGEST_TROUBLE)
            told = StateChanged(market, _known(state.state), _ms(state.since), *why, _decimals(state))
            return _heard(told, state)
    except BadMessage:
        raise
    except (msgspec.MsgspecError, InvalidCandle, ValueError, ArithmeticError) as error:
        raise BadMessage(str(error)) from error
    raise BadMessage(f"unknown type {kind[:64]!r}")


def read_newest(data: bytes, latest_ms: int = YEAR_10000_MS) -> Newest:
    """Decode the value of a market's key.

    Raises:
        BadMessage: it does not have the documented form.
        FutureMessage: it contains a time after `latest_ms`.
    """
    _bounded(data, LARGEST)
    try:
        read = _newest.decode(data)
        candles, facts = tuple(_candle(one) for one in read.candles), _facts(read)
        since_ms = None if read.complete_from is None else _ms(read.complete_from)
        for candle in candles:
            _present(latest_ms, candle.open_ms, candle.as_of_ms)
        _present(latest_ms, since_ms or 0, _ms(read.since), *_times(facts))
        return Newest(
            position=_position(read),
            candles=candles,
            facts=facts,
            complete_from_ms=since_ms,
            state=None if read.state is None else _known(read.state),
            since_ms=_ms(read.since),
            reason=_line(read.reason, _LONGEST_REASON),
            trouble=_line(read.trouble, _LONGEST_TROUBLE),
            decimals=_decimals(read),
        )
    except BadMessage:
        raise
    except (msgspec.MsgspecError, InvalidCandle, ValueError, ArithmeticError) as error:
        raise BadMessage(str(error)) from error


def read_heartbeat(data: bytes) -> Heartbeat:
    """Decode a heartbeat.

    Raises:
        BadMessage: it does not have the documented form.
    """
    _bounded(data, _LARGEST_HEARTBEAT)
    try:
        read = _heartbeat.decode(data)
        as_of_ms = 0 if read.as_of is None else _ms(read.as_of)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadMessage(str(error)) from error
    if not read.epoch or token_of(read.epoch) > _MOST:
        raise BadMessage(f"expected a feed's name, got {read.epoch!r}")
    return Heartbeat(read.shard, read.epoch, read.seqs, as_of_ms)


def read_fence(data: bytes) -> tuple[int, int] | None:
    """Return the token and message number of a market's fence, or None if it does not have the documented form."""
    token, _, number = data.decode("ascii", "replace").partition(" ")
    if not token.isdecimal() or not (number or "0").isdecimal() or len(data) > 40:
        return None
    found = int(token), int(number or 0)
    return found if max(found) <= _MOST else None


def _heard(message: Message, read: _Facts) -> tuple[Message, Position | None]:
    market = message.market
    named = (read.exchange, read.symbol, read.interval)
    expected = (market.exchange, str(market.symbol), "1m")
    if any(one is not None and one != other for one, other in zip(named, expected, strict=True)):
        raise BadMessage(f"belongs to another market, {' '.join(str(one)[:64] for one in named)}")
    if not read.epoch or read.seq < 1:
        if not isinstance(message, MinuteChanged):
            raise BadMessage("only candles may come from other programs, without epoch and seq")
        candle = message.candle
        message = MinuteChanged(message.market, candle._replace(src=candle.src or "live"))
        return message, None
    return message, _position(read)


def _position(read: _Facts) -> Position:
    if token_of(read.epoch) > _MOST:
        raise BadMessage(f"expected a feed's name, got {read.epoch!r}")
    return Position(read.epoch, read.seq)


def _candle(read: _Candle) -> Candle:
    numbers = [read.open, read.high, read.low, read.close, read.volume]
    numbers += [] if read.quote_volume is None else [read.quote_volume]
    for number in numbers:
        exponent = number.as_tuple().exponent
        if not isinstance(exponent, int) or max(abs(exponent), abs(number.adjusted())) > _MOST_DIGITS:
            raise BadMessage(f"expected numbers of at most {_MOST_DIGITS} digits")
    open_ms = _ms(read.time)
    if read.as_of is not None:
        as_of_ms = _ms(read.as_of)
    else:  # a minute marked as final was seen to its end
        as_of_ms = open_ms + MINUTE_MS if read.final else open_ms
    candle = Candle(
        open_ms,
        read.open,
        read.high,
        read.low,
        read.close,
        read.volume,
        read.quote_volume,
        as_of_ms,
        read.final,
        read.rev,
        read.src,
    )
    return candle.checked(MINUTE_MS)


def _facts(read: _Facts) -> FeedMetadata:
    gap = None if read.gap is None else _range(*read.gap)
    return FeedMetadata(None if read.settled is None else _ms(read.settled), gap, read.logged)


def _decimals(read: _Decimals) -> Decimals:
    return Decimals(read.price_decimals, read.volume_decimals)


def _times(facts: FeedMetadata) -> tuple[int, ...]:
    """Return all times of the metadata except the end of the gap, which may be the end of the forming minute."""
    gap_ms = () if facts.gap is None else (facts.gap.start_ms, facts.gap.end_ms - MINUTE_MS)
    return (facts.watermark_ms or 0, *gap_ms)


def _present(latest_ms: int, *times_ms: int) -> None:
    if max(times_ms) > latest_ms:
        raise FutureMessage(f"expected times up to {iso_ms(latest_ms)}, got {iso_ms(max(times_ms))}")


def _range(start: Time, end: Time) -> Range:
    span = Range(_ms(start), _ms(end))
    if span.end_ms < span.start_ms:
        raise BadMessage("expected a range that ends after it begins")
    return span


def _bounded(data: bytes, most: int) -> None:
    if len(data) > most:
        raise BadMessage(f"expected at most {most} bytes, got {len(data)}")


def _ms(time: Time) -> int:
    at_ms = time if isinstance(time, int) else parse_iso_ms(time)
    if not 0 <= at_ms < YEAR_10000_MS:
        raise BadMessage(f"expected a time from 1970 to 9999, got {str(time)[:32]}")
    return at_ms


def _known(state: str) -> str:
    if state not in STATES:
        raise BadMessage(f"unknown state {state[:64]!r}")
    return state


def _line(text: str, longest: int) -> str:
    """Return the beginning of a text, without characters that could forge a log line."""
    return "".join(character if character.isprintable() else " " for character in text[:longest])


def shown(data: Any) -> str:
    """Return the beginning of a message, for the log."""
    return repr(bytes(data[:120])) if isinstance(data, bytes | bytearray) else repr(data)[:120]
