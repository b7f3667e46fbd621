"""REST and WebSocket through real proxies on sockets: how they connect, and the errors where they do not."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from websockets.asyncio.server import serve

from candled.clock import SystemClock
from candled.errors import Unavailable
from candled.ingest import feeds, http
from candled.ingest.feeds import FeedRunner, LoopBudget
from candled.ingest.http import HttpClient
from candled.proxies import Proxies
from candled.token_bucket import TokenBucket
from tests import deadlines
from tests.fakes.proxies import FakeProxy
from tests.ingest.test_feeds import BTC, Patient, Sink

REST, PUSHES = "rest.test", "ws.test"  # names that proxies alone know
Attempt = Callable[[Proxies], Awaitable[str]]


class Time(RequestHandler):
    """The host that was asked."""

    def get(self) -> None:
        self.finish({"host": self.request.host})


@asynccontextmanager
async def exchange() -> AsyncIterator[dict[str, int]]:
    """REST and WebSocket of an exchange, on the ports of two names."""

    async def handle(peer):
        await peer.recv()
        await peer.send("7")
        await peer.wait_closed()

    server = HTTPServer(Application([(r"/time", Time)], log_function=lambda _: None))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    async with serve(handle, "127.0.0.1", 0, compression=None) as pushes:
        yield {REST: sockets[0].getsockname()[1], PUSHES: pushes.sockets[0].getsockname()[1]}
    server.stop()
    await server.close_all_connections()


async def by_rest(proxies: Proxies, address: str = f"http://{REST}") -> str:
    """Ask over REST; return what came of it."""
    client = HttpClient(SystemClock(), 100.0, proxies=proxies)
    try:
        return f"reached {(await client.get_json(f'{address}/time'))['host']}"
    except Unavailable as error:
        return str(error)
    finally:
        client.close()


async def by_websocket(proxies: Proxies, address: str = f"ws://{PUSHES}") -> str:
    """Run a feed until a frame comes or it breaks; return what came of it."""
    sink = Sink()
    feed = Patient(f"{address}/", [BTC])
    runner = sink.runner = FeedRunner("test", feed, sink, SystemClock(), TokenBucket(100, 100), LoopBudget(), proxies)
    task = asyncio.create_task(runner.run())
    try:
        while not sink.volumes and sink.reasons.empty():
            await asyncio.sleep(0.01)
        return f"reached {PUSHES}" if sink.volumes == [7] else sink.reasons.get_nowait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(params=[by_rest, by_websocket], ids=["REST", "WebSocket"])
def attempt(request, monkeypatch) -> Attempt:
    monkeypatch.setattr(feeds, "_CONNECT_TIMEOUT_S", 1.0)
    monkeypatch.setattr(http, "_TIMEOUT_S", 1.0)
    return request.param


RIGHT = "ann:s%40 cret"
NEEDED = "ann:s@ cret"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "socks5h"])
@pytest.mark.parametrize(
    ("needed", "sent", "fault", "outcome"),
    [
        (None, None, "", "reached"),
        (None, RIGHT, "", "reached"),
        (NEEDED, RIGHT, "", "reached"),
        (NEEDED, RIGHT, "in pieces", "reached"),
        (NEEDED, None, "", "407, it requires another user|No acceptable authentication|authentication methods"),
        (NEEDED, "ann:wrong", "", "407, .*NTLM, Basic; candled knows Basic|authentication failure"),
        (None, RIGHT, "forbidden", "does not connect to [a-z]+.test:80: (403 Forbidden|.*[Nn]ot allowed)"),
        (None, RIGHT, "dies", "does not connect to .*closed"),
        (None, RIGHT, "nonsense", "does not connect to .*(it is no HTTP proxy|[Vv]ersion)"),
        (None, RIGHT, "stalls", "no connection through the proxy .* within (1|0.99.*) s"),
    ],
    ids=str,
)  # fmt: skip
async def test_a_connection_takes_the_proxy_and_names_it_where_it_fails(attempt, kind, needed, sent, fault, outcome):
    async with exchange() as hosts, FakeProxy(kind, hosts, needed, fault) as proxy:
        happened = await deadlines.wait_for(attempt(Proxies.from_setting(proxy.url(sent), {})), 10)
        assert re.search(outcome, happened), happened
        if outcome == "reached":
            assert proxy.carried == 1
            assert proxy.asked in ([f"{REST}:80"], [f"{PUSHES}:80"])
        else:
            assert proxy.carried == 0
            assert f"the proxy {kind}://127.0.0.1:{proxy.port}" in happened
        assert not re.search("cret|wrong", happened)


@pytest.mark.parametrize("kind", ["http", "socks5h"])
async def test_a_proxy_that_is_not_there_is_named(attempt, kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    happened = await attempt(Proxies.from_setting(f"{kind}://ann:secret@127.0.0.1:{port}", {}))
    assert f"cannot reach the proxy {kind}://127.0.0.1:{port}: " in happened
    assert "secret" not in happened


@pytest.mark.parametrize(("written", "better"), [("socks5", "socks5h"), ("socks4", "socks4a")])
async def test_a_name_that_only_the_proxy_knows_needs_a_proxy_that_looks_it_up(attempt, written, better):
    async with exchange() as hosts, FakeProxy("socks5h", hosts) as proxy:
        happened = await attempt(Proxies.from_setting(f"{written}://127.0.0.1:{proxy.port}", {}))
    assert re.search(rf"does not connect to \w+.test:80: the name is unknown here; with {better}://", happened), (
        happened
    )


def test_every_client_of_an_exchange_knows_the_proxies():
    made = {
        path.name: calls
        for path in (Path(__file__).parents[2] / "candled").rglob("*.py")
        if (calls := re.findall(r"(?:=|:|return) HttpClient\((.*)\)", path.read_text("utf-8")))
    }
    assert set(made) == {"ingest_side.py", "session.py", "exchange_check.py", "markets.py", "recorder.py", "doctor.py"}
    assert all("proxies" in "".join(call) for calls in made.values() for call in calls)


@pytest.mark.parametrize("kind", ["http", "socks5h"])
async def test_every_address_of_a_proxys_name_is_tried(attempt, kind, monkeypatch):
    """`localhost` is often ::1 first, where nothing listens."""
    async with exchange() as hosts, FakeProxy(kind, hosts) as proxy:
        loop = asyncio.get_running_loop()
        usual = loop.getaddrinfo

        async def both(host, port, **more):
            if host != "proxy.test":
                return await usual(host, port, **more)
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            ]

        monkeypatch.setattr(loop, "getaddrinfo", both)
        assert (await attempt(Proxies.from_setting(f"{kind}://proxy.test:{proxy.port}", {}))).startswith("reached")


@pytest.mark.slow
async def test_a_tunnel_that_is_cut_interrupts_the_feed_which_connects_again():
    async with exchange() as hosts, FakeProxy("http", hosts) as proxy:
        sink = Sink()
        feed = Patient(f"ws://{PUSHES}/", [BTC])
        runner = sink.runner = FeedRunner(
            "test",
            feed,
            sink,
            SystemClock(),
            TokenBucket(100, 100),
            LoopBudget(),
            Proxies.from_setting(proxy.url(), {}),
        )
        task = asyncio.create_task(runner.run())
        try:
            async with deadlines.timeout(10):
                while not sink.volumes:
                    await asyncio.sleep(0.01)
                proxy.cut()
                assert "connection closed" in await sink.reason()
                while len(sink.volumes) < 2:
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert proxy.carried == 2


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "127.0.0.0/8", "*", ""], ids=str)
async def test_hosts_without_a_proxy_are_reached_directly(attempt, no_proxy):
    """This machine's own addresses are, also where `NO_PROXY` does not say so."""
    env = {"ALL_PROXY": "http://127.0.0.1:1", "NO_PROXY": no_proxy}
    async with exchange() as hosts:
        name, scheme = (REST, "http") if attempt is by_rest else (PUSHES, "ws")
        happened = await attempt(Proxies.from_setting(None, env), f"{scheme}://127.0.0.1:{hosts[name]}")
    assert happened.startswith("reached")
