"""nginx before two serving processes, with the configuration of docs/how-to/scaling.md as it stands there."""

import asyncio
import contextlib
import json
import re
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import websockets

from tests import deadlines
from tests.certificates import Authority
from tests.ports import free_port
from tests.servers import start_program
from tests.system.daemon import ROOT, Daemon
from tests.system.several import Several

pytestmark = pytest.mark.usefixtures("postgres", "redis", "daemon")

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
if NGINX is None:
    pytest.skip("needs nginx: apt-get install --no-install-recommends nginx-light", allow_module_level=True)

HOST = "candles.example.org"
NEAR, FAR = "127.0.0.2", "127.0.0.3"  # clients; the balancer is at 127.0.0.1
SUBSCRIBE = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 5, "fields": ["seq"]}
OUTER = """
daemon off; {user}pid {folder}/pid; worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {inner}
}}
"""


class Nginx:
    """The balancer, and clients of it at addresses of their own."""

    def __init__(self, port: int, trust: ssl.SSLContext) -> None:
        self.port = port
        self.trust = trust

    def connect(self, address: str = NEAR, path: str = "/", **more: Any) -> Any:
        """A WebSocket connection."""
        options = {"ssl": self.trust, "server_hostname": HOST, "local_addr": (address, 0), **more}
        return websockets.connect(f"wss://{HOST}:{self.port}{path}", host="127.0.0.1", port=self.port, **options)

    @asynccontextmanager
    async def ask(self, path: str, address: str = NEAR, headers: str = "") -> AsyncIterator[asyncio.StreamReader]:
        """A GET, from the status line on."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.trust, server_hostname=HOST, local_addr=(address, 0)
        )
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{headers}\r\n".encode())
        try:
            yield reader
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def status(self, path: str, address: str = NEAR, headers: str = "") -> int:
        """The status of an answer."""
        async with self.ask(path, address, headers) as reader:
            return int((await reader.readline()).split()[1])


def documented() -> tuple[str, str]:
    """The configuration on the page, and the beginning of its location where candled is below a path."""
    text, below = re.findall(
        r"```nginx\n(.*?)```", (ROOT / "docs" / "how-to" / "scaling.md").read_text("utf-8"), re.DOTALL
    )
    return text, below


def replaced(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextmanager
def balancer(folder: Path, backends: Sequence[Daemon], *changes: tuple[str, str]) -> Iterator[Nginx]:
    """nginx as a child, with the page's configuration but for ports and files."""
    folder.mkdir()
    port, authority = free_port(), Authority(folder)
    certificate, key = authority.sign(HOST)
    first, *others = [f"127.0.0.1:{one.port}" for one in backends]
    more = "".join(f"    server {one} max_fails=1 fail_timeout=5s;\n" for one in others[1:])
    inner = replaced(
        documented()[0],
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("10.0.0.11:7000", first),
        ("10.0.0.12:7000", others[0]),
        ("    keepalive 32;", f"{more}    keepalive 32;"),
        ("/etc/nginx/candles.crt", str(certificate)),
        ("/etc/nginx/candles.key", str(key)),
        *changes,
    )
    conf = folder / "nginx.conf"
    user = "user root root; " if folder.owner() == "root" else ""
    conf.write_text(OUTER.format(user=user, folder=folder, inner=inner))
    process = start_program([str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(conf)])
    try:
        deadline = deadlines.now() + 10
        while not (folder / "pid").exists():
            assert process.poll() is None, (folder / "error.log").read_text()
            assert deadlines.now() < deadline
            time.sleep(0.02)
        yield Nginx(port, ssl.create_default_context(cafile=str(authority.certificate)))
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Iterator[Several]:
    server = {"trusted_proxies": ["127.0.0.1"], "max_connections_per_ip": 2, "prefix": "/candles"}
    directory = tmp_path_factory.mktemp("site")
    with Several(directory, 2, server=server, limits={"api_requests": 5}) as one:
        yield one


@pytest.fixture(scope="module")
def nginx(deployment, tmp_path_factory) -> Iterator[Nginx]:
    with balancer(tmp_path_factory.mktemp("nginx") / "it", deployment.serving) as one:
        yield one


async def next_message(client: Any, *types: str, within_s: float = 20.0) -> dict[str, Any]:
    """The next message of one of these types."""
    async with deadlines.timeout(within_s):
        while True:
            message: dict[str, Any] = json.loads(await client.recv())
            if message["type"] in types:
                return message


async def test_a_websocket_passes_and_the_page_too(nginx):
    async with nginx.connect() as client:
        await client.send(json.dumps(SUBSCRIBE))
        assert (await next_message(client, "initial"))["bars"]
        assert (await next_message(client, "update"))["bar"]
    assert await nginx.status("/") == 200


async def test_connections_are_spread_and_each_clients_address_is_its_own(deployment, nginx):
    """Two in each process is what one address may have; a client that claims another one is known by its own."""
    clients = [await nginx.connect() for _ in range(4)]
    try:
        counts = [one.get("/health/ws-stats")["connections"] for one in deployment.serving]
        assert counts == [2, 2]
        for claim in ({}, {"X-Forwarded-For": "203.0.113.9"}):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await nginx.connect(additional_headers=claim)
            assert refused.value.response.status_code == 429
            assert f"from {NEAR}".encode() in refused.value.response.body
        async with nginx.connect(FAR) as other:
            await other.send(json.dumps(SUBSCRIBE))
            await next_message(other, "initial")
    finally:
        for client in clients:
            await client.close()


async def test_requests_are_counted_for_each_client_and_for_both_processes_together(nginx):
    path = "/api/symbols"
    first = await nginx.status(path)
    assert first == 200
    statuses = [await nginx.status(path) for _ in range(5)]
    assert statuses == [200, 200, 200, 200, 429]
    assert await nginx.status(path, headers="X-Forwarded-For: 203.0.113.9\r\n") == 429
    assert await nginx.status(path, FAR) == 200


async def test_events_come_one_by_one_and_not_when_a_buffer_is_full(nginx):
    async with nginx.ask("/events?symbol=BTC/USDT&interval=1m&initialBars=1") as reader:
        began, first_s, at = deadlines.now(), None, []
        async with deadlines.timeout(20):
            while len(at) < 4:
                if (await reader.readline()).startswith(b"data:"):
                    first_s = first_s or deadlines.now() - began
                    at.append(time.monotonic())  # `deadlines` passes more slowly on a busy machine
    gaps = [later - earlier for earlier, later in zip(at[1:], at[2:], strict=False)]
    assert min(gaps) > 0.5  # updates of a second each
    assert first_s is not None
    assert first_s < 8.0  # nginx would keep 20 s of them


AT_ROOT = "    location / {\n        proxy_pass http://candled;\n"


@pytest.mark.parametrize(
    "location",
    [documented()[1], AT_ROOT.replace("location /", "location /candles/")],
    ids=["stripped, as documented", "passed on to server.prefix"],
)
async def test_everything_works_behind_a_path(deployment, tmp_path, location):
    with balancer(tmp_path / "nginx", deployment.serving, (AT_ROOT, location)) as nginx:
        path = "/candles/api/candles?symbol=BTC/USDT&interval=1m&limit=2"
        for address in ("127.0.0.4", "127.0.0.5"):
            async with nginx.ask(path, address) as reader:
                body = (await reader.read()).partition(b"\r\n\r\n")[2]
            path = urljoin(path, json.loads(body)["next"])
            assert path.startswith("/candles/api/candles?")
        assert await nginx.status("/candles/") == 200
        assert await nginx.status("/candles") == 301
        assert await nginx.status("/candles/static/page.js") == 200
        assert await nginx.status("/candles/clients/candled.js") == 200
        async with nginx.connect(path="/candles/ws") as client:
            await client.send(json.dumps(SUBSCRIBE))
            assert (await next_message(client, "initial"))["bars"]


async def alone_at(deployment: Several) -> Daemon:
    """Where the only client is, once all those before have gone."""
    async with deadlines.timeout(20):
        while True:
            counts = [await asyncio.to_thread(one.get, "/health/ws-stats") for one in deployment.serving]
            if sum(one["connections"] for one in counts) == 1:
                return next(one for one, count in zip(deployment.serving, counts, strict=True) if count["connections"])
            await asyncio.sleep(0.05)


async def test_a_client_of_a_process_that_stops_comes_back_at_the_other_and_resumes(deployment, nginx):
    """First the one is restarted, then the other; the client sees one feed."""
    client = await nginx.connect()
    await client.send(json.dumps(SUBSCRIBE))
    for _ in range(2):
        while "seq" not in (at := await next_message(client, "update")):
            continue  # this process has only just begun to read the feed
        time_of = at["bar"]["time"]
        here = await alone_at(deployment)
        stopping = asyncio.create_task(asyncio.to_thread(here.stop))
        async with deadlines.timeout(20):
            async for text in client:
                message = json.loads(text)
                at, time_of = (message, message["bar"]["time"]) if message["type"] == "update" else (at, time_of)
        assert client.close_code == 1001
        resume = {"epoch": at["epoch"], "seq": at["seq"], "time": time_of}
        for _ in range(2):  # at once, while the other is still stopping
            await (await nginx.connect(FAR)).close()
        client = await nginx.connect()
        await client.send(json.dumps({**SUBSCRIBE, "resume": resume}))
        resumed = await next_message(client, "resumed", "initial")
        assert (resumed["type"], resumed["recovered"], resumed["epoch"]) == ("resumed", True, at["epoch"])
        assert all(bar["time"] >= time_of for bar in resumed["bars"])
        assert (await next_message(client, "update"))["seq"] > at["seq"]
        await stopping
        await asyncio.to_thread(deployment.start, here)
        await asyncio.sleep(5.2)  # fail_timeout: so long it is left alone
    await client.close()


async def test_a_process_that_only_ingests_among_the_servers_costs_no_client_anything(deployment, tmp_path):
    with balancer(tmp_path / "nginx", [deployment.ingest, *deployment.serving]) as nginx:
        for _ in range(4):
            assert await nginx.status("/") == 200
            async with nginx.connect(FAR) as client:
                await client.send(json.dumps(SUBSCRIBE))
                await next_message(client, "initial")
