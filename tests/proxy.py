"""A TCP proxy inside the test process that can cut, lose and freeze what it carries."""

import select
import socket
import struct
import threading
from contextlib import suppress
from typing import Literal

_TICK_S = 0.05  # how soon a frozen or idle connection notices that it may go on, or must end


class Proxy:
    """Carries connections from `address` to `server`, both host and port; use it in a `with` block.

    `faults` counts the connections it has cut, `faults_at_commit` those of them cut where a transaction was ending.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_TICK_S)
        self._lock = threading.Lock()
        self._is_closing = False
        self._is_frozen = False
        self._is_refusing = False
        self._made = 0  # connections so far; of those up to the numbers below nothing is carried, or they are reset
        self._lost = 0
        self._reset = 0
        self._bytes_left: int | None = None
        self._at_commit: Literal["", "lose the request", "lose the answer"] = ""
        self._threads = [threading.Thread(target=self._accept)]
        self.address: tuple[str, int] = self._listener.getsockname()
        self.faults = 0
        self.faults_at_commit = 0

    def __enter__(self) -> "Proxy":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def cut_after(self, count: int) -> None:
        """Reset the connection that carries the `count`-th byte from now, in whichever direction."""
        with self._lock:
            self._bytes_left = count

    def cut_at_commit(self, *, reaches_server: bool) -> None:
        """Reset the next connection that commits: before the server hears of it, or before its answer is heard."""
        with self._lock:
            self._at_commit = "lose the answer" if reaches_server else "lose the request"

    def spare(self) -> None:
        """Cut nothing of what was asked for and has not come yet."""
        with self._lock:
            self._bytes_left, self._at_commit = None, ""

    def freeze(self) -> None:
        """Carry nothing any more, without closing anything: both ends still see a healthy connection."""
        self._is_frozen = True

    def thaw(self) -> None:
        """Go on where it was frozen."""
        self._is_frozen = False

    @property
    def connections(self) -> int:
        """How many were made so far."""
        return self._made

    def lose_existing(self) -> None:
        """Carry nothing any more on the connections there are, without closing them: half open. New ones work."""
        self._lost = self._made

    def reset_existing(self) -> None:
        """Reset the connections there are; new ones work."""
        self._reset = self._made

    def refuse(self, refuses: bool = True) -> None:
        """Reset every new connection."""
        self._is_refusing = refuses

    def _accept(self) -> None:
        while not self._is_closing:
            with suppress(TimeoutError):
                client, _ = self._listener.accept()
                self._made += 1
                thread = threading.Thread(target=self._carry, args=(client, self._made))
                self._threads.append(thread)
                thread.start()

    def _carry(self, client: socket.socket, number: int) -> None:
        if self._is_refusing:
            _reset(client)
            return
        try:
            server = socket.create_connection(self._server)
        except OSError:
            _reset(client)
            return
        with suppress(OSError):
            self._relay(client, server, number)
        _reset(client)
        server.close()

    def _relay(self, client: socket.socket, server: socket.socket, number: int) -> None:
        loses_next_answer = False
        while not self._is_closing and number > self._reset:
            if number <= self._lost:
                threading.Event().wait(_TICK_S)
                continue
            readable, _, _ = select.select([client, server], [], [], _TICK_S)
            for source in readable:
                while self._is_frozen and not self._is_closing:
                    threading.Event().wait(_TICK_S)
                data = source.recv(65_536)
                if not data or (loses_next_answer and source is server):
                    return
                passes, loses_next_answer = self._judge(data, from_client=source is client)
                (server if source is client else client).sendall(data[:passes])
                if passes < len(data):
                    return

    def _judge(self, data: bytes, *, from_client: bool) -> tuple[int, bool]:
        """How many bytes pass before the connection is cut, and whether the answer to them is to be lost."""
        with self._lock:
            if self._at_commit and from_client and b"COMMIT" in data:
                loses_answer = self._at_commit == "lose the answer"
                self._at_commit = ""
                self.faults += 1
                self.faults_at_commit += 1
                return (len(data) if loses_answer else 0), loses_answer
            if self._bytes_left is None:
                return len(data), False
            if self._bytes_left >= len(data):
                self._bytes_left -= len(data)
                return len(data), False
            passes, self._bytes_left = self._bytes_left, None
            self.faults += 1
            return passes, False


def _reset(sock: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
