"""Promise 24: probes tell the truth while the database and Redis are down, and nothing is restarted for it."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests import deadlines
from tests.api.stage import open_stage
from tests.redis_servers import RedisServer, own_redis
from tests.servers import PostgresServer, own_postgres
from tests.system.daemon import Daemon

pytestmark = pytest.mark.usefixtures("postgres", "redis", "daemon")


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    server = own_postgres()
    yield server
    server.remove()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with own_redis() as server:
        yield server


def probe(daemon: Daemon, name: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(f"{daemon.url}/health/{name}", timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def seconds_until(daemon: Daemon, status: int, lives: list[int], within_s: float) -> float:
    """How long `ready` takes to say so; `live` is asked all the while."""
    started = deadlines.now()
    while True:
        lives.append(probe(daemon, "live")[0])
        if probe(daemon, "ready")[0] == status:
            return deadlines.now() - started
        assert deadlines.now() - started < within_s, (probe(daemon, "ready"), daemon.output)
        time.sleep(0.1)


def test_live_stays_and_ready_follows_while_the_database_and_redis_are_down(tmp_path, postgres, redis):
    config = {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "store": {
            "url": f"postgresql://candled@127.0.0.1:{postgres.port}/postgres",
            "journal": str(tmp_path / "journal"),
        },
        "bus": {"url": redis.url},
    }
    lives: list[int] = []
    with Daemon(tmp_path) as daemon:
        daemon.start(config, within_s=40)
        seconds_until(daemon, 200, lives, 30)
        started = daemon.get("/health?verbose")["uptimeSeconds"]
        postgres.kill()
        redis.kill()
        assert seconds_until(daemon, 503, lives, 10) <= 5
        for _ in range(20):
            lives.append(probe(daemon, "live")[0])
            status, body = probe(daemon, "ready")
            assert (status, body["status"]) == (503, "fail")
            time.sleep(0.1)
        assert "ok" not in (body["checks"]["store"], body["checks"]["bus"])
        postgres.start()
        redis.start()
        assert seconds_until(daemon, 200, lives, 20) <= 10
        assert probe(daemon, "ready")[1] == {
            "status": "pass", "checks": {"store": "ok", "bus": "ok", "bars": "ok"},
        }  # fmt: skip
        assert daemon.get("/health?verbose")["uptimeSeconds"] > started  # the same process
    assert len(lives) > 25
    assert set(lives) == {200}


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "OOM"),
        (("ACL", "SETUSER", "default", "-evalsha", "-eval"), ("ACL", "SETUSER", "default", "+@all"), "NOPERM"),
    ],
)
def test_a_redis_that_refuses_is_no_healthy_one(tmp_path, redis, begin, end, words):
    config = {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
        "bus": {"url": redis.url, "lease": "3s"},
    }
    lives: list[int] = []
    with Daemon(tmp_path) as daemon, redis.client() as client:
        daemon.start(config, within_s=40)
        seconds_until(daemon, 200, lives, 30)
        health_until(daemon, lambda facts: facts["status"] == "pass")
        client.execute_command(*begin)
        assert seconds_until(daemon, 503, lives, 15) <= 10
        assert words in probe(daemon, "ready")[1]["checks"]["bus"]
        facts = health_until(daemon, lambda facts: _symbol(facts)["state"] == "stale")
        assert (facts["status"], facts["bus"]["connected"]) == ("warn", False)
        assert words in facts["bus"]["trouble"]
        assert words in _symbol(facts)["trouble"]
        client.execute_command(*end)
        assert seconds_until(daemon, 200, lives, 20) <= 10
        facts = health_until(daemon, lambda facts: facts["status"] == "pass")
        assert "trouble" not in facts["bus"]
        assert daemon.output.count("Redis: publishing: " + words) == 1
    assert set(lives) == {200}


def health_until(daemon: Daemon, is_so) -> dict:
    """The body of `/health` once something holds in it."""
    deadline = deadlines.now() + 20
    while not is_so(facts := daemon.get("/health?verbose")):
        assert deadlines.now() < deadline, facts
        time.sleep(0.1)
    return facts


def _symbol(facts: dict) -> dict:
    return facts["exchanges"]["replay"]["symbols"]["BTC/USDT"]


def test_an_exchange_out_of_reach_is_no_reason_to_send_clients_elsewhere(tmp_path):
    config = {
        "exchanges": {"bitget": {"ws_url": "ws://127.0.0.1:9/", "rest_url": "http://127.0.0.1:9"}},
        "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
    }
    with Daemon(tmp_path) as daemon:
        daemon.start(config)
        seconds_until(daemon, 200, [], 10)
        assert daemon.get("/health?verbose")["status"] == "warn"


async def test_a_process_that_is_stopping_says_so_on_connections_that_are_open(tmp_path):
    async with open_stage(tmp_path) as one:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.server.listen())

        async def ready() -> tuple[int, dict]:
            writer.write(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].split()[0])
            return int(head.split()[1]), json.loads(await reader.readexactly(length))

        assert await ready() == (200, {"status": "pass", "checks": {"store": "ok"}})
        one.server.stop_accepting()
        assert await ready() == (503, {"status": "fail", "checks": {"store": "ok", "server": "is stopping"}})
        writer.close()
