"""Two protocols on one path: the first message of a connection selects its protocol."""

from typing import Any

import msgspec

from candled.transport.connection import ClientConnection, ConnectionListener, MakeClient


class _First(msgspec.Struct):
    type: Any = msgspec.UNSET
    method: Any = msgspec.UNSET


_DECODER = msgspec.json.Decoder(_First)


def is_binance_request(message: str | bytes) -> bool | None:
    """Return True for a Binance message (it has a `method`), False for candled's (a `type`), None for neither."""
    try:
        first = _DECODER.decode(message)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if first.type is not msgspec.UNSET:
        return False
    return None if first.method is msgspec.UNSET else True


class Undecided(ConnectionListener):
    """The client of a connection that has sent no message of either protocol yet. The right client then replaces it.

    Until then, invalid messages get the error replies of candled's protocol.
    """

    __slots__ = ("_connection", "_make_binance", "_own")

    def __init__(self, connection: ClientConnection, make_own: MakeClient, make_binance: MakeClient) -> None:
        self._connection = connection
        self._own = make_own(connection)
        self._make_binance = make_binance

    def on_client_message(self, message: str | bytes) -> None:
        """Handle a message. The first one of either protocol gives the connection a client of that protocol."""
        is_binance = is_binance_request(message)
        if is_binance:
            self._own.on_close()
            self._connection.client = self._make_binance(self._connection)
        elif is_binance is False:
            self._connection.client = self._own
        (self._own if is_binance is None else self._connection.client).on_client_message(message)

    def on_close(self) -> None:
        """Close the session: the socket is closed."""
        self._own.on_close()
