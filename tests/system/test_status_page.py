"""The status page in Chromium: a real daemon whose exchange stops, and a thousand markets."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from candled.clock import SystemClock
from candled.model import Symbol
from tests import deadlines
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.metrics.scrape import running

pytestmark = [pytest.mark.usefixtures("daemon"), pytest.mark.asyncio(loop_scope="module")]

WAIT_MS = 30_000
GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 26)"}


@pytest.fixture
def daemon() -> None:
    """The need of this module: it runs a daemon in the process of the tests."""


@asynccontextmanager
async def opened(chromium: Any, width: int, scheme: str) -> AsyncIterator[tuple[Any, list[str], list[str]]]:
    """A page with the addresses that it asked for, and its complaints."""
    page = await chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(WAIT_MS / deadlines.rate())
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    try:
        yield page, asked, complaints
    finally:
        await page.close()


async def is_overflowing(page: Any) -> bool:
    root = "document.documentElement"
    return bool(await page.evaluate(f"{root}.scrollWidth > {root}.clientWidth"))


async def test_an_exchange_that_stops_is_shown_in_words_and_so_is_the_end_of_the_process(
    chromium: Any, tmp_path: Path
) -> None:
    fake = FakeBitget(SystemClock(), [FakeMarket(symbol=Symbol("BTC", "USDT"), tape=Synthetic(7))], push_interval_s=0.5)
    await fake.start()
    exchanges = {"bitget": {"symbols": ["BTC/USDT"], "ws_url": fake.ws_url, "rest_url": fake.rest_url}}
    ingest = {"ingest": {"backfill": "0s", "quiet_after": "3s"}}
    async with (
        running(tmp_path, exchanges, sections=ingest, status="public") as deployment,
        opened(chromium, 1200, "dark") as opening,
    ):
        page, asked, complaints = opening
        address = f"http://127.0.0.1:{deployment.daemon.port}"
        await page.goto(f"{address}/status")
        row = page.locator("#markets tbody tr")
        await row.locator("[data-state=live]").wait_for()
        assert (await row.locator(".name").get_attribute("href")) == "./#BTC/USDT/1m/coverage"
        assert await row.locator(".days rect").count() > 0
        assert "does not answer" not in await page.inner_text("#problems")
        await fake.close()
        await page.locator("#problems", has_text="bitget: The exchange's stream does not answer").wait_for()
        assert await page.locator("#problems li").first.get_attribute("data-severity") == "critical"
        await row.locator("[data-state=live]").wait_for(state="detached")
        await row.locator(".badge[data-state=stale]").wait_for()
        await page.locator("#problems", has_text="The exchange's REST API does not answer").wait_for()
        assert complaints == []
        assert {urlsplit(url).netloc for url in asked} == {urlsplit(address).netloc}
        await deployment.stop()
        await page.locator("#lost", has_text="The process does not answer.").wait_for()
        assert await page.inner_text("#state") == "No answer"
        assert await row.count() == 1  # the newest data stays readable


async def serve(page: Any, document: dict[str, Any]) -> None:
    """Answer the page with a document."""
    await page.route("**/status.json", lambda route: route.fulfill(json=document))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def well(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The address of an internal port, and what it serves."""
    async with running(tmp_path_factory.mktemp("site")) as deployment:
        document = json.loads(await deployment.get("/status.json"))
        yield f"http://127.0.0.1:{deployment.daemon.internal_port}/status", document


MARKETS: list[dict[str, Any]] = [
    {"exchange": "virtual", "symbol": f"COIN{number:04}/USDT", "state": "live", "lagMs": number, "days": "n30f61s1"}
    for number in range(1000)
]
MARKETS[500] |= {"state": "stale", "reason": "stream_down", "gaps": {"missing": 1234, "no_trades": 5}, "days": "m1f91"}
MARKETS[600] |= {"state": "stale", "reason": "delisted"}
MARKETS[700] |= {"symbol": "<img src=x>/USDT", "state": "recovering", "reason": "fetching", "error": "<b>no</b>"}


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light")])
async def test_of_a_thousand_markets_the_worst_come_first_and_all_are_found(
    chromium: Any, well: tuple[str, dict[str, Any]], width: int, scheme: str
) -> None:
    address, document = well
    async with opened(chromium, width, scheme) as (page, _, complaints):
        await serve(page, document | {"markets": MARKETS})
        await page.goto(address)
        rows = page.locator("#markets tbody tr")
        await rows.first.wait_for()
        assert await rows.count() == 100
        names = await page.locator("#markets .name").all_inner_texts()
        assert names[:3] == ["COIN0500/USDT", "<img src=x>/USDT", "COIN0000/USDT"]
        assert "COIN0600/USDT" not in names  # it is not traded, which is no problem
        first = await rows.first.inner_text()
        assert "The stream is not connected." in first
        assert "1,234 minutes: not fetched yet" in first
        assert "<b>no</b>" in await rows.nth(1).inner_text()
        assert await page.locator("a.name, #markets img").count() == 0  # this port has no charts
        assert not await is_overflowing(page)
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == GROUND[scheme]
        await page.click("#more")
        assert await rows.count() == 200
        await page.fill("#filter", "coin0777")
        assert await page.locator("#markets .name").all_inner_texts() == ["COIN0777/USDT"]
        await page.fill("#filter", "")
        await page.click("#states button[data-state=stale]")
        assert await page.locator("#markets .name").all_inner_texts() == ["COIN0500/USDT", "COIN0600/USDT"]
        await page.click("#states button[data-state=stale]")
        await page.click("th[data-sort=lag] button")
        assert await page.locator("#markets .name").first.inner_text() == "COIN0999/USDT"
        assert await page.get_attribute("th[data-sort=lag]", "aria-sort") == "ascending"
        assert await page.locator("th[aria-sort]").count() == 1
        assert not await is_overflowing(page)
        assert complaints == []


async def test_a_process_that_only_serves_shows_what_it_knows(chromium: Any, well: tuple[str, dict[str, Any]]) -> None:
    address, document = well
    shard = {"shard": 0, "state": None, "leader": "a1", "heartbeatAgeMs": 21_000}
    counts = {"version": "1.0", "since": document["time"], "clients": 1840, "rooms": 7}
    lists = {name: values for name, values in document["lastHour"].items() if name != "candlesPerSecond"}
    changed = document | {
        "markets": [{"exchange": "replay", "symbol": "BTC/USDT", "state": "stale", "reason": "leader_silent"}],
        "exchanges": {"replay": {"status": "warn", "symbols": 1, "states": {"stale": 1}}},
        "bus": {
            "kind": "redis",
            "connected": True,
            "lagMs": 1.2,
            "ingestProcesses": None,
            "shards": [shard],
            "process": "b1",
        },
        "processes": [
            {"process": "a1", "name": "ingest", "roles": ["ingest"], "host": "one", **counts},
            {"process": "b1", "name": "", "roles": ["serve"], "stopping": True, **counts},
        ],
        "lastHour": lists,
    }
    async with opened(chromium, 360, "light") as (page, _, complaints):
        await serve(page, changed)
        await page.goto(address)
        await page.locator("#shards", has_text="21 s ago").wait_for()
        assert "only serves" in await page.inner_text("#shards")
        rows = await page.locator("#process-rows tbody tr").all_inner_texts()
        assert [re.sub(r"\s+", " ", row) for row in rows] == [
            "ingest one ingest 0 1,840 7 0 s 1.0",
            "b1 this process serve stopping – 1,840 7 0 s 1.0",
        ]
        assert "The process that reads the exchange sends nothing." in await page.inner_text("#markets")
        assert await page.locator("#markets .days").count() == 0
        assert await page.locator("#charts figure").count() == 4
        assert complaints == []
        assert not await is_overflowing(page)
