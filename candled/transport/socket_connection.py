"""A client's socket, owned by us since the handshake: frames go straight to the kernel, reading wakes nobody else."""

import asyncio
import codecs
import logging
import socket
from collections.abc import Callable, Sequence

from websockets.extensions import Extension
from websockets.frames import Frame as Received
from websockets.frames import Opcode
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol

from candled.exchange import Clock

from .broadcaster import Broadcaster
from .compression import deflated
from .connection import ClientConnection, drop

logger = logging.getLogger(__name__)

PING = b"\x89\x00"
# Unsent bytes that the kernel keeps for a client; beyond it the client is slow.
KERNEL_KEEPS = 16 * 1024
# Bytes read at a time: so many that a subscription is whole, so few that a flood takes turns with everybody.
_READ = 8 * 1024
_LINGER_S = 3.0
_IOV_MAX = 512  # frames given to the kernel at a time; the system's own limit is 1024
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_protocol_log = logging.getLogger("candled.serve.websocket")
_protocol_log.setLevel(logging.WARNING)  # it has a line for every connection that ends


class _Protocol(ServerProtocol):
    """Takes a close frame between the fragments of a message for the orderly end that it is (Autobahn, case 7.1.5)."""

    def recv_frame(self, frame: Received) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class TransportContext:
    """What the sockets of one server share. `gone` is told of each link whose socket was closed."""

    def __init__(
        self,
        publisher: Broadcaster,
        clock: Clock,
        *,
        largest: int,
        gone: Callable[["SocketConnection"], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.publisher = publisher
        self.clock = clock
        self.largest = largest  # bytes of a message from a client
        self.gone = gone
        self.parked: set[SocketConnection] = set()
        self.leaving: dict[SocketConnection, float] = {}  # until when the other side may answer the goodbye

    def sweep_slow(self, now: float, slow_s: float) -> None:
        """Close who has not read for so long, and cut off who did not answer a goodbye. Call it every second."""
        for link in [one for one in self.parked if one.blocked_for(now) > slow_s]:
            logger.info("%s has not read for %.0f s: closed", link.address, slow_s)
            link.disconnect(3008, "slow")
        for link in [one for one, until in self.leaving.items() if now >= until]:
            link.abort()


class SocketConnection(ClientConnection):
    """Frames in both directions on one socket. While one is under way, what comes meanwhile waits in the outbox."""

    __slots__ = (
        "_decoder",
        "_ends",
        "_gathered",
        "_is_lost",
        "_many",
        "_parts",
        "_protocol",
        "_rest",
        "_socket",
        "_wires",
        "awaits_pong",
        "slot",
    )

    def __init__(
        self, wires: TransportContext, peer: socket.socket, address: str, extensions: Sequence[Extension] = ()
    ) -> None:
        super().__init__(wires.publisher, address)
        self._wires = wires
        self._socket: socket.socket | None = peer
        self._rest: memoryview | None = None  # of the frame under way
        self._gathered: list[bytes] | None = None
        self._many = False  # several rooms
        self._parts: list[bytes | str] | None = None  # of a fragmented message
        self._decoder: codecs.IncrementalDecoder | None = None
        self._ends = False  # nothing follows what is under way
        self._is_lost = False
        self.awaits_pong = False
        self.slot = -1  # of the heartbeat's wheel
        self._protocol = _Protocol(state=State.OPEN, max_size=wires.largest, logger=_protocol_log)
        self._protocol.extensions = list(extensions)
        peer.setblocking(False)
        tune(peer)
        self.redirect_writes(peer.send)

    def start_reading(self, early: bytes) -> None:
        """Read from now on; `early` came together with the handshake."""
        assert self._socket is not None
        self._wires.loop.add_reader(self._socket, self._on_readable)
        if early:
            self._on_data(early)

    # ------------------------------------------------------------ from the socket

    def _on_readable(self) -> None:
        if self._socket is None or self._is_lost or not self._publisher.may_read():
            return  # a socket that is not read now is reported again in the next pass
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_data(data)
        else:
            self.connection_lost()

    def _on_data(self, data: bytes) -> None:
        """Handle what the client sent; all answers to it leave together."""
        protocol = self._protocol
        protocol.receive_data(data)
        frames = [event for event in protocol.events_received() if isinstance(event, Received)]
        writes = protocol.data_to_send()  # a pong for each ping, then perhaps the end
        is_crowd = len(frames) > 1
        if is_crowd:
            self._gather_from_now_on()
        for frame in frames:
            if frame.opcode in _DATA:
                if not self._on_frame(frame):
                    break
            elif frame.opcode is Opcode.PING:
                self.send_reply(writes.pop(0))
            elif frame.opcode is Opcode.PONG:
                self.awaits_pong = False
        if protocol.state is not State.OPEN:
            self._say_last([*writes, *protocol.data_to_send()])
        if is_crowd:
            self.uncork()

    def _on_frame(self, frame: Received) -> bool:
        """Give the client a message, once it is whole; return whether to go on."""
        if not self.is_open:
            return False
        try:
            message = self._complete_message(frame)
        except UnicodeDecodeError:
            self._protocol.fail(1007, "not UTF-8")
            return False
        try:
            if message is not None:
                self.client.on_message(message)
        except Exception:  # ours: this client ends, the others go on
            logger.exception("%s: a message could not be handled", self.address)
            self.connection_lost()
        return self.is_open

    def _complete_message(self, frame: Received) -> str | bytes | None:
        """The message that a frame completes. Text that is wrong is noticed with the fragment it is wrong in."""
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

    def send_ping(self) -> None:
        """Ask for a sign of life, unless the client is slow: then its patience is counted already."""
        if self.is_open and self.blocked_since is None:
            self.awaits_pong = True
            self.send_update(PING)

    def on_short_write(self, frame: bytes, taken: int) -> None:
        """The kernel has enough: the rest of the frame waits for it, and so does what comes meanwhile."""
        if self._socket is None:
            return
        self._rest = memoryview(frame)[taken:]
        self.blocked_since = self._wires.clock.monotonic()
        self.redirect_writes(self.keep_frame if self.is_open else drop)
        self._wires.parked.add(self)
        self._wires.loop.add_writer(self._socket, self._on_writable)

    def _on_writable(self) -> None:
        """The kernel takes more: the rest, then what waits."""
        try:
            while self._socket is not None and self._rest is not None:
                taken = self._socket.send(self._rest)
                if taken < len(self._rest):
                    self._rest = self._rest[taken:]
                    return
                self._rest = None
                self.blocked_since = self._wires.clock.monotonic()
                frame = self.next_frame() if self.is_open else None
                if frame is not None:
                    self._rest = memoryview(frame)
        except BlockingIOError:
            return
        except OSError:
            self.connection_lost()
            return
        except Exception:
            logger.exception("%s: what waits could not be sent", self.address)
            self.connection_lost()
            return
        self._on_unblocked()

    def _on_unblocked(self) -> None:
        if self._socket is None:
            return
        self.blocked_since = None
        self._wires.parked.discard(self)
        self._wires.loop.remove_writer(self._socket)
        if self.is_open:
            self.redirect_writes(self._buffer if self._many else self._socket.send)
        elif self._ends:
            self._shut_down()

    def encode_frame(self, frame: bytes) -> bytes:
        """Compress what is large, if that was agreed."""
        return deflated(frame) if self._protocol.extensions else frame

    # ------------------------------------------------------------ several frames in one system call

    def cork(self, many: bool) -> None:
        """Let the frames of one pass of the loop leave together."""
        self._many = many
        if many:
            self._gather_from_now_on()
        else:
            self.uncork()

    def _gather_from_now_on(self) -> None:
        if self.is_open and self.blocked_since is None:
            self.redirect_writes(self._buffer)

    def _buffer(self, frame: bytes) -> int:
        """Stand for `write` while frames are gathered."""
        if self._gathered is None:
            self._gathered = []
            if self._many:
                self._publisher.uncork_later(self)
        self._gathered.append(frame)
        if len(frame) > KERNEL_KEEPS:  # worth a call of its own; what is wanted next waits until the socket took it
            self.uncork()
        return len(frame)

    def uncork(self) -> None:
        """Send what was gathered."""
        frames, self._gathered = self._gathered, None
        if self._socket is None or not self.is_open or self.blocked_since is not None:
            return
        if not self._many:
            self.redirect_writes(self._socket.send)
        if frames:
            self._send_together(self._socket, frames)

    def _send_together(self, peer: socket.socket, frames: list[bytes]) -> None:
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
                self.keep_all_frames(frames[number + 1 :])
                return
            taken -= len(frame)

    # ------------------------------------------------------------ the end

    def disconnect(self, code: int, reason: str) -> None:
        """Send a close frame behind what is under way; the client has 3 s to answer it."""
        if self.is_open:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(code, reason)
            self._say_last(self._protocol.data_to_send())

    def _say_last(self, writes: Sequence[bytes]) -> None:
        """Send the last frames there are, and end our direction once the protocol says so."""
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
        """Take no more frames; return those that the client shall have all the same."""
        if not self.is_open:
            return []
        self.is_open = False
        self.redirect_writes(drop)
        gathered, self._gathered = self._gathered or [], None
        answers = self._outbox.take_replies() if self._outbox is not None else []
        self._outbox = None
        self._wires.leaving[self] = self._wires.clock.monotonic() + _LINGER_S
        self._publisher.finalize_later(self)
        return [*gathered, *answers]

    def _shut_down(self) -> None:
        """Nothing follows; the client closes the connection when it has read everything."""
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.connection_lost()

    def connection_lost(self) -> None:
        """The connection broke, or the client ended it."""
        if not self._is_lost:
            self._is_lost = True
            self.is_open = False
            self.redirect_writes(drop)
            self._publisher.finalize_later(self)

    def finalize(self) -> None:
        super().finalize()
        if self._is_lost:
            self.abort()

    def abort(self) -> None:
        """Close the socket, and let go of everything."""
        peer, self._socket = self._socket, None
        if peer is None:
            return
        self._wires.loop.remove_reader(peer)
        self._wires.loop.remove_writer(peer)
        peer.close()
        self._protocol.parser.close()  # it holds its protocol, and the protocol holds it;
        self._protocol.parser_exc = None  # so does an error's traceback
        self._wires.parked.discard(self)
        self._wires.leaving.pop(self, None)
        self._rest = self._outbox = self._gathered = None
        self._wires.gone(self)


def tune(peer: socket.socket) -> None:
    """Let small frames leave at once, and the kernel keep little for who does not read."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_KEEPS)
