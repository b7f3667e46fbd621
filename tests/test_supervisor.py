"""`candled --workers`: which settings can be shared, and what the supervisor does when a process ends."""

import asyncio
import re
import signal

import pytest

from candled.config import Config
from candled.errors import ConfigError
from candled.workers import Supervisor, check, settings_of
from tests.clocks import ManualClock

SHARED = {"bus": {"url": "redis://redis"}, "store": {"url": "postgresql://candled@db/candled"}}


class FakeProcess:
    """A process that ends when a test wants it."""

    def __init__(self, name: str, stops: int | None = 0) -> None:
        self.name = name
        self.signals: list[int] = []
        self._stops = stops
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGTERM and self._stops is not None:
            self.end(self._stops)
        if number == signal.SIGKILL:
            self.end(-number)

    def end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)


class Stage:
    """A supervisor of an ingest process and two serve processes; `stops` is the status of each when asked to stop."""

    def __init__(self, stops: int | None = 0, drain_s: float = 0.0) -> None:
        self.clock = ManualClock()
        self.started: list[FakeProcess] = []
        self.fails: list[OSError] = []
        self._stops = stops
        self.supervisor = Supervisor(["ingest", "serve-1", "serve-2"], self._spawn, self.clock, drain_s)
        self.running = asyncio.create_task(self.supervisor.run())

    def _spawn(self, name: str) -> FakeProcess:
        if self.fails:
            raise self.fails.pop()
        self.started.append(FakeProcess(name, self._stops))
        return self.started[-1]

    @property
    def names(self) -> list[str]:
        return [process.name for process in self.started]

    async def stop(self) -> int:
        self.supervisor.stop()
        await self.clock.advance(0)
        return await self.running


@pytest.mark.parametrize("status", [0, 1, 3, -signal.SIGKILL, -signal.SIGSEGV])
async def test_a_process_that_ends_by_itself_is_started_again_alone(status, caplog):
    stage = Stage()
    await stage.clock.advance(0)
    stage.started[1].end(status)
    await stage.clock.advance(0)
    assert len(stage.started) == 3, "not immediately"
    await stage.clock.advance(1)
    assert stage.names == ["ingest", "serve-1", "serve-2", "serve-1"]
    how = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
    assert re.search(rf"serve-1 {how}; starting it again in (0\.\d|1\.0) s", caplog.text)
    assert await stage.stop() == 0


async def test_the_wait_grows_with_each_failure_and_shrinks_after_a_steady_run():
    stage = Stage()
    waits = []
    for ran_s in [0] * 8 + [60, 0]:
        await stage.clock.advance(ran_s)
        count, began = len(stage.started), stage.clock.monotonic()
        [last] = [one for one in stage.started if one.name == "serve-2"][-1:]
        last.end(1)
        while len(stage.started) == count:
            await stage.clock.advance(0.125)
        waits.append(stage.clock.monotonic() - began)
    limits = [1, 2, 4, 8, 16, 30, 30, 30, 1, 2]
    assert [limit / 2 <= wait <= limit + 0.25 for limit, wait in zip(limits, waits, strict=True)] == [True] * 10
    assert await stage.stop() == 0


async def test_a_process_that_cannot_be_started_is_tried_again(caplog):
    stage = Stage()
    stage.fails = [OSError(11, "Resource temporarily unavailable")] * 2
    await stage.clock.advance(0)
    assert len(stage.started) == 1
    await stage.clock.advance(3)
    assert sorted(stage.names) == ["ingest", "serve-1", "serve-2"]
    assert "ingest cannot be started: Resource temporarily unavailable" in caplog.text
    assert await stage.stop() == 0


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_mistake_of_the_user_ends_all_processes_with_status_2(which):
    stage = Stage()
    await stage.clock.advance(0)
    stage.started[which].end(2)
    await stage.clock.advance(0)
    assert await stage.running == 2
    assert [one.signals for one in stage.started] == [[] if at == which else [signal.SIGTERM] for at in range(3)]


@pytest.mark.parametrize(("stops", "status"), [(0, 0), (1, 1)])
async def test_a_stop_waits_for_orderly_ends_and_starts_nothing(stops, status):
    stage = Stage(stops)
    await stage.clock.advance(0)
    stage.started[2].end(1)  # it waits to be started again
    await stage.clock.advance(0)
    assert await stage.stop() == status
    assert [one.signals for one in stage.started] == [[signal.SIGTERM], [signal.SIGTERM], []]
    await stage.clock.advance(60)
    assert len(stage.started) == 3


async def test_processes_that_do_not_stop_in_time_are_killed():
    stage = Stage(stops=None)
    await stage.clock.advance(0)
    stage.supervisor.stop()
    await stage.clock.advance(29)
    assert not stage.running.done()
    await stage.clock.advance(1)
    assert await stage.running == 1
    assert {tuple(one.signals) for one in stage.started} == {(signal.SIGTERM, signal.SIGKILL)}


async def test_a_second_stop_kills_and_other_signals_are_passed_on():
    stage = Stage(stops=None)
    await stage.clock.advance(0)
    stage.supervisor.send_signal(signal.SIGHUP)
    stage.supervisor.stop()
    await stage.clock.advance(0)
    stage.supervisor.stop()
    await stage.clock.advance(0)
    assert await stage.running == 1
    ingest, *serving = [tuple(one.signals) for one in stage.started]
    assert ingest[:2] == (signal.SIGHUP, signal.SIGKILL)
    assert set(serving) == {(signal.SIGHUP, signal.SIGTERM, signal.SIGKILL)}


async def test_the_process_that_ingests_is_asked_to_stop_after_those_that_serve():
    stage = Stage(stops=None, drain_s=10.0)
    await stage.clock.advance(0)
    stage.supervisor.stop()
    await stage.clock.advance(14)
    ingest, *serving = stage.started
    assert [one.signals for one in stage.started] == [[], [signal.SIGTERM], [signal.SIGTERM]]
    for one in serving:
        one.end(0)
    await stage.clock.advance(0)
    assert ingest.signals == [signal.SIGTERM]
    ingest.end(0)
    assert await stage.running == 0


async def test_a_process_that_serves_and_hangs_does_not_keep_the_other_from_storing():
    stage = Stage(stops=None, drain_s=10.0)
    await stage.clock.advance(0)
    stage.supervisor.stop()
    await stage.clock.advance(15)
    assert stage.started[0].signals == [signal.SIGTERM]
    await stage.clock.advance(25)
    assert await stage.running == 1


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({}, []),
        ({"roles": ("serve", "ingest")}, []),
        ({"roles": ("serve",)}, ["roles: --workers gives each process its role"]),
        ({"bus": {"url": "memory://"}}, ["bus.url: memory:// stays inside one process"]),
        ({"store": {"url": "sqlite:///candled.db"}}, ["store.url: SQLite is one process's file"]),
        ({"server": {"port": 0}}, ["server.port: --workers needs a port from 1 to 65534"]),
        ({"server": {"port": 65535}}, ["server.port: --workers needs a port from 1 to 65534"]),
        ({"bus": {}, "store": {}}, ["bus.url: ", "store.url: "]),
        ({"server": {"internal_port": 7001}}, ["server.internal_port: with --workers the port after server.port"]),
        ({"server": {"internal_port": 65534}}, ["server.internal_port: --workers 2 needs 3 ports"]),
        ({"server": {"internal_port": 65533}}, []),
    ],
    ids=str,
)
def test_settings_that_cannot_be_shared_are_refused_in_one_run(changes, problems):
    config = Config(**{**SHARED, **changes})
    try:
        check(config, 2)
        found = ()
    except ConfigError as error:
        found = error.problems
    assert len(found) == len(problems)
    assert all(text.startswith(begin) for text, begin in zip(found, problems, strict=True))


@pytest.mark.parametrize(("port", "ports"), [(7070, [7070, 7071, 7072]), (None, [None] * 3), (0, [0] * 3)])
def test_each_process_has_its_own_internal_port(port, ports):
    config = Config(**{**SHARED, "server": {"internal_port": port}})
    names = ("ingest", "serve-1", "serve-2")
    assert [settings_of(name, config).server.internal_port for name in names] == ports


def test_each_process_has_its_role_and_the_serve_processes_share_the_port():
    config = Config(**SHARED)
    ingest, *serving = (settings_of(name, config) for name in ("ingest", "serve-1", "serve-2"))
    assert (ingest.roles, ingest.server.port, ingest.server.reuse_port) == (("ingest",), config.server.port + 1, False)
    assert ingest.store == config.store
    for one in serving:
        assert (one.roles, one.server.port, one.server.reuse_port) == (("serve",), config.server.port, True)
        assert one.store.journal == "", "two processes cannot write one journal"
        assert one.bus == config.bus
