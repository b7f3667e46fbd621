"""One client's way out: what it is sent leaves at once and in order, or waits in bounded space."""

from collections.abc import Callable, Sequence
from typing import Protocol

from candled.protocol.frames import Frame
from candled.protocol.requests import Topic
from candled.rooms.recipients import RecipientSlot

from .broadcaster import Broadcaster
from .outbox import Outbox


class ConnectionListener(Protocol):
    """Whom a link belongs to: `candled.serve.client.ConnectionListener`."""

    def on_message(self, message: str | bytes) -> None:
        """Handle one message: text, or the bytes of a binary one."""

    def make_initial(self, topic: Topic) -> Frame | None:
        """The `initial` that was wanted, as of now; None if there is nothing to send any more."""

    def on_fell_behind(self, topic: Topic) -> None:
        """Too many bars of a topic waited; they were dropped."""

    def notify_shutdown(self, reconnect_after_ms: int) -> None:
        """The server is about to close the connection."""

    def on_close(self) -> None:
        """The connection is gone. Called once, and never from inside a call to the link."""


class ClientConnection:
    """What a socket of our own and a connection that Tornado keeps have in common. Nothing here waits or raises.

    `write` is what a broadcast calls. It takes a frame and returns how many bytes of it are dealt with; it may raise
    what `socket.send` raises. It is replaced as the link changes: while the client is slow frames are kept, once it is
    gone they are dropped, and none of that needs a question in the loop over all links.
    """

    __slots__ = (
        "__weakref__",
        "_outbox",
        "_publisher",
        "address",
        "blocked_since",
        "client",
        "is_open",
        "places",
        "write",
    )

    def __init__(self, publisher: Broadcaster, address: str) -> None:
        self.write: Callable[[bytes], int] = drop
        self.places: tuple[RecipientSlot, ...] = ()
        self.client: ConnectionListener = NO_CLIENT
        self.address = address
        self.is_open = True
        self.blocked_since: float | None = None  # monotonic seconds: since when a frame is under way
        self._publisher = publisher
        self._outbox: Outbox | None = None

    # ------------------------------------------------------------ for rooms

    def send_update(self, frame: bytes) -> int:
        """Hand a frame on, or keep it in the place of an older state of its bar."""
        size = len(frame)
        try:
            taken = self.write(frame)
        except BlockingIOError:
            taken = 0
        except OSError:
            self.connection_lost()
            return size
        if taken != size:
            self.on_short_write(frame, taken)
        return size

    def send_reply(self, frame: bytes) -> None:
        """Send an answer: answers keep their order, and go before what else waits."""
        frame = self.encode_frame(frame)
        if self.blocked_since is None:
            self.send_update(frame)
        elif self.is_open and not self.outbox.put_reply(frame):
            self.disconnect(3008, "too many answers wait to be read")

    def request_snapshot(self, topic: Topic) -> None:
        """Let `client.make_initial` be called, and its frame be sent, when the socket can take it: perhaps now."""
        if not self.is_open:
            return
        if self.blocked_since is None:
            self._publisher.request_turn(self, topic)
        else:
            self.outbox.put_initial(topic)

    def cancel_topic(self, topic: Topic) -> None:
        """Drop what waits of a topic."""
        self._publisher.cancel_turn(self, topic)
        if self._outbox is not None:
            self._outbox.drop_topic(topic)

    def cork(self, many: bool) -> None:
        """Whether frames of several rooms come at a time, so that it is worth letting them leave together."""

    def disconnect(self, code: int, reason: str) -> None:
        """Say goodbye, then let the connection end."""
        raise NotImplementedError

    def blocked_for(self, now: float) -> float:
        """Seconds since a frame has been under way; 0.0 when none is."""
        return 0.0 if self.blocked_since is None or not self.is_open else now - self.blocked_since

    # ------------------------------------------------------------ for the publisher and the heartbeat

    def on_turn(self, topic: Topic) -> None:
        """The turn of a wanted `initial` has come."""
        if self.blocked_since is not None:
            self.outbox.put_initial(topic)
        elif self.is_open:
            frame = self.client.make_initial(topic)
            if frame is not None:
                self.send_update(self.encode_frame(frame))

    def on_short_write(self, frame: bytes, taken: int) -> None:
        """The socket took only so many bytes of a frame."""
        raise NotImplementedError

    def connection_lost(self) -> None:
        """The connection broke."""
        raise NotImplementedError

    def uncork(self) -> None:
        """Send what was gathered."""

    def finalize(self) -> None:
        """The connection ended, or is about to: tell the client, now that none of its calls is under way."""
        client, self.client = self.client, NO_CLIENT
        client.on_close()

    # ------------------------------------------------------------ inside

    def redirect_writes(self, write: Callable[[bytes], int]) -> None:
        """Let frames go another way from now on."""
        self.write = write
        for place in self.places:
            place.refresh_write()

    def encode_frame(self, frame: bytes) -> bytes:
        """The form in which this client gets an answer or an `initial`."""
        return frame

    @property
    def outbox(self) -> Outbox:
        """Made when something has to wait for the first time."""
        if self._outbox is None:
            self._outbox = Outbox()
        return self._outbox

    def keep_frame(self, frame: bytes) -> int:
        """Stand for `write` while a frame is under way: keep the newest state of few bars."""
        if not isinstance(frame, Frame) or frame.topic is None or not frame.open_ms:
            self.send_reply(frame)
        elif not self.outbox.put_update(frame.topic, frame.open_ms, frame, corrects=frame.corrects):
            self.outbox.drop_topic(frame.topic)
            self.client.on_fell_behind(frame.topic)
        return len(frame)

    def keep_all_frames(self, frames: Sequence[bytes]) -> None:
        """Keep frames that were to leave together: a bar's state that came before an `initial` must not follow it."""
        last = max((at for at, frame in enumerate(frames) if not getattr(frame, "open_ms", 0)), default=-1)
        for frame in frames[: last + 1]:
            self.send_reply(frame)
        for frame in frames[last + 1 :]:
            self.keep_frame(frame)

    def next_frame(self) -> bytes | None:
        """The next frame that waits, an `initial` being made now; None when nothing does."""
        while self._outbox is not None:
            item = self._outbox.pop_next()
            if item is None:
                self._outbox = None
            elif isinstance(item, bytes):
                return item
            else:
                frame = self.client.make_initial(item)
                if frame is not None:
                    return self.encode_frame(frame)
        return None


def drop(frame: bytes) -> int:
    """Stand for `write` once a connection ends: nobody is there."""
    return len(frame)


class _DetachedListener:
    """The client of a link that has none yet, or none any more."""

    def on_message(self, message: str | bytes) -> None:
        pass

    def make_initial(self, topic: Topic) -> Frame | None:
        return None

    def on_fell_behind(self, topic: Topic) -> None:
        pass

    def notify_shutdown(self, reconnect_after_ms: int) -> None:
        pass

    def on_close(self) -> None:
        pass


NO_CLIENT: ConnectionListener = _DetachedListener()
