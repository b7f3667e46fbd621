"""Print the messages from the server: bars and answers, exactly as in docs/reference/protocol.md."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from candled.model import BarTexts, Candle, FeedState, Position, Symbol, decimal_text, iso_ms

# Flags for printing bars: the optional fields, and numbers as JSON strings. A frame with `VALUES` has no text, only its
# `BarUpdate`: another dialect encodes it.
FINAL, SEQ, REV, SRC, STRINGS, VALUES = 1, 2, 4, 8, 16, 32
FIELDS = {"final": FINAL, "seq": SEQ, "rev": REV, "src": SRC}
NUMBERS = {"number": 0, "string": STRINGS}

FAILED_TO_SUBSCRIBE = "Failed to subscribe to candles"
HISTORY_UNAVAILABLE = "History cannot be read now"
PONG = '{"type":"pong"}'

FINAL_WAIT_S = 30.0  # default of `Options.final_wait_s`


class Resume(msgspec.Struct, frozen=True):
    """A client's position in a feed, and the opening time of its newest bar."""

    epoch: str
    seq: int
    time_ms: int


class Options(NamedTuple):
    """The delivery options of a subscription. Members with equal options are sent the same bytes."""

    #: Flags for printing bars, added up.
    fields: int = 0
    #: True if only final bars are sent.
    on_close: bool = False
    #: True if changes of older bars are sent as `correction`.
    corrections: bool = False
    #: With `FINAL`: the longest time that a new bar waits for the one before it to become final.
    final_wait_s: float = FINAL_WAIT_S


PLAIN = Options()

RequestId = int | str | None
"""The `id` that a client gave its request; None if it gave none."""


# ---------------------------------------------------------------- bars


def bar_text(bar: Candle, fields: int = 0, *, final: bool = False) -> str:
    """Return a bar as JSON: exact decimals in shortest form, with the quote volume if it has one.

    `fields` adds optional fields. With `STRINGS` each number is a JSON string, because a reader with 64-bit floats,
    such as JavaScript, would lose digits of a JSON number.
    """
    if fields & STRINGS:
        return _bar_of_strings(bar, fields, final)
    quote = "" if bar.quote_volume is None else f',"quoteVolume":{decimal_text(bar.quote_volume)}'
    asked = _optional_fields(bar, fields, final) if fields else ""
    return (
        f'{{"time":"{iso_ms(bar.open_ms)}","open":{decimal_text(bar.open)},"high":{decimal_text(bar.high)}'
        f',"low":{decimal_text(bar.low)},"close":{decimal_text(bar.close)},"volume":{decimal_text(bar.volume)}'
        f"{quote}{asked}}}"
    )


def final_bar_texts(bars: BarTexts, numbers: int = 0) -> list[str]:
    """Return final bars as `bar_text` prints each of them with `FINAL | numbers`."""
    number = '"%s"' if numbers else "%s"
    names = "".join(f',"{name}":{number}' for name in ("open", "high", "low", "close", "volume"))
    quotes = ["" if quote is None else f',"quoteVolume":{number % quote}' for quote in bars.quotes]
    row = f'{{"time":"%s"{names}%s,"final":true}}'
    return list(map(row.__mod__, zip(map(iso_ms, bars.times), *bars[1:6], quotes, strict=True)))


def _bar_of_strings(bar: Candle, fields: int, final: bool) -> str:
    quote = "" if bar.quote_volume is None else f',"quoteVolume":"{decimal_text(bar.quote_volume)}"'
    return (
        f'{{"time":"{iso_ms(bar.open_ms)}","open":"{decimal_text(bar.open)}","high":"{decimal_text(bar.high)}"'
        f',"low":"{decimal_text(bar.low)}","close":"{decimal_text(bar.close)}","volume":"{decimal_text(bar.volume)}"'
        f"{quote}{_optional_fields(bar, fields, final)}}}"
    )


def _optional_fields(bar: Candle, fields: int, final: bool) -> str:
    text = (',"final":true' if final else ',"final":false') if fields & FINAL else ""
    if fields & REV:
        text += f',"rev":{bar.rev}'
    if fields & SRC:
        text += f',"src":{quoted(bar.src)}'
    return text


def position_text(position: Position | None) -> str:
    """Return the keys of a position in the feed; an empty string if it is unknown."""
    return "" if position is None else f',"epoch":{quoted(position.epoch)},"seq":{position.seq}'


def bar_message(kind: str, head: str, bar: str, position: str = "") -> str:
    """Return the `update` or `correction` message of a bar printed by `bar_text`."""
    return f'{{"type":"{kind}",{head},"bar":{bar}{position}}}'


def initial(head: str, bars: Iterable[bytes | memoryview], more: str = "") -> tuple[bytes | memoryview, ...]:
    """Return the `initial` message in parts. `bars` are texts, oldest first, each but the last followed by a comma."""
    return b'{"type":"initial",%b,"bars":[' % head.encode(), *bars, b"]%b}" % more.encode()


def resumed(head: str, bars: Iterable[bytes], position: str) -> bytes:
    """Return the `resumed` message. `bars` are the texts of the changed bars, oldest first."""
    return b'{"type":"resumed",%b,"bars":[%b],"recovered":true%b}' % (head.encode(), b",".join(bars), position.encode())


# ---------------------------------------------------------------- answers


_TYPE_AT = len('{"type":"')


def type_of(text: str) -> str:
    """Return the type of a message that this module has made."""
    return text[_TYPE_AT : text.index('"', _TYPE_AT)]


def pong(request_id: RequestId = None) -> str:
    """Return the `pong` message."""
    return PONG if request_id is None else f'{{"type":"pong",{_id(request_id)}}}'


def error(message: str, request_id: RequestId = None, *, code: int = 0, temporary: bool = False) -> str:
    """Return the `error` message. `code` and `temporary` are sent only with a request id."""
    if request_id is None:
        return f'{{"type":"error","message":{quoted(message)}}}'
    lasting = "true" if temporary else "false"
    return f'{{"type":"error","message":{quoted(message)},{_id(request_id)},"code":{code},"temporary":{lasting}}}'


def authenticated(expires_ms: int | None, request_id: RequestId) -> str:
    """Return the `authenticated` message. `expires_ms` is when the token expires, UTC epoch ms; None for never."""
    expires = "null" if expires_ms is None else f'"{iso_ms(expires_ms)}"'
    return f'{{"type":"authenticated",{_named(request_id)}"expires":{expires}}}'


def subscribed(head: str, request_id: RequestId) -> str:
    """Return the `subscribed` message."""
    return f'{{"type":"subscribed",{_id(request_id)},{head}}}'


def unsubscribed(head: str, request_id: RequestId, *, existed: bool) -> str:
    """Return the `unsubscribed` message."""
    return f'{{"type":"unsubscribed",{_id(request_id)},{head},"existed":{"true" if existed else "false"}}}'


def listing(heads: Iterable[str], request_id: RequestId) -> str:
    """Return the `list` message, with a client's subscriptions."""
    subscriptions = ",".join(f"{{{one}}}" for one in heads)
    return f'{{"type":"list",{_named(request_id)}"subscriptions":[{subscriptions}]}}'


def history(head: str, bars: Iterable[str], request_id: RequestId, *, end: bool) -> str:
    """Return the `history` message: one page, oldest first. `end` is True if no older bars exist."""
    texts = ",".join(bars)
    return f'{{"type":"history",{_named(request_id)}{head},"bars":[{texts}],"end":{"true" if end else "false"}}}'


def status(head: str, feed: FeedState) -> str:
    """Return the `status` message."""
    reason = f',"reason":{quoted(feed.reason)}' if feed.reason else ""
    return f'{{"type":"status",{head},"state":"{feed.state}","since":"{iso_ms(feed.since_ms)}"{reason}}}'


def markets(head: str, symbols: Iterable[Symbol]) -> str:
    """Return the `markets` message with all markets of a pattern room."""
    return f'{{"type":"markets",{head},"symbols":{_listed(symbols)}}}'


def markets_changed(head: str, added: Iterable[Symbol], removed: Iterable[Symbol]) -> str:
    """Return the `markets` message about a change of a pattern room's markets."""
    return f'{{"type":"markets",{head},"added":{_listed(added)},"removed":{_listed(removed)}}}'


def bye(reconnect_after_ms: int) -> str:
    """Return the `bye` message."""
    return f'{{"type":"bye","reconnectAfterMs":{reconnect_after_ms}}}'


def _id(request_id: RequestId) -> str:
    return f'"id":{msgspec.json.encode(request_id).decode()}'


def _named(request_id: RequestId) -> str:
    return "" if request_id is None else f"{_id(request_id)},"


def _listed(symbols: Iterable[Symbol]) -> str:
    return msgspec.json.encode([str(symbol) for symbol in symbols]).decode()


def quoted(text: str) -> str:
    """Return a text as a JSON string."""
    return msgspec.json.encode(text).decode()
