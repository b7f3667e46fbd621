"""Answers from memory, made without Tornado: the request's head is parsed strictly, and the headers are prepared.

A resource takes part if its handler has a class method `answer_now`. An answer is the same as the handler's, to the
byte. Anything unusual returns None, and the handler answers.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

from tornado.escape import parse_qs_bytes
from tornado.httputil import format_timestamp
from tornado.web import RequestHandler

from candled.exchange import Clock
from candled.transport.work_budget import BYTE, HOT_REQUEST, WorkBucket

from .counts import make_finder
from .grants import private

_HEAD = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[ -~\t]*\r\n){1,64})\r\n")
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_FOR_TORNADO = {"content-length", "transfer-encoding", "expect"}
_UPGRADES = b"\r\nUpgrade:"
_READS = ("GET", "HEAD")
_HEADS_KEPT = 4096
_SMALL = 1024  # bytes of an answer that is kept for the next request with the same bytes
_REASONS = {
    200: "OK", 204: "No Content", 302: "Found", 304: "Not Modified", 400: "Bad Request", 404: "Not Found",
    405: "Method Not Allowed", 429: "Too Many Requests",
    503: "Service Unavailable",
}  # fmt: skip


@dataclass(slots=True)
class HotRequest:
    """A request without a body. Requests with the same bytes are the same object."""

    #: The path without the query, and without the prefix of the settings.
    path: str
    #: The values of the query's parameters, decoded, by name.
    arguments: Mapping[str, list[bytes]]
    #: The headers by name, in lower case.
    headers: Mapping[str, str]
    #: The method, in capitals.
    method: str = "GET"
    #: The query as the resource has read it, or its error, with the version of the markets for which that is right. The
    #: resource sets it.
    query: Any = None
    #: The error of an invalid request, and the answer with it, without `counted`. The resource sets it.
    refusal: tuple[Exception, "HotReply"] | None = None
    #: A value that stays equal as long as a small reply is right, and that reply. The resource sets it.
    kept: tuple[object, "HotReply"] | None = None
    #: The token, "" without one; None before it was read. The guard of access sets it.
    token: str | None = None
    #: The grant of the token; None if none is needed. The guard of access sets it.
    grant: Any = None
    #: A small reply, the text of its date, and the complete answer. `HotPath` sets it.
    joined: tuple["HotReply", str, bytes] | None = None

    @property
    def reads(self) -> bool:
        """True for GET and HEAD."""
        return self.method in _READS

    def reply_once(self, key: object, make: Callable[[], "HotReply"]) -> "HotReply":
        """Return the reply that was made last time if it was for this key; otherwise make it."""
        kept = self.kept
        if kept is not None and kept[0] is key:
            return kept[1]
        reply = make()
        self.kept = key, reply
        return reply


class HotReply(NamedTuple):
    """An answer. `HotPath` adds the headers that all answers share."""

    status: int
    content_type: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    #: Headers that differ from one request to the next, such as the number of requests that are left.
    counted: Iterable[tuple[str, str]] = ()
    #: The headers after these.
    others: Sequence[tuple[str, str]] = ()


PayerOf = Callable[[WorkBucket, str, str | None], WorkBucket]
"""Returns the budget of a request, given that of its connection, the peer's address, and `X-Forwarded-For`."""
IsAdmitted = Callable[[str, str], bool]
"""Returns True if a request for a path from a peer's address uses the reserve for probes, and not the budget."""
AnswerNow = Callable[[HotRequest, str], HotReply | None]
"""Returns the answer to a request of a peer's address."""
Guard = tuple[Callable[[HotRequest], bool], Callable[[HotRequest], None]]
"""Returns True if a request's token allows it, and is called with each such request that was answered."""
Route = tuple[str, type[Any], dict[str, Any]]


def find_resource(routes: Iterable[Route], method: str) -> Callable[[str], AnswerNow | None]:
    """Return a function that finds a path's resource: a class method of the handler of the first route that matches.

    It returns None for routes whose handlers have no class method of that name.
    """
    resources = (
        (path, partial(getattr(kind, method), **more) if hasattr(kind, method) else None) for path, kind, more in routes
    )
    return make_finder(resources, None)


class HotPath:
    """Answers requests from memory, refuses handshakes, and calls `on_answer` with the path and the status of each."""

    def __init__(
        self,
        routes: Sequence[Route],
        prefix: str,
        clock: Clock,
        payer_of: PayerOf,
        is_admitted: IsAdmitted,
        on_answer: Callable[[str, int], None],
        guard: Guard | None = None,
    ) -> None:
        self._find = find_resource(routes, "answer_now")
        # finds a function that returns the refusal of a handshake, or None if no limit refuses it
        self._find_refusal = find_resource(routes, "refuse_handshake")
        self._prefix = prefix
        self._clock = clock
        self._payer_of = payer_of
        self._is_admitted = is_admitted
        self._on_answer = on_answer
        self._guard = guard
        self._date = (0, "")
        self._parse = lru_cache(maxsize=_HEADS_KEPT)(self._read)

    def answer_request(self, head: bytes, peer: str, budget: WorkBucket) -> bytes | None:
        """Return the answer to a request with this head, and charge it; None if its handler must answer.

        The handler answers if the request has to wait for its budget, unless it is a probe.
        """
        upgrades = _UPGRADES in head
        request = self._read(head) if upgrades else self._parse(head)  # each handshake has bytes of its own
        if request is None:
            return None
        resource = self._find_refusal(request.path) if upgrades else self._find(request.path)
        guard = self._guard
        if resource is None or (guard is not None and not upgrades and not guard[0](request)):
            return None
        payer, now = self._payer_of(budget, peer, request.headers.get("x-forwarded-for")), self._clock.monotonic()
        is_late = payer.wait_of(now) and not self._is_admitted(request.path, peer)
        reply = None if is_late else resource(request, peer)
        if reply is None:
            return None
        date, joined = self._date_text(), request.joined
        if joined is not None and joined[0] is reply and joined[1] == date:
            answer = joined[2]
        else:
            answer = self._join(reply, date, request.method)
            request.joined = (reply, date, answer) if len(answer) <= _SMALL else None
        payer.charge(HOT_REQUEST + len(answer) * BYTE, now)
        self._on_answer(request.path, reply.status)
        if guard is not None:
            guard[1](request)
        return answer

    def _read(self, head: bytes) -> HotRequest | None:
        request = parse_head(head, upgrades=_UPGRADES in head)
        prefix = self._prefix
        if request is not None and (request.path == prefix or request.path.startswith(f"{prefix}/")):
            request.path = request.path[len(prefix) :] or "/"
        return request

    def _join(self, reply: HotReply, date: str, method: str) -> bytes:
        status, content_type, headers, body, counted, others = reply
        if self._guard is not None:
            headers = [(name, private(name, value)) for name, value in headers]
        before, shared, last = _lines_of(status, content_type, tuple(headers), tuple(others), len(body))
        numbers = "".join([f"{_written(name)}: {value}\r\n" for name, value in counted])
        return f"{before}{date}{shared}{numbers}{last}".encode("latin-1") + (b"" if method == "HEAD" else body)

    def _date_text(self) -> str:
        now_s = self._clock.now_ms() // 1000
        if self._date[0] != now_s:
            self._date = now_s, format_timestamp(now_s)
        return self._date[1]


def implements(kind: type[RequestHandler], method: str) -> bool:
    """Return True if a handler answers a method, such as `GET`."""
    name = method.lower()
    return method in kind.SUPPORTED_METHODS and getattr(kind, name) is not getattr(RequestHandler, name)


def set_headers(handler: RequestHandler, headers: Iterable[tuple[str, str]]) -> None:
    """Set several headers of a handler's answer."""
    for name, value in headers:
        handler.set_header(name, value)


def parse_head(head: bytes, *, upgrades: bool = False) -> HotRequest | None:
    """Return a request; None if Tornado must parse it. `upgrades` is True if the request must ask for an upgrade."""
    match = _HEAD.fullmatch(head)
    if match is None:
        return None
    headers: dict[str, str] = {}
    for line in match[3].decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name = name.lower()
        if name in headers or name in _FOR_TORNADO:
            return None
        headers[name] = value.strip(" \t")
    if ("upgrade" in headers) != upgrades:
        return None
    if not _HOST.fullmatch(headers.get("host", "")) or not _is_kept(headers):
        return None
    method = match[1].decode("ascii")
    path, _, query = match[2].decode("ascii").partition("?")
    if method not in _READS and ("content-type" in headers or "%" in path):  # Tornado may refuse them for these
        return None
    try:
        arguments = parse_qs_bytes(query, keep_blank_values=True)
    except ValueError:
        return None
    return HotRequest(path, arguments, headers, method)


@lru_cache(maxsize=1024)
def _lines_of(
    status: int,
    content_type: str,
    headers: tuple[tuple[str, str], ...],
    others: tuple[tuple[str, str], ...],
    length: int,
) -> tuple[str, str, str]:
    """Return a head in parts: before the date, up to the counted headers, and after them. Many answers share them."""
    has_body = status not in (204, 304)
    first = f"HTTP/1.1 {status} {_REASONS[status]}\r\nServer: candled\r\n"
    kind, size = (f"Content-Type: {content_type}\r\n", f"Content-Length: {length}\r\n") if has_body else ("", "")
    shared, last = ("".join(f"{_written(name)}: {value}\r\n" for name, value in some) for some in (headers, others))
    return f"{first}{kind}Date: ", f"\r\nX-Content-Type-Options: nosniff\r\n{shared}", f"{last}{size}\r\n"


def _is_kept(headers: Mapping[str, str]) -> bool:
    connection = headers.get("connection", "keep-alive").lower()
    return connection == ("upgrade" if "upgrade" in headers else "keep-alive")


@lru_cache(maxsize=64)
def _written(name: str) -> str:
    """Return a header's name as Tornado writes it."""
    return "-".join(word.capitalize() for word in name.split("-"))
