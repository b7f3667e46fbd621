"""A client's socket, owned by candled after the handshake: frames go straight to the kernel."""

import asyncio
import codecs
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from websockets.extensions import Extension
from websockets.frames import Frame as Received
from websockets.frames import Opcode
from websockets.protocol import SEND_EOF, State

from candled.exchange import Clock

from .broadcaster import Broadcaster
from .compression import deflated
from .connection import ClientConnection, drop
from .library_internals import FrameProtocol
from .tls import TlsSocket
from .work_budget import FRAME

logger = logging.getLogger(__name__)

PING = b"\x89\x00"
# Unsent bytes that the kernel buffers for a client; above that the client is slow.
KERNEL_BUFFER = 16 * 1024
_READ = 8 * 1024  # bytes read at a time: enough for a complete subscription
# Bytes parsed at a time, and the number of frames after which the rest waits. An empty frame has 6 bytes, so all frames
# of 8 KiB may take 20 ms.
PARSED_BYTES, MOST_FRAMES = 512, 16
SENT_BYTES = 64 * 1024  # of queued frames sent at a time; the frame that exceeds them is sent too
_LEAST_FRAGMENT = 16  # bytes; the largest message in fragments of this size has the most fragments allowed
_LINGER_S = 3.0
_IOV_MAX = 512  # frames given to the kernel at a time; the system's own limit is 1024
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_protocol_log = logging.getLogger("candled.serve.websocket")
_protocol_log.setLevel(logging.WARNING)  # at a lower level it logs the end of every connection


class TransportContext:
    """State shared by the sockets of one server. `on_closed` is called with each connection whose socket was closed."""

    def __init__(
        self, broadcaster: Broadcaster, clock: Clock, *, largest: int, on_closed: Callable[["SocketConnection"], None]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.broadcaster = broadcaster
        self.clock = clock
        self.largest = largest  # bytes of a message from a client
        self.on_closed = on_closed
        self.blocked: set[SocketConnection] = set()  # connections with a frame that is partly sent
        self.leaving: dict[SocketConnection, float] = {}  # monotonic deadlines for answering the close frame

    @property
    def queued_bytes(self) -> int:
        """The bytes that are queued for slow clients."""
        return sum(connection.queued_bytes for connection in self.blocked)

    def sweep_slow(self, now: float, slow_s: float, others: Iterable[ClientConnection]) -> None:
        """Close connections blocked for more than `slow_s`, and those whose close frame was not answered in time.

        `others` are connections kept by Tornado. Call it every second.
        """
        for connection in [one for one in (*self.blocked, *others) if one.blocked_for(now) > slow_s]:
            logger.info("%s has not read for %.0f s: closed", connection.address, slow_s)
            self.broadcaster.end_later(partial(connection.disconnect, 3008, "slow"))
        for late in [one for one, until in self.leaving.items() if now >= until]:
            self.broadcaster.end_later(late.abort)


class SocketConnection(ClientConnection):
    """Frames in both directions on one socket. While one is partly sent, others are queued in the outbox."""

    __slots__ = (
        "_context",
        "_corked",
        "_decoder",
        "_ends",
        "_is_lost",
        "_is_paused",
        "_many",
        "_parts",
        "_protocol",
        "_rest",
        "_socket",
        "_unparsed",
        "awaits_pong",
        "slot",
    )

    def __init__(
        self,
        context: TransportContext,
        peer: socket.socket | TlsSocket,
        address: str,
        extensions: Sequence[Extension] = (),
    ) -> None:
        super().__init__(context.broadcaster, address)
        self._context = context
        self._socket: socket.socket | TlsSocket | None = peer
        self._rest: memoryview | None = None  # rest of the frame that is partly sent
        self._corked: list[bytes] | None = None  # frames that leave together
        self._many = False  # True while the client is in several rooms
        self._unparsed = b""  # received bytes that wait for their turn
        self._parts: list[bytes | str] | None = None  # fragments of a message
        self._decoder: codecs.IncrementalDecoder | None = None  # of a fragmented text message
        self._ends = False  # True once no more frames follow
        self._is_lost = False  # True once the socket failed or the client closed it
        self._is_paused = False  # True while the loop does not watch the socket for bytes: a read waits
        self.awaits_pong = False  # True from a ping until its pong
        self.slot = -1  # in the ping wheel
        self._protocol = FrameProtocol(state=State.OPEN, max_size=context.largest, logger=_protocol_log)
        self._protocol.extensions = list(extensions)
        peer.setblocking(False)
        tune(peer)
        self.redirect_frames(peer.send)

    def start_reading(self, early: bytes) -> None:
        """Start reading; `early` are bytes that arrived together with the handshake."""
        assert self._socket is not None
        self._context.loop.add_reader(self._socket, self._on_readable)
        if early:
            self._unparsed = early
            self._on_readable()

    # ------------------------------------------------------------ from the socket

    def _on_readable(self) -> None:
        is_light = self.is_light
        if not is_light and self._socket is not None:
            self._is_paused = True  # otherwise the loop would report the socket in each pass, and never sleep
            self._context.loop.remove_reader(self._socket)
        self._broadcaster.schedule_read(self._read_socket, is_light=is_light)

    def _read_socket(self) -> None:
        if self._socket is None or self._is_lost:
            return
        self._read_some(self._socket)
        if self._is_paused and not self._unparsed and self._socket is not None and not self._is_lost:
            self._is_paused = False
            self._context.loop.add_reader(self._socket, self._on_readable)

    def _read_some(self, peer: socket.socket | TlsSocket) -> None:
        data, self._unparsed = self._unparsed, b""
        if not data:
            try:
                data = peer.recv(_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
        if data:
            if not self._ends:
                self._on_data(data)
        else:
            self.connection_lost()

    def _on_data(self, data: bytes) -> None:
        """Handle received bytes, a flood of tiny frames in several turns; all answers of a turn leave together."""
        protocol, parsed = self._protocol, 0
        frames: list[Received] = []
        while parsed < len(data) and len(frames) < MOST_FRAMES:
            protocol.receive_data(data[parsed : parsed + PARSED_BYTES])
            frames += [event for event in protocol.events_received() if isinstance(event, Received)]
            parsed += PARSED_BYTES
        self._unparsed = data[parsed:]
        if self._unparsed:
            self._broadcaster.read_later(self._read_socket, is_light=self.is_light)
        if not self.charge_received(len(frames) * FRAME):
            return
        writes = protocol.data_to_send()  # a pong for each ping, then perhaps a close frame
        is_crowd = len(frames) > 1
        if is_crowd:
            self._start_corking()
        for frame in frames:
            if frame.opcode in _DATA:
                if not self._on_frame(frame):
                    break
            elif frame.opcode is Opcode.PING:
                self.send_reply(writes.pop(0))
            elif frame.opcode is Opcode.PONG:
                self.awaits_pong = False
        if protocol.state is not State.OPEN:
            self._send_last_frames([*writes, *protocol.data_to_send()])
        if is_crowd:
            self.uncork()

    def _on_frame(self, frame: Received) -> bool:
        """Pass a message to the client once it is complete; return False if no more frames may be handled."""
        if not self.is_open:
            return False
        if self._parts is not None and len(self._parts) * _LEAST_FRAGMENT >= self._context.largest:
            self._protocol.fail(1009, "too many fragments")  # empty ones have no size, but take memory
            return False
        try:
            message = self._complete_message(frame)
        except UnicodeDecodeError:
            self._protocol.fail(1007, "not UTF-8")
            return False
        try:
            if message is not None:
                self.client.on_client_message(message)
        except Exception:  # a bug in candled: close this client
            logger.exception("%s: a message cannot be handled, closing the connection", self.address)
            self.connection_lost()
        return self.is_open

    def _complete_message(self, frame: Received) -> str | bytes | None:
        """Return the message that this frame completes, or None. Invalid UTF-8 raises at the fragment that has it."""
        if frame.fin and self._parts is None:
            return str(frame.data, "utf-8") if frame.opcode is Opcode.TEXT else bytes(frame.data)
        if self._parts is None:
            self._parts = []
            self._decoder = codecs.getincrementaldecoder("utf-8")() if frame.opcode is Opcode.TEXT else None
        data = bytes(frame.data)
        self._parts.append(data if self._decoder is None else self._decoder.decode(data, frame.fin))
        if not frame.fin:
            return None
        parts, decoder, self._parts, self._decoder = self._parts, self._decoder, None, None
        return b"".join(parts) if decoder is None else "".join(parts)  # type: ignore[arg-type]

    # ------------------------------------------------------------ to the socket

    def now(self) -> float:
        """Return monotonic seconds."""
        return self._context.clock.monotonic()

    @property
    def queued_bytes(self) -> int:
        """The bytes that wait until the kernel takes more."""
        queued = 0 if self._outbox is None else self._outbox.size_bytes
        return queued if self._rest is None else queued + len(self._rest)

    def send_ping(self) -> None:
        """Send a ping, unless the connection is blocked: then `sweep_slow` closes it in time."""
        if self.is_open and self.blocked_since is None:
            self.awaits_pong = True
            self.send_frame(PING)

    def on_short_write(self, frame: bytes, taken: int) -> None:
        """Keep the rest of a frame until the kernel takes more, and queue all later frames."""
        if self._socket is None:
            return
        self._rest = memoryview(frame)[taken:]
        self.blocked_since = self._context.clock.monotonic()
        self.redirect_frames(self.queue_frame if self.is_open else drop)
        self._context.blocked.add(self)
        self._context.loop.add_writer(self._socket, self._on_writable)

    def _on_writable(self) -> None:
        if self.is_light or self._socket is None:
            self._broadcaster.schedule_write(self._send_rest, is_light=True)
        else:
            self._context.loop.remove_writer(self._socket)
            self._broadcaster.schedule_write(self._resume_writing, is_light=False)

    def _resume_writing(self) -> None:
        """Send queued bytes of a heavy client, whose socket the loop did not watch while this waited."""
        self._send_rest()
        if self._socket is not None and self._rest is not None and not self._is_lost:
            self._context.loop.add_writer(self._socket, self._on_writable)

    def _send_rest(self) -> None:
        """Send the rest of the frame, then the queued frames, until enough is sent for one turn."""
        sent = 0
        try:
            while self._socket is not None and self._rest is not None:
                if sent >= SENT_BYTES:
                    return  # the loop reports the socket again
                taken = self._socket.send(self._rest)
                sent += taken
                if taken < len(self._rest):
                    self._rest = self._rest[taken:]
                    return
                self._rest = None
                self.blocked_since = self._context.clock.monotonic()
                frame = self.next_frame() if self.is_open else None
                if frame is not None:
                    self._rest = memoryview(frame)
        except BlockingIOError:
            return
        except OSError:
            self.connection_lost()
            return
        except Exception:
            logger.exception("%s: queued frames cannot be sent, closing the connection", self.address)
            self.connection_lost()
            return
        self._on_unblocked()

    def _on_unblocked(self) -> None:
        if self._socket is None:
            return
        self.blocked_since = None
        self._context.blocked.discard(self)
        self._context.loop.remove_writer(self._socket)
        if self.is_open:
            self.redirect_frames(self._buffer if self._many else self._socket.send)
        elif self._ends:
            self._shut_down()

    def encode_frame(self, frame: bytes) -> bytes:
        """Return a large frame compressed, if compression was negotiated."""
        return deflated(frame) if self._protocol.extensions else frame

    # ------------------------------------------------------------ several frames in one system call

    def cork(self, many: bool) -> None:
        """Buffer the frames of each pass, so that they leave together; stop buffering if `many` is false."""
        self._many = many
        if many:
            self._start_corking()
        else:
            self.uncork()

    def _start_corking(self) -> None:
        if self.is_open and self.blocked_since is None:
            self.redirect_frames(self._buffer)

    def _buffer(self, frame: bytes) -> int:
        """Buffer a frame, in place of `take_frame` while frames are collected."""
        if self._corked is None:
            self._corked = []
            if self._many:
                self._broadcaster.uncork_later(self)
        self._corked.append(frame)
        if len(frame) > KERNEL_BUFFER:  # worth its own call; later snapshots wait until the socket has taken it
            self.uncork()
        return len(frame)

    def uncork(self) -> None:
        """Send the buffered frames."""
        frames, self._corked = self._corked, None
        if self._socket is None or not self.is_open or self.blocked_since is not None:
            return
        if not self._many:
            self.redirect_frames(self._socket.send)
        if frames:
            self._send_together(self._socket, frames)

    def _send_together(self, peer: socket.socket | TlsSocket, frames: list[bytes]) -> None:
        try:
            taken = peer.sendmsg(frames[:_IOV_MAX])
        except BlockingIOError:
            taken = 0
        except OSError:
            self.connection_lost()
            return
        for number, frame in enumerate(frames):
            if taken < len(frame):
                self.on_short_write(frame, taken)
                self.queue_frames(frames[number + 1 :])
                return
            taken -= len(frame)

    # ------------------------------------------------------------ the end

    def disconnect(self, code: int, reason: str) -> None:
        """Send a close frame after the frame that is partly sent. The client has 3 s to answer it."""
        if self.is_open:
            self._ends = self._ends or code == 3013  # the answer of a client that floods is not read
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(code, reason)
            self._send_last_frames(self._protocol.data_to_send())

    def _send_last_frames(self, writes: Sequence[bytes]) -> None:
        """Send the last frames, and shut down the sending direction when the protocol requires it."""
        self._ends = self._ends or SEND_EOF in writes
        data = b"".join([*self._take_remaining(), *writes])
        if self._socket is None or self._is_lost:
            return
        if self._rest is not None:
            self._rest = memoryview(bytes(self._rest) + data)
            return
        try:
            taken = self._socket.send(data) if data else 0
        except BlockingIOError:
            taken = 0
        except OSError:
            self.connection_lost()
            return
        if taken < len(data):
            self.on_short_write(data, taken)
        elif self._ends:
            self._shut_down()

    def _take_remaining(self) -> list[bytes]:
        """Accept no more frames; return those that the client still gets."""
        if not self.is_open:
            return []
        self.is_open = False
        self.redirect_frames(drop)
        gathered, self._corked = self._corked or [], None
        answers = self._outbox.take_replies() if self._outbox is not None else []
        self._outbox = None
        self._context.leaving[self] = self._context.clock.monotonic() + _LINGER_S
        self._broadcaster.end_later(self.finalize)
        return [*gathered, *answers]

    def _shut_down(self) -> None:
        """Shut down the sending direction. The client closes the connection when it has read everything."""
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.connection_lost()

    def connection_lost(self) -> None:
        """Handle a connection that broke or that the client ended."""
        if not self._is_lost:
            self._is_lost = True
            self.is_open = False
            self.redirect_frames(drop)
            self._broadcaster.end_later(self.finalize)

    def finalize(self) -> None:
        """Call the client's `on_close`, and close the socket of a lost connection."""
        super().finalize()
        if self._is_lost:
            self.abort()

    def abort(self) -> None:
        """Close the socket and release all resources."""
        peer, self._socket = self._socket, None
        if peer is None:
            return
        self._context.loop.remove_reader(peer)
        self._context.loop.remove_writer(peer)
        peer.close()
        self.close_code = self._protocol.sent_code or self.close_code  # the client's code, if the client was first
        self._protocol.release()
        self._context.blocked.discard(self)
        self._context.leaving.pop(self, None)
        self._rest = self._outbox = self._corked = None
        self._unparsed = b""
        self._context.on_closed(self)


def tune(peer: socket.socket | TlsSocket) -> None:
    """Make the kernel send small frames immediately, and buffer little for a client that does not read."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BUFFER)
