"""Send one frame to many connections, in slices that never block the loop, and in order for each list."""

import logging
from collections import deque
from collections.abc import Callable
from itertools import chain, islice
from operator import length_hint
from typing import Generic, Protocol, TypeVar, cast

from candled.model import Topic
from candled.protocol.frames import Frame
from candled.rooms.recipients import Recipients

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

PASS_S = 0.005  # time for broadcasts in one pass of the loop
READ_S = 0.0015  # time for reading from clients in a pass, from the first read on
WRITE_S = 0.0015  # time for `initial`s, the rest of frames, and the ends of connections, in the same way
ANSWER_S = 0.001  # time for accepting connections, reading HTTP requests, and answering some from memory
CLIENTS_S = READ_S + WRITE_S + ANSWER_S  # after a pass that takes longer, the next one has less time for HTTP
SLICE = 256  # connections between two readings of the clock
_UNMETERED = 32  # sends to small rooms between two passes that need no clock
_BROKEN, _FAILED = -1, -2  # results in place of the number of bytes taken
STARTS = 8  # most requests that start in a pass; their time is spent after it
REST_S = 0.002  # pause of heavy clients after a pass that served some: the loop, and the machine, are free for others
_LOOKED_AT = 128  # most pieces of waiting work of one kind that a pass looks at


class Sender(Protocol):
    """A connection, as the broadcaster calls it."""

    address: str

    @property
    def is_light(self) -> bool:
        """True if the client has used little of its budget of work. It goes before others."""

    def on_turn(self, topic: Topic) -> None:
        """Send the requested `initial`."""

    def on_short_write(self, frame: bytes, taken: int) -> None:
        """Handle a partial write: the socket took only `taken` bytes of the frame."""

    def connection_lost(self) -> None:
        """Handle a broken connection."""

    def disconnect(self, code: int, reason: str) -> None:
        """Close the connection with a close code."""

    def uncork(self) -> None:
        """Send the buffered frames."""


class _Broadcast:
    """A frame for the first `stop` connections of a list; `at` is the next one's position."""

    __slots__ = ("at", "frame", "stop")

    def __init__(self, frame: Frame, at: int, stop: int) -> None:
        self.frame = frame
        self.at = at
        self.stop = stop

    def is_outdone_by(self, newer: Frame) -> bool:
        """Return True if no connection was sent this frame yet and `newer` is a newer state of the same bar."""
        own = self.frame
        key = own.topic, own.open_ms, own.corrects
        return not self.at and own.open_ms > 0 and key == (newer.topic, newer.open_ms, newer.corrects)


class _Waiting(Generic[_T]):
    """Work that waits for its turn, each piece once. That of light clients goes first."""

    __slots__ = ("_heavy", "_light")

    def __init__(self) -> None:
        self._light: dict[_T, None] = {}
        self._heavy: dict[_T, None] = {}

    def __bool__(self) -> bool:
        return bool(self._light or self._heavy)

    @property
    def has_light(self) -> bool:
        """True if a light client waits."""
        return bool(self._light)

    def add(self, piece: _T, *, is_light: bool) -> None:
        if piece not in self._heavy:
            (self._light if is_light else self._heavy).setdefault(piece)

    def discard(self, piece: _T) -> bool:
        """Remove a piece; return False if it does not wait."""
        return self._light.pop(piece, self) is None or self._heavy.pop(piece, self) is None

    def run(self, do: Callable[[_T], None], has_time: Callable[[], bool], *, with_heavy: bool) -> bool:
        """Do as many pieces of work as time allows; return True if some were of heavy clients.

        With `with_heavy`, at least one piece of a heavy client is done, so that none waits forever.
        """
        heavy = self._heavy if with_heavy else {}
        if not self._light and not heavy:
            return False
        is_heavy_done = False
        for piece in list(islice(chain(self._light, heavy), _LOOKED_AT)):
            is_heavy_done = is_heavy_done or piece in heavy
            if self.discard(piece):
                do(piece)
            if not has_time():
                break
        if heavy and not is_heavy_done:
            piece = next(iter(heavy))
            del heavy[piece]
            do(piece)
            return True
        return is_heavy_done


class Broadcaster:
    """Divides the loop's time: up to 5 ms of broadcasts happen immediately, the rest in the next passes.

    The lists of connections alternate. Within a list, frames are sent in the order of their publication. All other work
    for clients has shares of a pass. Work that finds no time waits. Clients that have used little of their budgets of
    work are light, and go first. All others are heavy: they rest after each pass that served some of them, so that a
    flood leaves half of the time to other clients. At least one piece of each kind is done in each pass.

    Args:
        soon: the loop's `call_soon`.
        later: the loop's `call_later`.
        seconds: the clock of the passes. The thread's processor time (`PassClock`) leaves out the time of other
            processes. By the wall clock, each pass would seem long on a busy machine, and clients would get the least
            share.
    """

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], object],
        later: Callable[[float, Callable[[], None]], object],
        seconds: Callable[[], float],
    ) -> None:
        self._soon = soon
        self._later = later
        self._seconds = seconds
        #: The bytes of all frames given to connections since the start.
        self.given_bytes = 0
        self._is_due = False  # True while a pass is scheduled
        self._is_resting = False  # True while heavy clients rest
        self._began = 0.0  # start of the current pass
        self._unmetered = 0  # sends since the last pass
        # lists with unfinished broadcasts, the next one first
        self._turns: deque[Recipients] = deque()
        # unfinished broadcasts by the identity of their list
        self._broadcasts: dict[int, deque[_Broadcast]] = {}
        # requested turns, in the order of the requests
        self._requested: _Waiting[tuple[Sender, Topic]] = _Waiting()
        # connections with buffered frames
        self._corked: deque[Sender] = deque()
        # the ends of connections, the next one first
        self._ends: deque[Callable[[], None]] = deque()
        # reads, and rests of frames, that found no time, the next one first
        self._reads: _Waiting[Callable[[], None]] = _Waiting()
        self._writes: _Waiting[Callable[[], None]] = _Waiting()
        # requests that found no time, the next one first
        self._starts: deque[Callable[[], None]] = deque()
        # time of the first read, write and answer in this pass; None before
        self._reads_since: float | None = None
        self._writes_since: float | None = None
        self._answers_since: float | None = None
        # requests of this pass: those that started immediately, and those that waited, which run before any others
        self._begun = self._started = 0
        self._starts_per_pass = STARTS
        # the time that the last pass took beyond its share
        self._overrun_s = 0.0
        # end of the last pass: since then, the rest of the loop has run
        self._others_since = 0.0

    # ------------------------------------------------------------ frames

    def broadcast(self, recipients: Recipients, frame: Frame) -> None:
        """Send a frame to all connections that are in a list now."""
        stop = len(recipients)
        if not stop:
            return
        self.given_bytes += stop * len(frame)  # once for all connections: `send_all` does nothing but send
        recipients.sending += 1
        at = 0
        if recipients.sending == 1:
            while at < stop and (self._is_small(stop - at) or self._has_time()):
                send_all(recipients, at, min(at + SLICE, stop), frame)
                at += SLICE
            if at >= stop:
                recipients.sending = 0
                return
            self._turns.append(recipients)
            self._broadcasts[id(recipients)] = deque()
        waiting = self._broadcasts[id(recipients)]
        if waiting and waiting[-1].is_outdone_by(frame):
            waiting[-1] = _Broadcast(frame, 0, stop)
            recipients.sending -= 1
        else:
            waiting.append(_Broadcast(frame, at, stop))

    def request_turn(self, connection: Sender, topic: Topic) -> None:
        """Call a connection's `on_turn` as soon as there is time: now, if no other request goes before it."""
        is_light = connection.is_light
        if is_light and not self._requested.has_light and self._has_time_to_write():
            connection.on_turn(topic)
        else:
            self._requested.add((connection, topic), is_light=is_light)
            self._begin_pass()

    def cancel_turn(self, connection: Sender, topic: Topic) -> None:
        """Cancel a requested turn."""
        self._requested.discard((connection, topic))

    def uncork_later(self, connection: Sender) -> None:
        """Call a connection's `uncork` at the end of this pass, so that its buffered frames leave together."""
        self._corked.append(connection)
        self._begin_pass()

    def end_later(self, end: Callable[[], None]) -> None:
        """Call `end`, which ends a connection or cleans up after it, in a later pass, in the order of these calls."""
        self._ends.append(end)
        self._begin_pass()

    @property
    def is_busy(self) -> bool:
        """True if frames or turns are left for the next pass."""
        return bool(self._turns or self._requested or self._corked)

    # ------------------------------------------------------------ time

    def schedule_read(self, work: Callable[[], None], *, is_light: bool) -> None:
        """Call `work`, which reads a little from one client: now, or in the order of such calls when there is time.

        A client that waits is read before all others are read again. Heavy clients always wait.
        """
        if is_light and not self._reads.has_light and self.has_time_to_read():
            self._reads.discard(work)
            work()
        else:
            self.read_later(work, is_light=is_light)

    def read_later(self, work: Callable[[], None], *, is_light: bool) -> None:
        """Call `work` when there is time, but not now, in the order of such calls."""
        self._reads.add(work, is_light=is_light)
        self._begin_pass()

    def schedule_write(self, work: Callable[[], None], *, is_light: bool) -> None:
        """Call `work`, which sends some of a client's queued bytes, in turn as `schedule_read` does."""
        if is_light and not self._writes.has_light and self._has_time_to_write():
            self._writes.discard(work)
            work()
        else:
            self._writes.add(work, is_light=is_light)
            self._begin_pass()

    def has_time_to_read(self) -> bool:
        """Return True if there is time in this pass to read from a client."""
        now = self._begin_pass()
        if self._reads_since is None:
            self._reads_since = now
        return now - self._reads_since < READ_S

    def _has_time_to_write(self) -> bool:
        now = self._begin_pass()
        if self._writes_since is None:
            self._writes_since = now
        return now - self._writes_since < WRITE_S

    def has_time_to_answer(self) -> bool:
        """Return True if there is time in this pass to accept another connection, or to read another HTTP request."""
        now = self._begin_pass()
        if self._answers_since is None:
            self._answers_since = now
        return now - self._answers_since < ANSWER_S - self._overrun_s

    def has_time_to_start(self) -> bool:
        """Return True if a request may start now. Otherwise call `start_later`."""
        if self._starts or self._started or self._begun >= self._starts_per_pass or not self.has_time_to_answer():
            return False
        self._begun += 1
        return True

    def start_later(self, start: Callable[[], None]) -> None:
        """Call `start` in a later pass, in the order of these calls."""
        self._starts.append(start)
        self._begin_pass()

    def _begin_pass(self) -> float:
        """Begin a pass unless one is under way; return the time."""
        now = self._seconds()
        if not self._is_due:
            self._is_due = True
            self._unmetered = 0
            self._overrun_s = 0.0
            self._others_since = now
            self._reset(now)
            self._soon(self._run_pass)
        return now

    def _reset(self, now: float) -> None:
        self._began = now
        self._reads_since = self._writes_since = self._answers_since = None
        self._begun = 0

    def _is_small(self, count: int) -> bool:
        """Return True if `count` sends need no clock: since the last pass there were few, and none is under way.

        Most rooms have few members, and their updates come one by one. Beginning a pass for each would take longer than
        sending.
        """
        if self._is_due or self._unmetered + count > _UNMETERED:
            return False
        self._unmetered += count
        return True

    def _has_time(self) -> bool:
        return self._begin_pass() - self._began < PASS_S

    def _run_pass(self) -> None:
        """Do as much of the remaining work as there is time for: broadcasts first."""
        now = self._seconds()
        self._measure_others(now - self._others_since)
        self._reset(now)
        try:
            while self._corked and self._has_time():
                self._corked.popleft().uncork()
            while self._turns and self._has_time():
                self._send_slice()
            self._run_waiting()
            self._started = min(len(self._starts), self._starts_per_pass)
            for _ in range(self._started):
                self._starts.popleft()()
        finally:
            self._others_since = self._seconds()
            self._is_due = self._has_work()  # this pass lasts until the next one begins
            if self._is_due:
                self._soon(self._run_pass)

    def _run_waiting(self) -> None:
        """Serve waiting clients, and end connections. Let heavy clients rest after that."""
        serves = not self._is_resting
        self._has_time_to_write()  # starts the time for writing
        served = self._requested.run(self._run_turn, self._has_time_to_write, with_heavy=serves)
        served |= self._writes.run(_run_work, self._has_time_to_write, with_heavy=serves)
        self._run_ends()
        self.has_time_to_read()  # starts the time for reading
        served |= self._reads.run(_run_work, self.has_time_to_read, with_heavy=serves)
        if served:
            self._is_resting = True
            self._later(REST_S, self._end_rest)

    def _end_rest(self) -> None:
        self._is_resting = False
        if self._has_work():
            self._begin_pass()

    def _has_work(self) -> bool:
        """Return True if work is left that does not rest."""
        waiting = (self._requested, self._reads, self._writes)
        return bool(self._turns or self._corked or self._ends or self._starts or self._started) or any(
            some.has_light if self._is_resting else some for some in waiting
        )

    def _measure_others(self, took_s: float) -> None:
        """Note the time of all that ran since the last pass: new events, and the requests that were started.

        The time of a request is spent after its start, and that of a connection after it was accepted, so it is only
        known now. If it was too long, this pass starts fewer requests, and has less time for connections.
        """
        self._overrun_s = max(0.0, took_s - CLIENTS_S)
        if self._overrun_s:
            self._starts_per_pass = max(1, int(self._starts_per_pass * CLIENTS_S / took_s))
        else:
            self._starts_per_pass = min(STARTS, self._starts_per_pass + 1)

    def _send_slice(self) -> None:
        """Send a frame to the next slice of the current list."""
        recipients = self._turns[0]
        broadcasts = self._broadcasts[id(recipients)]
        broadcast = broadcasts[0]
        send_all(recipients, broadcast.at, min(broadcast.at + SLICE, broadcast.stop), broadcast.frame)
        broadcast.at += SLICE
        if broadcast.at >= broadcast.stop:
            broadcasts.popleft()
            recipients.sending -= 1
        if broadcasts:
            self._turns.rotate(-1)
        else:
            self._turns.popleft()
            del self._broadcasts[id(recipients)]

    def _run_turn(self, turn: tuple[Sender, Topic]) -> None:
        connection, topic = turn
        try:
            connection.on_turn(topic)
        except Exception:  # a failure of one client must not stop the others
            logger.exception("%s: cannot render the initial message", connection.address)

    def _run_ends(self) -> None:
        """End connections, at least one of them, as long as there is time."""
        for _ in range(len(self._ends)):
            try:
                self._ends.popleft()()
            except Exception:
                logger.exception("cannot end a connection")
            if not self._has_time_to_write():
                return


def _run_work(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:
        logger.exception("cannot serve a client")


def send_all(recipients: Recipients, start: int, stop: int, frame: Frame) -> None:
    """Send a frame to a slice of a list. This is the hot loop.

    It only calls each connection's `take_frame`, until one does not take the complete frame.
    """
    size = len(frame)
    takers = recipients.frame_takers[start:stop]
    turns = iter(takers)
    while True:
        taken = 0
        try:
            for take_frame in turns:
                taken = take_frame(frame)
                if taken != size:
                    break
            else:
                return
        except BlockingIOError:
            taken = 0
        except OSError:
            taken = _BROKEN
        except Exception:  # a bug in candled: close this client, go on with the others
            logger.exception("a frame cannot be sent, closing the connection")
            taken = _FAILED
        # only connections of this package can fail to take a frame
        connection = cast(Sender, recipients[start + len(takers) - length_hint(turns) - 1])
        if taken == _FAILED:  # raised by the handler, which need not be a socket
            connection.disconnect(1011, "internal error")
        elif taken == _BROKEN:
            connection.connection_lost()
        else:
            connection.on_short_write(frame, taken)
