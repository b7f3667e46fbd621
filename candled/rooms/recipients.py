"""What a room knows of its clients' sockets, and the lists it hands out for sending."""

from collections.abc import Callable
from typing import Protocol

from candled.protocol.frames import Frame
from candled.protocol.requests import Topic


class RecipientConnection(Protocol):
    """One client's socket. Nothing here raises, and nothing here waits.

    A link calls its client back: `received` for each message, `make_initial` when the turn of a wanted topic has come,
    `fell_behind` when more bars of a topic wait than it keeps, `closed` once at the end.

    `write` is for whoever broadcasts, and for nobody else: it may raise, and may take a part of the frame only. Whoever
    replaces it calls `redirect` on each of `places`.
    """

    places: tuple["RecipientSlot", ...]  # where the link stands in lists; kept by these

    @property
    def write(self) -> Callable[[bytes], int]: ...

    def send_update(self, frame: Frame) -> int:
        """Hand a bar or a status to the kernel; what a slow client cannot take waits, one newest frame per bar."""

    def send_reply(self, frame: Frame) -> None:
        """Send an answer; answers keep their order, and go before what else waits."""

    def request_snapshot(self, topic: Topic) -> None:
        """Drop what waits of `topic` and call `make_initial(topic)` when the socket can take its frame, perhaps now.

        Nothing of the topic that was handed to `send` before may go out after this, but for a frame half sent.
        """

    def cancel_topic(self, topic: Topic) -> None:
        """Drop what waits of `topic`, a wanted turn as well."""

    def cork(self, many: bool) -> None:
        """Whether the client is in several rooms, so that their frames of one moment should leave together."""

    def disconnect(self, code: int, reason: str) -> None:
        """Close the connection with a close code."""


class _NullConnection:
    """Stands in a list for a member that left while a broadcast to the list was under way."""

    places: tuple["RecipientSlot", ...] = ()

    def write(self, frame: bytes) -> int:
        return len(frame)

    send_update = write

    def send_reply(self, frame: Frame) -> None:
        pass

    def request_snapshot(self, topic: Topic) -> None:
        pass

    def cancel_topic(self, topic: Topic) -> None:
        pass

    def cork(self, many: bool) -> None:
        pass

    def disconnect(self, code: int, reason: str) -> None:
        pass


NULL_CONNECTION: RecipientConnection = _NullConnection()


class RecipientSlot:
    """A member's place in one list; `position` is -1 while it has none."""

    __slots__ = ("_links", "link", "position")

    def __init__(self, link: RecipientConnection) -> None:
        self.link = link
        self.position = -1
        self._links: Recipients | None = None

    def refresh_write(self) -> None:
        """The link's `write` was replaced."""
        if self._links is not None:
            self._links.writes[self.position] = self.link.write

    def enter_list(self, links: "Recipients", position: int) -> None:
        """It is in a list now."""
        self._links, self.position = links, position
        self.link.places = (*self.link.places, self)

    def leave_list(self) -> None:
        """It is in no list any more."""
        self._links, self.position = None, -1
        self.link.places = tuple(place for place in self.link.places if place is not self)


class Recipients(list[RecipientConnection]):
    """The members of a group, as they are handed to whoever sends; changed only here, never copied.

    Whoever sends a frame takes the length when it is asked to, keeps `sending` above zero until it is through, and
    reads each position when its turn comes. While `sending` is above zero nobody changes place: who leaves, or is
    due a fresh `initial`, is replaced by `NULL_CONNECTION` at once, and who joins goes to the end, behind that length.

    `writes` holds the `write` of each: with ten thousand members every object that a broadcast has to look at comes
    from the far end of the memory, and costs as much as the rest of its turn in Python.
    """

    __slots__ = ("_holes", "_places", "sending", "writes")

    def __init__(self) -> None:
        super().__init__()
        self.sending = 0
        self.writes: list[Callable[[bytes], int]] = []
        self._places: list[RecipientSlot] = []
        self._holes: list[int] = []

    @property
    def member_count(self) -> int:
        """How many members there are."""
        return len(self) - len(self._holes)

    @property
    def slots(self) -> list[RecipientSlot]:
        """The members themselves."""
        return [place for place in self._places if place.position >= 0]

    def add_slot(self, place: RecipientSlot) -> None:
        """Let a member in, at the end."""
        self.compact()
        place.enter_list(self, len(self))
        self.append(place.link)
        self.writes.append(place.link.write)
        self._places.append(place)

    def remove_slot(self, place: RecipientSlot) -> None:
        """Let a member go."""
        self.compact()
        position = place.position
        place.leave_list()
        if self.sending:
            self[position] = NULL_CONNECTION
            self.writes[position] = NULL_CONNECTION.write
            self._holes.append(position)
        else:
            self._close_up(position)

    def compact(self) -> None:
        """Close up where members left while something was being sent, once nothing is."""
        if self._holes and not self.sending:
            for position in sorted(self._holes, reverse=True):
                self._close_up(position)
            self._holes.clear()

    def _close_up(self, position: int) -> None:
        """The last member takes the empty place."""
        link, write, place = self.pop(), self.writes.pop(), self._places.pop()
        if position < len(self):
            self[position], self.writes[position], self._places[position] = link, write, place
            place.position = position
