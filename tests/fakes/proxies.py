"""Proxies in the test process: HTTP with CONNECT and SOCKS5, with users, refusals and faults."""

import asyncio
import base64
import contextlib
import ipaddress
import struct
from collections.abc import Mapping
from typing import Literal

Kind = Literal["http", "socks5h"]
Fault = Literal["", "forbidden", "stalls", "dies", "in pieces", "nonsense"]


class FakeProxy:
    """A proxy on a free port of 127.0.0.1; use it in an `async with` block.

    Names are looked up in `hosts` alone, so that a connection to one of them can only have come through here.

    Attributes:
        credentials: `user:password` that a client needs; None for everybody.
        fault: how it fails. `in pieces` is none: its answer comes in several packets.
        asked: the `host:port` of each request.
        carried: the tunnels so far.
    """

    def __init__(self, kind: Kind, hosts: Mapping[str, int], credentials: str | None = None, fault: Fault = "") -> None:
        self.kind = kind
        self.credentials = credentials
        self.fault: Fault = fault
        self.asked: list[str] = []
        self.carried = 0
        self.port = 0
        self._hosts = hosts
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "FakeProxy":
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, credentials: str | None = None) -> str:
        """How a client writes it."""
        return f"{self.kind}://{f'{credentials}@' if credentials else ''}127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End all tunnels."""
        for task in self._tasks:
            task.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await (self._http if self.kind == "http" else self._socks)(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _fails(self, writer: asyncio.StreamWriter) -> bool:
        if self.fault == "stalls":
            await asyncio.sleep(60)
        if self.fault == "nonsense":
            writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
            await writer.drain()
        return self.fault in ("dies", "nonsense")

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = first.split()
        self.asked.append(target)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if await self._fails(writer):
            return
        sent = headers.get("proxy-authorization", "").removeprefix("Basic ")
        if method != "CONNECT":
            answer = "405 Method Not Allowed"
        elif self.credentials is not None and base64.b64decode(sent).decode("latin-1") != self.credentials:
            answer = (
                '407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Basic realm="x"'
            )
        elif self.fault == "forbidden" or target.rpartition(":")[0].strip("[]") not in self._hosts:
            answer = "403 Forbidden"
        else:
            for part in ("HTTP/1.1 200 ", "Connection established\r", "\nVia: test\r\n\r", "\n"):
                writer.write(part.encode())
                if self.fault == "in pieces":
                    await asyncio.sleep(0.02)
            await self._carry(reader, writer, target.rpartition(":")[0].strip("[]"))
            return
        writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 4\r\n\r\nnope".encode())
        await writer.drain()

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        offered = await reader.readexactly(count)
        if await self._fails(writer):
            return
        method = 0 if self.credentials is None else 2
        if method not in offered:
            writer.write(b"\x05\xff")
            await writer.drain()
            return
        writer.write(bytes((5, method)))
        if method == 2:
            user = (await reader.readexactly((await reader.readexactly(2))[1])).decode()
            password = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
            is_right = f"{user}:{password}" == self.credentials
            writer.write(bytes((1, not is_right)))
            await writer.drain()
            if not is_right:
                return
        kind = (await reader.readexactly(4))[3]
        size = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
        raw = await reader.readexactly(size)
        host = raw.decode() if kind == 3 else str(ipaddress.ip_address(raw))
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        self.asked.append(f"{host}:{port}")
        reply = 2 if self.fault == "forbidden" else 0 if host in self._hosts else 4
        for part in (bytes((5, reply)), bytes((0, 1)), bytes(6)):
            writer.write(part)
            if self.fault == "in pieces":
                await asyncio.sleep(0.02)
        await writer.drain()
        if reply == 0:
            await self._carry(reader, writer, host)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.carried += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._hosts[host])
        ways = [asyncio.ensure_future(_pass_on(reader, back)), asyncio.ensure_future(_pass_on(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            back.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
