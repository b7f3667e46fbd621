"""HTTP as bytes, for what clients of libraries would not send."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


async def ask_all(port: int, requests: Iterable[tuple[str, Mapping[str, str]]], method: str = "GET") -> list[Answer]:
    """Send requests, each a path and headers, one after another on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = []
    for path, headers in requests:
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in {"Host": "x", **headers}.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(found.get("content-length", 0))) if method != "HEAD" else b""
        answers.append(Answer(int(head[0].split()[1]), found, body))
    writer.close()
    await writer.wait_closed()
    return answers
