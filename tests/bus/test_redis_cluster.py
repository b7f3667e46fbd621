"""A Redis Cluster: channels are spread, and a dead owner is replaced."""

import asyncio
import os
import time

import pytest

from candled.bus.codec import Names
from candled.bus.redis.address import RedisAddress
from candled.bus.redis.connections import Servers
from candled.bus.redis.leases import LeaseState
from candled.clock import SystemClock
from candled.model import MarketKey, Symbol
from tests import deadlines
from tests.bus.rig import CLOCK, LOOP_BLOCKED_S, Process, new_prefix, process, until
from tests.loop_watch import LoopWatch
from tests.redis_servers import RedisCluster, RedisServer

pytestmark = pytest.mark.usefixtures("redis")

LONG = "CANDLED_TEST_LONG" in os.environ
KILLS = 10 if LONG else 2
MOVES = 40 if LONG else 4
NODE_TIMEOUT_MS = 2000 if LONG else 1000
MUTE_S = 6.0 if LONG else 4.0  # longer than a call waits for an answer
REPAIRED_WITHIN_S = 10.0
MARKETS = tuple(MarketKey("bitget", Symbol(base, "USDT")) for base in ("BTC", "ETH", "SOL", "XRP", "ADA", "DOGE"))


@pytest.fixture(scope="module")
def cluster():
    """Three masters, without replicas: nobody kills them."""
    with RedisCluster() as one:
        yield one


def is_well(leader: Process, *hearers: Process) -> bool:
    """Whether everybody is connected, and all shards are led, and what there was before was read."""
    leads = leader.leases is not None and all(lease.state is LeaseState.LEADER for lease in leader.leases.all)
    is_read = all(one.listener.missed >= len(MARKETS) and not one.listener.open_gaps for one in hearers)
    return leads and is_read and all(one.bus.describe()["connected"] for one in (leader, *hearers))


async def test_markets_are_spread_over_the_nodes_and_all_arrive(cluster):
    prefix = new_prefix()
    async with (
        process(cluster.url, prefix, ingests=True, markets=MARKETS, shards=2) as leader,
        process(cluster.url, prefix, markets=MARKETS, shards=2) as hearer,
    ):
        await until(lambda: is_well(leader, hearer))
        sent = {}
        for number in range(20):
            sent = {market: leader.publish(market, number) for market in MARKETS}
            await asyncio.sleep(0.01)
        await until(lambda: hearer.listener.newest == sent)
        assert hearer.listener.open_gaps == set()
        # more if one was silent for too long on a busy machine, or if a node's view of the cluster was out of date
        assert hearer.bus.describe()["generation"] >= len(_owners(cluster, prefix, shards=2))
        assert len(_owners(cluster, prefix, shards=2)) > 1
        await CLOCK.sleep(2.5)  # heartbeats come over other connections, and nothing is taken for lost
        assert set(hearer.bus.describe()["healed"]) <= {"connected", "epoch"}


def _owners(cluster: RedisCluster, prefix: str, shards: int) -> set[int]:
    names = Names(prefix, "bitget", shards)
    channels = [*map(names.candles_channel, MARKETS), *map(names.heartbeat_channel, range(shards))]
    return {cluster.owner(channel).port for channel in channels}


async def test_channels_are_sharded_where_the_server_can(cluster):
    servers, prefix = Servers(RedisAddress.parse(cluster.url)), new_prefix()
    assert (await servers.find_topology()).sharded
    async with process(cluster.url, prefix, markets=MARKETS) as hearer:
        await until(lambda: hearer.bus.describe()["connected"])
        names = Names(prefix, "bitget", 1)
        counts = []
        for node in cluster.nodes:
            with node.client() as client:
                counts.append(client.execute_command("PUBSUB", "SHARDCHANNELS", f"{prefix}*"))
                assert client.execute_command("PUBSUB", "CHANNELS", f"{prefix}*") == []
        found = {channel.decode() for channels in counts for channel in channels}
        assert {*map(names.candles_channel, MARKETS), names.heartbeat_channel(0)} <= found


async def test_on_an_old_cluster_every_node_carries_everything(cluster, monkeypatch):
    """As on a cluster before version 7, which does not know SSUBSCRIBE."""
    monkeypatch.setattr("candled.bus.redis.connections._SHARDED_SINCE", 99)
    prefix = new_prefix()
    async with (
        process(cluster.url, prefix, ingests=True, markets=MARKETS) as leader,
        process(cluster.url, prefix, markets=MARKETS) as hearer,
    ):
        await until(lambda: is_well(leader, hearer))
        assert hearer.bus.describe()["generation"] == 1
        sent = {market: leader.publish(market) for market in MARKETS}
        await until(lambda: hearer.listener.newest == sent)


@pytest.mark.parametrize("sharded", [True, False])
async def test_markets_that_come_and_go_are_received_wherever_their_channels_are(cluster, monkeypatch, sharded):
    if not sharded:
        monkeypatch.setattr("candled.bus.redis.connections._SHARDED_SINCE", 99)
    prefix, symbols = new_prefix(), [market.symbol for market in MARKETS]
    async with (
        process(cluster.url, prefix, ingests=True, markets=MARKETS[:2]) as leader,
        process(cluster.url, prefix, markets=MARKETS[:2]) as hearer,
    ):
        await until(lambda: leader.state is LeaseState.LEADER and hearer.is_ready)
        for served in (symbols, symbols[2:], symbols[:3]):
            leader.universe.set_markets("bitget", served)
            await until(lambda served=served: hearer.universe.symbols("bitget") == tuple(served))
            sent = {MarketKey("bitget", symbol): leader.publish(MarketKey("bitget", symbol)) for symbol in served}
            await until(lambda sent=sent: sent.items() <= hearer.listener.newest.items())
        assert hearer.bus.describe().get("trouble") is None
        if not sharded:
            assert hearer.bus.describe()["generation"] == 1  # no connection was replaced


@pytest.mark.parametrize("sharded", [True, False])
async def test_slots_that_move_to_other_owners_while_messages_flow(cluster, monkeypatch, capsys, sharded):
    """Those of a market, and that of the lease and heartbeat; there and back, with a pause between keys and slot."""
    if not sharded:
        monkeypatch.setattr("candled.bus.redis.connections._SHARDED_SINCE", 99)
    prefix, took = new_prefix(), []
    names = Names(prefix, "bitget", 1)
    async with (
        process(cluster.url, prefix, ingests=True, markets=MARKETS) as leader,
        process(cluster.url, prefix, markets=MARKETS) as hearer,
        LoopWatch() as watch,
    ):
        await until(lambda: is_well(leader, hearer))
        token = leader.leases.all[0].token
        publishing = asyncio.ensure_future(_publish(leader))
        try:
            for number in range(MOVES):
                key = (names.candles_channel(MARKETS[0]), names.lease_key(0))[number % 2]
                await until(lambda: len(hearer.listener.newest) == len(MARKETS))
                owner = await asyncio.to_thread(cluster.owner, key)
                to = next(node for node in cluster.nodes if node is not owner)
                await asyncio.to_thread(cluster.move, key, to, 0.5)
                took.append(await _repaired(leader, hearer))
                assert await asyncio.to_thread(cluster.owner, key) is to
        finally:
            publishing.cancel()
        await until(lambda: is_well(leader, hearer) and hearer.listener.newest == leader.listener.newest)
        assert leader.leases.all[0].token == token  # it went on leading
        ends = hearer.bus.describe()["linkEnds"]
        if sharded:  # Redis takes the subscriptions away with the slot
            assert sum(ends.values()) >= MOVES
        else:
            assert ends == {}
    with capsys.disabled():
        durations = ", ".join(f"{seconds:.2f}" for seconds in took)
        print(f"\n{'sharded' if sharded else 'not sharded'}: {MOVES} slots moved, healed after {durations} s, {ends}")
    assert max(took) < 5.0
    assert watch.blocked_s < LOOP_BLOCKED_S


async def test_a_node_that_answers_nothing_delays_no_other(capsys):
    """Its own markets wait; of those elsewhere nothing is late, and the lease stays."""
    with RedisCluster(timeout_ms=60_000) as cluster:  # so long the others do without it
        mute = cluster.nodes[0]  # also the first that is asked who has what
        prefix, elsewhere = _apart(cluster, mute)
        async with (
            process(cluster.url, prefix, ingests=True, markets=MARKETS, clock=SystemClock()) as leader,
            process(cluster.url, prefix, markets=MARKETS, clock=SystemClock()) as hearer,
        ):
            await until(lambda: is_well(leader, hearer))
            publishing = asyncio.ensure_future(_publish(leader))
            try:
                await until(lambda: len(hearer.listener.newest) == len(MARKETS))
                mute.pause()
                since = deadlines.now()
                await asyncio.sleep(MUTE_S)
                until_ = deadlines.now()
                assert not leader.bus.describe()["connected"]
                assert str(mute.port) in str(leader.bus.describe()["trouble"])
                assert leader.state is LeaseState.LEADER
                mute.resume()
                await _repaired(leader, hearer)
            finally:
                mute.resume()
                publishing.cancel()
            gaps = {}
            for market in elsewhere:
                at = [at for at, one, _ in hearer.listener.received if one.market == market and since <= at <= until_]
                gaps[market] = max(later - earlier for earlier, later in zip([since, *at], [*at, until_], strict=True))
            await until(lambda: leader.bus.describe()["connected"] and hearer.bus.describe()["connected"])
    with capsys.disabled():
        print(f"\none node mute for {MUTE_S:g} s: the markets of others were silent for {max(gaps.values()):.2f} s")
    assert max(gaps.values()) < 1.0  # they come every 50 ms


def _apart(cluster: RedisCluster, mute: RedisServer) -> tuple[str, list[MarketKey]]:
    """A prefix with which a node has some of the markets and not the lease, and the markets that others have."""
    while True:
        prefix = new_prefix()
        names = Names(prefix, "bitget", 1)
        elsewhere = [market for market in MARKETS if cluster.owner(names.candles_channel(market)) is not mute]
        if 0 < len(elsewhere) < len(MARKETS) and cluster.owner(names.lease_key(0)) is not mute:
            return prefix, elsewhere


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_sharded", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_the_owner_of_a_channel_dies_and_its_replica_takes_over(capsys, monkeypatch, is_sharded):
    """The same where every node carries everything, as before version 7."""
    if not is_sharded:
        monkeypatch.setattr("candled.bus.redis.connections._SHARDED_SINCE", 99)
    prefix, worst_s, repaired = new_prefix(), 0.0, 0
    names = Names(prefix, "bitget", 1)
    with RedisCluster(replicas=1, timeout_ms=NODE_TIMEOUT_MS) as cluster:
        async with (
            process(cluster.url, prefix, ingests=True, markets=MARKETS) as leader,
            process(cluster.url, prefix, markets=MARKETS) as hearer,
            LoopWatch() as watch,
        ):
            await until(lambda: is_well(leader, hearer))
            publishing = asyncio.ensure_future(_publish(leader))
            try:
                for number in range(KILLS):
                    market = MARKETS[number % len(MARKETS)]
                    await until(lambda: len(hearer.listener.newest) == len(MARKETS))
                    owner = await asyncio.to_thread(cluster.owner, names.candles_channel(market))
                    owner.kill()
                    took_s = await _repaired(leader, hearer)
                    worst_s, repaired = max(worst_s, took_s), repaired + (took_s <= REPAIRED_WITHIN_S)
                    if number + 1 < KILLS:
                        await asyncio.to_thread(_back_again, owner)
            finally:
                publishing.cancel()
            assert hearer.listener.open_gaps == set()
    with capsys.disabled():
        print(
            f"\ncluster, {'sharded' if is_sharded else 'classic'}: {KILLS} owners killed, {repaired} healed, "
            f"worst {worst_s:.2f} s, loop held {watch.blocked_s:.3f} s"
        )
    assert repaired == KILLS
    assert watch.blocked_s < LOOP_BLOCKED_S


async def _publish(leader: Process) -> None:
    number = 0
    while True:
        number += 1
        for market in MARKETS:
            leader.publish(market, number // 60)
        await asyncio.sleep(0.05)


async def _repaired(leader: Process, hearer: Process) -> float:
    """Seconds until every market's minutes of now are heard again, and every loss was told."""
    since = deadlines.now()
    await asyncio.sleep(0.3)
    volumes = {market: leader.listener.newest[market].volume for market in MARKETS}
    listener = hearer.listener

    def is_so() -> bool:
        return not listener.open_gaps and all(listener.newest[market].volume > volumes[market] for market in MARKETS)

    await until(is_so, REPAIRED_WITHIN_S + 5)
    return deadlines.now() - since


def _back_again(node: RedisServer) -> None:
    """Start a killed node, and wait until it follows who took its place."""
    node.start()
    for _ in range(500):
        with node.client() as client:
            facts = client.info("replication")
            if facts["role"] == "slave" and facts["master_link_status"] == "up":
                return
        time.sleep(0.02)
    raise RuntimeError("the node did not come back as a replica")
