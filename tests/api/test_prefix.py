"""Everything below a path of a reverse proxy, which strips that path or passes it on."""

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

from candled.config.sections import KlinesSettings, ServerSettings
from candled.serve.handlers import STATIC

pytestmark = pytest.mark.gen_test
CANDLES = "api/candles?symbol=BTC/USDT&interval=1m&limit=20"
HOST = "http://public"


class Proxy:
    """What a client sees behind a reverse proxy: addresses below a path of its own."""

    def __init__(self, fetch: Callable[[str], Awaitable[Any]], path: str, is_stripped: bool) -> None:
        self.home = f"{HOST}{path}/"
        self._fetch = fetch
        self._stripped = len(path) if is_stripped else 0

    def inner(self, address: str) -> str:
        """The path and query that the proxy asks candled for."""
        assert address.startswith(self.home), address
        return address[len(HOST) :][self._stripped :]

    async def ask(self, address: str):
        return await self._fetch(self.inner(address))


behind_proxies = pytest.mark.parametrize(
    ("path", "prefix", "is_stripped"),
    [
        ("", "", False),
        ("/candles", "", True),
        ("/a/b", "", True),
        ("/api", "", True),
        ("/candles", "/candles", False),
        ("/a/b", "/a/b", False),
        ("/api", "/api", False),
        ("/candles", "/candles", True),
    ],
)


@pytest.fixture
def prefix() -> str:
    """Give the path that the proxy leaves to candled; most tests have it as a parameter."""
    return "/a/candles"


@pytest.fixture
def stage_options(prefix):
    return {"server": ServerSettings(prefix=prefix), "klines": KlinesSettings(enabled=True)}


@pytest.fixture
def proxy(fetch, path, is_stripped) -> Proxy:
    return Proxy(fetch, path, is_stripped)


@behind_proxies
async def test_next_and_link_lead_to_all_bars(proxy):
    address, times = proxy.home + CANDLES, set()
    while address:
        answer = await proxy.ask(address)
        page = json.loads(answer.body)
        times |= {bar["time"] for bar in page["bars"]}
        link = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("Link", ""))
        assert page["next"] == (link and link[1])
        address = page["next"] and urljoin(address, page["next"])
    assert len(times) == 60


@behind_proxies
async def test_the_description_names_the_server_that_it_came_from(proxy):
    address = proxy.home + "api/openapi.json"
    document = json.loads((await proxy.ask(address)).body)
    server = urljoin(address, document["servers"][0]["url"]).rstrip("/")
    assert server == proxy.home.rstrip("/")
    for path in ("/api/symbols", "/api/openapi.json"):
        assert path in document["paths"]
        assert (await proxy.ask(server + path)).code == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "health", "udf/config", "clients/candled.js", "static/page.js", "api/v3/time"])
@behind_proxies
async def test_every_path_is_answered(proxy, name):
    assert (await proxy.ask(proxy.home + name)).code == 200


@behind_proxies
async def test_websockets_are_opened(proxy, connect):
    for name in ("", "ws", "ws/btcusdt@kline_1m"):
        async with connect(proxy.inner(proxy.home + name)) as ws:
            await ws.send(
                '{"type":"ping"}' if name != "ws/btcusdt@kline_1m" else '{"method":"LIST_SUBSCRIPTIONS","id":1}'
            )
            assert json.loads(await ws.recv())


async def test_the_bare_prefix_leads_to_the_page_and_takes_a_websocket(fetch, connect):
    answer = await fetch("/a/candles?x=1", follow_redirects=False)
    assert (answer.code, urljoin(f"{HOST}/a/candles?x=1", answer.headers["Location"])) == (
        302,
        f"{HOST}/a/candles/",
    )
    async with connect("/a/candles") as ws:
        await ws.send('{"type":"ping"}')
        assert json.loads(await ws.recv())["type"] == "pong"
    statuses = [(await fetch(path)).code for path in ("/a/candlestick", "/a", "/a/candles/a/candles", "/api/symbols")]
    assert statuses == [404, 404, 404, 200]


@pytest.mark.parametrize(
    "file", sorted(STATIC.glob("*.*")) + sorted(Path("clients/js").glob("*.js")), ids=lambda file: file.name
)
def test_the_page_and_the_clients_refer_to_nothing_by_an_absolute_path(file):
    text = file.read_text("utf-8")
    references = re.findall(
        r"""(?:\b(?:src|href|action)=|url\(|fetch\(|new URL\(|\bfrom |import\()\s*["'`]([^"'`]+)""", text
    )
    assert [one for one in references if one.startswith("/") and not urlsplit(one).scheme] == []
