"""Pages that many clients request are made at most once a second, encoded once, and 304 for those who have them."""

import asyncio

import pytest

from candled.config.sections import ServerSettings
from candled.serve import content_coding
from candled.serve.content_coding import PLAIN, ContentCoding
from candled.serve.kept_pages import KeptPages
from tests.api.raw import ask_all
from tests.clocks import ManualClock

GZIP = ContentCoding("gzip", 4)


@pytest.fixture
def encoded(monkeypatch):
    """Give a list of the bodies that were compressed."""
    found = []
    content_coding.encode_once.cache_clear()
    monkeypatch.setitem(content_coding.CODINGS, "gzip", lambda body: found.append(body) or b"gz" + body)
    yield found
    content_coding.encode_once.cache_clear()


async def test_a_page_is_made_once_a_second_and_encoded_once_while_it_is_the_same(encoded):
    clock, made = ManualClock(), []
    pages = KeptPages(clock, most=2)
    texts = [b"one", b"four", b"four", b"other"]

    async def find(key="a"):
        async def make() -> bytes:
            made.append(key)
            return texts[min(len(made), 4) - 1]

        return await pages.find(key, make)

    for _ in range(5):
        page = await find()
        assert page.body == texts[len(made) - 1]
        assert [await find() for _ in range(3)] == [page] * 3
        assert page.encoded(PLAIN) == (page.body, PLAIN)
        assert page.encoded(GZIP) == ((page.body, PLAIN) if len(page.body) < 4 else (b"gz" + page.body, GZIP))
        await clock.advance(0.5)
    assert made == ["a"] * 3
    assert encoded == [b"four"]
    for key in "bcbcb":  # no more are kept than two
        await find(key)
    assert made == ["a"] * 3 + ["b", "c"]
    await find("a")
    await find("c")
    assert made == ["a"] * 3 + ["b", "c", "a", "c"]


async def test_a_page_that_takes_several_passes_is_made_once_for_all_clients_that_wait():
    clock, made = ManualClock(), []

    async def make() -> bytes:
        made.append(clock.monotonic())
        await clock.sleep(0.2)
        return b"%d" % len(made)

    pages = KeptPages(clock)
    waiting = [asyncio.create_task(pages.find("a", make)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # a client that leaves
    await clock.advance(0.3)
    assert [(await one).body for one in waiting[1:]] == [b"1"] * 4
    assert (await pages.find("a", make)).body == b"1"
    await clock.advance(0.8)
    later = asyncio.create_task(pages.find("a", make))
    await clock.advance(0.3)
    assert (await later).body == b"2"
    assert len(made) == 2


async def test_after_an_error_a_page_is_made_again():
    clock, results = ManualClock(), [RuntimeError("once"), b"well"]

    async def make() -> bytes:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    pages = KeptPages(clock)
    with pytest.raises(RuntimeError, match="once"):
        await pages.find("a", make)
    assert (await pages.find("a", make)).body == b"well"


@pytest.fixture
def made(monkeypatch):
    """Give a list of the pages that were made."""
    found, real = [], KeptPages.find

    def find(self, key, make, lasts_s=1.0):
        return real(self, key, lambda: found.append(key) or make(), lasts_s)

    monkeypatch.setattr(KeptPages, "find", find)
    return found


FILES = ["/static/page.js", "/clients/candled.js"]
LASTING = ["/api/openapi.json", "/udf/search?query=BT", "/udf/search?limit=0"]
PASSING = [
    "/", "/health", "/health/ws-stats", "/api/symbols", "/udf/symbols?symbol=BTCUSDT", "/udf/symbol_info",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.gen_test
@pytest.mark.stage(server=ServerSettings(host="127.0.0.1", port=0, compress_from=1))
async def test_every_costly_page_is_made_once_a_second_encoded_once_and_304_if_it_is_known(made, encoded, stage):
    port = stage.server.listen()
    for path in (*FILES, *LASTING, *PASSING):
        made.clear()
        encoded.clear()
        first, again = await ask_all(port, [(path, {"Accept-Encoding": "gzip"})] * 2)
        (plain,) = await ask_all(port, [(path, {})])
        assert (first.status, first.headers["content-encoding"]) == (200, "gzip"), path
        assert first.body == again.body == b"gz" + plain.body
        assert first.headers["etag"] == again.headers["etag"] != plain.headers["etag"]
        for coding, answer in ({"Accept-Encoding": "gzip"}, first), ({}, plain):
            (known,) = await ask_all(port, [(path, {**coding, "If-None-Match": answer.headers["etag"]})])
            assert (known.status, known.body) == (304, b""), path
        assert (len(made), len(encoded)) == (path not in FILES, 1), path
        await stage.clock.advance(1.0)
        await ask_all(port, [(path, {})] * 2)
        assert len(made) == (0 if path in FILES else 1 if path in LASTING else 2), path


@pytest.mark.gen_test
async def test_spellings_of_one_search_are_one_page(made, stage):
    port = stage.server.listen()
    paths = [f"/udf/search?query={word}&limit={limit}" for word in ("btc", "BTC", "%20Btc") for limit in (100, 10**9)]
    assert len({answer.body for answer in await ask_all(port, [(path, {}) for path in paths])}) == 1
    assert len(made) == 1


@pytest.mark.slow
@pytest.mark.gen_test
async def test_searches_displace_no_other_page_and_are_charged(made, stage):
    port, paths = stage.server.listen(), ["/udf/symbol_info", "/api/symbols", "/api/openapi.json"]
    await ask_all(port, [(path, {}) for path in paths])
    await ask_all(port, [(f"/udf/search?query=X{number}", {}) for number in range(300)])
    assert len(made) == 303
    await ask_all(port, [(path, {}) for path in paths])
    assert len(made) == 303
    budget = stage.server._budgets.address_bucket("127.0.0.1")
    before = budget.paid_at
    await ask_all(port, [("/udf/search?query=X299", {})])
    known, before = budget.paid_at - before, budget.paid_at
    await ask_all(port, [("/udf/search?query=another", {})])
    assert budget.paid_at - before > known
