"""Send one frame to many connections, in slices that never block the loop, and in order for each list."""

import logging
from collections import deque
from collections.abc import Callable
from operator import length_hint
from typing import Protocol, cast

from candled.exchange import Clock
from candled.model import Topic
from candled.protocol.frames import Frame
from candled.rooms.recipients import Recipients

logger = logging.getLogger(__name__)

PASS_S = 0.005  # time for sending in one pass of the loop
READ_S = 0.003  # time for reading from clients in a pass, from the first of them on
ANSWER_S = 0.001  # time for requests that memory answers: each of them costs as much as many messages
SLICE = 256  # connections between two readings of the clock
_BROKEN, _FAILED = -1, -2  # results in place of the number of bytes taken
STARTS = 16  # waiting requests that start in a pass: their time is spent after it
_GRANTS = 8  # `initial`s per slice; one may be 1,000 times as long as an update


class Sender(Protocol):
    """A connection, as the broadcaster calls it."""

    address: str

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

    def finalize(self) -> None:
        """Clean up after the connection."""


class PausedStream(Protocol):
    """A connection that is not read, as the broadcaster calls it."""

    def resume(self) -> bool:
        """Read the connection again; return False if it has ended."""


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


class Broadcaster:
    """Divides the loop's time: up to 5 ms of sending happen immediately, the rest in the next passes.

    The lists of connections alternate. Within a list, frames are sent in the order of their publication. `soon` is the
    loop's `call_soon`.
    """

    def __init__(self, soon: Callable[[Callable[[], None]], object], clock: Clock) -> None:
        self._soon = soon
        self._clock = clock
        self._is_due = False  # True while a pass is scheduled
        self._began = 0.0  # monotonic start of the current pass
        # lists with unfinished broadcasts, the next one first
        self._turns: deque[Recipients] = deque()
        # unfinished broadcasts by the identity of their list
        self._broadcasts: dict[int, deque[_Broadcast]] = {}
        # requested turns, in the order of the requests
        self._requested: dict[tuple[Sender, Topic], None] = {}
        # connections with buffered frames
        self._corked: deque[Sender] = deque()
        # connections that have ended and await `finalize`
        self._ended: deque[Sender] = deque()
        # reads that found no time, the next one first
        self._reads: dict[Callable[[], None], None] = {}
        # requests that found no time, the next one first
        self._starts: deque[Callable[[], None]] = deque()
        # streams with a request that found no time, the next one first
        self._paused: deque[PausedStream] = deque()
        # monotonic time of the first read and of the first answer in this pass; None before
        self._reads_since: float | None = None
        self._answers_since: float | None = None
        self._answered, self._last_answer = 0, 0.0  # requests of this pass, and when the last of them was begun
        self._turns_per_pass = 1
        # streams whose turn is in this pass, and those resumed in it, which the loop reports in the next one
        self._in_turn: set[PausedStream] = set()
        self._resumed: set[PausedStream] = set()
        self._started = 0  # of them in the last pass: they run before requests that arrive in this one

    # ------------------------------------------------------------ frames

    def broadcast(self, recipients: Recipients, frame: Frame) -> None:
        """Send a frame to all connections that are in a list now."""
        stop = len(recipients)
        if not stop:
            return
        recipients.sending += 1
        at = 0
        if recipients.sending == 1:
            while at < stop and self._has_time():
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
        """Call a connection's `on_turn` as soon as there is time: now, if no other request is queued."""
        if not self._requested and self._has_time():
            connection.on_turn(topic)
        else:
            self._requested[connection, topic] = None

    def cancel_turn(self, connection: Sender, topic: Topic) -> None:
        """Cancel a requested turn."""
        self._requested.pop((connection, topic), None)

    def uncork_later(self, connection: Sender) -> None:
        """Call a connection's `uncork` at the end of this pass, so that its buffered frames leave together."""
        self._corked.append(connection)
        self._begin_pass()

    def finalize_later(self, connection: Sender) -> None:
        """Call a connection's `finalize` in the next pass."""
        self._ended.append(connection)
        self._begin_pass()

    @property
    def is_busy(self) -> bool:
        """True if frames or turns are left for the next pass."""
        return bool(self._turns or self._requested or self._corked)

    # ------------------------------------------------------------ time

    def read(self, work: Callable[[], None]) -> None:
        """Call `work`, which reads a little from one client: now, or in the order of such calls when there is time.

        A client that waits is read before all others are read again.
        """
        if not self._reads and self.has_time_to_read():
            work()
        else:
            self._reads.setdefault(work)
            self._begin_pass()

    def has_time_to_read(self) -> bool:
        """Return True if there is time in this pass to accept a connection or to read from one."""
        now = self._begin_pass()
        if self._reads_since is None:
            self._reads_since = now
        return now - self._reads_since < READ_S

    def may_answer(self, stream: PausedStream) -> bool:
        """Return True if a stream's request may be read in this pass. Otherwise call `answer_later`.

        While streams are paused, only those whose turn it is are read. Otherwise all are while the pass has time,
        and the first one in any case.
        """
        now = self._begin_pass()
        if self._answers_since is None:
            self._answers_since = now
        if stream in self._in_turn or stream in self._resumed:
            self._in_turn.discard(stream)
            self._resumed.discard(stream)
        elif self._in_turn or self._resumed or self._paused or now - self._answers_since >= ANSWER_S:
            return False
        self._answered += 1
        self._last_answer = now
        return True

    def answer_later(self, stream: PausedStream) -> None:
        """Call a stream's `resume` when its turn comes, in the order of these calls."""
        self._paused.append(stream)
        self._begin_pass()

    def has_time_to_start(self) -> bool:
        """Return True if a request may start now. Otherwise call `start_later`."""
        return not self._starts and not self._started and self.has_time_to_read()

    def start_later(self, start: Callable[[], None]) -> None:
        """Call `start` in a later pass, in the order of these calls."""
        self._starts.append(start)
        self._begin_pass()

    def _begin_pass(self) -> float:
        """Begin a pass unless one is under way; return the time."""
        now = self._clock.monotonic()
        if not self._is_due:
            self._is_due = True
            self._reset(now)
            self._soon(self._run_pass)
        return now

    def _reset(self, now: float) -> None:
        self._began = now
        self._reads_since = self._answers_since = None
        self._answered = 0

    def _has_time(self) -> bool:
        return self._begin_pass() - self._began < PASS_S

    def _run_pass(self) -> None:
        """Send as much of the remaining work as there is time for."""
        self._resume_streams()
        self._reset(self._clock.monotonic())
        try:
            while self._corked and self._has_time():
                self._corked.popleft().uncork()
            while self._ended and self._has_time():
                self._finalize_next()
            while (self._turns or self._requested) and self._has_time():
                self._send_slice()
                self._run_turns()
            self._run_reads()
            self._started = min(len(self._starts), STARTS)
            for _ in range(self._started):
                self._starts.popleft()()
        finally:
            self._is_due = False
            if (
                self.is_busy
                or self._ended
                or self._reads
                or self._starts
                or self._started
                or self._paused
                or self._resumed
            ):
                self._is_due = True  # this pass lasts until the next one begins
                self._soon(self._run_pass)

    def _resume_streams(self) -> None:
        """Resume as many paused streams as a pass seems to have time for, judging by the last one with answers."""
        if self._answered and self._answers_since is not None:
            took_s = self._last_answer - self._answers_since
            scale = 1.0 if took_s < ANSWER_S else ANSWER_S / took_s
            self._turns_per_pass = max(1, int(self._answered * scale) + (scale == 1.0))
        self._in_turn, self._resumed = self._resumed, set()
        while self._paused and len(self._resumed) < self._turns_per_pass:
            stream = self._paused.popleft()
            if stream.resume():
                self._resumed.add(stream)

    def _run_reads(self) -> None:
        """Do the reads that wait, at least one of them, as long as there is time."""
        for work in list(self._reads):
            del self._reads[work]
            try:
                work()
            except Exception:
                logger.exception("cannot read from a client")
            if not self.has_time_to_read():
                return

    def _send_slice(self) -> None:
        """Send a frame to the next slice of the current list."""
        if not self._turns:
            return
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

    def _run_turns(self) -> None:
        """Call `on_turn` for the next few requested turns."""
        for connection, topic in [key for key, _ in zip(self._requested, range(_GRANTS), strict=False)]:
            if self._requested.pop((connection, topic), connection) is None:
                try:
                    connection.on_turn(topic)
                except Exception:  # a failure of one client must not stop the others
                    logger.exception("%s: cannot render the initial message", connection.address)
                if not self._has_time():  # it may have had to encode a thousand bars
                    return

    def _finalize_next(self) -> None:
        """Call `finalize` of the next connection that has ended."""
        connection = self._ended.popleft()
        try:
            connection.finalize()
        except Exception:
            logger.exception("%s: cannot clean up after the connection", connection.address)


def send_all(recipients: Recipients, start: int, stop: int, frame: Frame) -> None:
    """Send a frame to a slice of a list. This is the hot loop.

    It only calls each connection's `write`, until one does not take the complete frame.
    """
    size = len(frame)
    writes = recipients.writes[start:stop]
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
        except Exception:  # a bug in candled: close this client, go on with the others
            logger.exception("a frame cannot be sent, closing the connection")
            taken = _FAILED
        # only connections of this package can fail to take a frame
        connection = cast(Sender, recipients[start + len(writes) - length_hint(turns) - 1])
        if taken == _FAILED:  # raised by the handler, which need not be a socket
            connection.disconnect(1011, "internal error")
        elif taken == _BROKEN:
            connection.connection_lost()
        else:
            connection.on_short_write(frame, taken)
