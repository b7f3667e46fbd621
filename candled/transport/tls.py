"""TLS for clients without a proxy: the certificate, and sockets that speak it with the methods of plain ones."""

import logging
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from candled.errors import ConfigError

from .library_internals import certificate_end

logger = logging.getLogger(__name__)


class ServerTls:
    """The certificate of the settings. `refresh` reads changed files again; open connections keep the former one.

    Raises:
        ConfigError: the files cannot be read, or do not belong together.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self._files = (certificate, key)
        self._state = self._read_state()
        self._context, self.expires_ms = self._load()

    def refresh(self) -> None:
        """Read the files again if they have changed. With a mistake in them, the former certificate stays."""
        state = self._read_state()
        if state == self._state:
            return
        self._state = state
        try:
            self._context, self.expires_ms = self._load()
            logger.info("%s: read again", self._files[0])
        except ConfigError as error:
            logger.error("%s; the former certificate stays in use", error)

    def wrap(self, peer: socket.socket) -> ssl.SSLSocket:
        """Return a socket whose handshake has not begun."""
        return self._context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)

    def _load(self) -> tuple[ssl.SSLContext, int]:
        """Return a context with the files, and when the certificate expires, UTC epoch ms."""
        certificate, key = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(certificate, key or None, password=_refuse_password)
            return context, certificate_end(certificate) * 1000
        except ssl.SSLError as error:
            reason = error.reason or "not PEM"
            raise ConfigError(f"server.tls_certificate: {certificate}: cannot be used: {reason}") from None
        except (OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"server.tls_certificate: {certificate}: cannot be used: {text}") from None

    def _read_state(self) -> list[object]:
        state: list[object] = []
        for name in filter(None, self._files):
            with suppress(OSError):
                found = Path(name).stat()
                state.append((name, found.st_mtime_ns, found.st_size, found.st_ino))
        return state


def _refuse_password() -> str:
    raise ValueError("the key has a password: store it without one, readable by candled's user only")


class TlsSocket:
    """A TLS connection with the methods of a plain socket, as `SocketConnection` uses them.

    If the kernel does not take a write, OpenSSL wants the same bytes again. So each frame is a write of its own, and
    the connection tries again with the frame that was not taken.
    """

    def __init__(self, peer: ssl.SSLSocket) -> None:
        self._peer = peer
        self.fileno = peer.fileno
        self.setblocking = peer.setblocking
        self.setsockopt = peer.setsockopt
        self.close = peer.close

    def send(self, data: bytes | memoryview) -> int:
        """Send bytes; return the number that was taken.

        Raises:
            BlockingIOError: none were taken.
            OSError: the connection is broken.
        """
        try:
            return self._peer.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None

    def sendmsg(self, frames: Iterable[bytes]) -> int:
        """Send frames one after another; return the number of bytes that were taken. It raises what `send` does."""
        taken = 0
        for frame in frames:
            try:
                count = self.send(frame)
            except BlockingIOError:
                if taken:
                    return taken
                raise
            taken += count
            if count < len(frame):
                break
        return taken

    def recv(self, size: int) -> bytes:
        """Return all bytes that are decrypted, which the loop does not report again; b"" at the end.

        Raises:
            BlockingIOError: there are none.
            OSError: the connection is broken.
        """
        try:
            data = self._peer.recv(size)
            while data and self._peer.pending():
                data += self._peer.recv(self._peer.pending())
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        return data

    def shutdown(self, how: int) -> None:
        """Tell the client that no more bytes follow, and end the sending direction."""
        with suppress(OSError, ValueError):
            self._peer.unwrap()  # sends the alert; the client's own is not waited for
        socket.socket.shutdown(self._peer, how)
