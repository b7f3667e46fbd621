"""Pages that many clients request are made at most once a second, encoded once, and 304 for those who have them."""

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

    def find(key="a"):
        return pages.find(key, lambda: made.append(key) or texts[min(len(made), 4) - 1])

    for _ in range(5):
        assert [find().body for _ in range(3)] == [texts[len(made) - 1]] * 3
        assert find().encoded(PLAIN) == (find().body, PLAIN)
        body, coding = find().encoded(GZIP)
        assert (body, coding) == ((find().body, PLAIN) if len(find().body) < 4 else (b"gz" + find().body, GZIP))
        await clock.advance(0.5)
    assert made == ["a"] * 3
    assert encoded == [b"four"]
    for key in "bcbcb":  # no more are kept than two
        find(key)
    assert made == ["a"] * 3 + ["b", "c"]
    find("a")
    find("c")
    assert made == ["a"] * 3 + ["b", "c", "a", "c"]


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
