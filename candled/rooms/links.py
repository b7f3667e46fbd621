"""What a room knows of its clients' sockets, and the lists it hands out for sending."""

from collections.abc import Callable
from typing import Protocol

from .frames import Frame
from .protocol import Topic


class Link(Protocol):
    """One client's socket. Nothing here raises, and nothing here waits.

    A link calls its client back: `received` for each message, `make_initial` when the turn of a wanted topic has come,
    `fell_behind` when more bars of a topic wait than it keeps, `closed` once at the end.

    `write` is for whoever broadcasts, and for nobody else: it may raise, and may take a part of the frame only.
    """

    @property
    def write(self) -> Callable[[bytes], int]: ...

    def send(self, frame: Frame) -> int:
        """Hand a bar or a status to the kernel; what a slow client cannot take waits, one newest frame per bar."""

    def reply(self, frame: Frame) -> None:
        """Send an answer; answers keep their order, and go before what else waits."""

    def want(self, topic: Topic) -> None:
        """Drop what waits of `topic` and call `make_initial(topic)` when the socket can take its frame, perhaps now.

        Nothing of the topic that was handed to `send` before may go out after this, but for a frame half sent.
        """

    def forget(self, topic: Topic) -> None:
        """Drop what waits of `topic`, a wanted turn as well."""

    def gather(self, many: bool) -> None:
        """Whether the client is in several rooms, so that their frames of one moment should leave together."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection with a close code."""


class _Nobody:
    """Stands in a list for a member that left while a broadcast to the list was under way."""

    def write(self, frame: bytes) -> int:
        return len(frame)

    send = write

    def reply(self, frame: Frame) -> None:
        pass

    def want(self, topic: Topic) -> None:
        pass

    def forget(self, topic: Topic) -> None:
        pass

    def gather(self, many: bool) -> None:
        pass

    def close(self, code: int, reason: str) -> None:
        pass


NOBODY: Link = _Nobody()


class Place:
    """A member's place in one list; `position` is -1 while it has none."""

    __slots__ = ("link", "position")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.position = -1


class Links(list[Link]):
    """The members of a group, as they are handed to whoever sends; changed only here, never copied.

    Whoever sends a frame takes the length when it is asked to, keeps `sending` above zero until it is through, and
    reads each position when its turn comes. While `sending` is above zero nobody changes place: who leaves, or is
    due a fresh `initial`, is replaced by `NOBODY` at once, and who joins goes to the end, behind that length.
    """

    __slots__ = ("_holes", "_places", "sending")

    def __init__(self) -> None:
        super().__init__()
        self.sending = 0
        self._places: list[Place] = []
        self._holes: list[int] = []

    @property
    def present(self) -> int:
        """How many members there are."""
        return len(self) - len(self._holes)

    @property
    def places(self) -> list[Place]:
        """The members themselves."""
        return [place for place in self._places if place.position >= 0]

    def add(self, place: Place) -> None:
        """Let a member in, at the end."""
        self.tidy()
        place.position = len(self)
        self.append(place.link)
        self._places.append(place)

    def drop(self, place: Place) -> None:
        """Let a member go."""
        self.tidy()
        position, place.position = place.position, -1
        if self.sending:
            self[position] = NOBODY
            self._holes.append(position)
        else:
            self._close_up(position)

    def tidy(self) -> None:
        """Close up where members left while something was being sent, once nothing is."""
        if self._holes and not self.sending:
            for position in sorted(self._holes, reverse=True):
                self._close_up(position)
            self._holes.clear()

    def _close_up(self, position: int) -> None:
        """The last member takes the empty place."""
        link, place = self.pop(), self._places.pop()
        if position < len(self):
            self[position], self._places[position] = link, place
            place.position = position
