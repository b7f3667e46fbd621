"""Processes with one role each, as their clients and monitoring see them."""

import json
import signal
import time
import urllib.error
import urllib.request

import pytest
import websockets

from tests import deadlines
from tests.redis_servers import shared_redis
from tests.system.daemon import Daemon
from tests.system.several import Several

pytestmark = pytest.mark.usefixtures("postgres", "redis", "daemon")

SUBSCRIBE = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 2}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    chosen = {"replay": {"symbols": ["BTC/*"]}}  # by the leader, and the other process follows
    with Several(tmp_path_factory.mktemp("site"), serving=1, exchanges=chosen) as one:
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
