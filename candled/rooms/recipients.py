"""The rooms' view of a client's connection, and the lists of connections that broadcasts are sent to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from candled.model import Topic
from candled.protocol.frames import Frame

if TYPE_CHECKING:
    from candled.access.grant import Grant

K = TypeVar("K")


class RecipientConnection(Protocol):
    """A client's connection. No method raises, and none blocks.

    A connection calls its client: `on_client_message` for each message, `make_initial` when the socket can take a
    requested snapshot, `on_fell_behind` when too many bars of a topic are queued, and `on_close` once at the end.

    Only the broadcaster calls `take_frame`, which may raise, and may take only a part of the frame. Code that replaces
    `take_frame` must call `refresh_taker` on each of `recipient_slots`.
    """

    #: The connection's slots in lists; maintained by `RecipientSlot`.
    recipient_slots: tuple["RecipientSlot", ...]
    #: The client's IP address, behind trusted proxies too; empty for a subscriber in this process.
    address: str

    #: The access of the client's token; None if it needs none.
    grant: "Grant | None"

    @property
    def take_frame(self) -> Callable[[bytes], int]:
        """The function that writes a frame to the socket and returns the number of bytes taken."""

    def send_frame(self, frame: Frame) -> int:
        """Send a bar or a status; for a slow client, queue it in place of an older frame of the same bar."""

    def send_reply(self, frame: Frame) -> None:
        """Send a reply. Replies keep their order and go before queued updates."""

    def request_snapshot(self, topic: Topic) -> None:
        """Drop the queued frames of `topic` and call `make_initial(topic)` when the socket can take it, perhaps now.

        No earlier frame of the topic may be sent after this, except the rest of one that is already partly sent.
        """

    def cancel_topic(self, topic: Topic) -> None:
        """Drop the queued frames of `topic` and its requested snapshot."""

    def cork(self, many: bool) -> None:
        """Collect the frames of one moment into one write if the client is in several rooms (`many`)."""

    def charge_work(self, cost: float) -> float:
        """Charge a request, in seconds of work; return the seconds that its answer has to wait, `inf` if refused."""

    def charge_refusal(self) -> None:
        """Charge a message that a limit refused; close the connection with 3013 if there are too many."""

    def disconnect(self, code: int, reason: str) -> None:
        """Close the connection with a close code."""


class NullConnection:
    """A connection without a socket: it ignores all calls. Subscribers in this process override some of them."""

    recipient_slots: tuple["RecipientSlot", ...] = ()
    grant: "Grant | None" = None
    address = ""

    def take_frame(self, frame: bytes) -> int:
        """Drop a frame."""
        return len(frame)

    def send_frame(self, frame: Frame) -> int:
        """Handle a frame like `take_frame`."""
        return self.take_frame(frame)

    def send_reply(self, frame: Frame) -> None:
        """Drop a reply."""

    def request_snapshot(self, topic: Topic) -> None:
        """Ignore a requested snapshot."""

    def cancel_topic(self, topic: Topic) -> None:
        """Do nothing: no frames are queued."""

    def cork(self, many: bool) -> None:
        """Do nothing: frames are never written together."""

    def charge_work(self, cost: float) -> float:
        """Charge nothing: requests of this process have no budget."""
        return 0.0

    def charge_refusal(self) -> None:
        """Charge nothing."""

    def disconnect(self, code: int, reason: str) -> None:
        """Do nothing: there is no socket to close."""


NULL_CONNECTION: RecipientConnection = NullConnection()  # replaces a member's when it leaves during a broadcast


@dataclass(eq=False, repr=False, slots=True)
class RecipientSlot:
    """A member's place in one list."""

    #: The member's connection.
    connection: RecipientConnection
    #: The index in the list; -1 while the slot is in none.
    position: int = field(default=-1, init=False)
    #: The list; None while the slot is in none.
    _recipients: "Recipients | None" = field(default=None, init=False)

    def refresh_taker(self) -> None:
        """Update the list after the connection's `take_frame` was replaced."""
        if self._recipients is not None:
            self._recipients.frame_takers[self.position] = self.connection.take_frame

    def enter_list(self, recipients: "Recipients", position: int) -> None:
        """Record the list and the position of this slot."""
        self._recipients, self.position = recipients, position
        self.connection.recipient_slots = (*self.connection.recipient_slots, self)

    def leave_list(self) -> None:
        """Record that the slot is in no list."""
        self._recipients, self.position = None, -1
        self.connection.recipient_slots = tuple(slot for slot in self.connection.recipient_slots if slot is not self)


class Recipients(list[RecipientConnection]):
    """The members of a group, as handed to the broadcaster. Changed only here, never copied.

    To broadcast a frame, take the length at the start, keep `sending` above zero until the end, and read each position
    when you get to it. Meanwhile no member changes its position: a member that leaves, or needs a new `initial`, is
    replaced by `NULL_CONNECTION` immediately; a member that joins is appended, beyond that length.

    `frame_takers` contains the `take_frame` of each connection. With 10,000 members, each object that a broadcast
    touches is a cache miss, which costs as much as the Python code for a member.
    """

    __slots__ = ("_empty_positions", "_slots", "frame_takers", "sending")

    def __init__(self) -> None:
        super().__init__()
        self.sending = 0
        self.frame_takers: list[Callable[[bytes], int]] = []
        self._slots: list[RecipientSlot] = []
        self._empty_positions: list[int] = []

    @property
    def member_count(self) -> int:
        """The number of members."""
        return len(self) - len(self._empty_positions)

    @property
    def slots(self) -> list[RecipientSlot]:
        """The slots of the members."""
        return [slot for slot in self._slots if slot.position >= 0]

    def add_slot(self, slot: RecipientSlot) -> None:
        """Append a member."""
        self.compact()
        slot.enter_list(self, len(self))
        self.append(slot.connection)
        self.frame_takers.append(slot.connection.take_frame)
        self._slots.append(slot)

    def remove_slot(self, slot: RecipientSlot) -> None:
        """Remove a member."""
        self.compact()
        position = slot.position
        slot.leave_list()
        if self.sending:
            self[position] = NULL_CONNECTION
            self.frame_takers[position] = NULL_CONNECTION.take_frame
            self._empty_positions.append(position)
        else:
            self._close_up(position)

    def compact(self) -> None:
        """Remove the places of members that left during a broadcast, unless a broadcast is running."""
        if self._empty_positions and not self.sending:
            for position in sorted(self._empty_positions, reverse=True):
                self._close_up(position)
            self._empty_positions.clear()

    def _close_up(self, position: int) -> None:
        """Move the last member to the empty position."""
        connection, taker, slot = self.pop(), self.frame_takers.pop(), self._slots.pop()
        if position < len(self):
            self[position], self.frame_takers[position], self._slots[position] = connection, taker, slot
            slot.position = position


def filled(lists: Mapping[K, Recipients]) -> list[tuple[K, Recipients]]:
    """Return the lists that have members, with their keys, compacted for a broadcast."""
    found = []
    for one in lists.items():
        one[1].compact()
        if one[1]:
            found.append(one)
    return found


class FrameSender(Protocol):
    """Sends frames to lists of connections, such as `candled.transport.broadcaster.Broadcaster`."""

    def broadcast(self, recipients: Recipients, frame: Frame) -> None:
        """Send a frame to all connections that are in a list now, possibly in slices; see `Recipients`."""
