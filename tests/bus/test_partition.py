"""A real partition: the server lives in a network namespace of its own, and packets between the two are lost.

Nothing is closed, nothing is acknowledged, as when a switch dies. Needs root and the `ip` command; elsewhere the TCP
proxy of test_redis_faults.py plays it.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest
import redis

from candled.bus.redis.leases import LeaseState
from candled.clock import SystemClock
from tests import deadlines
from tests.bus.rig import BTC, LOOP_BLOCKED_S, Process, new_prefix, process, until
from tests.loop_watch import LoopWatch
from tests.redis_servers import RedisServer, program

pytestmark = pytest.mark.usefixtures("redis", "daemon")

TIMES = 20 if "CANDLED_TEST_LONG" in os.environ else 1
REPAIRED_WITHIN_S = 5.0
NAME = f"candled{os.getpid() % 10_000}"
NEAR, FAR = "10.213.77.1", "10.213.77.2"
UNPRIVILEGED_ID = "02:00:00:00:00:99"  # no machine has it: whatever is sent there is lost


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A namespace whose one link leads here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("no network namespaces: run the tests as root, with the iproute2 package")
    try:
        ip("netns", "add", NAME)
        ip("link", "add", NAME, "type", "veth", "peer", "name", "far", "netns", NAME)
    except subprocess.CalledProcessError as error:
        subprocess.run(["ip", "netns", "delete", NAME], check=False, capture_output=True)
        pytest.skip(f"no network namespaces: {error.stderr.decode().strip()}")
    try:
        ip("addr", "add", f"{NEAR}/24", "dev", NAME)
        ip("link", "set", NAME, "up")
        ip("-n", NAME, "addr", "add", f"{FAR}/24", "dev", "far")
        ip("-n", NAME, "link", "set", "far", "up")
        yield NAME
    finally:
        ip("netns", "delete", NAME)


class FarServer(RedisServer):
    """A server in the namespace."""

    @property
    def address(self) -> tuple[str, int]:
        return FAR, self.port

    @property
    def url(self) -> str:
        return f"redis://{FAR}:{self.port}/0"

    def client(self) -> "redis.Redis[bytes]":
        return redis.Redis(FAR, self.port, socket_timeout=5)


@pytest.fixture
def server(namespace: str) -> Iterator[FarServer]:
    entered = shutil.which("ip")
    assert entered is not None
    one = FarServer(program(), None, bind="0.0.0.0")
    one._launcher = [entered, "netns", "exec", namespace]
    try:
        one.start()
        yield one
    finally:
        one.remove()


@contextlib.contextmanager
def partition() -> Iterator[None]:
    """Lose all packets in both directions."""
    ip("neigh", "replace", FAR, "lladdr", UNPRIVILEGED_ID, "nud", "permanent", "dev", NAME)
    ip("-n", NAME, "neigh", "replace", NEAR, "lladdr", UNPRIVILEGED_ID, "nud", "permanent", "dev", "far")
    try:
        yield
    finally:
        ip("neigh", "del", FAR, "dev", NAME)
        ip("-n", NAME, "neigh", "del", NEAR, "dev", "far")


async def test_after_a_partition_everything_is_received_within_five_seconds(server):
    prefix = new_prefix()
    async with (
        process(server.url, prefix, ingests=True, lease_s=3.0) as leader,
        process(server.url, prefix) as hearer,
        LoopWatch() as watch,
    ):
        await until(lambda: leader.state is LeaseState.LEADER and hearer.is_ready)
        leader.publish()
        await until(lambda: hearer.listener.candles())
        with partition():
            await until(lambda: hearer.listener.states.get(BTC) == "stale", 6.0)
            await until(lambda: leader.state is LeaseState.UNSURE, 6.0)
            await asyncio.sleep(1.0)
        back = deadlines.now()
        candle = leader.publish()
        await until(lambda: hearer.listener.newest[BTC] == candle, 6.0)
        assert deadlines.now() - back < 5.0
        assert hearer.listener.open_gaps == set()
    assert watch.blocked_s < LOOP_BLOCKED_S


async def test_connections_that_the_kernel_gave_up_are_replaced_and_do_not_block_the_loop(server, capsys):
    """With keepalive, which we never switch on, redis-py takes the kernel's time-out for "no message" without end."""
    prefix, worst_s = new_prefix(), 0.0
    async with (
        process(server.url, prefix, ingests=True) as leader,
        process(server.url, prefix, clock=SystemClock()) as hearer,
        LoopWatch() as watch,
    ):
        await until(lambda: leader.state is LeaseState.LEADER and hearer.is_ready)
        publishing = asyncio.ensure_future(_publish(leader))
        try:
            for _ in range(TIMES):
                received = len(hearer.listener.candles())
                await until(lambda least=received + 20: len(hearer.listener.candles()) > least)
                (link,) = hearer.bus._subscriber._connections.values()
                keep_alive(link._pubsub.connection._writer.get_extra_info("socket"))
                with partition():
                    await until(lambda: not hearer.bus.describe()["connected"], 6.0)
                back, volume = deadlines.now(), leader.listener.newest[BTC].volume
                await until(lambda least=volume: hearer.listener.newest[BTC].volume > least, REPAIRED_WITHIN_S)
                await until(lambda: not hearer.listener.open_gaps, back + REPAIRED_WITHIN_S - deadlines.now())
                worst_s = max(worst_s, deadlines.now() - back)
        finally:
            publishing.cancel()
        ends = hearer.bus.describe()["linkEnds"]
    with capsys.disabled():
        print(f"\nETIMEDOUT: {TIMES} faults, all healed, worst {worst_s:.2f} s, loop held {watch.blocked_s:.3f} s")
    assert watch.blocked_s < LOOP_BLOCKED_S
    assert ends == {"a dead connection that returns immediately": TIMES}


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel give it up after two seconds."""
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    libc = ctypes.CDLL(None, use_errno=True)
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1),
    ):
        assert libc.setsockopt(connection.fileno(), level, option, ctypes.byref(ctypes.c_int(value)), 4) == 0


async def _publish(leader: Process) -> None:
    number = 0
    while True:
        number += 1
        leader.publish(number=number // 10, final=number % 10 == 9)
        await asyncio.sleep(0.02)
