"""SIGHUP and `candled reload` with a real daemon: clients stay connected, and a mistake changes nothing."""

import asyncio
import json
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import websockets

from tests import deadlines
from tests.system.daemon import Daemon

pytestmark = pytest.mark.usefixtures("daemon")


def settings(directory: Path, **more: Any) -> dict[str, Any]:
    return {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
        **more,
    }


async def until(condition: Any, seconds: float = 20.0) -> None:
    async with deadlines.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def limit_of(daemon: Daemon) -> tuple[int, str]:
    """The status of a request of `/api/`, and the limit in its headers."""
    try:
        with urllib.request.urlopen(f"{daemon.url}/api/intervals", timeout=60) as answer:
            return answer.status, answer.headers["X-RateLimit-Limit"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["X-RateLimit-Limit"]


class Client:
    """A WebSocket client that sends requests and skips updates."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    async def ask(self, **request: Any) -> dict[str, Any]:
        await self.socket.send(json.dumps(request))
        return await self.read()

    async def read(self) -> dict[str, Any]:
        """The next message that is no update."""
        while (answer := json.loads(await self.socket.recv()))["type"] == "update":
            pass
        return answer

    async def read_error(self) -> dict[str, Any]:
        """The next error. Bars of the week before may come meanwhile, early in a week."""
        while (answer := await self.read())["type"] != "error":
            pass
        return answer


async def test_a_client_stays_connected_while_limits_change(tmp_path):
    with Daemon(tmp_path) as daemon:
        daemon.start(settings(tmp_path, limits={"api_requests": 1}, log={"level": "error"}))
        async with websockets.connect(daemon.ws_url) as socket:
            client = Client(socket)
            assert (await client.ask(type="subscribe", symbol="BTC/USDT", interval="1m"))["type"] == "initial"
            assert [limit_of(daemon) for _ in range(2)] == [(200, "1"), (429, "1")]

            more = {"server": {"max_rooms_per_connection": 1, "cache": "65MB"}, "log": {"level": "info"}}
            daemon.write(settings(tmp_path, limits={"api_requests": 1000}, **more))
            daemon.process.send_signal(signal.SIGHUP)
            await until(lambda: "need a restart to change: server.cache" in daemon.output)
            changed = "server.max_rooms_per_connection, limits.api_requests, log.level"
            assert f"settings reloaded, changed: {changed}\n" in daemon.output
            assert limit_of(daemon) == (200, "1000")
            refused = await client.ask(type="subscribe", symbol="BTC/USDT", interval="5m")
            assert refused["message"] == "Too many subscriptions: at most 1 per connection"

            daemon.write(settings(tmp_path, limits={"api_requests": -1, "udf_request": 3}))
            daemon.process.send_signal(signal.SIGHUP)
            await until(lambda: "udf_request: unknown setting" in daemon.output)
            assert daemon.output.count("settings not reloaded: ") == 2
            assert limit_of(daemon) == (200, "1000")
            assert (await client.ask(type="ping"))["type"] == "pong"
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.output


def test_the_command_reloads_and_prints_the_result(tmp_path):
    with Daemon(tmp_path) as daemon:
        daemon.start(settings(tmp_path))
        daemon.write(settings(tmp_path, log={"level": "debug"}))
        assert daemon.reload() == (0, "changed: log.level\n")
        daemon.write(settings(tmp_path, log={"level": "debug"}, udf={"next_time": "ms"}))
        assert daemon.reload() == (1, "needs a restart: udf.next_time\n")
        daemon.write(settings(tmp_path, log={"level": "loud"}, intervals=["7m"]))
        status, printed = daemon.reload()
        assert (status, len(printed.splitlines())) == (2, 2)
        assert "log.level: one of debug, info, warning, error, was loud" in printed
        assert daemon.stop() == 0
        status, printed = daemon.reload()
        assert (status, len(printed.splitlines())) == (2, 1)
        assert printed.startswith("candled: no daemon answers at candled.control: No such file or directory; ")


def post(daemon: Daemon, path: str, **headers: str) -> tuple[int, Any]:
    """Status and body of the answer to a POST to the internal port, whose number is in the log."""
    address = re.search(r"details on (http://\S+)/metrics", daemon.output)
    assert address is not None
    request = urllib.request.Request(address[1] + path, b"", headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_internal_port_reloads_and_drains_and_obeys_no_web_page(tmp_path):
    def write(**more: Any) -> None:
        daemon.write(settings(tmp_path, server={"internal_port": 0}, **more))

    with Daemon(tmp_path) as daemon:
        daemon.start(settings(tmp_path, server={"internal_port": 0}))
        write(log={"level": "debug"}, udf={"next_time": "ms"})
        for headers in ({"Origin": "http://localhost:7000"}, {"Sec-Fetch-Site": "cross-site"}):
            for path in ("/reload", "/drain"):
                status, answer = post(daemon, path, **headers)
                assert (status, answer["error"]["code"]) == (403, "forbidden")
        applied, left = ["log.level"], ["udf.next_time"]
        assert post(daemon, "/reload") == (200, {"problems": [], "applied": applied, "needs_restart": left})
        write(log={"level": "loud"})
        status, answer = post(daemon, "/reload")
        assert (status, answer["applied"]) == (400, [])
        assert "log.level: one of debug, info, warning, error, was loud" in answer["problems"][0]
        assert daemon.running
        assert post(daemon, "/drain") == (202, {"status": "stopping"})
        assert deadlines.wait_for_end(daemon.process, 15.0) == 0
        assert "Traceback" not in daemon.output


async def test_an_interval_is_added_while_a_client_stays(tmp_path):
    with Daemon(tmp_path) as daemon:
        daemon.start(settings(tmp_path, intervals=["1m", "5m"]))
        async with websockets.connect(daemon.ws_url) as socket:
            client = Client(socket)
            assert (await client.ask(type="subscribe", symbol="BTC/USDT", interval="1m"))["type"] == "initial"
            refused = await client.ask(type="subscribe", symbol="BTC/USDT", interval="15m")
            assert refused["message"] == "Invalid interval: 15m. Valid: 1m, 5m"

            daemon.write(settings(tmp_path, intervals=["1m", "15m"]))
            assert daemon.reload() == (1, "changed: intervals\nneeds a restart: intervals (removal of 5m)\n")
            await until(lambda: "bars of 1m, 5m, 15m are served now" in daemon.output)
            added = await client.ask(type="subscribe", symbol="BTC/USDT", interval="15m")
            assert added["type"] == "initial"
            assert {bar["time"][14:16] for bar in added["bars"]} <= {"00", "15", "30", "45"}
            served = daemon.get("/api/intervals")["intervals"]
            assert [one["interval"] for one in served] == ["1m", "5m", "15m"]
            wrong = daemon.get("/api/candles?symbol=BTC/USDT&interval=7m")
            assert "one of 1m, 5m, 15m" in json.dumps(wrong)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.output


async def test_markets_and_exchanges_come_and_go_while_a_client_stays(tmp_path):
    replay, second = {"symbols": ["BTC/USDT"], "speed": 60}, {"plugin": "replay", "symbols": ["ETH/USDT"]}
    both = {"replay": {"symbols": ["BTC/USDT", "ETH/USDT"], "speed": 30}, "second": second}
    bitcoin, ether = ({"type": "subscribe", "symbol": f"{base}/USDT", "interval": "1m"} for base in ("BTC", "ETH"))

    def symbols(daemon: Daemon) -> dict[str, list[str]]:
        exchanges = daemon.get("/health?verbose")["exchanges"]
        return {name: list(facts["symbols"]) for name, facts in exchanges.items()}

    with Daemon(tmp_path) as daemon:
        daemon.start(settings(tmp_path, exchanges={"replay": replay}))
        async with websockets.connect(daemon.ws_url) as socket:
            client = Client(socket)
            assert (await client.ask(**bitcoin))["type"] == "initial"
            assert (await client.ask(**ether))["type"] == "error"

            daemon.write(settings(tmp_path, exchanges=both))
            changed = "exchanges.replay.symbols, exchanges.replay.speed, exchanges.second"
            assert daemon.reload() == (0, f"changed: {changed}\n")
            assert (await client.ask(**ether))["type"] == "initial"
            assert (await client.ask(**ether, exchange="second"))["type"] == "initial"
            await until(lambda: symbols(daemon) == {"replay": ["BTC/USDT", "ETH/USDT"], "second": ["ETH/USDT"]})
            served = daemon.get("/api/exchanges")["exchanges"]
            assert [(one["name"], one["symbols"]) for one in served] == [("replay", 2), ("second", 1)]

            daemon.write(settings(tmp_path, exchanges={"replay": replay}))
            assert daemon.reload()[0] == 0
            ended = [await client.read_error(), await client.read_error()]
            assert {one["message"] for one in ended} == {"Market removed: ETH/USDT is not served any more"}
            unknown = await client.ask(**ether, exchange="second")
            assert unknown["message"] == "Invalid exchange: second. Valid: replay"
            await until(lambda: symbols(daemon) == {"replay": ["BTC/USDT"]})
            assert (await client.ask(type="ping"))["type"] == "pong"
            while json.loads(await socket.recv())["type"] != "update":  # Bitcoin goes on
                pass

            daemon.write(settings(tmp_path, exchanges={"second": second, "replay": replay}))
            assert daemon.reload() == (1, "changed: exchanges.second\nneeds a restart: exchanges\n")
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.output
