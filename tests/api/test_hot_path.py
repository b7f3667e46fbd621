"""Answers made without Tornado's handlers are those of the handlers, to the byte and the header."""

import asyncio
import json
import re
from datetime import timedelta

import pytest

from candled.config.sections import KlinesSettings, LimitSettings, ServerSettings
from candled.model import Symbol
from candled.serve.hot_path import HotPath, parse_head
from tests.api.raw import ask_all
from tests.api.stage import open_stage
from tests.rows import MONDAY_MS, minute

COUNT = 1200
AT = [MONDAY_MS + number * 60_000 for number in range(COUNT + 10)]
pytestmark = [pytest.mark.gen_test, pytest.mark.stage(klines=KlinesSettings(enabled=True), minutes=COUNT)]
KLINES = "/api/v3/klines?symbol=BTCUSDT&interval=1m"
CANDLES = "/api/candles?symbol=BTC/USDT&interval=1m"
UDF = f"/udf/history?symbol=REPLAY:BTCUSDT&resolution=1&from=0&to={AT[-1]}"
CLOSED = f"{KLINES}&startTime={AT[COUNT - 50]}&endTime={AT[COUNT - 10]}"

# requests, and whether memory alone answers them
HOT = [
    f"{KLINES}&limit=2", f"{KLINES}&limit=100", f"{KLINES}&limit=500", CLOSED, f"{KLINES}&limit=7&timeUnit=MICROSECOND",
    f"{KLINES}&timeZone=0", f"{KLINES.replace('klines', 'uiKlines')}&limit=3", f"{CANDLES}&limit=2",
    f"{CANDLES}&limit=100&numbers=string", f"{CANDLES}&limit=5&to={AT[COUNT - 3]}", CANDLES.replace("/USDT", "%2FUSDT"),
    f"{CANDLES}&limit=500", f"{CANDLES}&format=csv&limit=3", f"{CANDLES}&format=ndjson&limit=3",
    f"{CANDLES}&format=ndjson&limit=2&numbers=string",
    f"{CANDLES}&from={AT[COUNT - 20]}&limit=3", f"{UDF}&countback=2", f"{UDF}&countback=100&numbers=string",
    f"{UDF}&countback=100&unknown=1", "/health/live", "/health/live?x=1", "/livez", "/livez?x=1",
]  # fmt: skip
COLD = [
    f"{KLINES}&limit=0", f"{KLINES}&limit=x", f"{KLINES}&limit=", f"{KLINES}&limit=%ff", f"{KLINES}&limit=1&limit=2",
    f"{KLINES}&more=1", "/api/v3/klines", "/api/v3/klines?", f"{KLINES}&symbol=BTCUSDT", "/api/v3/ping",
    "/api/v3/time?x",
    "/api/v3/klines?symbol=NOPE&interval=1m", "/api/v3/klines?symbol=BTCUSDT&interval=9m", f"{KLINES}&timeZone=9:30x",
    f"{KLINES}&startTime={AT[COUNT - 1] + 10**9}", f"{CANDLES}&limit=1001",
    f"{CANDLES}&typo=1", f"{CANDLES}&exchange=nope", f"{UDF}&countback=x", "/udf/history", f"{UDF}&from=5&to=6",
    "/api/%63andles?symbol=BTC/USDT&interval=1m", "/health", "/livez?verbose", "/readyz",
    "//health/live", "/api/v3/klines/", "/nowhere", "/",
]  # fmt: skip
HEADERS = [
    {},
    {"Origin": "https://a.example", "Accept": "*/*", "User-Agent": "x"},
    {"X-Forwarded-For": "1.2.3.4", "Connection": "keep-alive", "X-MBX-TIME-UNIT": "microsecond"},
    {"Cookie": "a=b", "Accept-Encoding": "gzip, br", "If-None-Match": '"other"'},
]


@pytest.fixture
def seen(monkeypatch):
    """Give what the hot path answered, one item for each request that reached it."""
    found = []
    real = HotPath.answer_request

    def answer(self, *request):
        result = real(self, *request)
        found.append(result is not None)
        return result

    monkeypatch.setattr(HotPath, "answer_request", answer)
    return found


def comparable(answer):
    headers = dict(answer.headers)
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers.pop("date"))
    return answer.status, headers, answer.body


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {},
    {"server": ServerSettings(allowed_origins=("https://a.example",), prefix="/here")},
    {
        "server": ServerSettings(allowed_origins=()),
        "limits": LimitSettings(api_requests=500, headers=("legacy", "draft-8")),
    },
])  # fmt: skip
async def test_both_ways_answer_alike(tmp_path, seen, options):
    """Two stages with the same bars: one is asked through its application alone, the other through its port."""
    marks = {"klines": KlinesSettings(enabled=True), "minutes": COUNT, **options}
    answers = []
    for name in ("handlers", "hot"):
        (tmp_path / name).mkdir()
        async with open_stage(tmp_path / name, **marks) as one:
            one.pages._name = "same"
            one.push(minute(COUNT, as_of=1_000))
            port = one.server.listen()
            if name == "handlers":  # no resource takes part
                one.server._hot_path._find = lambda _: None
            asked = [(path, headers) for path in (*HOT, *COLD) for headers in HEADERS]
            asked += [(f"/here{path}", {}) for path in (HOT[0], "/health/live", "/health")]
            page = f"/api/pages?symbol=BTC/USDT&interval=1m&page={MONDAY_MS // 60_000_000}"
            (redirect,) = await ask_all(port, [(page, {})])
            address = f"/api/pages{redirect.headers['location']}"
            tag = f'"{address[-16:]}"'
            asked += [(path, headers) for path in (page, address, f"{page}&rev=1", f"{page}x") for headers in HEADERS]
            asked += [(address, {"If-None-Match": tag}), (address, {"If-None-Match": tag, "Accept-Encoding": "gzip"})]
            if not marks.get("limits"):
                (tagged,) = await ask_all(port, [(CLOSED, {})])
                known = tagged.headers["etag"]
                asked += [(CLOSED, {"If-None-Match": text}) for text in (known, f'"a", {known}', f"W/{known}", "*")]
            await ask_all(port, asked)  # what has to be loaded is loaded
            seen.clear()
            answers.append([comparable(answer) for answer in await ask_all(port, asked)])
    differing = {
        path: (one, two) for (path, _), one, two in zip(asked, *answers, strict=True) if _blind(one) != _blind(two)
    }
    assert differing == {}
    hot = sum(seen)
    assert hot >= (len(HOT) + 3) * len(HEADERS) - 4  # probes leave If-None-Match to their handlers


def _blind(answer):
    """An answer without the numbers of versions, which differ between processes and stages."""
    status, headers, body = answer
    tag = re.sub(r"\d+\.\d+\.", "", headers.get("etag", ""), count=1)
    return status, [(name, tag if name == "etag" else value) for name, value in headers.items()], body


@pytest.mark.slow
@pytest.mark.parametrize("path", HOT)
async def test_these_are_answered_without_a_handler(seen, stage, path):
    stage.push(minute(COUNT))
    port = stage.server.listen()
    answers = await ask_all(port, [(path, {})] * 3)
    assert {answer.status for answer in answers} == {200}
    assert seen[-2:] == [True, True]


REFUSED = {
    "/nowhere": 404, "/a/b?c": 404, "/api/nowhere": 404, "/udf/nowhere": 404, "/api/v3/nowhere": 404,
    f"{KLINES}&limit=x": 400, "/api/v3/klines": 400, f"{CANDLES}&limit=0": 400, f"{CANDLES}&typo=1": 400,
    "/api/candles?symbol=NO/PE&interval=1m": 404, "/udf/history": 200, f"{UDF}&countback=x": 200,
    "/udf/history?symbol=NOPE&resolution=1": 200, "/api/pages?symbol=BTC/USDT&interval=1m": 400,
}  # fmt: skip


@pytest.mark.slow
async def test_these_are_refused_without_a_handler(seen, stage):
    port = stage.server.listen()
    answers = await ask_all(port, [(path, {"Accept-Encoding": "gzip"}) for path in REFUSED])
    assert {path: answer.status for path, answer in zip(REFUSED, answers, strict=True)} == REFUSED
    assert all(seen)


@pytest.mark.parametrize("path", [
    "/api/v3/klines?symbol=NEWUSDT&interval=1m&limit=2", "/api/candles?symbol=NEW/USDT&interval=1m&limit=2",
    "/udf/history?symbol=NEWUSDT&resolution=1&from=0&to=9999999999&countback=2",
])  # fmt: skip
async def test_a_market_that_is_added_is_no_longer_unknown_and_one_that_is_removed_is(stage, path):
    port, before = stage.server.listen(), stage.universe.symbols("replay")

    async def ask():
        answers = await ask_all(port, [(path, {})] * 2)
        assert answers[0].body == answers[1].body
        return answers[0].body

    unknown = await ask()
    stage.universe.set_markets("replay", [*before, Symbol("NEW", "USDT")])
    assert await ask() != unknown
    stage.universe.set_markets("replay", before)
    assert await ask() == unknown


METHODS = ("HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO")
TARGETS = (
    "/health/live", "/health", "/nowhere", "/", "/ws", "/events", "/static/page.css", "/api/nowhere", "/api/symbols",
    f"{CANDLES}&limit=2", f"{KLINES}&limit=x", "/api/v3/ping", "/udf/time", "/udf/nowhere", "/clients/candled.js",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.stage(
    server=ServerSettings(host="127.0.0.1", port=0, allowed_origins=("https://a.example",)),
    limits=LimitSettings(udf_requests=9),
)
async def test_methods_are_answered_and_refused_the_same_both_ways(seen, stage, method):
    port, asked = stage.server.listen(), [(path, {"Origin": "https://a.example"}) for path in TARGETS]
    hot = await ask_all(port, asked, method)
    is_hot, seen[:] = dict(zip(TARGETS, seen, strict=True)), []
    stage.server._hot_path._find = lambda _: None
    handlers = await ask_all(port, asked, method)
    assert not any(seen)
    for path, one, other in zip(TARGETS, hot, handlers, strict=True):
        counted = ("date", "x-ratelimit-remaining", "ratelimit-remaining", "ratelimit", "x-mbx-used-weight-1m")
        first, second = (
            [(name, value) for name, value in answer.headers.items() if name not in counted] for answer in (one, other)
        )
        assert (path, one.status, first, one.body) == (path, other.status, second, other.body)
    if method != "HEAD":
        assert all(is_hot.values())
        assert {answer.status for answer in hot} <= {204, 404, 405}
    else:
        assert is_hot["/health/live"]
        assert is_hot[f"{CANDLES}&limit=2"]


@pytest.mark.slow
@pytest.mark.stage(limits=LimitSettings(klines_requests=3, api_requests=1, udf_requests=1))
@pytest.mark.parametrize("accept", ["*/*", "application/json"])
async def test_429_is_the_same_both_ways(seen, stage, accept):
    port = stage.server.listen()
    for path in (f"{KLINES}&limit=2", f"{CANDLES}&limit=2", f"{UDF}&countback=2", f"{KLINES}&limit=x", "/api/nowhere"):
        headers = {"Accept": accept, "Origin": "https://a.example"}
        *_, hot = await ask_all(port, [(path, headers)] * 4)
        (handlers,) = await ask_all(port, [(path, {**headers, "Connection": "close"})])
        assert handlers.headers["connection"] == "close"
        assert seen[-2:] == [True, False]
        expected = {name: value for name, value in handlers.headers.items() if name not in ("connection", "date")}
        assert (hot.status, hot.body) == (handlers.status, handlers.body) == (429, hot.body)
        assert {name: value for name, value in hot.headers.items() if name != "date"} == expected


@pytest.mark.slow
@pytest.mark.stage(limits=LimitSettings(klines_requests=3))
async def test_the_limit_counts_requests_of_both_ways_once(stage):
    port = stage.server.listen()
    asked = [(f"{KLINES}&limit=2", {}), ("/api/v3/ping", {})] * 3
    answers = await ask_all(port, asked)
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429, 429]
    assert [answer.headers["x-mbx-used-weight-1m"] for answer in answers[:3]] == ["1", "2", "3"]
    assert answers[4].headers["retry-after"] == "60"
    await stage.clock.advance(61)
    (again,) = await ask_all(port, asked[:1])
    assert again.headers["x-ratelimit-remaining"] == "2"


@pytest.mark.slow
async def test_a_304_is_given_again_until_a_bar_changes_or_the_second_is_over(seen, stage):
    port, path = stage.server.listen(), f"{KLINES}&limit=2"
    made_ms = stage.clock.now_ms() - AT[COUNT] - 5_000
    stage.push(minute(COUNT, as_of=made_ms))
    (first,) = await ask_all(port, [(path, {})])
    known = {"If-None-Match": first.headers["etag"]}
    same = await ask_all(port, [(path, known)] * 3)
    assert [answer.status for answer in same] == [304, 304, 304]
    assert len({(answer.headers["age"], answer.headers["date"]) for answer in same}) == 1
    await stage.clock.advance(1)
    later, _ = await ask_all(port, [(path, known)] * 2)
    assert int(later.headers["age"]) == int(same[0].headers["age"]) + 1
    assert later.headers["date"] != same[0].headers["date"]
    stage.push(minute(COUNT, as_of=made_ms + 1_000, volume="9"))
    changed, again = await ask_all(port, [(path, known)] * 2)
    assert changed.status == again.status == 200
    assert changed.headers["etag"] != first.headers["etag"]
    assert all(seen)


HEAD = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"get /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /health/live HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data\r\n\r\n",
        b"POST /static/%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health/live HTTP/1.0\r\nHost: x\r\n\r\n",
        b"GET http://x/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health/live  HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\n\r\n",
        b"GET /health/live HTTP/1.1\nHost: x\n\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x, y\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nA: \xe9\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n",
    ],
)
async def test_anything_unusual_is_left_to_tornado(head):
    assert parse_head(HEAD) is not None
    assert parse_head(head) is None


PLAIN = b"GET /api/v3/ping HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"GET /api/v3/ping HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "count", "hot"),
    [
        ([HEAD, HEAD, HEAD], 3, 3),
        ([HEAD, PLAIN, HEAD, PLAIN, HEAD], 5, 3),  # Tornado in between
        ([HEAD + HEAD, HEAD], 3, 1),  # two sent together
        ([PLAIN + HEAD, HEAD], 3, 1),
        ([HEAD[:20], HEAD[20:], HEAD], 2, 1),  # in two pieces
        ([PLAIN + HEAD[:20], HEAD[20:]], 2, 0),
        ([BODY % (len(HEAD), HEAD), PLAIN], 2, 0),  # a body that looks like a request
        ([BODY % (len(HEAD), b""), HEAD, PLAIN], 2, 0),  # the same, after its head
        ([PLAIN, BODY % (len(HEAD), b""), HEAD, PLAIN, HEAD], 4, 1),
    ],
)
async def test_requests_are_distinguished_however_they_arrive(seen, stage, parts, count, hot):
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.listen())
    bodies = []
    for number, part in enumerate(parts):
        writer.write(part)
        await writer.drain()
        if (
            number < len(parts) - 1
        ):  # server and client share the loop, so passes are enough, however busy the machine is
            for _ in range(100):
                await asyncio.sleep(0)
    for _ in range(count):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        bodies.append(json.loads(await reader.readexactly(int(length[1]))))
    assert sum(seen) == hot
    assert len(bodies) == count
    assert {json.dumps(body) for body in bodies} <= {'{"status": "pass"}', "{}"}
    writer.close()
    await writer.wait_closed()


@pytest.mark.slow
async def test_a_client_that_does_not_read_gets_no_more_than_one_answer_ahead(seen, stage):
    """Tornado waits until an answer is sent before it reads the next request."""
    port = stage.server.listen()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    await ask_all(port, [(f"{KLINES}&limit=1000", {})])
    request = f"GET {KLINES}&limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for _ in range(200):
        writer.write(request)
        await asyncio.sleep(0)
    await asyncio.sleep(0.3)
    assert sum(seen) < 60  # what the kernel's buffers take
    for _ in range(200):
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))
        assert len(json.loads(body)) == 1000
    writer.close()
    await writer.wait_closed()


@pytest.mark.slow
async def test_a_client_that_leaves_during_an_answer_disturbs_no_one(stage, caplog):
    port = stage.server.listen()
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {KLINES}&limit=500 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        writer.transport.abort()
    (answer,) = await ask_all(port, [(f"{KLINES}&limit=2", {})])
    assert answer.status == 200
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.stage(server=ServerSettings(host="127.0.0.1", port=0, idle_timeout=timedelta(minutes=4)))
async def test_tornado_reads_a_request_from_time_to_time_so_that_it_knows_the_connection_is_used(
    seen, stage, monkeypatch
):
    monkeypatch.setattr("candled.transport.hot_stream._BY_TORNADO_S", 60.0)  # half an hour is long on a simulated clock
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.listen())
    for _ in range(2):
        for _ in range(3):
            writer.write(HEAD)
            await reader.readuntil(b'"pass"}\n')
        await stage.clock.advance(61)
    writer.close()
    await writer.wait_closed()
    assert seen == [True, True, True, True, True]
