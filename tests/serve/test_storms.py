"""Many clients at once, and the loop and the collector that carry them."""

import ast
import asyncio
import gc
import json
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from datetime import timedelta
from pathlib import Path

import pytest
import websockets

from bench.native import Load, compiler
from candled.clock import SystemClock
from candled.config.sections import ServerSettings
from candled.protocol.frames import Frame
from candled.rooms.recipients import RecipientSlot
from candled.serve.gc_tuner import GcTuner
from tests import deadlines
from tests.api.stage import open_stage
from tests.serve import test_server
from tests.serve.peers import Peer, echo_harness
from tests.transport import test_connections as test_links
from tests.transport.test_connections import mute, update

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(compiler() is None, reason="the load client is C: apt-get install gcc")


@pytest.mark.usefixtures("daemon")
@needs_compiler
async def test_a_thousand_who_come_back_together_do_not_reach_the_store_and_starve_no_client(tmp_path, monkeypatch):
    """Promise 15: at most 7 queries for 7 rooms. p99 of `initial` below 1 s is measured in bench.

    The bound for a connected client is in turns, not in seconds, so that the speed of the machine does not matter.
    """
    intervals = ("1m", "5m", "15m", "1h", "4h", "1D", "1W")
    asks = tmp_path / "subscriptions"
    asks.write_text("".join(json.dumps({**test_server.SUBSCRIBE, "interval": one}) + "\n" for one in intervals))
    server = ServerSettings(
        host="127.0.0.1", port=0, max_connections_per_ip=0, max_handshakes_per_second=0, max_messages_per_second=0
    )
    async with (
        open_stage(tmp_path, 600, clock=SystemClock(), server=server) as stage,
        websockets.connect(f"ws://127.0.0.1:{stage.server.listen()}/") as there,
    ):
        reads = []
        for name in ("read_bars", "read_bars_between"):
            real = getattr(stage.store, name)
            monkeypatch.setattr(
                stage.store, name, lambda *args, real=real, **more: reads.append(args) or real(*args, **more)
            )
        load = Load(there.remote_address[1], 1000, "--inflight", "1000", "--subs", str(asks), "--secs", "20")
        most_let_in = 0
        try:
            while (count := stage.server.connection_count) < 1001:
                await test_server.send_json(there, {"type": "ping"})
                await test_server.receive_json(there, 60)
                most_let_in = max(most_let_in, stage.server.connection_count - count)
            while stage.hub.describe()["totalClients"] < 1000:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
        finally:
            results = await asyncio.to_thread(load.results)
        assert (results["opened"], results["answers"]) == (1000, 1000)
        assert len(reads) <= 7
        assert most_let_in < 500, "a connected client is answered between those who come"


@pytest.mark.slow
async def test_who_came_first_is_let_in_first():
    async with echo_harness(max_handshakes_per_second=0) as harness:
        addresses = [f"127.0.0.{number}" for number in range(10, 70)]
        for address in addresses:
            peer = socket.create_connection(("127.0.0.1", harness.port), source_address=(address, 0))
            peer.sendall(test_links.HANDSHAKE)
            harness.opened.append(peer)
        await harness.client(59)
        assert [client.connection.address for client in harness.clients] == addresses


async def numbers(reader: Peer, count: int) -> list[int]:
    """Those of the next so many updates."""
    got: list[int] = []
    while len(got) < count:
        first, payload = await reader.receive()
        if first == 0x81:  # no ping
            got.append(int(payload[:8]))
    return got


@pytest.mark.slow
async def test_clients_that_never_read_take_nothing_from_those_that_do():
    """Promise 13, in short: the readers get every frame, the others cost little and are closed."""
    async with echo_harness(slow_client_timeout=timedelta(seconds=0.5)) as harness:
        blocked = [await mute(harness) for _ in range(5)]
        readers = [await harness.connect() for _ in range(20)]
        await harness.client(24)
        reading = [asyncio.create_task(numbers(reader, 600)) for reader in readers]
        for number in range(600):
            harness.broadcaster.broadcast(harness.recipients, update(number))
            await asyncio.sleep(0.002)
        for got in await asyncio.gather(*reading):
            assert got == list(range(600))
        async with deadlines.timeout(8):
            while any(client.connection.is_open for client in harness.clients[: len(blocked)]):
                await asyncio.sleep(0.05)
        assert all(client.connection.is_open for client in harness.clients[len(blocked) :])


@pytest.mark.slow
async def test_a_broadcast_runs_no_python_code_for_a_client():
    """What keeps it close to the kernel: between two clients there is nothing but the socket's own `send`."""
    async with echo_harness(max_handshakes_per_second=0) as harness:
        peers = [await harness.connect() for _ in range(100)]
        await harness.client(99)
        calls = []
        sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
        try:
            harness.broadcaster.broadcast(harness.recipients, update(1))
        finally:
            sys.setprofile(None)
        assert len(calls) < 20, calls
        for peer in peers:
            first = 0x89
            while first == 0x89:  # a ping, if connecting took long
                first, _ = await peer.receive()
            assert first == 0x81


@pytest.mark.slow
async def test_a_connection_that_waits_takes_less_than_ten_kilobytes():
    async with echo_harness(max_handshakes_per_second=0) as harness:
        await mute(harness)  # whatever the first one brings with it
        await harness.client()
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(200):
                await mute(harness)
            await harness.client(200)
            gc.collect()
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert taken / 200 < 10_000


@pytest.mark.slow
async def test_the_loop_is_free_while_a_large_room_is_sent_to():
    async with echo_harness(max_handshakes_per_second=0) as harness:
        peers = [await harness.connect() for _ in range(300)]
        await harness.client(299)
        for connection in list(harness.recipients) * 99:  # 30,000 sends
            harness.recipients.add_slot(RecipientSlot(connection))
        passes = 0

        async def count() -> None:
            nonlocal passes
            while harness.broadcaster.is_busy:
                passes += 1
                await asyncio.sleep(0)

        harness.broadcaster.broadcast(harness.recipients, Frame.from_text("x"))
        await count()
        assert passes >= 2
        for _ in range(100):
            assert await peers[-1].receive() == (0x81, b"x")


# ---------------------------------------------------------------- the seam to Tornado


def test_only_documented_parts_of_tornado_are_used_where_the_socket_is_taken():
    for name in (
        "transport/socket_detach",
        "transport/acceptor",
        "serve/handlers",
        "transport/socket_connection",
        "transport/tornado_connection",
    ):
        tree = ast.parse((ROOT / "candled" / f"{name}.py").read_text("utf-8"))
        private = {
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "harness"))
            and not ast.unparse(node.value).startswith("self._")
        }
        assert private == set(), name


# ---------------------------------------------------------------- uvloop


async def exchange_messages() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = ServerSettings(host="127.0.0.1", port=0)
        async with open_stage(Path(folder), clock=SystemClock(), server=server) as stage:
            url = f"ws://127.0.0.1:{stage.server.listen()}/"
            await test_server.exchange_messages(stage, lambda: websockets.connect(url))


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [
        exchange_messages,
        lambda: test_links.test_a_client_that_stops_reading_is_sent_the_newest_state_of_each_bar_when_it_reads_again(
            True
        ),
        lambda: test_links.test_a_client_that_stays_blocked_is_closed_with_3008(True, _Caplog()),
        lambda: test_links.test_a_mute_client_is_closed_with_3012(),
        lambda: test_links.test_the_end_of_the_server_is_sent_to_every_client(True),
        lambda: test_links.test_what_comes_right_behind_the_handshake_is_read(),
    ],
    ids=["messages", "slow", "stuck", "mute", "end", "early"],
)
def test_sockets_behave_the_same_on_uvloop(scenario):
    uvloop = pytest.importorskip("uvloop", reason='pip install -e ".[test]"')
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


class _Caplog:
    """What one of the scenarios looks for in the log."""

    text = "has not read for 0 s: closed"

    def set_level(self, level: str) -> None:
        pass


@pytest.mark.usefixtures("daemon")
async def test_the_daemon_runs_on_uvloop(tmp_path):
    pytest.importorskip("uvloop", reason='pip install -e ".[test]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "candled.yaml").write_text(
        f"server: {{host: 127.0.0.1, port: {port}}}\nexchanges: {{replay: {{symbols: [BTC/USDT], speed: 20}}}}\n"
        f"store: {{url: 'sqlite:///{tmp_path}/candled.db', journal: ''}}\ningest: {{backfill: 0s}}\n"
    )
    program = "import sys, uvloop; uvloop.install(); from candled.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", program, "--config", "candled.yaml"], cwd=tmp_path) as daemon:
        try:
            messages = await deadlines.wait_for(followed(port), 30)
            assert [message["type"] for message in messages] == ["initial", "update", "update"]
        finally:
            daemon.terminate()
        assert daemon.wait(15) == 0


async def followed(port: int) -> list[dict]:
    """The first messages of a subscription, once the daemon is there."""
    while True:
        try:
            async with websockets.connect(f"ws://127.0.0.1:{port}/") as ws:
                await ws.send(json.dumps(test_server.SUBSCRIBE))
                return [json.loads(await ws.recv()) for _ in range(3)]
        except OSError:
            await asyncio.sleep(0.1)


# ---------------------------------------------------------------- the collector


class Node:
    """Something in a cycle."""

    def __init__(self) -> None:
        self.me = self


@pytest.mark.slow
def test_what_survived_a_full_collection_is_not_looked_at_again():
    collector = GcTuner()
    before = gc.get_threshold()
    collector.start()
    try:
        assert gc.get_freeze_count() > 10_000
        kept = [Node() for _ in range(1000)]
        began = time.thread_time()  # not the time by the clock: other processes share the processor
        gc.collect()
        took_s = time.thread_time() - began
        assert took_s < 0.02, "it saw only what came since the start"
        assert len(gc.get_objects()) < 1000, "and set it aside"
        assert len(kept) == 1000
        Node()
        assert gc.collect() >= 1, "garbage is still found"
    finally:
        collector.stop()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


@pytest.mark.slow
def test_no_full_collection_looks_at_many_of_the_containers_that_came_since_the_last_one():
    collector, visited = GcTuner(), []

    def count(phase, facts):
        if phase == "start" and facts["generation"] == 2:
            visited.append(len(gc.get_objects()))

    collector.start()
    gc.callbacks.append(count)
    try:
        kept = [[number] for number in range(1_000_000)]
        assert len(kept) == 1_000_000
    finally:
        gc.callbacks.remove(count)
        collector.stop()
    assert len(visited) >= 3
    assert max(visited) < 200_000


@pytest.mark.slow
def test_with_handlers_that_tornado_keeps_nothing_is_set_aside():
    collector, before = GcTuner(keeps_handlers=True), gc.get_freeze_count()
    collector.start()
    try:
        assert gc.get_freeze_count() <= before, "frozen objects may end, none is added"
    finally:
        collector.stop()
