"""The daemon is asked to stop while it starts: at any moment, as process 1 too, and whatever it waits for."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests import deadlines
from tests.ports import free_port
from tests.servers import own_postgres
from tests.system.daemon import ROOT, Daemon

if sys.platform != "linux":
    pytest.skip("reads /proc", allow_module_level=True)

pytestmark = [pytest.mark.usefixtures("daemon"), pytest.mark.timeout(900)]
UNSHARE = shutil.which("unshare")


def within_s() -> float:
    """Return the bound: the promise is a second, a slow machine gets three (tests/deadlines.py has busy ones)."""
    return 3.0


def replay(directory: Path, **more: Any) -> dict[str, Any]:
    return {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
        **more,
    }


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for a signal."""
    (line,) = [
        line for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines() if line.startswith("SigCgt:")
    ]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def wait_for_handler(process: subprocess.Popen[bytes], pid: int) -> float:
    """Wait until the process can be asked to stop; return how many seconds that took."""
    began = deadlines.now()
    while not handles(pid, signal.SIGTERM):
        assert process.poll() is None
        assert deadlines.now() < began + 20
        time.sleep(0.001)
    return deadlines.now() - began


def end(process: subprocess.Popen[bytes], pid: int, how: int = signal.SIGTERM) -> tuple[int, float]:
    """Ask for the end; return the status and the seconds it took."""
    asked_at = deadlines.now()
    os.kill(pid, how)
    status = process.wait(60)
    return status, deadlines.now() - asked_at


MOMENTS = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0]
SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize(
    ("how", "after_s"),
    [
        *((SIGNALS[at % 2], after_s) for at, after_s in enumerate((0.0, 0.05, 0.15, 0.3, 0.6, 1.2))),
        *(pytest.param(how, after_s, marks=pytest.mark.long) for how in SIGNALS for after_s in MOMENTS),
    ],
)
def test_it_obeys_at_any_moment_of_the_start(tmp_path, how, after_s):
    with Daemon(tmp_path, is_forked=False) as daemon:
        daemon.launch(replay(tmp_path))
        assert daemon.process is not None
        wait_for_handler(daemon.process, daemon.process.pid)
        time.sleep(after_s)
        status, took_s = end(daemon.process, daemon.process.pid, how)
        assert status == 0, daemon.output
        assert took_s < within_s()
        assert "Traceback" not in daemon.output


def can_unshare() -> bool:
    if os.geteuid() != 0 or UNSHARE is None:
        return False
    return subprocess.run([UNSHARE, "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="needs root, unshare, and the right to make a PID namespace")
@pytest.mark.parametrize("after_s", [0.0, 0.3, *(pytest.param(one, marks=pytest.mark.long) for one in MOMENTS)])
def test_as_process_1_of_a_container_it_obeys_too(tmp_path, after_s):
    """The kernel does not deliver to process 1 what has no handler."""
    assert UNSHARE is not None
    config = tmp_path / "candled.yaml"
    config.write_text(f"server: {{host: 127.0.0.1, port: 0}}\nstore: {{url: 'sqlite:///{tmp_path}/candled.db'}}\n")
    command = [UNSHARE, "--pid", "--fork", "--kill-child", sys.executable, "-m", "candled", "--config", str(config)]
    outer = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        while not (inner := children.read_text("ascii").split()):
            time.sleep(0.001)
        pid = int(inner[0])
        while b"python" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
            time.sleep(0.001)  # it is still unshare
        assert wait_for_handler(outer, pid) < 0.5 * within_s()
        time.sleep(after_s)
        status, took_s = end(outer, pid)
        assert status == 0
        assert took_s < within_s()
    finally:
        outer.kill()
        outer.wait()


# ---------------------------------------------------------------- what it may wait for


@contextmanager
def silence() -> Iterator[int]:
    """A port where connections are made and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def silent_database(directory: Path) -> Iterator[dict[str, Any]]:
    with silence() as port:
        yield replay(directory, store={"url": f"postgresql://candled@127.0.0.1:{port}/x"})


@contextmanager
def database_that_is_being_prepared(directory: Path) -> Iterator[dict[str, Any]]:
    """Another process is at the tables, and does not end."""
    with database(directory) as (config, dsn), psycopg2.connect(dsn) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtextextended('candled prepare', 0))")
        yield config


@contextmanager
def database_that_does_not_read(directory: Path) -> Iterator[dict[str, Any]]:
    """It is open, and then every read waits."""
    with database(directory) as (config, dsn):
        with Daemon(directory) as first:
            first.start(config, within_s=60)
            assert first.stop() == 0
        with psycopg2.connect(dsn) as other, other.cursor() as cursor:
            cursor.execute("SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'candled'")
            for (table,) in cursor.fetchall():
                if not table.endswith(("schema", "state")):
                    cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield config


@contextmanager
def database(directory: Path) -> Iterator[tuple[dict[str, Any], str]]:
    server = own_postgres()
    try:
        url = f"postgresql://candled@127.0.0.1:{server.port}/postgres"
        yield replay(directory, store={"url": url, "journal": str(directory / "journal")}), server.dsn
    finally:
        server.remove()


@contextmanager
def silent_redis(directory: Path) -> Iterator[dict[str, Any]]:
    with silence() as port:
        yield replay(directory, bus={"url": f"redis://127.0.0.1:{port}/0"})


@contextmanager
def silent_exchange(directory: Path) -> Iterator[dict[str, Any]]:
    with silence() as port:
        urls = {"ws_url": f"ws://127.0.0.1:{port}", "rest_url": f"http://127.0.0.1:{port}"}
        yield replay(directory, exchanges={"bitget": {"symbols": ["BTC/USDT"], **urls}})


@pytest.mark.parametrize(
    "stalled",
    [
        silent_database,
        pytest.param(database_that_is_being_prepared, marks=pytest.mark.postgres),
        pytest.param(database_that_does_not_read, marks=pytest.mark.postgres),
        silent_redis,
        silent_exchange,
    ],
)
def test_it_obeys_whatever_it_waits_for(tmp_path, stalled: Callable[[Path], Any]):
    with ExitStack() as stack:
        config = stack.enter_context(stalled(tmp_path))
        daemon = stack.enter_context(Daemon(tmp_path))
        daemon.start(config)
        time.sleep(1.0)
        assert daemon.process is not None
        status, took_s = end(daemon.process, daemon.process.pid)
        assert status == 0, daemon.output
        assert took_s < within_s(), daemon.output
        assert "Traceback" not in daemon.output.split("stopping")[-1]


# ---------------------------------------------------------------- other signals, other commands


def test_a_hangup_reloads_the_settings(tmp_path):
    """Also one that comes before the daemon can do so."""
    with Daemon(tmp_path, is_forked=False) as daemon:
        daemon.launch(replay(tmp_path))
        assert daemon.process is not None
        wait_for_handler(daemon.process, daemon.process.pid)
        time.sleep(0.02)
        daemon.process.send_signal(signal.SIGHUP)
        deadline = deadlines.now() + 20
        while "nothing has changed" not in daemon.output:
            assert daemon.running
            assert deadlines.now() < deadline
            time.sleep(0.02)
        while "chart on" not in daemon.output:
            time.sleep(0.02)
        daemon.write(replay(tmp_path, limits={"api_requests": 7}))
        daemon.process.send_signal(signal.SIGHUP)
        while "settings reloaded, changed: limits.api_requests" not in daemon.output:
            assert deadlines.now() < deadline
            time.sleep(0.02)
        assert daemon.get("/health/live") == {"status": "pass"}
        assert daemon.stop() == 0


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, -signal.SIGHUP)])
def test_a_command_obeys_as_commands_do(tmp_path, how, status):
    command = [sys.executable, "-u", "-m", "candled", "tail", "--url", f"ws://127.0.0.1:{free_port()}/ws"]
    process = subprocess.Popen(
        [*command, "BTC/USDT", "1m"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "refused" in process.stdout.readline()  # its first attempt has failed
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (status, "")
    finally:
        process.kill()
        process.wait()
