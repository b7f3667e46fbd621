"""Aligned pages: an address with `rev` never changes its answer, and a page of the past is read once."""

import asyncio
import json
from urllib.parse import urljoin

import pytest

from candled.api.printers import klines_printer
from candled.api.queries import MOST_BARS, BarQuery, HistoryRequest
from candled.bus import HistoryChanged
from candled.config.sections import KlinesSettings
from candled.errors import StoreUnavailable
from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS
from candled.rooms.encoded_bars import EncodedBarCache, Printer
from candled.serve.content_coding import PLAIN, ContentCoding
from tests.api.stage import BTC
from tests.rows import MONDAY_MS, minute

COUNT = 7000
FIRST = MONDAY_MS // (MOST_BARS * MINUTE_MS) + 1  # the first whole page
NOW = MONDAY_MS + COUNT * MINUTE_MS
PATH = f"/api/pages?symbol=BTC/USDT&interval=1m&page={FIRST}"
pytestmark = [
    pytest.mark.gen_test,
    pytest.mark.stage(klines=KlinesSettings(enabled=True), minutes=COUNT, now_ms=NOW + MINUTE_MS),
]


async def revise(stage, number: int, close: str) -> None:
    old = minute(number, close=close, as_of=900_000, final=True)._replace(rev=1)
    stage.store.write_minutes([(BTC, old)])
    stage.bus.publish(HistoryChanged(BTC, old.open_ms, old.open_ms + MINUTE_MS, MONDAY_MS))
    while stage.bars.is_behind(BTC):
        await stage.clock.advance(0.1)


async def redirected(fetch, path: str) -> str:
    answer = await fetch(path, follow_redirects=False)
    assert (answer.code, answer.headers["Cache-Control"], answer.body) == (302, "no-cache", b"")
    return urljoin(path, answer.headers["Location"])


@pytest.mark.slow
async def test_a_closed_page_has_an_address_whose_answer_caches_keep(stage, fetch):
    stage.push(minute(COUNT))
    address = await redirected(fetch, PATH)
    answer = await fetch(address)
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    page = json.loads(answer.body)
    assert len(page["bars"]) == MOST_BARS
    assert all(bar["final"] for bar in page["bars"])
    assert "seq" not in page
    assert page["hasMore"]
    for number in range(COUNT + 1, COUNT + 4):  # the market moves on
        stage.push(minute(number))
    assert (await fetch(address)).body == answer.body
    known = await fetch(address, headers={"If-None-Match": answer.headers["Etag"]})
    assert (known.code, known.body, known.headers["Cache-Control"]) == (304, b"", answer.headers["Cache-Control"])


@pytest.mark.slow
async def test_a_revision_changes_the_address_and_the_old_one_redirects(stage, fetch):
    stage.push(minute(COUNT))
    old = await redirected(fetch, PATH)
    etag = (await fetch(old)).headers["Etag"]
    number = (FIRST * MOST_BARS * MINUTE_MS - MONDAY_MS) // MINUTE_MS + 5
    await revise(stage, number, "11.5")
    new = await redirected(fetch, old)
    assert new != old
    assert json.loads((await fetch(new)).body)["bars"][5]["close"] == 11.5
    assert await redirected(fetch, f"{PATH}&rev=nonsense") == new
    known = await fetch(old, headers={"If-None-Match": etag})
    assert known.code == 304  # what the client has is the answer of that address


@pytest.mark.slow
async def test_the_page_with_the_forming_bar_has_no_revision(stage, fetch):
    stage.push(minute(COUNT))
    newest = (NOW // (MOST_BARS * MINUTE_MS)) - FIRST
    path = PATH.replace(str(FIRST), str(FIRST + newest))
    answer = await fetch(path)
    assert (answer.code, answer.headers["Cache-Control"]) == (200, "no-cache")
    page = json.loads(answer.body)
    assert (page["hasMore"], page["next"], page["bars"][-1]["final"]) == (False, None, False)
    assert "rev" not in await redirected(fetch, f"{path}&rev=0123456789abcdef")


@pytest.mark.slow
async def test_pages_contain_every_bar_once(stage, fetch):
    stage.push(minute(COUNT))
    path, found = PATH.replace(str(FIRST), str(FIRST - 1)), []
    while path is not None:
        answer = await fetch(path)
        page = json.loads(answer.body)
        found += [bar["time"] for bar in page["bars"]]
        path = page["next"] and urljoin(path, page["next"])
    assert len(found) == len(set(found)) == COUNT + 1
    assert found == sorted(found)


@pytest.mark.slow
async def test_a_page_of_the_past_is_read_and_encoded_once(stage, fetch, monkeypatch):
    stage.push(minute(COUNT))
    path = f"/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=1000&startTime={MONDAY_MS}"
    first = await fetch(path)

    def away(*_, **__):
        raise StoreUnavailable("gone")

    for name in ("served_from", "read_bars", "read_bars_between", "read_texts_between"):
        monkeypatch.setattr(stage.store, name, away)
    again = await fetch(path)
    assert (again.code, again.body) == (200, first.body)
    assert (await fetch(path, headers={"If-None-Match": first.headers["Etag"]})).code == 304
    asked = HistoryRequest(1000, MONDAY_MS, END_OF_TIME_MS + 1, newest_first=False)
    assert stage.pages.printed_now(BTC, MINUTE, klines_printer(MINUTE), asked) is not None
    stage.bus.publish(HistoryChanged(BTC, MONDAY_MS, MONDAY_MS + MINUTE_MS, MONDAY_MS))
    assert stage.pages.printed_now(BTC, MINUTE, klines_printer(MINUTE), asked) is None


def test_a_scan_of_the_past_does_not_drop_newest_bars_and_stays_within_its_share():
    cache = EncodedBarCache(4_000)
    form = cache.get_form(("market", "1m"), klines_printer(MINUTE))
    form._blobs[0] += b"x" * 3_500
    cache.mark_used(form)
    for number in range(100):
        cache.keep_page(number, f"page {number}", 200)
        assert cache.bytes <= 4_000
    assert cache.find_form(("market", "1m"), klines_printer(MINUTE).name, False) is form
    assert [cache.find_page(number) for number in (97, 98, 99)] == [None, "page 98", "page 99"]
    form._blobs[0] += b"x" * 400
    cache.mark_used(form)  # newest bars come first
    assert cache.find_page(98) is None
    assert cache.bytes <= 4_000


@pytest.mark.slow
@pytest.mark.parametrize("is_writing", [False, True])
async def test_a_cold_page_that_many_clients_ask_for_is_read_and_encoded_once(stage, monkeypatch, is_writing):
    """It is read again only for a client that asked after a later write, and encoded once even then."""
    stage.push(minute(COUNT))
    reads, printed = [], []
    real = stage.store.read_texts_between
    monkeypatch.setattr(stage.store, "read_texts_between", lambda *args: reads.append(args) or real(*args))

    def texts(bars):
        printed.extend(bars.times)
        return (list(map(str, bars.times)),)

    printer = Printer("counted", lambda bar, _: (str(bar.open_ms),), print_texts=texts)
    asked = HistoryRequest(MOST_BARS, MONDAY_MS, MONDAY_MS + 2000 * MINUTE_MS, newest_first=False)

    async def ask() -> bytes:
        stage.pages._stored._threads.writes += is_writing
        return b"".join((await stage.pages.printed(BTC, MINUTE, printer, asked)).columns)

    bodies = await asyncio.gather(*(ask() for _ in range(50)))
    assert len(set(bodies)) == 1
    first_page = FIRST * MOST_BARS - MONDAY_MS // MINUTE_MS  # bars of the page in which the week begins
    assert len(printed) == first_page + MOST_BARS
    assert len(reads) == 2 or is_writing


@pytest.mark.slow
async def test_a_scan_of_the_past_by_one_client_leaves_the_newest_bars_of_the_others_encoded(stage):
    stage.push(minute(COUNT))
    stage.pages._texts.most_bytes = 1_000_000
    texts, printed = stage.pages._texts, []
    real = klines_printer(MINUTE)
    newest = Printer("newest", lambda *bar: printed.append(bar[0].open_ms) or real.print(*bar))
    tail = HistoryRequest(500)
    await stage.pages.printed(BTC, MINUTE, newest, tail)
    printed.clear()
    for number in range(0, COUNT - 1500, 100):  # more than the cache has room for
        asked = HistoryRequest(1000, MONDAY_MS + number * MINUTE_MS, newest_first=False)
        for coding in (PLAIN, ContentCoding("gzip", 1)):
            query = BarQuery(BTC, MINUTE, real, asked, lambda page: page.columns[0], lambda *_: ())
            await stage.pages.written(query, "", coding)
        assert texts.bytes <= 1_000_000
        assert texts._page_bytes <= 250_000
    assert len(texts._pages) > 1
    assert stage.pages.printed_now(BTC, MINUTE, newest, tail) is not None
    assert printed == []
