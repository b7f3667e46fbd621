"""The largest HTTP requests that the server reads: 16 KiB of header and 64 KiB of body."""

import asyncio

import pytest

from tests import deadlines
from tests.serve.peers import echo_site

HEADER, BODY = 16 * 1024, 64 * 1024
CLOSED = b""
BAD = b"HTTP/1.1 400 Bad Request\r\n\r\n"
OK = b"HTTP/1.1 200 OK"
NO_METHOD = b"HTTP/1.1 405 Method Not Allowed"


def head(method: str, *lines: str, length: int | None = None) -> bytes:
    """A request's header, filled up to `length` bytes in all."""
    text = "\r\n".join([f"{method} /health HTTP/1.1", "Host: a", "Connection: close", *lines, ""])
    if length is not None:
        text += f"X: {'x' * (length - len(text) - 7)}\r\n"
    return f"{text}\r\n".encode()


def post(length: int, sent: int) -> bytes:
    return head("POST", f"Content-Length: {length}") + b"x" * sent


def chunked(*lengths: int, end: bytes = b"0\r\n\r\n") -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (length, b"x" * length) for length in lengths)
    return head("POST", "Transfer-Encoding: chunked") + chunks + end


# Of a request that is too large, the part is sent that shows it: the rest would meet a closed connection.
REQUESTS = [
    pytest.param(head("GET", length=HEADER), OK, id="largest header"),
    pytest.param(head("GET", length=HEADER + 1), CLOSED, id="header one byte too long"),
    pytest.param(b"G" * (HEADER + 1), CLOSED, id="a first line that never ends"),
    pytest.param(post(BODY, BODY), NO_METHOD, id="largest body"),
    pytest.param(post(BODY + 1, 0), BAD, id="body one byte too long"),
    pytest.param(post(10**18, 0), BAD, id="body of an exabyte"),
    pytest.param(chunked(BODY), NO_METHOD, id="largest chunk"),
    pytest.param(chunked(BODY // 2, BODY // 2), NO_METHOD, id="largest body in two chunks"),
    pytest.param(chunked(end=b"%x\r\n" % (BODY + 1)), BAD, id="chunk one byte too long"),
    pytest.param(chunked(BODY, end=b"1\r\n"), BAD, id="last of two chunks too long"),
]


@pytest.mark.parametrize(("request_", "answer"), REQUESTS)
async def test_the_answer_to_a_request_at_and_above_its_limit(request_, answer):
    async with echo_site() as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(request_)
        async with deadlines.timeout(5):
            got = await reader.read()
        assert got == answer or (answer in (OK, NO_METHOD) and got.startswith(answer + b"\r\n"))
        writer.close()
