"""A Redis that answers and refuses: every refusal is named, nobody looks healthy meanwhile, and charts heal after it.

One table of the ways in which Redis refuses. Each is tried on a site of a process that leads, one that serves, and one
with both roles that follows, with a real server.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis

from candled.bus import StateChanged
from candled.bus.codec import Names
from candled.bus.redis.leases import LeaseState
from candled.errors import Unavailable
from tests.bus.rig import BTC, CLOCK, LONG, MARKETS, Process, new_prefix, process, until
from tests.redis_servers import RedisCluster, RedisServer, own_redis

pytestmark = pytest.mark.usefixtures("redis")

STALE_WITHIN_S = 8.0 if LONG else 12.0  # a lease of 3 s that cannot be renewed, and 3 s without a heartbeat
WELL_WITHIN_S = 8.0 if LONG else 12.0  # a clock that runs faster than Redis makes leases change hands


class Fault:
    """A way in which a server refuses: how it begins and ends, and what its words contain."""

    def __init__(self, words: str, begin: Callable[[RedisServer], None], end: Callable[[RedisServer], None]) -> None:
        self.words = words
        self.begin = begin
        self.end = end


def commands(*lines: str) -> Callable[[RedisServer], None]:
    """Run commands at a server."""

    def run(server: RedisServer) -> None:
        with server.client() as client:
            for line in lines:
                client.execute_command(*line.split())

    return run


def run_for_ever(server: RedisServer) -> None:
    """Run a script without an end."""
    with redis.Redis(*server.address, socket_timeout=0.3) as client, pytest.raises(redis.RedisError):
        client.eval("while true do end", 0)


def kill_script(server: RedisServer) -> None:
    with server.client() as client:
        client.script_kill()


ALL = "+@all ~* &*"
FAULTS = {
    "OOM": Fault("OOM", commands("CONFIG SET maxmemory 1"), commands("CONFIG SET maxmemory 0")),
    "READONLY": Fault("READONLY", commands("REPLICAOF 127.0.0.1 1"), commands("REPLICAOF NO ONE")),
    "NOPERM scripts": Fault(
        "NOPERM", commands("ACL SETUSER default -evalsha -eval"), commands(f"ACL SETUSER default {ALL}")
    ),
    "NOPERM keys": Fault("NOPERM", commands("ACL SETUSER default resetkeys"), commands(f"ACL SETUSER default {ALL}")),
    "NOPERM channels": Fault(
        "channel", commands("ACL SETUSER default resetchannels"), commands(f"ACL SETUSER default {ALL}")
    ),
    "NOPERM reading": Fault(
        "NOPERM",
        commands("ACL SETUSER default -getrange", "CLIENT KILL TYPE pubsub"),
        commands(f"ACL SETUSER default {ALL}"),
    ),
    "NOREPLICAS": Fault(
        "NOREPLICAS", commands("CONFIG SET min-replicas-to-write 1"), commands("CONFIG SET min-replicas-to-write 0")
    ),
    "BUSY": Fault("BUSY", run_for_ever, kill_script),
}


class Deployment:
    """A process that leads and publishes four times a second, one that serves, and one of both kinds that follows."""

    def __init__(self, leader: Process, serving: Process, both: Process) -> None:
        self.leader = leader
        self.serving = serving
        self.both = both
        self._number = 0

    async def publish(self) -> None:
        """Publish for ever, the state too. A lease that ran out may be taken by either process."""
        while True:
            self._number += 1
            leads = self.both if self.both.state is LeaseState.LEADER else self.leader
            for market in MARKETS:
                leads.publish(market, self._number // 10, final=self._number % 10 == 9)
                leads.bus.publish(StateChanged(market, "live", 1))
            await asyncio.sleep(0.25)

    def reports(self, words: str) -> bool:
        """Whether the process that publishes names the trouble, for Redis and for each market."""
        facts, markets = self.leader.bus.describe(), self.leader.bus.unpublished_markets()
        return (
            not facts["connected"]
            and words in str(facts.get("trouble"))
            and set(markets) == set(MARKETS)
            and all(words in reason for reason in markets.values())
        )

    def is_stale(self, process: Process) -> bool:
        return [process.listener.states.get(market) for market in MARKETS] == ["stale", "stale"]

    def is_well(self) -> bool:
        """Whether everybody has what is newest, says that it is live, and complains of nothing."""
        processes = (self.leader, self.serving, self.both)
        return (
            all(one.bus.describe()["connected"] and "trouble" not in one.bus.describe() for one in processes)
            and not self.leader.bus.unpublished_markets()
            and all(one.listener.states == dict.fromkeys(MARKETS, "live") for one in processes)
            and all(not one.listener.open_gaps for one in processes)
            and self.serving.listener.newest == self.both.listener.newest == self.leader.listener.newest
        )


@asynccontextmanager
async def deployment(url: str) -> AsyncIterator[Deployment]:
    prefix = new_prefix()
    async with (
        process(url, prefix, ingests=True, lease_s=3.0) as leader,
        process(url, prefix) as serving,
    ):
        await until(lambda: leader.state is LeaseState.LEADER and serving.is_ready)
        async with process(url, prefix, ingests=True, lease_s=3.0) as both:
            one = Deployment(leader, serving, both)
            publishing = asyncio.ensure_future(one.publish())
            try:
                await until(one.is_well, WELL_WITHIN_S)
                yield one
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)


@pytest.mark.parametrize("kind", FAULTS)
async def test_what_redis_refuses_is_named_and_shown_and_heals(kind, caplog):
    caplog.set_level(logging.INFO)
    fault = FAULTS[kind]
    with own_redis(busy_reply_threshold="200") as server:
        async with deployment(server.url) as one:
            await asyncio.to_thread(fault.begin, server)
            if kind == "NOPERM reading":
                await until(lambda: fault.words in str(one.serving.bus.describe().get("trouble")), STALE_WITHIN_S)
            else:
                await until(lambda: one.reports(fault.words), STALE_WITHIN_S)
            await until(lambda: one.is_stale(one.serving), STALE_WITHIN_S)
            reasons = {shown.reason for shown in one.serving.bus._delivered_states.values()}
            assert len(reasons) == 1
            assert reasons != {""}
            await CLOCK.sleep(2.0)
            lines = [record.message for record in caplog.records if record.message.startswith("Redis: publishing")]
            assert len(lines) <= 3  # one for each kind of failure, and not one for each market or message
            await asyncio.to_thread(fault.end, server)
            await until(one.is_well, WELL_WITHIN_S)


async def test_a_full_redis_that_accepts_heartbeats_is_no_healthy_one(caplog):
    """Nothing but the numbers in them tells that messages are refused."""
    caplog.set_level(logging.INFO)
    with own_redis() as server:
        async with deployment(server.url) as one:
            published = one.leader.bus.describe()["published"]
            commands("CONFIG SET maxmemory 1")(server)
            await CLOCK.sleep(1.0)
            await until(lambda: one.is_stale(one.serving) and one.is_stale(one.both), STALE_WITHIN_S)
            facts = one.serving.bus.describe()
            assert max(facts["heartbeatAgeMs"].values()) < 2_000
            assert (facts["connected"], facts["trouble"]) == (False, "receiving: published messages do not arrive")
            assert one.leader.state is LeaseState.LEADER
            assert one.leader.listener.states == dict.fromkeys(MARKETS, "live")  # its own clients have everything
            assert one.leader.bus.describe()["published"] <= published + 2 * len(MARKETS) * 4
            commands("CONFIG SET maxmemory 0")(server)
            await until(one.is_well, WELL_WITHIN_S)
            await CLOCK.sleep(6.5)
            log_lines = [record.message for record in caplog.records if record.message.startswith("Redis: publishing")]
            assert len(log_lines) == 2
            assert ": OOM" in log_lines[0]
            assert "works again" in log_lines[1]


async def test_work_that_failed_and_does_not_come_up_again_is_tried_until_it_works():
    """A follower asks for no request budget; its trouble from before must end with Redis's."""
    with own_redis() as server:
        async with deployment(server.url) as one:
            FAULTS["NOPERM keys"].begin(server)
            with pytest.raises(Unavailable):
                await one.both.parts.counter.count_hit("127.0.0.1", 60.0)
            await one.both.parts.budgets.budget_for("api.example.com", 10.0).acquire()
            problem = one.both.bus.describe()["trouble"]
            assert "counting requests: NOPERM" in problem
            assert "sharing request budgets: NOPERM" in problem
            FAULTS["NOPERM keys"].end(server)
            await until(one.is_well, WELL_WITHIN_S)


async def test_scripts_that_redis_forgets_all_the_time_are_sent_again():
    with own_redis() as server:
        async with deployment(server.url) as one:
            with server.client() as client:
                for _ in range(30):
                    client.script_flush()
                    await asyncio.sleep(0.05)
            assert "trouble" not in one.leader.bus.describe()
            await until(one.is_well, WELL_WITHIN_S)


async def test_a_server_that_is_loading_its_data_is_waited_for():
    slow = {"key_load_delay": "20000", "loading_process_events_interval_bytes": "1024", "rdbcompression": "no"}
    with own_redis(save="1000 1000", **slow) as server:
        async with deployment(server.url) as one:
            with server.client() as client:  # it loads for a minute, unless it is asked to hurry
                client.mset({f"filler-{number}": "x" * 1024 for number in range(3000)})
                client.save()
            server.kill()
            starting = asyncio.ensure_future(asyncio.to_thread(server.start))
            await until(lambda: "LOADING" in str(one.leader.bus.describe().get("trouble")), 10.0)
            await until(lambda: one.is_stale(one.serving), STALE_WITHIN_S)
            commands("CONFIG SET key-load-delay 0")(server)
            await starting
            await until(one.is_well, 2 * WELL_WITHIN_S)


async def test_a_node_of_a_cluster_that_is_named_as_a_single_server_names_the_address_to_use():
    with RedisCluster() as cluster:
        names, prefix = Names("", "bitget", 1), new_prefix()
        node = next(one for one in cluster.nodes if one is not cluster.owner(names.candles_channel(BTC)))
        async with process(node.url, prefix, ingests=True) as one:
            owners = {cluster.owner(Names(prefix, "bitget", 1).fence_key(market)) for market in MARKETS}
            owners.add(cluster.owner(Names(prefix, "bitget", 1).lease_key(0)))
            if owners == {node}:
                pytest.skip("all markets are on that node")
            await until(lambda: "MOVED" in str(one.bus.describe().get("trouble")), STALE_WITHIN_S)
            assert not one.bus.describe()["connected"]


async def test_nodes_that_answer_moved_without_end_are_asked_at_a_bounded_pace():
    """A node with a wrong view of the cluster names servers that send everybody on."""
    with RedisCluster() as cluster:
        prefix = new_prefix()
        async with process(cluster.url, prefix, ingests=True) as one, process(cluster.url, prefix) as serving:
            await until(lambda: one.state is LeaseState.LEADER and serving.is_ready)
            key = Names(prefix, "bitget", 1).fence_key(BTC)
            owner = cluster.owner(key)
            with owner.client() as client:
                slot = client.cluster("KEYSLOT", key)
                mine = client.execute_command("CLUSTER MYID").decode()
                other = next(node for node in cluster.nodes if node is not owner)
                with other.client() as far:
                    node_id = far.execute_command("CLUSTER MYID").decode()
                keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
                if keys:
                    client.delete(*keys)
                client.execute_command(
                    "CLUSTER", "SETSLOT", slot, "NODE", node_id
                )  # and `other` says: it is the owner's
                before = client.info("stats")["total_connections_received"]
                publishing = asyncio.ensure_future(_publish(one))
                try:
                    await until(lambda: "MOVED" in str(one.bus.describe().get("trouble")), 10.0)
                    assert BTC in one.bus.unpublished_markets()
                    await CLOCK.sleep(3.0)
                    made = client.info("stats")["total_connections_received"] - before
                    assert made < 150
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", mine)
                    await until(lambda: not one.bus.unpublished_markets() and "trouble" not in one.bus.describe(), 15.0)
                    await until(lambda: serving.listener.newest.get(BTC) == one.listener.newest[BTC], 15.0)
                finally:
                    publishing.cancel()
                    await asyncio.gather(publishing, return_exceptions=True)


async def _publish(leader: Process) -> None:
    number = 0
    while True:
        number += 1
        leader.publish(BTC, number // 10)
        await asyncio.sleep(0.1)
