"""HEAD works wherever GET does, with the same status and header: monitors ask with it."""

import asyncio
import re

import pytest

from candled.config.sections import KlinesSettings
from candled.serve.hot_path import implements
from tests.api.raw import ask_all
from tests.rows import MONDAY_MS

PAGE = f"/api/pages?symbol=BTC/USDT&interval=1m&page={MONDAY_MS // 60_000_000}"
PATHS = [
    "/", "/ws", "/ws/btcusdt@kline_1m", "/stream", "/health", "/health/live", "/health/ready", "/health/ws-stats",
    "/livez", "/readyz", "/static/page.css", "/static/nowhere", "/clients/candled.js", "/nowhere",
    "/api/candles?symbol=BTC/USDT&interval=1m", "/api/candles?symbol=BTC/USDT&interval=1m&limit=x", PAGE,
    "/api/symbols", "/api/intervals", "/api/exchanges", "/api/coverage?symbol=BTC/USDT", "/api/gaps", "/api/nowhere",
    "/api/openapi.json", "/udf/config", "/udf/symbols?symbol=BTCUSDT", "/udf/symbol_info", "/udf/search?query=B",
    "/udf/history?symbol=BTCUSDT&resolution=1&from=0&to=9999999999&countback=2", "/udf/time",
    "/udf/quotes?symbols=BTCUSDT", "/udf/marks", "/udf/timescale_marks", "/udf/nowhere",
    "/api/v3/klines?symbol=BTCUSDT&interval=1m", "/api/v3/uiKlines?symbol=BTCUSDT&interval=1m", "/api/v3/exchangeInfo",
    "/api/v3/time", "/api/v3/ping", "/api/v3/nowhere",
]  # fmt: skip
EVENTS = ["/events?symbol=BTC/USDT&interval=1m", "/events?symbol=NO/PE&interval=1m"]
# Counts of requests, and versions, which differ from one request to the next.
PASSING = ("date", "age", "x-ratelimit-remaining", "ratelimit-remaining", "x-mbx-used-weight-1m")

pytestmark = [pytest.mark.gen_test, pytest.mark.stage(klines=KlinesSettings(enabled=True))]


@pytest.mark.slow
async def test_head_is_get_without_the_body(stage):
    port, asked = stage.server.listen(), [(path, {}) for path in PATHS]
    await ask_all(port, asked)  # what has to be loaded is loaded
    answers = [await ask_all(port, asked, method) for method in ("GET", "HEAD")]
    for path, get, head in zip(PATHS, *answers, strict=True):
        headers = [{name: one.headers[name] for name in one.headers.keys() - PASSING} for one in (get, head)]
        assert (path, get.status, headers[0]) == (path, head.status, headers[1])
        assert get.body or get.status == 302


async def read_head(port: int, method: str, path: str) -> tuple[list[str], bytes]:
    """The status and the headers of an answer, and what follows within a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    head = sorted(line for line in lines if line and not line.startswith(("Date:", "Transfer-Encoding:")))
    writer.write(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n" if method == "HEAD" else b"")
    after = await reader.readuntil(b"\r\n\r\n" if method == "HEAD" else b"\n")
    writer.close()
    await writer.wait_closed()
    return head, after


@pytest.mark.parametrize("path", EVENTS)
async def test_head_of_events_ends_with_the_header(stage, path):
    port = stage.server.listen()
    get, body = await read_head(port, "GET", path)
    head, after = await read_head(port, "HEAD", path)
    assert head == get
    assert body
    assert after.startswith(b"HTTP/1.1 200 OK\r\n")  # the next answer on the same connection
    for _ in range(200):
        if not stage.server.connection_count:
            break
        await asyncio.sleep(0.01)
    assert stage.server.connection_count == 0


def test_every_route_is_asked(stage):
    asked = [path.partition("?")[0] for path in (*PATHS, *EVENTS)]
    routes = [(pattern, kind) for pattern, kind, _ in stage.server._make_routes()]
    assert len(routes) > 25
    assert [pattern for pattern, _ in routes if not any(re.fullmatch(pattern, path) for path in asked)] == []
    assert [kind for _, kind in routes if implements(kind, "GET") and not implements(kind, "HEAD")] == []
