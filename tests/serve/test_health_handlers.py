"""`/health` and its relatives: a summary for strangers, all details for operators, and probes for machines."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from candled.config.sections import ServerSettings
from candled.serve.internal import InternalServer
from tests.clocks import ManualClock
from tests.serve.peers import answering, echo_harness, make_reports

pytestmark = pytest.mark.gen_test

SECRET = "could not connect to 10.0.0.3"
SUMMARY = {
    "status": "warn",
    "exchanges": {
        "bitget": {"status": "pass", "symbols": 2, "states": {"live": 2}},
        "other": {"status": "warn", "symbols": 3, "states": {"stale": 1, "live": 2}},
    },
}
DETAILS = {**SUMMARY, "store": {"lastError": SECRET}}
PATHS = ["/health", "/health/live", "/health/ready", "/health/ws-stats", "/livez", "/readyz"]


class Process:
    """The reports of a process whose requirements a test changes."""

    def __init__(self) -> None:
        self.checks: dict[str, str | None] = {"store": None, "bus": None}
        self.is_stopping = False
        self.reports = make_reports(
            summarize=answering(SUMMARY),
            report=answering(DETAILS),
            check_readiness=self.check,
            is_stopping=lambda: self.is_stopping,
        )

    async def check(self) -> Mapping[str, str | None]:
        return self.checks


@pytest.fixture
def process():
    return Process()


@pytest.fixture
def port() -> str:
    """The port that is asked: `public`, `details` (of everyone) or `internal`."""
    return "public"


async def render_metrics() -> bytes:
    return b"candled_up 1\n"


@pytest.fixture
def app(enter, process, port):
    """Give pytest-tornado the handlers of a port."""
    if port == "internal":
        return InternalServer(
            ServerSettings(internal_port=0), process.reports, render_metrics, ManualClock()
        ).application
    return enter(echo_harness(health_details=port == "details", reports=process.reports)).server.application


async def read(fetch, path: str, method: str = "GET") -> tuple[int, Any]:
    answer = await fetch(path, method)
    body = answer.body.decode()
    return answer.code, json.loads(body) if "json" in answer.headers["Content-Type"] else body


@pytest.mark.parametrize(("port", "is_shown"), [("public", False), ("details", True), ("internal", True)])
async def test_details_are_for_those_who_may_read_them(fetch, is_shown, process):
    assert await read(fetch, "/health") == (200, SUMMARY)
    status, facts = await read(fetch, "/health?verbose")
    facts = {name: fact for name, fact in facts.items() if name not in ("http", "work")}  # of the server itself
    assert (status, facts) == (200, DETAILS if is_shown else SUMMARY)
    process.checks["store"] = SECRET
    reason = SECRET if is_shown else "failed"
    status, ready = await read(fetch, "/health/ready")
    assert (status, ready) == (503, {"status": "fail", "checks": {"store": reason, "bus": "ok"}})
    _, text = await read(fetch, "/readyz?verbose")
    assert (SECRET in text) is is_shown


@pytest.mark.parametrize("port", ["public", "internal"])
async def test_readyz_is_ok_or_names_the_failed_checks(fetch, process):
    assert await read(fetch, "/readyz") == (200, "ok\n")
    assert await read(fetch, "/readyz?verbose") == (
        200,
        "[+]store ok\n[+]bus ok\n[+]exchange bitget ok\n[!]exchange other warning: 2 live, 1 stale\n"
        "readyz check passed\n",
    )
    process.checks["bus"] = "is not\nconnected"
    status, text = await read(fetch, "/readyz")
    assert (status, text.splitlines()[-1]) == (503, "readyz check failed")
    assert [line[:6] for line in text.splitlines()] == ["[-]bus", "readyz"]
    process.checks["bus"] = None
    process.is_stopping = True
    assert await read(fetch, "/readyz") == (503, "[-]server failed: is stopping\nreadyz check failed\n")
    assert (await read(fetch, "/health/ready"))[1]["checks"]["server"] == "is stopping"
    assert (await read(fetch, "/livez"))[0] == (await read(fetch, "/health/live"))[0] == 200


@pytest.mark.parametrize("port", ["public", "internal"])
async def test_livez_is_ok_while_nothing_else_is(fetch, process):
    process.checks = {"store": SECRET, "bus": SECRET}
    assert await read(fetch, "/livez") == (200, "ok\n")
    assert await read(fetch, "/livez?verbose") == (200, "[+]loop ok\nlivez check passed\n")


@pytest.mark.parametrize("port", ["public", "internal"])
@pytest.mark.parametrize("path", [*PATHS, "/health?verbose", "/livez?verbose", "/readyz?verbose"])
async def test_head_is_get_without_the_body(fetch, path):
    get, head = await fetch(path), await fetch(path, "HEAD")
    assert (head.code, head.body) == (get.code, b"")
    names = ("Content-Type", "Content-Length", "Cache-Control", "Etag")
    assert [head.headers.get(name) for name in names] == [get.headers.get(name) for name in names]
    assert get.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("port", ["internal"])
@pytest.mark.parametrize(("method", "body"), [("GET", b"candled_up 1\n"), ("HEAD", b"")])
async def test_metrics_are_in_prometheus_text_format(fetch, method, body):
    answer = await fetch("/metrics", method)
    assert (answer.code, answer.body, answer.headers["Content-Length"]) == (200, body, "13")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("port", ["public"])
async def test_strangers_see_no_metrics(fetch):
    assert (await fetch("/metrics")).code == 404


@pytest.mark.parametrize("port", ["internal"])
async def test_no_web_page_reads_the_internal_port_and_other_paths_are_not_found(fetch):
    for path in PATHS:
        answer = await fetch(path, headers={"Origin": "http://localhost:7000"})
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert await read(fetch, "/ws") == (404, {"error": {"code": 404, "message": "Not Found"}})
    assert (await read(fetch, "/health", "DELETE"))[0] == 405
