"""The outgoing side of a client's connection: frames are sent immediately and in order, or queued in bounded space."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from candled.model import Topic
from candled.protocol.frames import Frame
from candled.rooms.recipients import RecipientSlot

from .broadcaster import Broadcaster
from .outbox import Outbox
from .work_budget import REFUSED, UNLIMITED

if TYPE_CHECKING:
    from candled.access.grant import Grant


class ConnectionListener:
    """The client of a connection.

    Most are a `candled.serve.client.ClientSession`, of candled's protocol; those of Binance's are a
    `candled.api.kline_streams.KlineClient`. Before a client's first message, `candled.serve.access.Unauthenticated`
    waits for its token, and `candled.serve.dialects.Undecided` for its protocol.

    This class ignores all calls: it is the client of a connection before it has one, and after its end.
    """

    __slots__ = ()

    def on_client_message(self, message: str | bytes) -> None:
        """Handle one message: text, or bytes if it is binary."""

    def make_initial(self, topic: Topic) -> Frame | None:
        """Return the requested `initial` as of now; None if there is nothing to send any more."""
        return None

    def on_fell_behind(self, topic: Topic) -> None:
        """Request a new `initial` later: too many bars of a topic were queued, and have been dropped."""

    def notify_shutdown(self, reconnect_after_ms: int) -> None:
        """Prepare for the server closing the connection."""

    def on_close(self) -> None:
        """Clean up after the connection. Called once, and never from inside a call to the connection."""


class ClientConnection:
    """The common part of a socket owned by candled and a connection kept by Tornado. No method blocks or raises.

    A broadcast calls `take_frame`. It takes a frame and returns the number of its bytes that are handled; it may raise
    the errors of `socket.send`. The function is replaced as the state changes: while the client is slow, it queues
    frames; after the end, it drops them. That way the loop over all connections needs no checks.
    """

    __slots__ = (
        "__weakref__",
        "_broadcaster",
        "_outbox",
        "address",
        "blocked_since",
        "budget",
        "client",
        "close_code",
        "grant",
        "is_open",
        "recipient_slots",
        "take_frame",
    )

    def __init__(self, broadcaster: Broadcaster, address: str) -> None:
        # sends, queues or drops a frame; replaced by `redirect_frames` when the state changes
        self.take_frame: Callable[[bytes], int] = drop
        # the slots in lists of recipients; maintained by the slots
        self.recipient_slots: tuple[RecipientSlot, ...] = ()
        # set by the server after the handshake, and reset by `finalize`
        self.client = NO_CLIENT
        # the client's IP address, behind trusted proxies too
        self.address = address
        # the budget of its work; set by the server after the handshake
        self.budget = UNLIMITED
        # the access of its token; None if it needs none, or has sent none yet
        self.grant: Grant | None = None
        # False once a close frame was sent or the connection is lost
        self.is_open = True
        # the code of the first close frame, of either side; 1006 without one (RFC 6455, 7.1.5)
        self.close_code = 1006
        # monotonic seconds; set while a frame is partly sent
        self.blocked_since: float | None = None
        self._broadcaster = broadcaster
        # the queue; None while it is empty
        self._outbox: Outbox | None = None

    # ------------------------------------------------------------ calls from rooms

    def send_frame(self, frame: bytes) -> int:
        """Send a frame, or queue it in place of an older state of its bar; return its size."""
        size = len(frame)
        self._broadcaster.given_bytes += size
        try:
            taken = self.take_frame(frame)
        except BlockingIOError:
            taken = 0
        except OSError:
            self.connection_lost()
            return size
        if taken != size:
            self.on_short_write(frame, taken)
        return size

    def send_reply(self, frame: bytes) -> None:
        """Send a reply. Replies keep their order and go before queued updates."""
        frame = self.encode_frame(frame)
        if self.blocked_since is None:
            self.send_frame(frame)
        else:
            self._broadcaster.given_bytes += len(frame)
            self._queue_reply(frame)

    def request_snapshot(self, topic: Topic) -> None:
        """Call `client.make_initial` and send its frame when the socket can take it, perhaps now."""
        if not self.is_open:
            return
        if self.blocked_since is None:
            self._broadcaster.request_turn(self, topic)
        else:
            self.outbox.put_initial(topic)

    def cancel_topic(self, topic: Topic) -> None:
        """Drop the queued frames of a topic and its requested snapshot."""
        self._broadcaster.cancel_turn(self, topic)
        if self._outbox is not None:
            self._outbox.drop_topic(topic)

    def cork(self, many: bool) -> None:
        """Buffer the frames of one pass, if the client is in several rooms, so that they leave together."""

    def disconnect(self, code: int, reason: str) -> None:
        """Send a close frame, then end the connection."""
        raise NotImplementedError

    def blocked_for(self, now: float) -> float:
        """Return the seconds for which a frame has been partly sent; 0.0 if none is."""
        return 0.0 if self.blocked_since is None or not self.is_open else now - self.blocked_since

    def charge_work(self, cost: float) -> float:
        """See `RecipientConnection.charge_work`."""
        return self.budget.admit(cost, self.now())

    def charge_refusal(self) -> None:
        """See `RecipientConnection.charge_refusal`."""
        if self.is_open and self.budget.penalize(self.now()):
            self.disconnect(3013, "too much work")

    @property
    def is_light(self) -> bool:
        """True if the client and its address have used little of their budgets of work."""
        return self.budget.is_light(self.now())

    def charge_received(self, cost: float) -> bool:
        """Charge received frames; close the connection and return False if the client ignores many refusals."""
        if self.budget.charge(cost, self.now()) != REFUSED:
            return True
        was_open = self.is_open
        self.charge_refusal()
        return self.is_open == was_open

    def now(self) -> float:
        """Return monotonic seconds."""
        raise NotImplementedError

    # ------------------------------------------------------------ calls from the broadcaster and the ping wheel

    def on_turn(self, topic: Topic) -> None:
        """Send a requested `initial` now, or queue it if the connection is blocked."""
        if self.blocked_since is not None:
            self.outbox.put_initial(topic)
        elif self.is_open:
            frame = self.client.make_initial(topic)
            if frame is not None:
                self.send_frame(self.encode_frame(frame))

    def on_short_write(self, frame: bytes, taken: int) -> None:
        """Handle a partial write: the socket took only `taken` bytes of the frame."""
        raise NotImplementedError

    def connection_lost(self) -> None:
        """Handle a broken connection."""
        raise NotImplementedError

    def uncork(self) -> None:
        """Send the buffered frames."""

    def finalize(self) -> None:
        """Call the client's `on_close`. None of the client's own calls is running at this point."""
        client, self.client = self.client, NO_CLIENT
        client.on_close()

    # ------------------------------------------------------------ inside

    def redirect_frames(self, take_frame: Callable[[bytes], int]) -> None:
        """Replace `take_frame`."""
        self.take_frame = take_frame
        for slot in self.recipient_slots:
            slot.refresh_taker()

    def encode_frame(self, frame: bytes) -> bytes:
        """Return a reply or an `initial` in this client's encoding."""
        return frame

    @property
    def outbox(self) -> Outbox:
        """The queue, created on first use."""
        if self._outbox is None:
            self._outbox = Outbox()
        return self._outbox

    def queue_frame(self, frame: bytes) -> int:
        """Queue a frame, in place of `take_frame` while another is partly sent. Keep the newest state of a few bars."""
        if not isinstance(frame, Frame) or frame.topic is None or not frame.open_ms:
            self._queue_reply(self.encode_frame(frame))
        elif not self.outbox.put_update(
            frame.topic, frame.open_ms, frame, corrects=frame.corrects, most=frame.most_waiting
        ):
            self.outbox.drop_topic(frame.topic)
            self.client.on_fell_behind(frame.topic)
        return len(frame)

    def queue_frames(self, frames: Sequence[bytes]) -> None:
        """Queue buffered frames. A bar's state from before an `initial` must not be sent after it."""
        last = max((at for at, frame in enumerate(frames) if not getattr(frame, "open_ms", 0)), default=-1)
        for frame in frames[: last + 1]:
            self._queue_reply(self.encode_frame(frame))
        for frame in frames[last + 1 :]:
            self.queue_frame(frame)

    def _queue_reply(self, frame: bytes) -> None:
        if self.is_open and not self.outbox.put_reply(frame):
            self.disconnect(3008, "too many answers wait to be read")

    def next_frame(self) -> bytes | None:
        """Return the next queued frame, rendering an `initial` now; None if the queue is empty."""
        while self._outbox is not None:
            item = self._outbox.pop_next()
            if item is None:
                self._outbox = None
            elif isinstance(item, bytes):
                return item
            else:
                frame = self.client.make_initial(item)
                if frame is not None:
                    encoded = self.encode_frame(frame)
                    self._broadcaster.given_bytes += len(encoded)
                    return encoded
                if self._outbox is not None and self._outbox.has_initial(item):  # it needs more turns
                    self._outbox.drop_topic(item)
                    self._broadcaster.request_turn(self, item)
        return None


def drop(frame: bytes) -> int:
    """Drop a frame, in place of `take_frame` after the end of a connection."""
    return len(frame)


NO_CLIENT = ConnectionListener()

MakeClient = Callable[[ClientConnection], ConnectionListener]
"""Makes the client of a connection."""
