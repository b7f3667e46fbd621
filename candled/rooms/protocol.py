"""The wire: client messages → values, bars → message texts. The texts are those of the protocol, to the letter."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from candled.errors import ClientError
from candled.model import Candle, Interval, MarketKey, Symbol, decimal_text, iso_ms

DEFAULT_BARS = 100
MOST_BARS = 1000
_SHOWN = 64  # characters of a client's own text that an error repeats
_LISTED = 20  # symbols an error lists

INVALID_FORMAT = "Invalid message format"
FAILED_TO_SUBSCRIBE = "Failed to subscribe to candles"
PONG = '{"type":"pong"}'


class Topic(NamedTuple):
    """What a room is about: one interval of one market."""

    market: MarketKey
    interval: Interval


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Wants `bars` bars of a topic, then its updates."""

    topic: Topic
    bars: int


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Wants no more updates of a topic."""

    topic: Topic


@dataclass(frozen=True, slots=True)
class Ping:
    """Wants a pong."""


Request = Subscribe | Unsubscribe | Ping


class Protocol:
    """Reads and writes messages for the markets and intervals that are served. The first exchange is the default."""

    def __init__(self, markets: Mapping[str, Sequence[Symbol]], intervals: Iterable[Interval]) -> None:
        self._markets = {name: {str(symbol): symbol for symbol in symbols} for name, symbols in markets.items()}
        self._default = next(iter(self._markets))
        self._intervals = {str(interval): interval for interval in intervals}

    # ------------------------------------------------------------ from the client

    def decode(self, message: str | bytes) -> Request:
        """Read one client message.

        Raises:
            ClientError: its text is the error message to answer with.
        """
        if isinstance(message, bytes):
            raise ClientError(INVALID_FORMAT)
        try:
            fields = msgspec.json.decode(message)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ClientError(INVALID_FORMAT) from error
        if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
            raise ClientError(INVALID_FORMAT)
        match fields["type"]:
            case "ping":
                return Ping()
            case "subscribe":
                return Subscribe(self._topic(fields), _bars(fields))
            case "unsubscribe":
                return Unsubscribe(self._topic(fields))
            case other:
                raise ClientError(f"Unknown message type: {_shown(other)}")

    def _topic(self, fields: dict[str, Any]) -> Topic:
        symbol, interval = fields.get("symbol"), fields.get("interval")
        exchange = fields.get("exchange", self._default)
        if not (isinstance(symbol, str) and isinstance(interval, str) and isinstance(exchange, str)):
            raise ClientError(INVALID_FORMAT)
        if exchange not in self._markets:
            raise ClientError(f"Invalid exchange: {_shown(exchange)}. Valid: {', '.join(self._markets)}")
        symbols = self._markets[exchange]
        if symbol not in symbols:
            raise ClientError(f"Invalid symbol: {_shown(symbol)}. {_choice(list(symbols))}")
        if interval not in self._intervals:
            raise ClientError(f"Invalid interval: {_shown(interval)}. Valid: {', '.join(self._intervals)}")
        return Topic(MarketKey(exchange, symbols[symbol]), self._intervals[interval])

    # ------------------------------------------------------------ to the client

    def room_name(self, topic: Topic) -> str:
        """How a topic is named in statistics: `BTC/USDT:5m`, with the exchange in front where it is not the default."""
        prefix = "" if topic.market.exchange == self._default else f"{topic.market.exchange}:"
        return f"{prefix}{topic.market.symbol}:{topic.interval}"

    def initial(self, topic: Topic, bars: Iterable[str]) -> str:
        """The `initial` message of bars given as `bar_text`, oldest first."""
        return f'{{"type":"initial",{self._head(topic)},"bars":[{",".join(bars)}]}}'

    def update(self, topic: Topic, bar: str) -> str:
        """The `update` message of a bar given as `bar_text`."""
        return f'{{"type":"update",{self._head(topic)},"bar":{bar}}}'

    def _head(self, topic: Topic) -> str:
        named = "" if topic.market.exchange == self._default else f'"exchange":{_quoted(topic.market.exchange)},'
        return f'{named}"symbol":{_quoted(str(topic.market.symbol))},"interval":"{topic.interval}"'


def error(message: str) -> str:
    """The `error` message."""
    return f'{{"type":"error","message":{_quoted(message)}}}'


def bar_text(bar: Candle) -> str:
    """A bar as JSON: exact decimals as numbers in shortest form, the quote volume only where there is one."""
    quote = "" if bar.quote_volume is None else f',"quoteVolume":{decimal_text(bar.quote_volume)}'
    return (
        f'{{"time":"{iso_ms(bar.open_ms)}","open":{decimal_text(bar.open)},"high":{decimal_text(bar.high)}'
        f',"low":{decimal_text(bar.low)},"close":{decimal_text(bar.close)},"volume":{decimal_text(bar.volume)}{quote}}}'
    )


def _bars(fields: dict[str, Any]) -> int:
    count = fields.get("initialBars", DEFAULT_BARS)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        given = _shown(msgspec.json.encode(count).decode())
        raise ClientError(f"Invalid initialBars: {given}. Expected a whole number from 0 to {MOST_BARS}")
    return min(count, MOST_BARS)


def _choice(symbols: list[str]) -> str:
    if len(symbols) == 1:
        return f"Only {symbols[0]} is supported."
    more = f" and {len(symbols) - _LISTED} more" if len(symbols) > _LISTED else ""
    return f"Valid: {', '.join(symbols[:_LISTED])}{more}"


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
