"""Raw requests and their exact answers: odd, broken and hostile ones, with the state of the connection after each.

One server answers all of them. A row is sent to a path that is answered from memory and to one of a handler.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus

import pytest

from candled.api.handler import EXPOSED
from candled.config.sections import KlinesSettings, ServerSettings
from tests.api.stage import open_stage
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS

HOT, HANDLER = b"/health/live", b"/api/v3/ping"
HEADER, BODY = 16 * 1024, 64 * 1024  # the largest ones
OK, NOTHING = "200 OK", ""
BAD, FORBIDDEN, MISSING, NO_METHOD = "400 Bad Request", "403 Forbidden", "404 Not Found", "405 Method Not Allowed"
UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
)


@dataclass(frozen=True)
class Row:
    """A request, the status lines of its answers, and the end: the connection is closed, or answers another one."""

    name: str
    raw: bytes  # PATH is replaced
    answers: tuple[str, ...] = (OK,)
    is_kept: bool = True
    headers: dict[str, str | None] = field(default_factory=dict)  # of the last answer; None: it has no such header


def get(name: str, lines: bytes = b"", *answers: str, behind: bytes = b"", **more) -> Row:
    """A GET with a Host, further header lines, and bytes behind its header."""
    raw = b"GET PATH HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n" + behind
    return Row(name, raw, answers or (OK,), **more)


def bad(name: str, lines: bytes = b"", behind: bytes = b"") -> Row:
    """A GET that is refused and ends the connection."""
    return get(name, lines, BAD, behind=behind, is_kept=False)


def line(name: str, first: bytes, *answers: str, **more) -> Row:
    """A request with this first line and a Host."""
    return Row(name, first + b"\r\nHost: x\r\n\r\n", answers or (BAD,), **{"is_kept": bool(answers), **more})


def chunked(*sizes: int, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in sizes) + end


LENGTH, CHUNKED = b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"
EITHER_PATH = [
    get("plain"),
    # two lengths, or none that all agree on: whatever one reader takes for a second request is none here
    get("length 0", b"Content-Length: 0\r\n"),
    get("a body that looks like a request", b"Content-Length: 27\r\n", behind=b"GET /a HTTP/1.1\r\nHost: a\r\n\r"),
    bad("length and chunked", LENGTH + CHUNKED, behind=b"0\r\n\r\nGET /a HTTP/1.1\r\n\r\n"),
    bad("chunked and length", CHUNKED + LENGTH, behind=b"0\r\n\r\n"),
    get("two equal lengths", LENGTH * 2, behind=b"hello"),
    get("equal lengths in a list", b"Content-Length: 5, 5\r\n", behind=b"hello"),
    bad("two lengths", LENGTH + b"Content-Length: 6\r\n", behind=b"hello"),
    *(
        bad(f"length {text.decode('latin-1')!r}", b"Content-Length:%b\r\n" % text, behind=b"hello")
        for text in (b" +5", b" -1", b" 0x5", b" 5_0", b"", b" 5 5", b" \xb2", b" 5,", b" " + b"9" * 40)
    ),
    bad("a space before the colon of length", b"Content-Length : 5\r\n", behind=b"hello"),
    get("chunked", CHUNKED, behind=chunked(5)),
    get("CHUNKED", CHUNKED.upper(), behind=chunked(5)),
    get("chunked behind a tab", b"Transfer-Encoding:\tchunked\r\n", behind=chunked(5)),
    *(
        bad(f"coding {text.decode('latin-1')!r}", b"Transfer-Encoding: %b\r\n" % text, behind=chunked(5))
        for text in (
            b"gzip, chunked", b"chunked, identity", b"identity", b"xchunked", b"\x0bchunked", b"chunked\xa0",
            b"chunked\r\nTransfer-Encoding: identity", b"chunked\r\nTransfer-Encoding: chunked", b'"chunked"',
        )
    ),
    bad("a space before the colon of the coding", b"Transfer-Encoding : chunked\r\n", behind=chunked(5)),
    bad("a folded coding", b"Transfer-Encoding:\r\n chunked\r\n", behind=chunked(5)),
    *(
        bad(f"chunk {text.decode()!r}", CHUNKED, behind=text)
        for text in (
            b"zz\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"-1\r\n", b"+5\r\n", b"5;a=b\r\nhello\r\n0\r\n\r\n", b" 5\r\n",
            b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n", b"\r\n", b"5\nhello\n0\n\n\r\n",
        )
    ),
    # ends of lines, folded lines
    Row("bare LF", b"GET PATH HTTP/1.1\nHost: x\n\n"),
    Row("LF first", b"\nGET PATH HTTP/1.1\r\nHost: x\r\n\r\n"),
    get("bare LF between headers", b"A: b\nC: d\r\n"),
    bad("bare LF hides a length and a coding", b"A: b\nContent-Length: 5\r\n" + CHUNKED, behind=b"0\r\n\r\n"),
    bad("bare CR in a header", b"A: b\rC: d\r\n"),
    bad("folded header", b"A: b\r\n c\r\n"),
    Row("folded first line", b"GET PATH HTTP/1.1\r\n A: b\r\nHost: x\r\n\r\n", (BAD,), is_kept=False),
    Row("an empty line first", b"\r\n\r\nGET PATH HTTP/1.1\r\nHost: x\r\n\r\n", (BAD,), is_kept=False),
    # targets
    line("absolute form", b"GET http://xPATH HTTP/1.1", OK),
    line("absolute form of another host", b"GET HTTPS://evil.example:1PATH HTTP/1.1", OK),
    line("authority form", b"GET x:80 HTTP/1.1", MISSING),
    line("two slashes", b"GET /PATH HTTP/1.1", MISSING),
    line("a directory up", b"GET /x/..PATH HTTP/1.1", MISSING),
    line("escaped NUL", b"GET PATH%00 HTTP/1.1", MISSING),
    line("no escape", b"GET PATH%zz HTTP/1.1", MISSING),
    line("eight bits", b"GET PATH\xe9 HTTP/1.1", MISSING),
    line("fragment", b"GET PATH#a HTTP/1.1", MISSING),
    line("NUL in the target", b"GET PATH\0 HTTP/1.1"),
    line("ESC in the target", b"GET PATH\x1b HTTP/1.1"),
    line("a space in the target", b"GET PATH a HTTP/1.1"),
    line("a tab in the first line", b"GET\tPATH HTTP/1.1"),
    # methods and versions
    *(
        line(name, name.encode() + b" PATH HTTP/1.1", NO_METHOD, headers={"connection": None})
        for name in ("get", "FOO", "DELETE", "TRACE", "POST", "PUT", "PATCH", "CONNECT")
    ),
    line("a method with a sign", b"G@T PATH HTTP/1.1"),
    line("a method with a bracket", b"G(T PATH HTTP/1.1"),
    line("HEAD", b"HEAD PATH HTTP/1.1", OK),
    line("HTTP/1.0", b"GET PATH HTTP/1.0", OK, is_kept=False, headers={"connection": None}),
    Row("HTTP/1.0, kept", b"GET PATH HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", headers={"connection": "Keep-Alive"}),
    line("HTTP/1.2", b"GET PATH HTTP/1.2", OK, is_kept=False, headers={"connection": None}),
    *(line(f"version {text.decode()!r}", b"GET PATH " + text) for text in (b"HTTP/2.0", b"HTTP/11", b"http/1.1", b"")),
    Row("HTTP/0.9", b"GET PATH\r\n\r\n", (BAD,), is_kept=False),
    Row("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (BAD,), is_kept=False),
    # headers
    Row("no Host", b"GET PATH HTTP/1.1\r\n\r\n", (BAD,), is_kept=False),
    bad("the Host twice", b"Host: x\r\n"),
    bad("two Hosts", b"Host: y\r\n"),
    Row("an empty Host", b"GET PATH HTTP/1.1\r\nHost:\r\n\r\n"),
    *(
        Row(f"Host {text.decode()!r}", b"GET PATH HTTP/1.1\r\nHost: %b\r\n\r\n" % text, (BAD,), is_kept=False)
        for text in (b"a/b", b"a b", b"a@b", b"a,b")
    ),
    bad("NUL in a header", b"A: \0b\r\n"),
    bad("ESC in a header", b"A: \x1bb\r\n"),
    get("eight bits in a header", b"A: \xe9\r\n"),
    bad("NUL in a name", b"A\0: b\r\n"),
    bad("no name", b": b\r\n"),
    bad("no colon", b"abc\r\n"),
    get("100 headers", b"".join(b"A%d: b\r\n" % number for number in range(100))),
    get("Expect", b"Expect: 100-continue\r\n", "100 (Continue)", OK),
    get("Expect and a body", b"Expect: 100-continue\r\n" + LENGTH, "100 (Continue)", OK, behind=b"hello"),
    get("another Expect", b"Expect: x\r\n"),
    get("upgrade to HTTP/2", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n"),
    get("upgrade to WebSocket", UPGRADE),
    # the end of a connection, and requests behind each other
    get("close", b"Connection: close\r\n", is_kept=False, headers={"connection": "close"}),
    get("CLOSE", b"Connection: CLOSE\r\n", is_kept=False),
    get("behind close", b"Connection: close\r\n", behind=b"GET PATH HTTP/1.1\r\nHost: x\r\n\r\n", is_kept=False),
    get("three together", b"", OK, OK, OK, behind=b"GET PATH HTTP/1.1\r\nHost: x\r\n\r\n" * 2),
    get("garbage behind", b"", OK, BAD, behind=b"GARBAGE\r\n\r\n", is_kept=False),
    # sizes
    get("largest header", b"A: " + b"x" * (HEADER - 50) + b"\r\n"),
    get("a header too long", b"A: " + b"x" * HEADER + b"\r\n", NOTHING, is_kept=False),
    Row("a first line that never ends", b"G" * (HEADER + 1), (NOTHING,), is_kept=False),
    get("largest body", b"Content-Length: %d\r\n" % BODY, behind=b"x" * BODY),
    bad("body one byte too long", b"Content-Length: %d\r\n" % (BODY + 1)),
    bad("body of an exabyte", b"Content-Length: %d\r\n" % 10**18),
    get("largest chunk", CHUNKED, behind=chunked(BODY)),
    get("largest body in two chunks", CHUNKED, behind=chunked(BODY // 2, BODY // 2)),
    bad("chunk one byte too long", CHUNKED, behind=b"%x\r\n" % (BODY + 1)),
    bad("last of two chunks too long", CHUNKED, behind=chunked(BODY, end=b"1\r\n")),
]  # fmt: skip

ALLOW = {"allow": "GET, HEAD, OPTIONS"}
SERVER = {"server": "candled", "x-content-type-options": "nosniff"}
ANY_PATH = [
    line("OPTIONS of a probe", b"OPTIONS /health/live HTTP/1.1", NO_METHOD, headers={"allow": "GET, HEAD"}),
    line("OPTIONS of the API", b"OPTIONS /api/v3/ping HTTP/1.1", "204 No Content", headers=ALLOW),
    line("OPTIONS of everything", b"OPTIONS * HTTP/1.1", MISSING),
    *(
        line(f"HEAD {path}", b"HEAD %b HTTP/1.1" % path.encode(), OK, headers=SERVER)
        for path in ("/", "/health", "/health/ready", "/health/ws-stats", "/static/page.css", "/api/symbols")
    ),
    line("POST of a file", b"POST /static/page.css HTTP/1.1", NO_METHOD, headers={**SERVER, "allow": "GET, HEAD"}),
    line("HEAD of events", b"HEAD /events?symbol=BTC/USDT&interval=1m HTTP/1.1", OK),
    line("CONNECT", b"CONNECT x:443 HTTP/1.1", NO_METHOD),
    line("escaped line end in a query", b"GET /health/live?a=%0d%0aX:y HTTP/1.1", OK, headers={"x": None}),
    line("no UTF-8 in a query", b"GET /udf/search?query=%ff HTTP/1.1", OK),
    line("escaped slashes", b"GET %2fhealth%2flive HTTP/1.1", MISSING),
    *(
        line(f"file {path}", b"GET /static/%b HTTP/1.1" % path.encode(), status, headers=SERVER)
        for path, status in {
            "..%2f": FORBIDDEN, "..%2fhandlers.py": FORBIDDEN, "../handlers.py": FORBIDDEN, "/etc/passwd": FORBIDDEN,
            "..%2f..%2fserver.py": FORBIDDEN, "..%2f%0aCRITICAL": FORBIDDEN, "": FORBIDDEN, "%1b[31m": MISSING,
            "%00": MISSING, "a%00b": MISSING, "%ff": BAD, "x" * 5000: MISSING, "page.css": OK,
        }.items()
    ),
    line("absolute form of a file", b"GET http://x/static/%2e%2e/handlers.py HTTP/1.1", FORBIDDEN, headers=SERVER),
    Row("a range", b"GET /static/page.css HTTP/1.1\r\nHost: x\r\nRange: bytes=0-3\r\n\r\n", ("206 Partial Content",)),
    Row(
        "an impossible range",
        b"GET /static/page.css HTTP/1.1\r\nHost: x\r\nRange: bytes=9" + b"9" * 30 + b"-\r\n\r\n",
        (f"416 {HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE.phrase}",),  # another phrase since Python 3.13
    ),
    Row(
        "a body that is no form",
        b"POST /api/v3/ping HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=\r\n"
        b"Content-Length: 3\r\n\r\nabc",
        (BAD,),
    ),
    line("fields without end", b"GET /health/live?%b HTTP/1.1" % (b"a=1&" * 1500), BAD, is_kept=False),
    # WebSocket handshakes
    line("no handshake", b"GET /ws HTTP/1.1", BAD),
    Row("handshake by HTTP/1.0", b"GET /ws HTTP/1.0\r\nHost: x\r\n" + UPGRADE + b"\r\n", (BAD,), is_kept=False),
    Row("the page by HTTP/1.0", b"GET / HTTP/1.0\r\nHost: x\r\n" + UPGRADE + b"\r\n", (OK,), is_kept=False),
    Row("handshake by POST", b"POST /ws HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"\r\n", (NO_METHOD,)),
    Row("handshake by HEAD", b"HEAD /ws HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"\r\n", (BAD,)),
    Row("handshake with a body", b"GET /ws HTTP/1.1\r\nHost: x\r\n" + UPGRADE + LENGTH + b"\r\nhello", (BAD,)),
    Row("handshake to HTTP/2", b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", (BAD,)),
    *(
        Row(f"handshake without {name.decode()}", raw, (status,))
        for name, status in {
            b"Sec-WebSocket-Key": BAD, b"Connection": BAD, b"Sec-WebSocket-Version": "426 Upgrade Required",
        }.items()
        for raw in [
            b"GET /ws HTTP/1.1\r\nHost: x\r\n"
            + b"".join(one + b"\r\n" for one in UPGRADE.split(b"\r\n") if one and not one.startswith(name))
            + b"\r\n"
        ]
    ),
]  # fmt: skip


# the answers to requests of the first table: headers but for Date and Connection, and bodies
OPEN = {
    **SERVER,
    "access-control-allow-origin": "*",
    "cache-control": "no-store",
    "content-type": "application/json; charset=utf-8",
}
API = {**OPEN, "vary": "Accept-Encoding", "access-control-expose-headers": EXPOSED}
NOT_FOUND = b'{"error":{"code":404,"message":"Not Found"}}\n'
NOT_ALLOWED = b'{"error":{"code":405,"message":"Method Not Allowed"}}\n'
NOT_HERE = (
    b'{"code":-1020,"msg":"This operation is not supported: here are klines, uiKlines, exchangeInfo, time and ping, '
    b'for GET."}'
)
EXACT: dict[tuple[bytes, str], list[tuple[dict[str, str], bytes]]] = {
    (HOT, OK): [({**OPEN, "etag": '"c5e5b088d39953bd6db18f6c116b09fef5d28a39"'}, b'{"status":"pass"}\n')],
    (HOT, MISSING): [(OPEN, NOT_FOUND)],
    (HOT, NO_METHOD): [({**OPEN, "allow": "GET, HEAD"}, NOT_ALLOWED)],
    (HANDLER, OK): [({**API, "etag": '"bf21a9e8fbc5a3846fb05b4fa0859e0917b2202f"'}, b"{}")],
    (HANDLER, MISSING): [(API, NOT_HERE), (OPEN, NOT_FOUND)],  # below its prefix, and elsewhere
    (HANDLER, NO_METHOD): [({**API, **ALLOW}, NOT_HERE)],
}


class Harness:
    """A server in a thread, its clock, and the lines of its log that name a mistake of its own."""

    def __init__(self, folder, **settings) -> None:
        self._folder = folder
        self._settings = ServerSettings(host="127.0.0.1", port=0, **settings)
        self._ready = threading.Event()
        self.clock = ManualClock(MONDAY_MS)
        self.mistakes: list[str] = []
        handler = logging.Handler()
        handler.emit = self._on_record  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        assert self._ready.wait(30)
        self._handler = handler

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        async with open_stage(
            self._folder, clock=self.clock, server=self._settings, klines=KlinesSettings(enabled=True)
        ) as one:
            self.port = one.server.listen()
            self._ready.set()
            await self._ended.wait()

    def advance(self, seconds: float) -> None:
        """Move the server's clock, once the server has read what was sent."""

        async def advance() -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            await self.clock.advance(seconds)

        asyncio.run_coroutine_threadsafe(advance(), self._loop).result(60)

    def _on_record(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.WARNING:
            self.mistakes.append(record.getMessage())

    def close(self) -> None:
        """Stop the server."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)
        logging.getLogger().removeHandler(self._handler)


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Iterator[Harness]:
    one = Harness(tmp_path_factory.mktemp("raw"))
    yield one
    one.close()


class Connection:
    """A client's connection that reads answers one by one."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self, is_head: bool = False) -> tuple[str, dict[str, str]]:
        """The status and the headers of the next answer; an empty status at the end of the connection."""
        try:
            first = self._file.readline()
            headers = {}
            for raw in iter(self._file.readline, b"\r\n"):
                if not raw:
                    break
                name, _, value = raw.decode("latin-1").strip().partition(": ")
                assert name.lower() not in headers
                headers[name.lower()] = value
            self.body = b"" if is_head else self._file.read(int(headers.get("content-length", 0)))
        except ConnectionResetError:  # it was closed with bytes unread
            return NOTHING, {}
        return first.decode().strip().removeprefix("HTTP/1.1 "), headers


def check_exact(row: Row, path: bytes, status: str, headers: dict[str, str], body: bytes) -> None:
    """Compare all headers, but for Date and Connection, and the body."""
    if status in (BAD, "100 (Continue)"):  # by Tornado's parser
        assert (headers, body) == ({}, b"")
        return
    assert headers.pop("date")
    expected = [({**lines, "content-length": str(len(text))}, text) for lines, text in EXACT[path, status]]
    if row.raw.startswith(b"HEAD"):
        expected = [(lines, b"") for lines, _ in expected]
    assert (headers, body) in expected


def check(harness: Harness, row: Row, path: bytes) -> None:
    with Connection(harness.port) as one:
        one.send(row.raw.replace(b"PATH", path))
        for number, answer in enumerate(row.answers, 1):
            status, headers = one.read(row.raw.startswith(b"HEAD"))
            assert status == answer
            if path and answer:
                is_closing = status == OK and number == len(row.answers) and not row.is_kept
                expected = row.headers.get("connection", "close" if is_closing else None)
                assert headers.pop("connection", None) == expected
                check_exact(row, path, status, headers, one.body)
        for name, value in row.headers.items():
            assert path or headers.get(name) == value
        if not path and status in (FORBIDDEN, MISSING, NO_METHOD):
            error = b'{"error":{"code":%b,"message":"%b"}}\n' % tuple(status.encode().split(b" ", 1))
            assert one.body == (b"" if row.raw.startswith(b"HEAD") else error)
        if row.is_kept:
            one.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % HANDLER)
            assert one.read()[0] == OK
            assert one.body == b"{}"
        else:
            assert one.read()[0] == NOTHING
    assert harness.mistakes == []


@pytest.mark.parametrize("row", EITHER_PATH, ids=lambda row: row.name)
def test_a_request_to_memory_and_to_a_handler(harness, row):
    for path in (HOT, HANDLER):
        check(harness, row, path)


@pytest.mark.parametrize("row", ANY_PATH, ids=lambda row: row.name)
def test_a_request_to_one_path(harness, row):
    check(harness, row, b"")


@pytest.mark.parametrize("steps", [
    (b"", 11), (b"GET", 11), (b"GET / HTTP/1.1\r\nHost: x\r\n", 11), (b"G", 4, b"ET", 4, b" /", 4),
    (b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", 76),
])  # fmt: skip
def test_a_half_open_a_slow_and_an_idle_connection_are_closed_by_the_clock(harness, steps):
    with Connection(harness.port) as one:
        if steps[0].startswith(b"GET /h"):
            one.send(steps[0])
            assert one.read()[0] == OK
            steps = steps[1:]
        for step in steps:
            one.send(step) if isinstance(step, bytes) else harness.advance(step)
        assert one.read()[0] == NOTHING
    assert harness.mistakes == []


@pytest.mark.slow
def test_a_body_that_does_not_come_is_waited_for_by_tornados_timer(tmp_path):
    harness = Harness(tmp_path, header_timeout=timedelta(seconds=1))
    try:
        with Connection(harness.port) as one:
            one.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
            assert one.read()[0] == NOTHING
        assert harness.mistakes == []
    finally:
        harness.close()
