"""Reloads of settings from a real file: checked whole, applied one after the other, and reported."""

import asyncio
import logging

import pytest

from candled import ConfigError
from candled.clock import SystemClock
from candled.config import load
from candled.plugins import discover
from candled.reload import ReloadPlan, ReloadResult
from candled.reloader import Reloader
from candled.service_manager import ServiceManager

PLUGINS = discover()


class Harness:
    """A file of settings, and the plans that a daemon would apply."""

    def __init__(self, directory) -> None:
        self.path = directory / "candled.yaml"
        self.write("")
        self.plans: list[ReloadPlan] = []
        self.error: Exception | None = None
        self.reloader = Reloader(self.read(), self.read, self.apply, SystemClock(), ServiceManager({}))

    def read(self):
        return load(self.path, {}, PLUGINS)

    def write(self, text: str) -> None:
        self.path.write_text(text, "utf-8")

    async def apply(self, plan: ReloadPlan) -> None:
        if self.error is not None:
            raise self.error
        await asyncio.sleep(0)
        self.plans.append(plan)

    async def reload(self, text: str) -> ReloadResult:
        self.write(text)
        return await self.reloader.reload()


@pytest.fixture
async def harness(tmp_path, caplog):
    caplog.set_level(logging.INFO, "candled.reloader")
    one = Harness(tmp_path)
    yield one
    await one.reloader.stop()


async def test_changes_are_applied_and_logged(harness, caplog):
    result = await harness.reload("log: {level: debug}\nserver: {port: 7001, host: 127.0.0.1}")
    assert result == ReloadResult(applied=("log.level",), needs_restart=("server.host", "server.port"))
    (plan,) = harness.plans
    assert (plan.config.log.level, plan.config.server.port) == ("debug", 7000)
    assert caplog.messages == [
        "settings reloaded, changed: log.level",
        "settings that need a restart to change: server.host, server.port",
    ]
    assert await harness.reload("log: {level: debug}") == ReloadResult()
    assert caplog.messages[-1] == "settings reloaded, nothing has changed"


async def test_every_problem_is_logged_and_the_former_settings_stay(harness, caplog):
    result = await harness.reload("log: {level: debug}\nserver: {port: 0.5, hosts: x}\nintervals: [7m]")
    assert len(result.problems) == 3
    assert (result.applied, result.needs_restart, harness.plans) == ((), (), [])
    assert caplog.messages == [f"settings not reloaded: {problem}" for problem in result.problems]
    assert all(str(harness.path) in problem for problem in result.problems)
    assert (await harness.reload("log: {level: debug}")).applied == ("log.level",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: [", "not valid YAML"),
        ("exchanges: {replay: {files: {BTC/USDT: missing.csv}}}", "missing.csv"),
        ("store: {url: 'sqlite://candled.db'}", "three slashes"),
    ],
)
async def test_the_file_is_checked_as_at_the_start(harness, text, problem):
    (found,) = (await harness.reload(text)).problems
    assert problem in found


async def test_a_file_that_is_gone_changes_nothing(harness):
    harness.path.unlink()
    (problem,) = (await harness.reloader.reload()).problems
    assert problem == f"{harness.path}: cannot be read: No such file or directory"


async def test_an_error_of_a_part_is_a_problem_and_the_next_reload_tries_again(harness, caplog):
    harness.error = ZeroDivisionError()
    result = await harness.reload("log: {level: debug}")
    assert result.problems == ("an internal error, see the log: ZeroDivisionError",)
    assert "Traceback" in caplog.text
    harness.error = ConfigError("exchanges.x: cannot be created")
    assert (await harness.reloader.reload()).problems == ("exchanges.x: cannot be created",)
    harness.error = None
    assert (await harness.reloader.reload()).applied == ("log.level",)


async def test_reloads_do_not_overlap_and_requests_join(harness, caplog):
    harness.write("log: {level: debug}")
    for _ in range(5):
        harness.reloader.request()
    first, second = await asyncio.gather(harness.reloader.reload(), harness.reloader.reload())
    assert (first.applied, second.applied) == ((), ())
    assert [plan.live for plan in harness.plans] == [("log.level",), (), ()]
