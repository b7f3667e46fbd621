"""Servers that sentinels watch: the one that dies or hands over is left, and the one that follows is found.

The tests share one set of servers and run in their order: the last ones change who is the master.
"""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
import redis

from candled.bus.redis.leases import LeaseState
from tests import deadlines
from tests.bus.rig import BTC, Process, new_prefix, process, until
from tests.redis_servers import RedisServer, SentinelSet

pytestmark = pytest.mark.usefixtures("redis")

MOVED_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def sentinels() -> Iterator[SentinelSet]:
    with SentinelSet(password="watch") as one:
        yield one


async def all_works(leader: Process, hearer: Process, within_s: float = 10.0) -> None:
    """What is published now is heard; it is said again and again, as candles are."""
    listener, before = hearer.listener, leader.listener.newest[BTC].volume if BTC in leader.listener.newest else 0
    deadline = deadlines.now() + within_s
    while BTC not in listener.newest or listener.newest[BTC].volume <= before or listener.open_gaps:
        assert deadlines.now() < deadline, (leader.bus.describe(), hearer.bus.describe())
        leader.publish()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("wrong", "reported"),
    [
        (("/candled/", "/another/"), "the sentinels do not know another"),
        (("sentinel_password=watch", "sentinel_password=hidden"), "invalid username-password pair"),
        (("?sentinel_password=watch", ""), "authenticated"),
    ],
)
async def test_a_missing_answer_of_the_sentinels_is_reported(sentinels, wrong, reported):
    async with process(sentinels.url.replace(*wrong), new_prefix()) as one:
        await until(lambda: "trouble" in one.bus.describe())
        facts = one.bus.describe()
        assert not facts["connected"]
        assert reported in str(facts["trouble"])
        assert "hidden" not in str(facts)


async def test_one_sentinel_of_several_is_enough(sentinels):
    dead, mute, _ = sentinels.sentinels
    dead.kill()
    mute.pause()
    try:
        async with process(sentinels.url, new_prefix(), ingests=True) as one:
            await until(lambda: one.state is LeaseState.LEADER and one.bus.describe()["connected"], 15.0)
    finally:
        mute.resume()
        dead.start()


async def test_a_server_that_hands_over_and_lives_on_as_a_replica_is_left(sentinels):
    """It takes subscriptions as before, and nothing that is written: neither leases nor messages."""
    prefix = new_prefix()
    async with process(sentinels.url, prefix, ingests=True) as leader, process(sentinels.url, prefix) as hearer:
        await until(lambda: leader.state is LeaseState.LEADER and hearer.is_ready)
        await all_works(leader, hearer)
        with sentinels.sentinels[2].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", sentinels.name)
        await until(lambda: role(sentinels.master) == "slave", MOVED_WITHIN_S)
        await all_works(leader, hearer, MOVED_WITHIN_S)
        with sentinels.replica.client() as client:  # now both hear there, not only what is copied to the old one
            await until(lambda: client.pubsub_numsub(f"{prefix}candles:BTC/USDT:1m")[0][1] == 2, MOVED_WITHIN_S)
        assert leader.state is LeaseState.LEADER


def role(server: RedisServer) -> str:
    """Return the role of a server; empty while it drops its clients, because it changes."""
    with server.client() as client, contextlib.suppress(redis.ConnectionError):
        return str(client.info("replication")["role"])
    return ""


async def test_the_server_dies_and_the_other_is_found(sentinels):
    prefix = new_prefix()
    async with process(sentinels.url, prefix, ingests=True) as leader, process(sentinels.url, prefix) as hearer:
        await until(lambda: leader.state is LeaseState.LEADER and hearer.is_ready)
        await all_works(leader, hearer)
        master = sentinels.master if role(sentinels.master) == "master" else sentinels.replica
        master.kill()
        await asyncio.sleep(0.3)
        await all_works(leader, hearer, MOVED_WITHIN_S)
