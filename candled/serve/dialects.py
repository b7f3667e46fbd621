"""Two protocols on one path: the first message of a connection decides which one it speaks."""

from collections.abc import Callable
from typing import Any

import msgspec

from candled.protocol.frames import Frame
from candled.protocol.requests import Topic
from candled.transport.connection import ClientConnection, ConnectionListener

MakeClient = Callable[[ClientConnection], ConnectionListener]


class _First(msgspec.Struct):
    type: Any = msgspec.UNSET
    method: Any = msgspec.UNSET


_DECODER = msgspec.json.Decoder(_First)


def speaks_binance(message: str | bytes) -> bool | None:
    """Whether a message is Binance's, which has a `method`, or candled's, which has a `type`; None if it is neither."""
    try:
        first = _DECODER.decode(message)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if first.type is not msgspec.UNSET:
        return False
    return None if first.method is msgspec.UNSET else True


class Undecided:
    """The client of a link that has sent no message of either protocol yet. It gives way to the one that does.

    Until then candled's protocol answers: what is wrong with a message is said in its words.
    """

    __slots__ = ("_link", "_make_binance", "_own")

    def __init__(self, link: ClientConnection, make_own: MakeClient, make_binance: MakeClient) -> None:
        self._link = link
        self._own = make_own(link)
        self._make_binance = make_binance

    def on_message(self, message: str | bytes) -> None:
        """Handle a message; from the first one that is of a protocol on, the link has a client of that protocol."""
        is_binance = speaks_binance(message)
        if is_binance:
            self._own.on_close()
            self._link.client = self._make_binance(self._link)
        elif is_binance is False:
            self._link.client = self._own
        (self._own if is_binance is None else self._link.client).on_message(message)

    def make_initial(self, topic: Topic) -> Frame | None:
        """Nothing was subscribed to."""
        return None

    def on_fell_behind(self, topic: Topic) -> None:
        """Nothing was subscribed to."""

    def notify_shutdown(self, reconnect_after_ms: int) -> None:
        """It knows neither protocol's goodbye."""

    def on_close(self) -> None:
        """The socket is gone."""
        self._own.on_close()
