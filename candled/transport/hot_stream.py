"""Answer simple requests where they are read, before Tornado parses them.

`HotStream` is a stream of Tornado with some of its documented methods replaced. Tornado needs about 0.2 ms for a
request; an answer that is ready in memory needs a tenth of it. Any other request reaches Tornado as it was sent.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

from tornado.iostream import IOStream, SSLIOStream

from candled.addresses import client_of
from candled.exchange import Clock

from .http_connections import MOST_UNSENT, REFUSED_S, HttpConnections
from .library_internals import buffered_tail, has_buffered_bytes, is_accepting, watch_with
from .request_head import LARGEST, TAIL, RequestHead
from .stream_poller import StreamPoller
from .tls import TlsSocket
from .work_budget import BYTE, HEAD_PART, REFUSED, REQUEST, TLS_HANDSHAKE, UNLIMITED, WorkBucket

Answer = Callable[[bytes, str, WorkBucket], bytes | None]
"""Returns the complete answer to a request, given its head, the peer's address, and the budget of the connection.

None if Tornado must answer.
"""

_MOST_HEAD = 4096
_READ = 2 * LARGEST  # bytes that Tornado reads at a time, for which it makes a buffer: more than the largest head
_STATUS_REFUSED = b"HTTP/1.1 429 "
_END = b"\r\n\r\n"
_BY_TORNADO_S = 1800.0  # a request reaches Tornado at least this often: it closes idle connections after an hour


def closing_answer(status: str, retry_s: int, content_type: str, body: str) -> bytes:
    """Return the complete answer to a request that is not parsed, whose connection is closed after it."""
    head = (
        f"HTTP/1.1 {status}\r\nServer: candled\r\nRetry-After: {retry_s}\r\nConnection: close\r\n"
        f"Content-Type: {content_type}; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode("ascii")


def unavailable_answer(message: str) -> bytes:
    """Return the complete answer to a request for which there is no room."""
    body = f'{{"error":{{"code":503,"message":"{message}"}}}}\n'
    return closing_answer("503 Service Unavailable", 10, "application/json", body)


TOO_MANY = closing_answer("429 Too Many Requests", REFUSED_S, "text/html", "Too many requests, please try again later.")
_NO_ROOM = unavailable_answer("This server has no room for more connections")


class HotStream(IOStream):
    """A connection whose requests are answered by `answer` if possible, otherwise by Tornado.

    The socket is read only in its turn, when `poller` reports it. Tornado gets only complete heads.
    """

    def __init__(
        self,
        peer: socket.socket,
        address: Any,
        answer: Answer,
        clock: Clock,
        connections: HttpConnections,
        poller: StreamPoller,
    ) -> None:
        super().__init__(peer, read_chunk_size=_READ)
        watch_with(self, poller)
        self.address = address[0] if isinstance(address, tuple) else str(address)
        self._answer = answer
        self._clock = clock
        # True while Tornado waits for a request and has none of its bytes
        self._is_idle = False
        self._since = -1.0  # when Tornado began to wait; negative before that
        # True until the first bytes after Tornado began to wait
        self._awaits_first = True
        self._connections = connections
        self._poller = poller
        # the head of the next request; None while Tornado has it
        self._head: RequestHead | None = None
        # bytes that were read from the socket and that Tornado gets when it reads
        self._read_early = b""
        self.customer = client_of(self.address)
        self.deadline = self.progressed_at = 0.0
        self.unsent = 0
        self.budget = UNLIMITED
        # the budget of the client whose request is being answered
        self._payer = UNLIMITED
        # seconds that the answer has to wait; `REFUSED` if the budget refuses the request
        self.work_wait_s = 0.0
        connections.add_connection(self, clock.monotonic())
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def expect_request(self) -> None:
        """Answer the next request if possible. Tornado calls this, through the application, before it reads one."""
        self._is_idle = not has_buffered_bytes(self)
        self._head = RequestHead(*buffered_tail(self, TAIL))
        former, self._since = self._since, self._clock.monotonic()
        if former >= 0 and not self.closed():  # the first request has the header timeout, from accept
            self._awaits_first = True
            self._connections.await_request(self, self._since)

    def on_request(self, payer: WorkBucket, path: str) -> None:
        """Note that Tornado has the header of a request, and charge it to a budget, or to the reserve for probes."""
        now = self._clock.monotonic()
        self._head = None
        self._connections.on_request(self, now)
        self._payer = payer
        if payer.wait_of(now) and self._connections.admit_probe(path, self.customer, now):
            payer.charge(REQUEST, now)
            self.work_wait_s = 0.0
        else:
            self.work_wait_s = payer.admit(REQUEST, now)

    def charge_work(self, cost: float) -> None:
        """Charge work for the answer that is being made."""
        self._payer.charge(cost, self._clock.monotonic())

    async def wait_for_budget(self) -> None:
        """Wait until the work charged before this request is paid."""
        await self._clock.sleep(self.work_wait_s)

    async def pause(self) -> None:
        """Wait in the middle of a long answer, until the work charged so far is paid."""
        wait_s = self._payer.wait_of(self._clock.monotonic())
        if wait_s:
            await self._clock.sleep(min(wait_s, self._payer.longest_wait_s))

    def on_refused(self, path: str) -> None:
        """Note that a limit refused a request."""
        self._connections.count_refusal(self, self.address, path.rpartition("/")[0], self._clock.monotonic())

    def leave_connections(self) -> None:
        """Stop counting this connection: it belongs to a client now."""
        self._payer = UNLIMITED
        self._connections.remove_connection(self)

    def answer_readable(self) -> bool:
        """Answer the request that has arrived. To read it, Tornado would need as much time as the answer takes.

        Returns:
            False if Tornado has to read: bytes that are no such request, or the end of the connection.
        """
        if not self._is_idle or not self._awaits_first or self.closed():
            return False
        try:
            data = self.receive_head()
        except BlockingIOError:
            return True
        except OSError as error:
            self.close(exc_info=error)
            return True
        if not data:
            return False
        self._awaits_first = False
        self._connections.on_first_bytes(self, self._clock.monotonic())
        if self._is_refused(data) or self._is_answered(data):
            return True
        self._read_early = data
        return False

    def receive_head(self) -> bytes:
        """Return received bytes; b"" at the end of the connection.

        Raises:
            BlockingIOError: there are none.
            OSError: the connection is broken.
        """
        return self.socket.recv(_MOST_HEAD)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read bytes for Tornado."""
        if not self._poller.is_handling:
            return None  # not in its turn: Tornado tries to read before it waits
        head = self._head
        early, self._read_early = self._read_early, b""
        if early:
            buf[: len(early)] = early
            return len(early) if head is None else self._collect_head(head, buf, len(early))
        room = memoryview(buf)[: len(buf) - head.waiting] if head is not None and head.waiting else buf
        try:
            count = super().read_from_fd(room)
        except OSError:
            del buf, room  # the stream keeps the error, and thereby this frame, until it is collected
            raise
        if not count:
            return count
        is_first, self._awaits_first = self._awaits_first, False
        if is_first:
            self._connections.on_first_bytes(self, self._clock.monotonic())
            if self._is_refused(buf[: min(count, _MOST_HEAD)]):
                return None
        return count if head is None else self._collect_head(head, buf, count)

    def _collect_head(self, head: RequestHead, buf: bytearray | memoryview, count: int) -> int | None:
        """Buffer a part of a head; return the number of bytes for Tornado once the head is complete, else None."""
        in_parts = head.waiting > 0
        data = head.add_data(buf[:count])
        if data is None:
            if self.budget.charge(HEAD_PART, self._clock.monotonic()) == REFUSED:
                self._refuse_unread()
            return None
        self._head = None
        if in_parts:
            if self._is_refused(data[:_MOST_HEAD]):
                return None
            buf[: len(data)] = data
        return len(data)

    def _is_refused(self, head: bytes | bytearray | memoryview) -> bool:
        """Refuse a request that must not be parsed, and close the connection; return False for any other."""
        is_refused = self._connections.is_refused(self, bytes(head), self._clock.monotonic())
        if is_refused:
            self._refuse_unread()
        return is_refused

    def close_for_room(self) -> None:
        """Close the connection to make room. If it has begun to send a request, it gets 503."""
        if self._head is not None and self._head.waiting and not self.writing():
            self._send(_NO_ROOM)
        self.close()

    def _refuse_unread(self) -> None:
        self.write(TOO_MANY)
        self.close()

    def _is_answered(self, head: bytes) -> bool:
        """Answer a complete request if possible; return False if Tornado must read it."""
        now = self._clock.monotonic()
        if (
            head.endswith(_END)
            and head.find(_END) == len(head) - 4
            and not self.writing()
            and now < self._since + _BY_TORNADO_S
        ):
            answer = self._answer(head, self.address, self.budget)
            if answer is not None:
                self._awaits_first = True
                self._connections.await_request(self, now)
                self._payer = UNLIMITED  # `answer` has charged it
                if answer.startswith(_STATUS_REFUSED):
                    self.on_refused(head.split(b" ", 2)[1].partition(b"?")[0].decode("ascii"))
                self._send(answer)
                return True
        self._is_idle = False
        return False

    def _send(self, answer: bytes) -> None:
        """Send an answer without the future that Tornado makes for each write. Nothing may be waiting to be sent."""
        try:
            count = self.socket.send(answer)
        except OSError:  # `write` tries again, and handles errors
            count = 0
        if count < len(answer):
            self.write(answer[count:])

    def write(self, data: bytes | memoryview) -> "asyncio.Future[None]":
        """Write bytes, and count them until the kernel has taken them."""
        if not self.closed():
            self._connections.on_written(self, len(data))
            self._payer.charge(len(data) * BYTE, self._clock.monotonic())
        written = super().write(data)
        if self._connections.unsent > MOST_UNSENT:
            self._connections.close_unread()
        return written

    def write_to_fd(self, data: memoryview) -> int:
        """Write bytes to the socket, and count them as sent."""
        count = super().write_to_fd(data)
        self._connections.on_sent(self, count, self._clock.monotonic())
        return count

    def close_fd(self) -> None:
        """Close the socket, and stop counting it."""
        super().close_fd()
        if self.error is not None:
            self.error.__traceback__ = None  # its frames have this stream, which only a collection would free
        self._connections.remove_connection(self)

    def set_nodelay(self, value: bool) -> None:
        """Do nothing: answers are sent without delay from the beginning."""


class SecureHotStream(HotStream, SSLIOStream):
    """A `HotStream` over TLS.

    The handshake counts as a part of the first request's header, and is charged as it begins.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.budget.charge(TLS_HANDSHAKE, self._clock.monotonic())

    def answer_readable(self) -> bool:
        """See `HotStream.answer_readable`. Tornado makes the handshake."""
        return not is_accepting(self) and super().answer_readable()

    def receive_head(self) -> bytes:
        """See `HotStream.receive_head`."""
        return TlsSocket(self.socket).recv(_MOST_HEAD)

    def close_for_room(self) -> None:
        """Close the connection to make room, without an answer if its handshake is not complete."""
        if is_accepting(self):
            self.close()
        else:
            super().close_for_room()
