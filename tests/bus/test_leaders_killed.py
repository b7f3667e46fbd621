"""Leaders that are processes of their own: killed, and stopped for a while without knowing it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis import asyncio as aioredis

from candled.bus.codec import Names, token_of
from candled.bus.redis.leases import LeaseState
from tests import deadlines
from tests.bus.rig import BTC, new_prefix, process, until
from tests.redis_servers import shared_redis

pytestmark = pytest.mark.usefixtures("redis", "daemon")

ROOT = Path(__file__).parents[2]
LONG = "CANDLED_TEST_LONG" in os.environ
LEASE_S = 6.0 if LONG else 2.0
TAKEOVER_WITHIN_S = 10.0


@asynccontextmanager
async def leader(url: str, prefix: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A leading process; killed at the end."""
    arguments = [sys.executable, "-m", "tests.bus.leader", url, prefix, str(LEASE_S)]
    one = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        while b"leader" not in (line := await deadlines.wait_for(one.stdout.readline(), 15)):
            assert line, "the leading process ended"
        yield one
    finally:
        with contextlib.suppress(ProcessLookupError):
            one.kill()
        await one.wait()
        one._transport.close()


async def test_when_the_leader_is_killed_another_takes_over_within_ten_seconds():
    prefix, url = new_prefix(), shared_redis()
    async with leader(url, prefix) as first, process(url, prefix) as hearer:
        await until(lambda: BTC in hearer.listener.newest)
        async with process(url, prefix, ingests=True, lease_s=LEASE_S) as second:
            await asyncio.sleep(0.5)
            first.kill()
            started = time.monotonic()
            await until(lambda: second.state is LeaseState.LEADER, TAKEOVER_WITHIN_S)
            assert time.monotonic() - started > LEASE_S / 2  # not while the first might still speak
            candle = second.publish(number=100)
            await until(lambda: hearer.listener.newest[BTC] == candle, 3.0)
            assert hearer.listener.open_gaps == set()


async def test_a_leader_that_was_stopped_for_a_while_publishes_no_more():
    """Stopped, it cannot know that its lease ran out; continued, it finds out before it publishes, or is refused."""
    prefix, url = new_prefix(), shared_redis()
    epochs: list[str] = []
    async with leader(url, prefix) as first, aioredis.Redis.from_url(url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(Names(prefix, "bitget", 1).candles_channel(BTC))
        listening = asyncio.ensure_future(_epochs(pubsub, epochs))
        async with process(url, prefix, ingests=True, lease_s=LEASE_S) as second:
            await until(lambda: len(epochs) > 10)
            first.send_signal(signal.SIGSTOP)
            await until(lambda: second.state is LeaseState.LEADER, TAKEOVER_WITHIN_S)
            for number in range(20):
                second.publish(number=number)
                await asyncio.sleep(0.02)
            first.send_signal(signal.SIGCONT)
            output_line = await deadlines.wait_for(first.stdout.readline(), 5)
            deadline = deadlines.now() + 1.0
            while deadlines.now() < deadline:
                second.publish(number=20)
                await asyncio.sleep(0.02)
            assert output_line.split()[0] in (b"unsure", b"follower")
            assert second.state is LeaseState.LEADER
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    tokens = [token_of(epoch) for epoch in epochs]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 2


async def _epochs(pubsub, epochs: list[str]) -> None:
    async for message in pubsub.listen():
        if message["type"] == "message":
            epochs.append(json.loads(message["data"])["epoch"])
