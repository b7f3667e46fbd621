"""Counts of the messages of a process since its start, for metrics."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class MessageCounts:
    """The messages of candled's own protocol, of all clients."""

    #: Updates handed to connections. A slow client is sent only the newest of them.
    updates: int = 0
    #: All other messages handed to connections, by type.
    sent: Counter[str] = field(default_factory=Counter)
    #: Messages received, by type: one of the protocol's, `invalid`, or `refused` if a limit refused it unread.
    received: Counter[str] = field(default_factory=Counter)
    #: Subscriptions that continued after a lost connection: `recovered`, or `full` if all bars were sent again.
    resumes: Counter[str] = field(default_factory=Counter)
    #: The number of times that so many updates waited for a slow client that all its bars were sent again.
    fell_behind: int = 0
