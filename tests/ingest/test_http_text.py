"""Answers as text, for libraries that read them, and the proxy of a socket that a library opens."""

import pytest
from tornado.web import RequestHandler

from candled.clock import SystemClock
from candled.errors import ExchangeError, Unavailable
from candled.exchange import RequestBudget
from candled.ingest.http import HttpClient
from candled.proxies import Proxies, ProxyAddress
from tests.plugins.local import web_server


class Echo(RequestHandler):
    def prepare(self):
        self.set_status(int(self.request.path[1:]))
        many = "[" + "[]," * 200_001 + "[]]"
        text = many if self.request.arguments else f"{self.request.method} {self.request.headers.get('X-One')} "
        self.finish(text + self.request.body.decode())


@pytest.fixture
async def client():
    client = HttpClient(SystemClock(), 100.0, budgets={"weight": RequestBudget(limit=60)})
    yield client
    client.close()


async def test_an_answer_is_text_whatever_its_status_below_500_is(client):
    async with web_server((r"/\d+", Echo)) as url:
        answer = await client.fetch_text(
            f"{url}/404", method="PUT", headers={"X-One": "1"}, body="{é}", weight=3.0, budget="weight"
        )
        assert (answer.status, answer.text) == (404, "PUT 1 {é}")
        assert answer.headers["Content-Type"].startswith("text/html")
        (host,) = client.describe().values()
        assert host["budgets"]["weight"] < 1 == host["budgetLeft"]
        assert (await client.fetch_text(f"{url}/200", method="POST")).text == "POST None "


@pytest.mark.parametrize(("path", "error"), [("503", Unavailable), ("429", Unavailable), ("200?a=1", ExchangeError)])
async def test_an_answer_that_is_no_answer_is_an_error(client, path, error):
    async with web_server((r"/\d+", Echo)) as url:
        with pytest.raises(error):
            await client.fetch_text(f"{url}/{path}")


@pytest.mark.parametrize("text", ["http://user:p%2F%23%40@proxy.example.org:3128", "socks5h://127.0.0.1:1080"])
def test_the_proxy_of_a_socket_has_its_password(text):
    proxy = ProxyAddress.parse(text)
    assert ProxyAddress.parse(proxy.full_text) == proxy
    client = HttpClient(SystemClock(), 1.0, proxies=Proxies(text, secure=proxy))
    assert client.find_proxy("wss://example.org/ws") == proxy.full_text
    assert client.find_proxy("ws://example.org/ws") is None
    client.close()
