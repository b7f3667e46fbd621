"""One frame to many links: straight, in slices that never hold the loop up, and in order for each list of links."""

import logging
from collections import deque
from collections.abc import Callable
from operator import length_hint
from typing import TYPE_CHECKING, Any

from candled.exchange import Clock
from candled.protocol.frames import Frame
from candled.protocol.requests import Topic
from candled.rooms.recipients import Recipients

if TYPE_CHECKING:
    from .connection import ClientConnection

logger = logging.getLogger(__name__)

HOLD_S = 0.005  # of one pass of the loop
READ_UNTIL_S = 0.009  # into a pass: what broadcasts leave of it, and a little more
SLICE = 256  # links between two looks at the clock
_BROKEN, _MISTAKEN = -1, -2  # instead of the number of bytes taken
_GRANTS = 8  # an `initial` may be 1000 times as long as an update


class _Broadcast:
    """A frame on its way to the first `stop` links of a list; `at` says how far it came."""

    __slots__ = ("at", "frame", "stop")

    def __init__(self, frame: Frame, at: int, stop: int) -> None:
        self.frame = frame
        self.at = at
        self.stop = stop

    def is_outdone_by(self, newer: Frame) -> bool:
        """Whether nobody was sent this yet, and the other frame is a newer state of the same bar."""
        own = self.frame
        key = own.topic, own.open_ms, own.corrects
        return not self.at and own.open_ms > 0 and key == (newer.topic, newer.open_ms, newer.corrects)


class Broadcaster:
    """Shares out the time of the loop: what is over in 5 ms happens at once, the rest in the next passes.

    Lists of links take turns; within one list frames go out in the order in which they were published. `soon` is the
    loop's `call_soon`.
    """

    def __init__(self, soon: Callable[[Callable[[], None]], object], clock: Clock) -> None:
        self._soon = soon
        self._clock = clock
        self._is_due = False  # a pass is scheduled
        self._began = 0.0  # the pass
        self._turns: deque[Recipients] = deque()
        self._broadcasts: dict[int, deque[_Broadcast]] = {}  # by the identity of the list
        self._wants: dict[tuple[ClientConnection, Topic], None] = {}  # ordered
        self._gathered: deque[ClientConnection] = deque()
        self._ended: deque[ClientConnection] = deque()

    # ------------------------------------------------------------ frames

    def broadcast(self, links: Recipients, frame: Frame) -> None:
        """Send a frame to all that are in a list now."""
        stop = len(links)
        if not stop:
            return
        links.sending += 1
        at = 0
        if links.sending == 1:
            while at < stop and self._has_time():
                send_all(links, at, min(at + SLICE, stop), frame)
                at += SLICE
            if at >= stop:
                links.sending = 0
                return
            self._turns.append(links)
            self._broadcasts[id(links)] = deque()
        waiting = self._broadcasts[id(links)]
        if waiting and waiting[-1].is_outdone_by(frame):
            waiting[-1] = _Broadcast(frame, 0, stop)
            links.sending -= 1
        else:
            waiting.append(_Broadcast(frame, at, stop))

    def request_turn(self, link: "ClientConnection", topic: Topic) -> None:
        """Grant a link an `initial` as soon as there is time: now, if nobody waits."""
        if not self._wants and self._has_time():
            link.on_turn(topic)
        else:
            self._wants[link, topic] = None

    def cancel_turn(self, link: "ClientConnection", topic: Topic) -> None:
        """A link does not want an `initial` any more."""
        self._wants.pop((link, topic), None)

    def uncork_later(self, link: "ClientConnection") -> None:
        """A link holds frames that should leave together at the end of this pass."""
        self._gathered.append(link)
        self._begin_pass()

    def finalize_later(self, link: "ClientConnection") -> None:
        """Let a link settle in the next pass."""
        self._ended.append(link)
        self._begin_pass()

    @property
    def is_busy(self) -> bool:
        """Whether something was left over for the next pass."""
        return bool(self._turns or self._wants or self._gathered)

    # ------------------------------------------------------------ time

    def may_read(self) -> bool:
        """Whether there is time in this pass to read what a client sent."""
        self._begin_pass()
        return self._clock.monotonic() - self._began < READ_UNTIL_S

    def _begin_pass(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._began = self._clock.monotonic()
            self._soon(self._run_pass)

    def _has_time(self) -> bool:
        now = self._clock.monotonic()
        if not self._is_due:
            self._is_due = True
            self._began = now
            self._soon(self._run_pass)
        return now - self._began < HOLD_S

    def _run_pass(self) -> None:
        """The next pass: what was left over, as far as the time goes."""
        self._began = self._clock.monotonic()
        try:
            while self._gathered and self._has_time():
                self._gathered.popleft().uncork()
            while self._ended and self._has_time():
                self._finalize_next()
            while (self._turns or self._wants) and self._has_time():
                self._send_slice()
                self._grant_next()
        finally:
            self._is_due = False
            if self._turns or self._wants or self._gathered or self._ended:
                self._begin_pass()

    def _send_slice(self) -> None:
        """The next slice of the list whose turn it is."""
        if not self._turns:
            return
        links = self._turns[0]
        broadcasts = self._broadcasts[id(links)]
        broadcast = broadcasts[0]
        send_all(links, broadcast.at, min(broadcast.at + SLICE, broadcast.stop), broadcast.frame)
        broadcast.at += SLICE
        if broadcast.at >= broadcast.stop:
            broadcasts.popleft()
            links.sending -= 1
        if broadcasts:
            self._turns.rotate(-1)
        else:
            self._turns.popleft()
            del self._broadcasts[id(links)]

    def _grant_next(self) -> None:
        """The next few `initial`s."""
        for link, topic in [key for key, _ in zip(self._wants, range(_GRANTS), strict=False)]:
            if self._wants.pop((link, topic), link) is None:
                try:
                    link.on_turn(topic)
                except Exception:  # one client's trouble must not stop the others
                    logger.exception("%s: no initial could be made", link.address)

    def _finalize_next(self) -> None:
        """The next one that ended."""
        link = self._ended.popleft()
        try:
            link.finalize()
        except Exception:
            logger.exception("%s: could not be let go", link.address)


def send_all(links: Recipients, start: int, stop: int, frame: Frame) -> None:
    """The hot loop, over a slice of a list in which nobody changes place meanwhile.

    It looks at nothing but the `write` of each, until one does not take the frame.
    """
    size = len(frame)
    writes = links.writes[start:stop]
    turns = iter(writes)
    while True:
        taken = 0
        try:
            for write in turns:
                taken = write(frame)
                if taken != size:
                    break
            else:
                return
        except BlockingIOError:
            taken = 0
        except OSError:
            taken = _BROKEN
        except Exception:  # ours: this client ends, the others go on
            logger.exception("a frame could not be handed on")
            taken = _MISTAKEN
        link = _own(links[start + len(writes) - length_hint(turns) - 1])
        if taken == _MISTAKEN:  # of whatever is behind the link: it need not be a socket
            link.disconnect(1011, "internal error")
        elif taken == _BROKEN:
            link.connection_lost()
        else:
            link.on_short_write(frame, taken)


def _own(link: Any) -> "ClientConnection":
    """What rooms knows by less is ours: only the links of this package fail to take a frame."""
    own: ClientConnection = link
    return own
