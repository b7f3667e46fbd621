"""A plugin that blocks the event loop is named, also while it does, and nothing else is."""

import asyncio
import logging
import sys
import time
import types

import pytest

from candled.loop_watchdog import LoopWatchdog
from tests import deadlines

SOURCE = """
import asyncio
import time
import zlib

class Exchange:
    async def fetch_history(self, seconds):
        await asyncio.sleep(0)
        self.wait(seconds)

    def wait(self, seconds):
        time.sleep(seconds)

    async def call(self, function):
        function()

    async def request(self, http):
        await http(1.0)
"""


@pytest.fixture
def plugin(monkeypatch):
    module = types.ModuleType("slow_plugin.exchange")
    exec(compile(SOURCE, "slow_plugin/exchange.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "slow_plugin.exchange", module)
    return module.Exchange()


@pytest.fixture
async def watchdog():
    one = LoopWatchdog({"slow_plugin": "slow", "other": "other"}, blocked_s=0.3)
    one.start()
    await asyncio.sleep(0.05)
    yield one
    one.stop()


async def wait_until_idle(watchdog: LoopWatchdog) -> None:
    """Wait until the thread has seen that the loop goes on."""
    await asyncio.sleep(0.5)


@pytest.mark.slow
async def test_a_plugin_that_blocks_is_named_with_the_call_and_the_time(watchdog, plugin, caplog):
    caplog.set_level(logging.INFO)
    async with deadlines.timeout(20):
        await plugin.fetch_history(1.5)
        await wait_until_idle(watchdog)
    blocked = watchdog.describe("slow")
    assert (blocked["count"], blocked["lastCall"]) == (
        1,
        "Exchange.fetch_history (slow_plugin.exchange:12)",
    )
    assert blocked["longestSeconds"] >= 1.4
    assert watchdog.describe("other") is None
    first, last = (record.getMessage() for record in caplog.records if "slow" in record.getMessage())
    assert "blocks the event loop" in first
    assert "blocked the event loop for" in last


@pytest.mark.slow
async def test_a_library_that_a_plugin_called_counts_as_the_plugin(watchdog, plugin):
    await plugin.call(lambda: time.sleep(1.2))
    await wait_until_idle(watchdog)
    assert watchdog.describe("slow")["lastCall"].startswith("Exchange.call (slow_plugin.exchange:15)")


@pytest.mark.slow
async def test_a_helper_that_a_plugin_called_counts_as_the_plugin(watchdog, plugin):
    helper = types.ModuleType("candled.frames")
    exec("import time\nasync def http(seconds): time.sleep(seconds)", helper.__dict__)
    await plugin.request(helper.http)
    await wait_until_idle(watchdog)
    assert watchdog.describe("slow")["lastCall"].startswith("Exchange.request (slow_plugin.exchange:18)")


@pytest.mark.slow
async def test_other_code_that_blocks_is_not_a_plugins(watchdog, plugin):
    time.sleep(1.0)
    own = types.ModuleType("candled.ingest.http")
    exec("import time\nasync def http(seconds): time.sleep(seconds)", own.__dict__)
    await plugin.request(own.http)
    await wait_until_idle(watchdog)
    assert watchdog.blockages == {}


@pytest.mark.slow
async def test_short_calls_are_not_reported(watchdog, plugin):
    async with deadlines.timeout(20):
        for _ in range(40):
            await plugin.fetch_history(0.02)
    await wait_until_idle(watchdog)
    assert watchdog.blockages == {}


async def test_it_ends_with_the_daemon(watchdog, plugin):
    watchdog.stop()
    await plugin.fetch_history(0.8)
    assert watchdog.blockages == {}
