"""Processes with one role each, as their clients and monitoring see them."""

import json
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
import websockets

from candled import __version__
from tests import deadlines
from tests.redis_servers import shared_redis
from tests.system.daemon import Daemon
from tests.system.several import Several

pytestmark = pytest.mark.usefixtures("postgres", "redis", "daemon")

SUBSCRIBE = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 2}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    chosen = {"replay": {"symbols": ["BTC/*"]}}  # by the leader, and the other process follows
    with Several(tmp_path_factory.mktemp("site"), serving=1, exchanges=chosen, server={"internal_port": 0}) as one:
        yield one


def answer(daemon: Daemon, path: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(daemon.url + path, timeout=60) as opened:
            return opened.status, opened.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("path", ["/", "/ws"])
async def test_a_process_that_only_ingests_refuses_a_handshake_and_says_why(deployment, path):
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"ws://127.0.0.1:{deployment.ingest.port}{path}")
    assert refused.value.response.status_code == 503
    assert b"serves no clients" in refused.value.response.body


@pytest.mark.parametrize(
    "path",
    ["/", "/ws", "/events?symbol=BTC/USDT&interval=1m", "/api/symbols", "/udf/config", "/static/chart.js", "/x"],
)
def test_everything_else_is_answered_with_503_and_the_reason(deployment, path):
    status, text = answer(deployment.ingest, path)
    assert status == 503
    assert json.loads(text)["error"]["message"].startswith("This process reads exchanges and serves no clients")


def test_how_it_is_can_still_be_asked(deployment):
    assert deployment.ingest.get("/health?verbose")["roles"] == ["ingest"]
    assert answer(deployment.ingest, "/health/live")[0] == 200
    deadline = deadlines.now() + 20
    while answer(deployment.ingest, "/health/ready")[0] != 200:  # it may be connecting to the database
        assert deadlines.now() < deadline, deployment.ingest.output
        time.sleep(0.05)
    assert json.loads(answer(deployment.ingest, "/health/ws-stats")[1])["connections"] == 0
    assert "serves no clients; health on http://" in deployment.ingest.output
    assert "Traceback" not in deployment.ingest.output


def status_of(daemon: Daemon) -> dict[str, Any]:
    """The data of the status page on the internal port, whose number is in the log."""
    address = re.search(r"details on (http://\S+)/metrics", daemon.output)
    assert address is not None
    with urllib.request.urlopen(f"{address[1]}/status.json", timeout=60) as opened:
        document: dict[str, Any] = json.load(opened)
        return document


def test_each_shows_in_its_status_what_it_knows(deployment):
    deadline = deadlines.now() + 30
    while (ingest := status_of(deployment.ingest))["bus"]["shards"][0]["state"] != "leader":
        assert deadlines.now() < deadline, ingest
        time.sleep(0.2)
    (shard,) = ingest["bus"]["shards"]
    assert shard["leader"] == ingest["bus"]["process"]
    assert ingest["bus"]["ingestProcesses"] == 1
    assert {row["symbol"] for row in ingest["markets"]} >= {"BTC/USDT"}
    assert all("days" in row for row in ingest["markets"])
    while not (serving := status_of(deployment.serving[0]))["markets"] or serving["markets"][0]["state"] != "live":
        assert deadlines.now() < deadline, serving
        time.sleep(0.2)
    assert serving["process"]["roles"] == ["serve"]
    (shard,) = serving["bus"]["shards"]
    assert (shard["state"], shard["leader"]) == (None, None)
    assert shard["heartbeatAgeMs"] < 15_000
    assert serving["markets"][0].keys() == {"exchange", "symbol", "state"}
    assert "connections" not in serving["exchanges"]["replay"]
    assert "candlesPerSecond" not in serving["lastHour"]


def test_each_process_knows_all_of_them(deployment):
    deadline = deadlines.now() + 30
    for number, daemon in enumerate((deployment.ingest, deployment.serving[0])):
        while len(known := status_of(daemon)["processes"]) < 2:
            assert deadlines.now() < deadline, known
            time.sleep(0.2)
        assert [one["roles"] for one in known] == [["ingest"], ["serve"]]
        assert known[number]["process"] == status_of(daemon)["bus"]["process"]
        assert all(one["host"] == socket.gethostname() and one["version"] == __version__ for one in known)
        details = daemon.get("/health?verbose")["processes"]
        assert [one["process"] for one in details] == [one["process"] for one in known]


async def test_the_process_beside_it_serves_what_it_reads(deployment):
    async with websockets.connect(deployment.serving[0].ws_url) as client:
        await client.send(json.dumps(SUBSCRIBE))
        kinds = [json.loads(await client.recv())["type"] for _ in range(2)]
    assert kinds == ["initial", "update"]
    assert answer(deployment.serving[0], "/")[0] == 200


def test_a_process_that_only_serves_learns_the_decimals_of_markets(deployment):
    """The replay says 2 and 6; what its candles show would be less for most volumes."""
    deadline = deadlines.now() + 30
    while (symbol := deployment.serving[0].get("/api/symbols")["symbols"][0])["priceDecimals"] is None:
        assert deadlines.now() < deadline
        time.sleep(0.2)
    assert (symbol["symbol"], symbol["priceDecimals"], symbol["volumeDecimals"]) == ("BTC/USDT", 2, 6)


def test_it_stops_as_any_other(deployment):
    assert deployment.ingest.stop(signal.SIGTERM) == 0


def test_a_file_beside_a_redis_is_warned_of_at_the_start(tmp_path):
    config = {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
        "bus": {"url": shared_redis(), "prefix": f"{tmp_path.name}:"},
    }
    with Daemon(tmp_path) as daemon:
        daemon.start(config)
        assert daemon.output.count("SQLite is one process's file") == 1


def test_one_role_with_a_file_does_not_start(tmp_path):
    with Daemon(tmp_path) as daemon:
        daemon.launch({"roles": ["serve"], "bus": {"url": "redis://127.0.0.1:1"}})
        assert daemon.process is not None
        assert daemon.process.wait(60) == 2
        assert ": store.url: SQLite is one process's file" in daemon.output
