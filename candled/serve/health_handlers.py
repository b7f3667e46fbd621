"""Handlers of the daemon's health: for probes, monitors and operators, on the clients' port and on the internal one."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from .handlers import JSON, OwnHandler, PortContext, encode_json
from .hot_path import HotReply, HotRequest, Route

_TEXT = "text/plain; charset=utf-8"
_OK = b"ok\n"
_WITHHELD = "failed"  # in place of a reason, for strangers


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReports:
    """The sources of the answers."""

    #: Returns the body of `/health`.
    summarize: Callable[[], Awaitable[Mapping[str, Any]]]
    #: Returns the body of `/health?verbose`.
    report: Callable[[], Awaitable[Mapping[str, Any]]]
    #: Returns the requirements for serving, each with its problem or None.
    check_readiness: Callable[[], Awaitable[Mapping[str, str | None]]]
    #: Returns the body of `/health/ws-stats`.
    count_clients: Callable[[], Awaitable[Mapping[str, Any]]]
    #: Returns True once the process is stopping.
    is_stopping: Callable[[], bool]


class HealthContext:
    """State shared by the handlers of health on one port."""

    def __init__(self, reports: HealthReports, port: PortContext, *, shows_details: bool) -> None:
        self.open_headers, self.compress_from = port.open_headers, port.compress_from
        # True if clients of this port may read error texts, addresses and the states of single symbols
        self.shows_details = shows_details
        find = port.pages.find
        self.find_summary = partial(find, "summary", partial(_encode, reports.summarize))
        self.find_details = partial(find, "details", partial(_encode, reports.report))
        self.find_statistics = partial(find, "statistics", partial(_encode, reports.count_clients))
        self._reports = reports

    async def check_readiness(self) -> dict[str, str | None]:
        """Return the requirements for serving, each with its problem or None. Strangers get `failed` as problem."""
        checks = dict(await self._reports.check_readiness())
        if not self.shows_details:
            checks = {name: problem and _WITHHELD for name, problem in checks.items()}
        if self._reports.is_stopping():
            checks["server"] = "is stopping"
        return checks


async def _encode(read: Callable[[], Awaitable[Mapping[str, Any]]]) -> bytes:
    return encode_json(await read())


class _HealthHandler(OwnHandler):
    def initialize(self, context: HealthContext) -> None:
        self.context = context
        self.open_headers = context.open_headers

    @property
    def is_verbose(self) -> bool:
        """True if the request has the parameter `verbose`."""
        return "verbose" in self.request.query_arguments

    def finish_text(self, text: str | bytes, content_type: str = _TEXT) -> None:
        """Answer with text, plain by default."""
        self.set_json_headers()
        self.set_header("Content-Type", content_type)
        self.finish(text)


class HealthHandler(_HealthHandler):
    """`/health`: a summary, or all details for those who may read them."""

    async def get(self) -> None:
        """Answer with the daemon's health."""
        has_details = self.is_verbose and self.context.shows_details
        page = await (self.context.find_details() if has_details else self.context.find_summary())
        self.finish_data(page, self.context.compress_from)

    head = get


class LiveHandler(_HealthHandler):
    """`/health/live`: the loop runs. It checks nothing else, because a restart would not repair a database."""

    content_type, body = JSON, encode_json({"status": "pass"})
    verbose_body = body
    tag = f'"{hashlib.sha1(body).hexdigest()}"'  # as Tornado calculates it

    def get(self) -> None:
        """Answer `pass`."""
        self.finish_text(self.verbose_body if self.is_verbose else self.body, self.content_type)

    head = get

    @classmethod
    def answer_now(cls, request: HotRequest, peer: str, **route: Any) -> HotReply | None:
        """Return the answer of `get`; None if the handler must answer."""
        if not request.reads:
            return super().answer_now(request, peer, **route)
        if "if-none-match" in request.headers or "verbose" in request.arguments:
            return None
        headers = (*route["context"].open_headers, ("Etag", cls.tag))
        return request.reply_once(cls, lambda: HotReply(200, cls.content_type, headers, cls.body))


class LivezHandler(LiveHandler):
    """`/livez`: the same as plain text, or with `verbose` the line of the only check."""

    content_type, body, verbose_body = _TEXT, _OK, b"[+]loop ok\nlivez check passed\n"
    tag = f'"{hashlib.sha1(body).hexdigest()}"'


class ReadyHandler(_HealthHandler):
    """`/health/ready`: 200 while this process serves clients well, 503 while a balancer should use another."""

    async def get(self) -> None:
        """Answer with the result of each check."""
        checks = await self.context.check_readiness()
        failed = any(checks.values())
        self.set_status(503 if failed else 200)
        shown = {name: problem or "ok" for name, problem in checks.items()}
        self.finish_json({"status": "fail" if failed else "pass", "checks": shown})

    head = get


class ReadyzHandler(_HealthHandler):
    """`/readyz`: the same as plain text. An exchange with problems is a warning, because the others are served."""

    async def get(self) -> None:
        """Answer `ok` or the failed checks; with `verbose` every check and exchange, a line each."""
        checks = await self.context.check_readiness()
        failed = any(checks.values())
        self.set_status(503 if failed else 200)
        if not failed and not self.is_verbose:
            self.finish_text(_OK)
            return
        lines = [_line(name, problem) for name, problem in checks.items() if problem or self.is_verbose]
        if self.is_verbose:
            summary = msgspec.json.decode((await self.context.find_summary()).body)
            lines += [_exchange_line(name, one) for name, one in summary["exchanges"].items()]
        self.finish_text("\n".join([*lines, f"readyz check {'failed' if failed else 'passed'}\n"]))

    head = get


def _line(name: str, problem: str | None) -> str:
    if problem is None:
        return f"[+]{name} ok"
    return f"[-]{name} {problem}" if problem == _WITHHELD else f"[-]{name} failed: {' '.join(problem.split())}"


def _exchange_line(name: str, exchange: Mapping[str, Any]) -> str:
    if exchange["status"] == "pass":
        return f"[+]exchange {name} ok"
    states = ", ".join(f"{count} {state}" for state, count in sorted(exchange["states"].items()))
    return f"[!]exchange {name} warning: {states or 'no symbols'}"


class StatisticsHandler(_HealthHandler):
    """`/health/ws-stats`: the connections and rooms."""

    async def get(self) -> None:
        """Answer with the statistics of connections and rooms."""
        self.finish_data(await self.context.find_statistics(), self.context.compress_from)

    head = get


def make_health_routes(context: HealthContext) -> list[Route]:
    """Return the routes of all answers about health."""
    kinds: dict[str, type[_HealthHandler]] = {
        "/health": HealthHandler,
        "/health/live": LiveHandler,
        "/health/ready": ReadyHandler,
        "/health/ws-stats": StatisticsHandler,
        "/livez": LivezHandler,
        "/readyz": ReadyzHandler,
    }
    return [(path, kind, {"context": context}) for path, kind in kinds.items()]
