"""`candled --workers N`: one ingest process and N serve processes that share a port, started and kept running."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from candled.config import Config
from candled.config.sections import MEMORY, ROLES, ControlSettings
from candled.control import ControlSocket, NoDaemon, request_reload
from candled.errors import CandledError, ConfigError
from candled.exchange import Clock
from candled.reload import ReloadResult
from candled.service_manager import ServiceManager
from candled.tasks import Backoff, TaskSet, first_of, retry

logger = logging.getLogger(__name__)

INGEST = "ingest"
MISTAKE = 2  # the exit status after a mistake that only the operator can correct

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_STEADY_S = 60.0  # if a process ran for so long, its last failure had another reason
_LEAD_S = 5.0  # plus server.shutdown_seconds: the process that ingests is asked to stop this much later at most
_STOP_S = 30.0  # plus server.shutdown_seconds: then processes are killed; each limits its own steps to 5 s


def check(config: Config, count: int = 0) -> None:
    """Check that an ingest process and `count` serve processes can share these settings.

    Raises:
        ConfigError: they cannot; a line for each reason.
    """
    problems = []
    if set(config.roles) != set(ROLES):
        problems.append("roles: --workers gives each process its role, so leave out roles or set both")
    if config.bus.url == MEMORY:
        problems.append("bus.url: memory:// stays inside one process; --workers needs a Redis, redis://HOST:6379/0")
    if config.store.url.startswith("sqlite:"):
        problems.append("store.url: SQLite is one process's file; --workers needs postgresql://USER@HOST/DATABASE")
    if not 0 < config.server.port < 65535:
        problems.append("server.port: --workers needs a port from 1 to 65534, and the next one for its ingest process")
    if config.server.internal_port == config.server.port + 1:
        problems.append("server.internal_port: with --workers the port after server.port belongs to the ingest process")
    if (config.server.internal_port or 0) + count > 65535:
        problems.append(f"server.internal_port: --workers {count} needs {count + 1} ports from there on")
    if problems:
        raise ConfigError(problems)


def settings_of(name: str, config: Config) -> Config:
    """Return the settings of one process. The journal belongs to the only one that stores candles.

    The ingest process has the internal port, and the serve processes have the ports after it.
    """
    config = config.model_copy(update={"control": ControlSettings(socket=socket_of(name, config.control.socket))})
    if name == INGEST:
        server = config.server.model_copy(update={"port": config.server.port + 1, "reuse_port": False})
        return config.model_copy(update={"roles": ("ingest",), "server": server})
    internal = config.server.internal_port
    if internal:
        internal += int(name.rpartition("-")[2])
    server = config.server.model_copy(update={"reuse_port": True, "internal_port": internal})
    store = config.store.model_copy(update={"journal": ""})
    return config.model_copy(update={"roles": ("serve",), "server": server, "store": store})


def socket_of(name: str, path: str) -> str:
    """Return the control socket of a process, given that of its supervisor; empty if the supervisor has none."""
    return path and f"{path}-{name}"


def run(count: int, clock: Clock, control_path: str, drain_s: float = 0.0) -> int:
    """Run one ingest process and `count` serve processes until SIGINT or SIGTERM; return the exit status.

    Each is this command line with `--worker NAME` added. A reload at the control socket reloads all of them.
    """
    names = [INGEST, *(f"serve-{number + 1}" for number in range(count))]
    return asyncio.run(_run(names, clock, control_path, drain_s))


async def _run(names: Sequence[str], clock: Clock, control_path: str, drain_s: float) -> int:
    loop = asyncio.get_running_loop()
    manager, tasks = ServiceManager(os.environ), TaskSet()
    children = Children([sys.executable, *sys.orig_argv[1:]])
    loop.add_signal_handler(signal.SIGCHLD, children.reap)
    supervisor = Supervisor(names, children.spawn, clock, drain_s)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.send_signal, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    control = ControlSocket(control_path, lambda: reload_all(supervisor.running, control_path))
    await control.start()
    manager.start_beats(tasks, clock, lambda: True)
    manager.report_ready()
    try:
        return await supervisor.run(on_stop=manager.report_stop)
    finally:
        await tasks.cancel()
        await control.stop()


async def reload_all(names: Sequence[str], control_path: str) -> ReloadResult:
    """Have all processes reload their settings; return their results as one, without repetitions."""

    async def reload_one(name: str) -> ReloadResult:
        try:
            return await request_reload(socket_of(name, control_path))
        except NoDaemon as error:
            return ReloadResult(problems=(f"{name} did not reload: {error}",))

    results = await asyncio.gather(*map(reload_one, names))
    return ReloadResult(
        problems=_distinct(one.problems for one in results),
        applied=_distinct(one.applied for one in results),
        needs_restart=_distinct(one.needs_restart for one in results),
    )


def _distinct(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for group in groups for text in group))


class Process(Protocol):
    """A running process."""

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it has not ended."""

    async def wait(self) -> int:
        """Wait for the end; return the exit status, or the negative number of the signal that ended the process."""


class _EndedError(CandledError):
    """The end of a process, or its failed start, after which it is started again."""


class Supervisor:
    """Starts a process for each name, and starts it again when it ends, until `stop` or a mistake of the operator."""

    def __init__(
        self, names: Sequence[str], spawn: Callable[[str], Process], clock: Clock, drain_s: float = 0.0
    ) -> None:
        self._lead_s, self._stop_s = _LEAD_S + drain_s, _STOP_S + drain_s
        self._names = names
        self._spawn = spawn
        self._clock = clock
        self._tasks = TaskSet()
        self._running: dict[str, Process] = {}
        self._stopping = asyncio.Event()
        self._has_mistake = False

    @property
    def running(self) -> list[str]:
        """The names of the processes that run now."""
        return list(self._running)

    async def run(self, on_stop: Callable[[], None] = lambda: None) -> int:
        """Keep the processes running; return the exit status after the last of them has ended.

        `on_stop` is called when they are about to end.
        """
        for name in self._names:
            self._tasks.start(self._keep_running(name), name)
        await self._stopping.wait()
        on_stop()
        await self._tasks.cancel()
        statuses = await first_of(self._end_in_order(), self._kill_late())
        return MISTAKE if self._has_mistake else int(any(statuses))

    def stop(self) -> None:
        """Ask all processes to stop, and kill them when asked a second time."""
        if self._stopping.is_set():
            self.send_signal(signal.SIGKILL)
        self._stopping.set()

    def send_signal(self, number: int) -> None:
        """Send a signal to each running process."""
        for process in self._running.values():
            process.send_signal(number)

    async def _keep_running(self, name: str) -> None:
        backoff = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S)
        await retry(partial(self._run_once, name, backoff), self._clock, backoff, on=_EndedError, report=_report)

    async def _run_once(self, name: str, backoff: Backoff) -> None:
        """Run a process until it ends.

        Raises:
            _EndedError: another attempt may help.
        """
        began = self._clock.monotonic()
        try:
            process = self._running[name] = self._spawn(name)
        except OSError as error:
            raise _EndedError(f"{name} cannot be started: {error.strerror}") from error
        status = await process.wait()
        del self._running[name]
        if status == MISTAKE:
            logger.error("%s ended with status %d, stopping the other processes", name, status)
            self._has_mistake = True
            self._stopping.set()
            return
        if self._clock.monotonic() - began >= _STEADY_S:
            backoff.on_success()
        how = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
        raise _EndedError(f"{name} {how}")

    async def _end_in_order(self) -> list[int]:
        """End the serve processes first, so that clients receive updates until they are disconnected."""
        serving = [process for name, process in self._running.items() if name != INGEST]
        for process in serving:
            process.send_signal(signal.SIGTERM)
        await first_of(_wait_for_ends(serving), self._clock.sleep(self._lead_s))
        if INGEST in self._running:
            self._running[INGEST].send_signal(signal.SIGTERM)
        return await _wait_for_ends(self._running.values())

    async def _kill_late(self) -> list[int]:
        await self._clock.sleep(self._stop_s)
        logger.warning("killing the processes that have not stopped within %.0f s", self._stop_s)
        self.send_signal(signal.SIGKILL)
        return await _wait_for_ends(self._running.values())


async def _wait_for_ends(processes: Iterable[Process]) -> list[int]:
    return [await process.wait() for process in processes]


def _report(error: Exception, wait_s: float) -> None:
    logger.warning("%s; starting it again in %.1f s", error, wait_s)


class Children:
    """The child processes of this process. As process 1 of a container, this also reaps processes without a parent.

    The standard input of each child is a pipe that closes when this process ends, even if it is killed.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._input, self._lifeline = os.pipe()

    def spawn(self, name: str) -> "Child":
        """Start a process. An OSError means that the system has no room for it."""
        pid = os.posix_spawn(
            self._command[0],
            [*self._command, "--worker", name],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, self._input, 0)],
            setsigmask=(),
        )
        ended = self._ends[pid] = asyncio.get_running_loop().create_future()
        logger.info("started %s as process %d", name, pid)
        return Child(pid, ended)

    def reap(self) -> None:
        """Collect all processes that have ended. Call this at SIGCHLD."""
        with suppress(ChildProcessError):  # none is left
            while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                ended = self._ends.pop(found[0], None)
                if ended is not None:
                    ended.set_result(os.waitstatus_to_exitcode(found[1]))


class Child:
    """A process of `Children`."""

    def __init__(self, pid: int, ended: "asyncio.Future[int]") -> None:
        self._pid = pid
        self._ended = ended

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended and its number may belong to another one."""
        if not self._ended.done():
            os.kill(self._pid, number)

    async def wait(self) -> int:
        """Wait for the end; return the exit status, or the negative number of the signal that ended the process."""
        return await asyncio.shield(self._ended)


def on_parent_lost(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Call a function once the process that started this worker has ended."""

    def end() -> None:
        loop.remove_reader(0)
        call()

    loop.add_reader(0, end)
