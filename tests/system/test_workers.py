"""`candled --workers 2` as real processes: one port, one limit, and what happens when one of them ends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import websockets
import yaml

from candled.cli import main
from tests import deadlines
from tests.redis_servers import own_redis
from tests.servers import own_postgres
from tests.system.daemon import ROOT, Daemon, free_port

if sys.platform != "linux":
    pytest.skip("needs SO_REUSEPORT with shared load", allow_module_level=True)

SUBSCRIBE = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 2}
LIMIT = 16


class Workers(Daemon):
    """`candled --workers 2`."""

    arguments = ("--workers", "2")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, is_forked=False)
        free_port()  # takes the next port for the ingest process

    def pid(self, name: str) -> int:
        """The newest process of a name."""
        return int(re.findall(rf"started {name} as process (\d+)", self.output)[-1])


def settings(directory: Path, postgres: int, redis: str) -> dict[str, Any]:
    return {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "limits": {"api_requests": LIMIT},
        "store": {
            "url": f"postgresql://candled@127.0.0.1:{postgres}/postgres",
            "journal": str(directory / "journal"),
        },
        "bus": {"url": redis},
    }


def remaining(daemon: Daemon) -> int | None:
    """What a request of `/api/` leaves of the limit; None if it is refused."""
    try:
        with urllib.request.urlopen(f"{daemon.url}/api/intervals", timeout=60) as answer:
            return int(answer.headers["X-RateLimit-Remaining"])
    except urllib.error.HTTPError as error:
        with error:
            assert error.code == 429
            return None


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def until(condition: Any, seconds: float = 30.0) -> None:
    async with deadlines.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def answer_to(client: Any, request: dict[str, Any]) -> str:
    """Send a request; return the type of the next message that is no update."""
    await client.send(json.dumps(request))
    while (kind := json.loads(await client.recv())["type"]) == "update":
        pass
    return str(kind)


async def is_alive_client(client: Any) -> bool:
    try:
        await client.send('{"type":"ping"}')
        while json.loads(await client.recv())["type"] != "pong":
            pass
    except websockets.ConnectionClosed:
        return False
    return True


@pytest.mark.slow  # it needs four processes, PostgreSQL and Redis
@pytest.mark.usefixtures("postgres", "redis", "daemon")
async def test_two_processes_share_a_port_and_a_limit_and_one_may_die(tmp_path):
    postgres = own_postgres()
    try:
        with own_redis() as redis, Workers(tmp_path) as daemon:
            daemon.start(settings(tmp_path, postgres.port, redis.url), within_s=60)
            pids = {name: daemon.pid(name) for name in ("ingest", "serve-1", "serve-2")}
            await until(lambda: daemon.output.count("chart on") == 2)

            # Redis counts the requests of both. `connections` counts those of the process that answers.
            assert [remaining(daemon) for _ in range(LIMIT + 3)] == [*range(LIMIT - 1, -1, -1), None, None, None]
            clients = [await websockets.connect(daemon.ws_url) for _ in range(16)]
            counts: dict[str, int] = {}

            def has_all() -> bool:
                statistics = daemon.get("/health/ws-stats")
                counts[statistics["process"]] = statistics["connections"]
                return sum(counts.values()) == len(clients)

            await until(has_all)
            assert counts.keys() <= {"serve-1", "serve-2"}
            assert daemon.get("/health?verbose")["process"] in ("serve-1", "serve-2")
            for client in clients:
                await client.send(json.dumps(SUBSCRIBE))
                assert json.loads(await client.recv())["type"] == "initial"

            # the ingest process chooses the new market, and both serve processes follow
            config = settings(tmp_path, postgres.port, redis.url)
            daemon.write({**config, "exchanges": {"replay": {"symbols": ["BTC/USDT", "ETH/USDT"]}}})
            assert daemon.reload() == (0, "changed: exchanges.replay.symbols\n")
            async with deadlines.timeout(30):
                for client in clients:
                    while await answer_to(client, {**SUBSCRIBE, "symbol": "ETH/USDT"}) != "initial":
                        await asyncio.sleep(0.05)

            os.kill(pids["serve-1"], signal.SIGKILL)
            await until(lambda: "serve-1 was ended by signal 9" in daemon.output)
            for _ in range(8):
                with socket.create_connection(("127.0.0.1", daemon.port)):
                    pass
            alive = [await is_alive_client(client) for client in clients]
            assert alive.count(True) == counts.get("serve-2", 0)
            await until(lambda: daemon.output.count("chart on") == 3)
            assert daemon.pid("serve-1") != pids["serve-1"]
            assert daemon.pid("serve-2") == pids["serve-2"]

            assert daemon.stop(within_s=30) == 0
            assert not any(is_alive(daemon.pid(name)) for name in pids)
            assert "Traceback" not in daemon.output
            for name in pids:
                assert f" INFO {name} candled.app: stopping" in daemon.output
    finally:
        postgres.remove()


@pytest.mark.slow  # it needs four processes
@pytest.mark.usefixtures("daemon")
async def test_the_processes_reload_together_and_end_with_their_supervisor_however_it_ends(tmp_path):
    names = ("ingest", "serve-1", "serve-2")
    with Workers(tmp_path) as daemon:
        config = settings(tmp_path, 1, "redis://127.0.0.1:1")
        daemon.start(config, within_s=60)
        await until(lambda: all((tmp_path / f"candled.control-{name}").exists() for name in names))
        daemon.write({**config, "log": {"level": "debug"}})
        assert daemon.reload() == (0, "changed: log.level\n")
        daemon.write({**config, "log": {"level": "info"}, "store": {"url": "sqlite:///candled.db"}})
        assert daemon.reload()[1].startswith("candled: store.url: SQLite is one process's file; --workers needs")
        daemon.write({**config, "log": {"level": "debug"}, "limits": {"api_requests": LIMIT + 1}})
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        line = "candled.reloader: settings reloaded, changed: limits.api_requests"
        await until(lambda: all(f" INFO {name} {line}" in daemon.output for name in names))
        pids = [daemon.pid(name) for name in names]
        daemon.stop(signal.SIGKILL)
        await until(lambda: not any(map(is_alive, pids)))


@pytest.mark.slow  # it needs four processes
@pytest.mark.usefixtures("daemon")
def test_a_port_in_use_ends_all_with_its_message_and_status_2(tmp_path):
    with Workers(tmp_path) as daemon, socket.create_server(("127.0.0.1", daemon.port)):
        daemon.launch(settings(tmp_path, 1, "redis://127.0.0.1:1"))
        assert daemon.process is not None
        assert deadlines.wait_for_end(daemon.process, 40) == 2
        assert f"candled: server: cannot listen on 127.0.0.1:{daemon.port}: the port is in use" in daemon.output
        assert not any(is_alive(daemon.pid(name)) for name in ("ingest", "serve-1", "serve-2"))


@pytest.mark.parametrize(
    ("arguments", "config", "problem"),
    [
        (["--workers", "2"], {}, "bus.url: memory:// stays inside one process"),
        (["--workers", "2"], {}, "store.url: SQLite is one process's file"),
        (["--workers", "0"], {}, "Invalid value for '--workers': Input should be greater than or equal to 1"),
        (["--workers", "x"], {}, "Invalid value for '--workers'"),
        (["--workers", "2", "plugins"], {}, "Invalid value: --workers is for the daemon, which runs without a command"),
        (
            ["--workers", "2"],
            {"roles": ["serve"], "bus": {"url": "redis://h"}, "store": {"url": "postgresql://h/d"}},
            "roles: --workers gives each process its role",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_a_line_and_status_2(arguments, config, problem, tmp_path, capsys):
    path = tmp_path / "candled.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["--config", str(path), *arguments]) == 2
    assert f"candled: {problem}" in capsys.readouterr().err


@pytest.mark.slow  # it runs an interpreter
@pytest.mark.usefixtures("daemon")
def test_process_1_reaps_the_processes_of_others(tmp_path):
    """A process that loses its parent belongs to process 1 of a container, here to a subreaper."""
    program = """
import asyncio, ctypes, os, signal
from candled.workers import Children
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
async def main():
    children = Children(["/bin/sh", "-c", "sleep 0.01 & exit 3"])
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, children.reap)
    print(await children.spawn("serve-1").wait())
    while os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
        if not open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read():
            break
        await asyncio.sleep(0.01)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert deadlines.wait_for_end(process, 20) == 0
        assert process.communicate()[0] == "3\n"
    finally:
        process.kill()
