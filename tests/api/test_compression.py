"""Compressed answers are the plain ones: the same bytes, other ETags, made once, and never of streams."""

import gzip
from contextlib import asynccontextmanager

import pytest

from candled.config import KlinesSettings, ServerSettings
from candled.serve import content_coding
from candled.serve.kept_pages import KeptPage
from tests.api.raw import ask_all
from tests.api.stage import open_stage
from tests.rows import MONDAY_MS, minute
from tests.serve.peers import answering

COUNT = 2600
AT = [MONDAY_MS + number * 60_000 for number in range(COUNT)]
PAGE = MONDAY_MS // 60_000_000 + 1
KLINES = "/api/v3/klines?symbol=BTCUSDT&interval=1m"
CANDLES = "/api/candles?symbol=BTC/USDT&interval=1m"
OLD = f"{KLINES}&endTime={AT[900]}"
BARS = [
    f"{KLINES}&limit=100", OLD, f"{CANDLES}&limit=100", f"{CANDLES}&limit=500&format=csv",
    f"{CANDLES}&limit=500&format=ndjson", f"/udf/history?symbol=REPLAY:BTCUSDT&resolution=1&to={AT[-1]}&countback=300",
]  # fmt: skip
OTHERS = ["/api/openapi.json", "/static/page.css", "/clients/candled.js", "/"]
SMALL = [f"{KLINES}&limit=2", "/api/intervals", "/udf/time", "/static/icon.svg"]
STREAM = f"{CANDLES}&format=csv&to={AT[500]}"
GZIP = {"Accept-Encoding": "gzip"}
pytestmark = pytest.mark.slow  # a store with pages of the past, asked over a port


@asynccontextmanager
async def listening(tmp_path):
    """Serve bars of memory and of pages of the past; yield the port."""
    async with open_stage(tmp_path, COUNT, klines=KlinesSettings(enabled=True), now_ms=AT[-1] + 120_000) as one:
        one.push(minute(COUNT, as_of=1_000))
        one.server._context.find_page = answering(KeptPage(b"<p>page</p>" * 500))
        one.server._context.clock = one.clock
        yield one.server.listen()


@pytest.fixture
def coded(monkeypatch):
    """Count what is compressed."""
    found = []
    monkeypatch.setitem(content_coding.CODINGS, "gzip", lambda body: found.append(body) or gzip.compress(body, mtime=0))
    content_coding.encode_once.cache_clear()
    return found


async def page_address(port: int) -> str:
    path = f"/api/pages?symbol=BTC/USDT&interval=1m&page={PAGE}"
    (answer,) = await ask_all(port, [(path, {})])
    return f"/api/pages{answer.headers['location']}"


async def test_a_compressed_answer_is_the_plain_one_with_an_etag_of_its_own(tmp_path):
    async with listening(tmp_path) as port:
        paths = [*BARS, await page_address(port), *OTHERS]
        for path in paths:
            await ask_all(port, [(path, {})])
            (plain, first, again) = await ask_all(port, [(path, {}), (path, GZIP), (path, GZIP)])
            assert (first.status, first.headers["content-encoding"]) == (200, "gzip"), path
            assert gzip.decompress(first.body) == plain.body
            assert first.body == again.body
            assert "content-encoding" not in plain.headers
            assert {"Accept-Encoding"} == {one.headers["vary"] for one in (plain, first)}
            tags = [plain.headers["etag"], first.headers["etag"]]
            assert tags[0] != tags[1]
            known = [(path, {**GZIP, "If-None-Match": f'"x", W/{tags[1]}'}), (path, {"If-None-Match": tags[0]})]
            answers = await ask_all(port, [*known, (path, {"If-None-Match": tags[1]})])
            # who accepts no coding has no use for the tag of a compressed body
            assert [answer.status for answer in answers] == [304, 304, 200], path
            assert [answer.headers["etag"] for answer in answers] == [tags[1], tags[0], tags[0]]
            assert "content-encoding" not in answers[0].headers
            if path == "/":
                continue  # the path of WebSockets has no HEAD
            (head,) = await ask_all(port, [(path, GZIP)], "HEAD")
            assert (head.headers["content-encoding"], head.headers["content-length"]) == ("gzip", str(len(first.body)))


async def test_bars_are_compressed_once_for_all_clients(tmp_path, coded):
    async with listening(tmp_path) as port:
        for path in [*BARS, await page_address(port)]:
            await ask_all(port, [(path, {})])
            coded.clear()
            await ask_all(port, [(path, GZIP)] * 5 + [(path, {"Accept-Encoding": f"gzip, x{n}"}) for n in range(5)])
            assert len(coded) == 1, path


async def test_small_answers_and_streams_are_sent_as_they_are(tmp_path, coded):
    async with listening(tmp_path) as port:
        answers = await ask_all(port, [(path, GZIP) for path in SMALL])
        assert [(answer.status, answer.headers.get("content-encoding")) for answer in answers] == [(200, None)] * len(
            SMALL
        )
        (head,) = await ask_all(port, [(STREAM, GZIP)], "HEAD")
        assert (head.status, head.headers.get("content-encoding")) == (200, None)
        assert coded == []


async def test_a_client_that_refuses_plain_bodies_gets_none(tmp_path):
    async with listening(tmp_path) as port:
        refusing = {"Accept-Encoding": "gzip, identity;q=0"}
        answers = await ask_all(port, [(path, refusing) for path in (*SMALL[:3], BARS[0])])
        assert {answer.headers["content-encoding"] for answer in answers} == {"gzip"}
        (neither,) = await ask_all(port, [(BARS[2], {"Accept-Encoding": "br, *;q=0"})])
        assert (neither.status, b"not_acceptable" in neither.body) == (406, True)
        (part,) = await ask_all(port, [("/static/page.css", {**GZIP, "Range": "bytes=0-9"})])
        assert (part.status, len(part.body), part.headers.get("content-encoding")) == (206, 10, None)


async def test_compression_can_be_turned_off(tmp_path):
    server = ServerSettings(host="127.0.0.1", port=0, compress_from=0)
    async with open_stage(tmp_path, 1200, klines=KlinesSettings(enabled=True), server=server) as one:
        answers = await ask_all(one.server.listen(), [(path, GZIP) for path in (BARS[0], *OTHERS)])
        assert [answer.headers.get("content-encoding") for answer in answers] == [None] * len(answers)
