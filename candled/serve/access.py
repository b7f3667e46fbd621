"""Access tokens at the clients' port: where a request carries one, and the markets and limits that it grants."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec
from tornado.httputil import HTTPServerRequest

from candled.access.grant import Grant
from candled.access.verifier import Expired, InvalidToken, TokenVerifier
from candled.exchange import Clock
from candled.protocol import messages
from candled.protocol.frames import Frame
from candled.protocol.requests import LIMIT, UNAUTHORIZED, RequestError, not_allowed, read_request_id
from candled.transport.connection import ClientConnection, ConnectionListener, MakeClient

from .grants import AccessRefused, Arguments, Asked

if TYPE_CHECKING:
    from .hot_path import HotRequest

_BEARER_PROTOCOL = "bearer."  # before a token in the list of subprotocols
_OPEN = frozenset({"/health", "/health/live", "/health/ready", "/livez", "/readyz"})
_OPEN_FOLDERS = ("/static/", "/clients/")  # candled's own JavaScript, which is public
_AUTH_S = 10.0  # how long a connection may take to send its token
_WINDOW_S = 60.0
_CHALLENGE = 'Bearer realm="candled"'


class _Usage:
    """The use of one token in this process."""

    __slots__ = ("connections", "count", "window_ends")

    def __init__(self) -> None:
        self.connections = 0
        self.count = 0  # requests of the window
        self.window_ends = 0.0  # monotonic seconds


class AccessGuard:
    """Checks the tokens of requests and connections. `find_asked` finds the candles that a request asks for.

    Without this object, clients need no tokens.
    """

    def __init__(
        self, verifier: TokenVerifier, clock: Clock, find_asked: Callable[[str, Arguments], Asked | None]
    ) -> None:
        self._verifier = verifier
        self._clock = clock
        self._find_asked = find_asked
        self._usages: dict[tuple[str, str], _Usage] = {}
        self._open: dict[Grant, set[ClientConnection]] = {}
        # connections that have not sent a token yet, and the monotonic time until which they may
        self._pending: dict[ClientConnection, float] = {}
        #: The requests with a valid token since the start, by its label.
        self.requests: Counter[str] = Counter()
        #: The refusals since the start, by their reason.
        self.refusals: Counter[str] = Counter()

    def count_connections(self) -> Counter[str]:
        """Return the number of connections by the label of their tokens."""
        counts: Counter[str] = Counter()
        for grant, connections in self._open.items():
            counts[grant.label] += len(connections)
        return counts

    # ------------------------------------------------------------ requests

    def admit(self, request: HTTPServerRequest, *, may_wait: bool) -> AccessRefused | None:
        """Check a request, and store its grant for `grant_of`. Return the refusal, or None if it is allowed.

        The token is removed from the query. With `may_wait`, a WebSocket may send its token as its first message.
        """
        try:
            token = _take_token(request.headers, request.query_arguments)
            if request.query_arguments.keys() != request.arguments.keys():
                _forget_token(request)
            if request.method == "OPTIONS" or (may_wait and not token):
                return None
            grant = self._check(request.path, token, request.query_arguments)
        except AccessRefused as refusal:
            _forget_token(request)
            self.refusals[refusal.reason] += 1
            request.refusal = refusal  # type: ignore[attr-defined]
            return refusal
        if grant is not None:
            self._count_request(grant)
            request.grant = grant  # type: ignore[attr-defined]
        return None

    def is_admitted(self, request: "HotRequest") -> bool:
        """Return True if a request may be answered without its handler. The handler answers refused ones."""
        try:
            if request.token is None:
                request.token = _take_token(request.headers, request.arguments)
            request.grant = self._check(request.path, request.token, request.arguments)
        except AccessRefused:
            return False
        return True

    def on_answer(self, request: "HotRequest") -> None:
        """Count a request that was answered without its handler."""
        if request.grant is not None:
            self._count_request(request.grant)

    def _check(self, path: str, token: str, arguments: Arguments) -> Grant | None:
        """Return the grant of a request; None if its path needs none.

        Raises:
            AccessRefused: the request is not allowed.
        """
        if path in _OPEN or path.startswith(_OPEN_FOLDERS):
            return None
        grant = self._verify(token)
        usage = self._usages.get((grant.label, grant.name))
        now = self._clock.monotonic()
        if grant.requests and usage is not None and now < usage.window_ends and usage.count >= grant.requests:
            message = f"Too many requests: at most {grant.requests} per minute with this token"
            headers = {"Retry-After": str(math.ceil(usage.window_ends - now))}
            raise AccessRefused(429, "too_many_requests", message, "requests", headers)
        for text in self._find_excess(grant, path, arguments):
            challenge = {"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope"'}
            raise AccessRefused(403, "forbidden", str(not_allowed(text)), "scope", challenge)
        return grant

    def _verify(self, token: str) -> Grant:
        if not token:
            raise AccessRefused(401, "unauthorized", "A token is needed", "missing", {"WWW-Authenticate": _CHALLENGE})
        try:
            return self._verifier.verify(token)
        except InvalidToken as error:
            reason = "expired" if isinstance(error, Expired) else "invalid"
            challenge = {"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'}
            raise AccessRefused(401, "unauthorized", str(error), reason, challenge) from None

    def _find_excess(self, grant: Grant, path: str, arguments: Arguments) -> Iterator[object]:
        """Yield the markets and intervals of a request that its token does not allow."""
        if not grant.symbols and not grant.intervals:
            return
        asked = self._find_asked(path, arguments)
        if asked is not None:
            if asked.needs_symbol and grant.symbols and not asked.symbols:
                yield "all symbols"
            yield from (symbol for symbol in asked.symbols if not grant.allows_symbol(symbol))
            yield from (interval for interval in asked.intervals if not grant.allows_interval(interval))

    def _count_request(self, grant: Grant) -> None:
        self.requests[grant.label] += 1
        if grant.requests:
            usage, now = self._usage_of(grant), self._clock.monotonic()
            if now >= usage.window_ends:
                usage.count, usage.window_ends = 0, now + _WINDOW_S
            usage.count += 1

    def _usage_of(self, grant: Grant) -> _Usage:
        return self._usages.setdefault((grant.label, grant.name), _Usage())

    # ------------------------------------------------------------ connections

    def is_full(self, grant: Grant) -> bool:
        """Return True, and count a refusal, if a token has as many connections as it may."""
        is_full = 0 < grant.connections <= self._usage_of(grant).connections
        self.refusals["connections"] += is_full
        return is_full

    def guard(self, make_client: MakeClient, grant: Grant | None) -> MakeClient:
        """Return a function that makes the client of a connection. Without a grant, the client waits for a token."""

        def make(connection: ClientConnection) -> ConnectionListener:
            if grant is None:
                self._pending[connection] = self._clock.monotonic() + _AUTH_S
                return Unauthenticated(connection, make_client, self)
            self._enter(connection, grant)
            return make_client(connection)

        return make

    def authenticate(self, connection: ClientConnection, token: str) -> Grant:
        """Give a connection the access of a token.

        Raises:
            RequestError: the token is wrong, or has too many connections.
        """
        try:
            grant = self._verifier.verify(token)
        except Expired:
            self.refusals["expired"] += 1
            raise RequestError("The token has expired", code=UNAUTHORIZED) from None
        except InvalidToken:
            self.refusals["invalid"] += 1
            raise RequestError("Invalid token", code=UNAUTHORIZED) from None
        if self.is_full(grant):
            raise RequestError(
                f"Too many connections: at most {grant.connections} with this token", code=LIMIT, temporary=True
            )
        self.requests[grant.label] += 1
        self._enter(connection, grant)
        return grant

    def _enter(self, connection: ClientConnection, grant: Grant) -> None:
        self._pending.pop(connection, None)
        connection.grant = grant
        self._open.setdefault(grant, set()).add(connection)
        self._usage_of(grant).connections += 1

    def leave(self, connection: ClientConnection) -> None:
        """Forget a connection that has ended."""
        self._pending.pop(connection, None)
        grant = connection.grant
        if grant is not None:
            connection.grant = None
            self._usage_of(grant).connections -= 1
            others = self._open[grant]
            others.discard(connection)
            if not others:
                del self._open[grant]

    def sweep(self, now: float, end_later: Callable[[Callable[[], None]], None]) -> None:
        """Read changed files, and close connections whose time is over. Call it every second."""
        self._verifier.refresh()
        for key in [key for key, one in self._usages.items() if not one.connections and now >= one.window_ends]:
            del self._usages[key]
        for late in [one for one, until in self._pending.items() if now >= until]:
            del self._pending[late]
            end_later(partial(late.disconnect, 3502, "no token"))
        for grant, connections in self._open.items():
            if self._verifier.is_expired(grant):
                for one in connections:
                    end_later(partial(one.disconnect, 3005, "token expired"))
            elif not self._verifier.is_current(grant):
                for one in connections:
                    end_later(partial(one.disconnect, 3500, "token revoked"))


class _Auth(msgspec.Struct):
    type: Any = None
    token: Any = None
    id: Any = None


class Unauthenticated(ConnectionListener):
    """The client of a connection that has sent no token yet. Once it has, its actual client replaces this one."""

    __slots__ = ("_connection", "_guard", "_make_client")

    def __init__(self, connection: ClientConnection, make_client: MakeClient, guard: AccessGuard) -> None:
        self._connection = connection
        self._make_client = make_client
        self._guard = guard

    def on_client_message(self, message: str | bytes) -> None:
        """Take the token of an `auth` message. Any other message gets an error."""
        connection = self._connection
        try:
            first = msgspec.json.decode(message, type=_Auth)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            first = _Auth()
        request_id = None
        try:
            request_id = None if first.id is None else read_request_id(first.id)
            if first.type != "auth" or not isinstance(first.token, str):
                raise RequestError('Unauthorized: expected {"type": "auth", "token": …} first', code=UNAUTHORIZED)
            grant = self._guard.authenticate(connection, first.token)
        except RequestError as error:
            text = messages.error(str(error), request_id, code=error.code, temporary=error.temporary)
            connection.send_reply(Frame.from_text(text))
            if first.type == "auth":
                if error.code == LIMIT:
                    connection.disconnect(3504, "too many connections")
                else:
                    connection.disconnect(3500, "invalid token")
            return
        connection.send_reply(Frame.from_text(messages.authenticated(grant.expires_ms, request_id)))
        connection.client = self._make_client(connection)


def _take_token(headers: Mapping[str, str], arguments: Arguments) -> str:
    """Return the token of a request, and remove it from the query; "" without one.

    Raises:
        AccessRefused: the request has several (RFC 6750, section 2).
    """
    found = []
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(value.strip())
    offered = (one.strip() for one in headers.get("sec-websocket-protocol", "").split(","))
    found += [one.removeprefix(_BEARER_PROTOCOL) for one in offered if one.startswith(_BEARER_PROTOCOL)]
    given = arguments.pop("token", ())  # type: ignore[attr-defined]
    found += [one.decode("utf-8", "replace") for one in given]
    if len(found) > 1:
        challenge = {"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_request"'}
        raise AccessRefused(400, "invalid_request", "Expected one token, got several", "invalid", challenge)
    return found[0] if found else ""


def _forget_token(request: HTTPServerRequest) -> None:
    """Remove the token from all forms of a request's query, so that no log contains it."""
    request.query_arguments.pop("token", None)
    request.arguments.pop("token", None)
    request.query = urlencode(request.query_arguments, doseq=True)
    request.uri = f"{(request.uri or '').partition('?')[0]}{'?' if request.query else ''}{request.query}"
