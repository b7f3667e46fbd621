"""The facts that each process announces to the other processes at the same Redis."""

from typing import Annotated

import msgspec

MAX_BYTES = 4096

_Text = Annotated[str, msgspec.Meta(max_length=256)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about one running process."""

    #: Its name in leases, which is new with each start.
    process: _Text
    #: Its name among the processes that share a port, such as `serve-1`; empty if it shares none.
    name: _Text = ""
    #: The name of its machine.
    host: _Text
    roles: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=8)]
    version: _Text
    #: When it started, ISO 8601.
    since: _Text
    #: Connected clients, and rooms with subscribers.
    clients: _Count
    rooms: _Count
    #: True while it disconnects its clients.
    stopping: bool = False


def encode_process(facts: ProcessFacts) -> bytes:
    """Encode the facts for announcing them."""
    return msgspec.json.encode(facts)


def decode_process(data: bytes) -> ProcessFacts | None:
    """Decode an announcement; return None if it has expired, or does not have the documented form."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


_decode = msgspec.json.Decoder(ProcessFacts).decode
