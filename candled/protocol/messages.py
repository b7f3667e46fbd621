"""The wire, to the client: bars and answers → message texts. They are those of docs/reference/protocol.md, to the letter."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from candled.bus import Position
from candled.model import Candle, FeedState, Interval, MarketKey, decimal_text, iso_ms

# How bars are printed, added up to one number: what `fields` may ask for beside the documented keys, and
# whether numbers are JSON strings. `UNPRINTED` are frames without a text, for members that read their `contents`.
FINAL, SEQ, REV, SRC, STRINGS, UNPRINTED = 1, 2, 4, 8, 16, 32
FIELDS = {"final": FINAL, "seq": SEQ, "rev": REV, "src": SRC}
NUMBERS = {"number": 0, "string": STRINGS}

FAILED_TO_SUBSCRIBE = "Failed to subscribe to candles"
HISTORY_UNAVAILABLE = "History cannot be read now"
PONG = '{"type":"pong"}'

HOLD_S = 30.0  # how long a new bar waits at most for the old one to be final, unless something else was asked for


class Topic(NamedTuple):
    """What a room is about: one interval of one market."""

    market: MarketKey
    interval: Interval


class Options(NamedTuple):
    """How a member wants the bars of a topic told; members with equal options are sent the same bytes."""

    fields: int = 0  # how they are printed
    on_close: bool = False  # final bars only
    corrections: bool = False
    hold_s: float = HOLD_S  # with `FINAL`: how long a new bar waits for the old one to be final


PLAIN = Options()

RequestId = int | str | None
"""What a client calls its request; None where it does not name it."""


def head(topic: Topic, default_exchange: str) -> str:
    """The keys that say which topic a message is about; the exchange only where it is not the default one."""
    return f'{market_head(topic.market, default_exchange)},"interval":"{topic.interval}"'


def market_head(market: MarketKey, default_exchange: str) -> str:
    """The keys that say which market a message is about."""
    named = "" if market.exchange == default_exchange else f'"exchange":{_quoted(market.exchange)},'
    return f'{named}"symbol":{_quoted(str(market.symbol))}'


# ---------------------------------------------------------------- bars


def bar_text(bar: Candle, fields: int = 0, *, final: bool = False) -> str:
    """Print a bar as JSON: exact decimals in shortest form, the quote volume only where there is one.

    `fields` adds up what more it shows, and with `STRINGS` each number is a JSON string: a reader whose numbers are
    64-bit floats, as JavaScript's, gets every digit only so.
    """
    if fields & STRINGS:
        return _bar_of_strings(bar, fields, final)
    quote = "" if bar.quote_volume is None else f',"quoteVolume":{decimal_text(bar.quote_volume)}'
    asked = _asked(bar, fields, final) if fields else ""
    return (
        f'{{"time":"{iso_ms(bar.open_ms)}","open":{decimal_text(bar.open)},"high":{decimal_text(bar.high)}'
        f',"low":{decimal_text(bar.low)},"close":{decimal_text(bar.close)},"volume":{decimal_text(bar.volume)}'
        f"{quote}{asked}}}"
    )


def _bar_of_strings(bar: Candle, fields: int, final: bool) -> str:
    quote = "" if bar.quote_volume is None else f',"quoteVolume":"{decimal_text(bar.quote_volume)}"'
    return (
        f'{{"time":"{iso_ms(bar.open_ms)}","open":"{decimal_text(bar.open)}","high":"{decimal_text(bar.high)}"'
        f',"low":"{decimal_text(bar.low)}","close":"{decimal_text(bar.close)}","volume":"{decimal_text(bar.volume)}"'
        f"{quote}{_asked(bar, fields, final)}}}"
    )


def _asked(bar: Candle, fields: int, final: bool) -> str:
    told = (',"final":true' if final else ',"final":false') if fields & FINAL else ""
    if fields & REV:
        told += f',"rev":{bar.rev}'
    if fields & SRC:
        told += f',"src":{_quoted(bar.src)}'
    return told


def position_text(position: Position | None) -> str:
    """Print the keys of a position in the feed; nothing where it is not known."""
    return "" if position is None else f',"epoch":{_quoted(position.epoch)},"seq":{position.seq}'


def update(head: str, bar: str, position: str = "") -> str:
    """The `update` message of a bar given as `bar_text`."""
    return f'{{"type":"update",{head},"bar":{bar}{position}}}'


def correction(head: str, bar: str, position: str = "") -> str:
    """The `correction` message of a bar given as `bar_text`."""
    return f'{{"type":"correction",{head},"bar":{bar}{position}}}'


def initial(head: str, bars: Iterable[bytes | memoryview], more: str = "") -> tuple[bytes | memoryview, ...]:
    """The `initial` message of the texts of bars, oldest first, each with a comma behind it but the last; in parts."""
    return b'{"type":"initial",%b,"bars":[' % head.encode(), *bars, b"]%b}" % more.encode()


def resumed(head: str, bars: Iterable[bytes], position: str) -> bytes:
    """The `resumed` message of the texts of the bars that changed, oldest first."""
    return b'{"type":"resumed",%b,"bars":[%b],"recovered":true%b}' % (head.encode(), b",".join(bars), position.encode())


# ---------------------------------------------------------------- answers


def pong(request_id: RequestId = None) -> str:
    """The `pong` message."""
    return PONG if request_id is None else f'{{"type":"pong",{_id(request_id)}}}'


def error(message: str, request_id: RequestId = None, *, code: int = 0, temporary: bool = False) -> str:
    """The `error` message; code and whether asking again may help only in answer to a request that was named."""
    if request_id is None:
        return f'{{"type":"error","message":{_quoted(message)}}}'
    lasting = "true" if temporary else "false"
    return f'{{"type":"error","message":{_quoted(message)},{_id(request_id)},"code":{code},"temporary":{lasting}}}'


def subscribed(head: str, request_id: RequestId) -> str:
    """The `subscribed` message."""
    return f'{{"type":"subscribed",{_id(request_id)},{head}}}'


def unsubscribed(head: str, request_id: RequestId, *, existed: bool) -> str:
    """The `unsubscribed` message."""
    return f'{{"type":"unsubscribed",{_id(request_id)},{head},"existed":{"true" if existed else "false"}}}'


def listing(heads: Iterable[str], request_id: RequestId) -> str:
    """The `list` message: what a client is subscribed to."""
    subscriptions = ",".join(f"{{{one}}}" for one in heads)
    return f'{{"type":"list",{_named(request_id)}"subscriptions":[{subscriptions}]}}'


def history(head: str, bars: Iterable[str], request_id: RequestId, *, end: bool) -> str:
    """The `history` message: one page, oldest first; `end`: nothing older exists."""
    texts = ",".join(bars)
    return f'{{"type":"history",{_named(request_id)}{head},"bars":[{texts}],"end":{"true" if end else "false"}}}'


def status(head: str, feed: FeedState) -> str:
    """The `status` message."""
    reason = f',"reason":{_quoted(feed.reason)}' if feed.reason else ""
    return f'{{"type":"status",{head},"state":"{feed.state}","since":"{iso_ms(feed.since_ms)}"{reason}}}'


def bye(reconnect_after_ms: int) -> str:
    """The `bye` message."""
    return f'{{"type":"bye","reconnectAfterMs":{reconnect_after_ms}}}'


def _id(request_id: RequestId) -> str:
    return f'"id":{msgspec.json.encode(request_id).decode()}'


def _named(request_id: RequestId) -> str:
    return "" if request_id is None else f"{_id(request_id)},"


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
