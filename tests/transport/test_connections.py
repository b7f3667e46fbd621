"""Links on real sockets: slow clients, several rooms at a time, the end, and what is left of it."""

import asyncio
import contextlib
import fcntl
import gc
import random
import re
import resource
import socket
import termios
import time
import weakref
import zlib
from datetime import timedelta

import pytest
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream

from candled.model import Topic
from candled.protocol.frames import Frame
from candled.rooms.recipients import Recipients, RecipientSlot
from candled.serve.handlers import StreamHandler
from candled.transport.broadcaster import READ_S
from candled.transport.outbox import MOST_BARS_WAITING
from candled.transport.socket_connection import (
    KERNEL_BUFFER,
    MOST_FRAMES,
    PARSED_BYTES,
    SENT_BYTES,
    SocketConnection,
)
from candled.transport.work_budget import FRAME
from tests import deadlines
from tests.clocks import ManualClock
from tests.serve.peers import BINARY, CLOSE, PING, PONG, TEXT, EchoHarness, echo_harness, frame

WAYS = pytest.mark.parametrize("own_sockets", [True, False], ids=["own socket", "Tornado's"])
ONE, TWO = Topic("one", "1m"), Topic("two", "5m")  # links do not look into topics
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def update(number: int, open_ms: int = 60_000, topic: Topic = ONE, size: int = 500) -> Frame:
    return Frame.from_text(f"{number:08}".ljust(size, "."), topic, open_ms)


async def mute(harness: EchoHarness) -> socket.socket:
    """A peer with a small buffer that shook hands and reads nothing else."""
    loop = asyncio.get_running_loop()
    peer = socket.socket()
    harness.opened.append(peer)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.setblocking(False)
    await loop.sock_connect(peer, ("127.0.0.1", harness.port))
    await loop.sock_sendall(peer, HANDSHAKE)
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += await loop.sock_recv(peer, 1)
    return peer


class Reader:
    """Takes frames apart as a client would; a torn one fails."""

    def __init__(self) -> None:
        self.buffer = b""
        self.payloads: list[bytes] = []

    def feed(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 4:
            first, length = self.buffer[0], self.buffer[1]
            assert first in (0x81, 0x89), "torn"
            start, length = (4, int.from_bytes(self.buffer[2:4], "big")) if length == 126 else (2, length)
            if len(self.buffer) < start + length:
                return
            if first == 0x81:
                self.payloads.append(self.buffer[start : start + length])
            self.buffer = self.buffer[start + length :]


async def read_until(peer: socket.socket, reader: Reader, payload: bytes) -> None:
    async with deadlines.timeout(10):
        while not any(one.startswith(payload) for one in reader.payloads):
            reader.feed(await asyncio.get_running_loop().sock_recv(peer, 65536))


# ---------------------------------------------------------------- slow clients


@pytest.mark.slow
@WAYS
async def test_the_bytes_given_to_connections_are_those_that_arrive(own_sockets):
    """Broadcasts, replies and snapshots, sent immediately or after a large frame that the socket cannot take."""
    async with echo_harness(own_sockets=own_sockets) as harness:
        peers = [await harness.connect() for _ in range(2)]
        await harness.client(1)
        for number, size in enumerate((10, 500, 3_000_000, 200)):
            harness.broadcaster.broadcast(harness.recipients, update(number, 60_000 * (number + 1), size=size))
        client = harness.clients[0]
        client.initials[TWO] = lambda: update(9, 0, TWO, 2_000)
        client.connection.send_reply(Frame.from_text("queued"))
        client.connection.request_snapshot(TWO)
        peers[1].send(frame(TEXT, b"hello"))
        arrived = 0
        for peer, count in zip(peers, (6, 5), strict=True):
            arrived += sum([len(frame(TEXT, (await peer.receive(20))[1], masked=False)) for _ in range(count)])
        assert harness.server.sent_bytes == arrived


@WAYS
async def test_a_client_that_stops_reading_is_sent_the_newest_state_of_each_bar_when_it_reads_again(own_sockets):
    """Fault 9: a client that stops reading growing the server's memory."""
    async with echo_harness(own_sockets=own_sockets) as harness:
        peer = await mute(harness)
        await harness.client()
        for number in range(20_000):
            harness.broadcaster.broadcast(harness.recipients, update(number))
            if number % 50 == 0:
                await asyncio.sleep(0)
        harness.broadcaster.broadcast(harness.recipients, update(99_999, open_ms=120_000))
        reader = Reader()
        await read_until(peer, reader, b"00099999")
        numbers = [int(payload[:8]) for payload in reader.payloads]
        assert numbers == sorted(numbers)
        assert numbers[-2:] == [19_999, 99_999], "the last state of each bar"
        assert len(numbers) < 10_000, "the others were left out"


@pytest.mark.slow
async def test_a_blocked_client_has_no_more_than_a_few_frames_and_the_kernel_no_more_than_64_kb():
    async with echo_harness() as harness:
        await mute(harness)
        connection = (await harness.client()).connection
        for number in range(5000):
            harness.broadcaster.broadcast(harness.recipients, update(number, open_ms=number % MOST_BARS_WAITING + 1))
        assert connection.blocked_since is not None
        assert len(connection._rest) <= 504
        assert sum(map(len, connection._outbox._updates.values())) <= MOST_BARS_WAITING
        unread = int.from_bytes(fcntl.ioctl(connection._socket, termios.TIOCOUTQ, bytes(4)), "little")
        assert KERNEL_BUFFER / 2 <= unread <= 64 * 1024


@pytest.mark.slow
async def test_too_many_bars_are_replaced_by_a_fresh_initial():
    async with echo_harness() as harness:
        peer = await mute(harness)
        client = await harness.client()
        client.initials[ONE] = lambda: Frame.from_text("initial".ljust(20))
        for number in range(5000):
            harness.broadcaster.broadcast(harness.recipients, update(number, open_ms=number // 500 + 1))
            await asyncio.sleep(0)
        assert client.behind == [ONE]
        reader = Reader()
        await read_until(peer, reader, b"initial")
        harness.broadcaster.broadcast(harness.recipients, update(99_999))
        await read_until(peer, reader, b"00099999")
        numbers = [int(payload[:8]) for payload in reader.payloads if not payload.startswith(b"initial")]
        assert numbers == sorted(numbers)
        assert reader.payloads[-2].startswith(b"initial"), "nothing older came after it"


@WAYS
async def test_answers_keep_their_order_and_too_many_that_are_left_close_with_3008(own_sockets):
    async with echo_harness(own_sockets=own_sockets) as harness:
        peer = await mute(harness)
        connection = (await harness.client()).connection
        for number in range(600):
            connection.send_reply(update(number))
        await asyncio.sleep(0)
        while connection.is_open:
            connection.send_reply(update(0))
        reader = Reader()
        with contextlib.suppress(AssertionError):  # a close frame ends it
            await read_until(peer, reader, b"never")
        numbers = [int(payload[:8]) for payload in reader.payloads]
        assert numbers[:256] == list(range(256))
        assert reader.buffer[:1] == b"\x88"
        assert int.from_bytes(reader.buffer[2:4], "big") == 3008


@pytest.mark.slow
@WAYS
async def test_a_client_that_stays_blocked_is_closed_with_3008(own_sockets, caplog):
    caplog.set_level("INFO")
    async with echo_harness(own_sockets=own_sockets, slow_client_timeout=timedelta(seconds=0.5)) as harness:
        await mute(harness)
        connection = (await harness.client()).connection
        for number in range(20_000):
            connection.send_frame(update(number))
            if number % 50 == 0:
                await asyncio.sleep(0)
        async with deadlines.timeout(10):
            while connection.is_open:
                await asyncio.sleep(0.05)
        assert "has not read for 0 s: closed" in caplog.text
        if own_sockets:
            await harness.wait_until_empty()


@pytest.mark.slow
async def test_who_naps_gets_rising_numbers_and_always_the_newest():
    draw = random.Random(13)
    async with echo_harness() as harness:
        peers = [await mute(harness) for _ in range(10)]
        readers = [Reader() for _ in peers]
        await harness.client(9)
        loop = asyncio.get_running_loop()

        async def nap(peer: socket.socket, reader: Reader, seconds: float) -> None:
            while not reader.payloads or not reader.payloads[-1].startswith(b"00002999"):
                await asyncio.sleep(draw.uniform(0, seconds))
                with contextlib.suppress(TimeoutError):
                    reader.feed(await deadlines.wait_for(loop.sock_recv(peer, draw.randint(1, 20_000)), 1))

        naps = [
            asyncio.ensure_future(nap(peer, reader, at / 50))
            for at, (peer, reader) in enumerate(zip(peers, readers, strict=True))
        ]
        for number in range(3000):
            harness.broadcaster.broadcast(harness.recipients, update(number, size=300))
            if number % 10 == 0:
                await asyncio.sleep(0)
        await deadlines.wait_for(asyncio.gather(*naps), 60)
        for peer, reader in zip(peers, readers, strict=True):
            numbers = [int(payload[:8]) for payload in reader.payloads]
            assert numbers == sorted(set(numbers))


# ---------------------------------------------------------------- several rooms


class Counting(socket.socket):
    """Counts its system calls that send."""

    calls = 0

    def send(self, *data) -> int:
        Counting.calls += 1
        return super().send(*data)

    def sendmsg(self, *data) -> int:
        Counting.calls += 1
        return super().sendmsg(*data)


async def test_frames_of_several_rooms_leave_in_one_system_call_and_in_order():
    async with echo_harness(passes_by=ManualClock().monotonic) as harness:
        peer = await harness.connect()
        connection = (await harness.client()).connection
        counting = Counting(fileno=connection._socket.detach())
        counting.setblocking(False)
        harness.server._context.transport.loop.remove_reader(counting.fileno())
        harness.server._context.transport.loop.add_reader(counting, connection._on_readable)
        connection._socket = counting
        connection.redirect_frames(counting.send)
        connection.cork(many=True)
        rooms = [Recipients() for _ in range(7)]
        for number, room in enumerate(rooms):
            room.add_slot(RecipientSlot(connection))
            harness.broadcaster.broadcast(room, update(number, topic=Topic(number, "1m")))
        connection.send_reply(Frame.from_text("answer"))
        got = [(await peer.receive())[1][:8] for _ in range(8)]
        assert got == [b"%08d" % number for number in range(7)] + [b"answer"]
        assert Counting.calls == 1
        connection.cork(many=False)
        connection.send_reply(Frame.from_text("again"))
        assert (await peer.receive())[1] == b"again"


@pytest.mark.slow
async def test_a_client_in_several_rooms_that_is_slow_loses_no_last_state():
    async with echo_harness() as harness:
        peer = await mute(harness)
        connection = (await harness.client()).connection
        connection.cork(many=True)
        rooms = {ONE: Recipients(), TWO: Recipients()}
        for room in rooms.values():
            room.add_slot(RecipientSlot(connection))
        for number in range(4000):
            for topic, room in rooms.items():
                harness.broadcaster.broadcast(room, update(number, topic=topic))
            if number % 5 == 0:
                await asyncio.sleep(0)
        assert connection.blocked_since is not None
        reader = Reader()
        async with deadlines.timeout(10):
            while sum(payload.startswith(b"00003999") for payload in reader.payloads) < 2:
                reader.feed(await asyncio.get_running_loop().sock_recv(peer, 65536))


class Full(socket.socket):
    """Takes frames one by one only."""

    def sendmsg(self, *data) -> int:
        raise BlockingIOError


async def test_no_state_of_a_bar_overtakes_an_initial_that_left_together_with_it():
    async with echo_harness() as harness:
        peer = await harness.connect()
        connection = (await harness.client()).connection
        full = Full(fileno=connection._socket.detach())
        full.setblocking(False)
        connection._socket = full
        connection.cork(many=True)
        for one in (update(1, topic=TWO), update(2), Frame.from_text("initial".ljust(500), ONE), update(3), update(4)):
            connection.send_frame(one)
        got = [(await peer.receive())[1][:8] for _ in range(4)]
        assert got == [b"00000001", b"00000002", b"initial ", b"00000004"]


@pytest.mark.slow
async def test_what_a_slow_client_wants_of_many_rooms_is_made_when_it_can_take_it():
    async with echo_harness() as harness:
        peer = await mute(harness)
        client = await harness.client()
        client.connection.cork(many=True)
        made = []

        def initial() -> Frame:
            made.append(Frame.from_text(b"i" * 100_000))
            return made[-1]

        for number in range(60):
            topic = Topic(number, "1m")
            client.initials[topic] = initial
            client.connection.request_snapshot(topic)
        await asyncio.sleep(0.05)
        queued = len(client.connection._rest) + sum(map(len, client.connection._outbox._replies))
        assert queued <= 100_010, "one that is under way"
        assert 0 < len(made) < 50
        while len(made) < 60:
            await asyncio.get_running_loop().sock_recv(peer, 2**20)


class Taker:
    """A socket that takes all bytes."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.taken = 0

    def send(self, data: bytes) -> int:
        self.taken += len(data)
        return len(data)

    def fileno(self) -> int:
        return self.peer.fileno()


async def test_a_client_that_reads_again_gets_a_bounded_number_of_bytes_in_a_turn():
    async with echo_harness() as harness:
        await mute(harness)
        client = await harness.client()
        connection = client.connection
        initial = Frame.from_text(b"i" * 50_000)
        for number in range(40):
            topic = Topic(number, "1m")
            client.initials[topic] = lambda: initial
            connection.request_snapshot(topic)
        await asyncio.sleep(0.05)
        real, taker = connection._socket, Taker(connection._socket)
        connection._socket = taker
        turns = []
        while connection.blocked_since is not None:
            before = taker.taken
            connection._send_rest()
            turns.append(taker.taken - before)
        connection._socket = real
        assert sum(turns) > 30 * len(initial)
        assert max(turns) <= SENT_BYTES + len(initial)


FLOODS = {
    "pings": (frame(PING) * 1000, 1000, 0),
    "pongs": (frame(PONG) * 1000 + frame(PING), 1, 0),
    "empty fragments": (frame(TEXT, fin=False) + frame(0, fin=False) * 1000 + frame(0) + frame(PING), 1, 1),
    "messages": (frame(TEXT, b"m") * 200 + frame(PING), 1, 200),
    "one long message": (frame(TEXT, b"m" * 16_000) + frame(PING), 1, 1),
}


@pytest.mark.parametrize("comes", ["after the handshake", "behind the handshake"])
@pytest.mark.parametrize("flood", FLOODS)
async def test_a_turn_parses_a_bounded_number_of_frames_and_none_is_lost(flood, comes, monkeypatch):
    """8 KiB of empty frames would take 20 ms."""
    data, pongs, messages = FLOODS[flood]
    parsed: list[int] = []

    def charge(self: SocketConnection, cost: float) -> bool:
        parsed.append(round(cost / FRAME))
        return True

    monkeypatch.setattr(SocketConnection, "charge_received", charge)
    async with echo_harness(passes_by=lambda: 0.0) as harness:
        peer = await harness.connect(behind=data if comes == "behind the handshake" else b"")
        if comes == "after the handshake":
            peer.send(data)
        got = [await peer.receive() for _ in range(pongs + messages)]
        assert [first for first, _ in got].count(0x8A) == pongs
        assert len((await harness.client()).messages) == messages
        assert sum(parsed) >= pongs + messages
        assert max(parsed) <= MOST_FRAMES + PARSED_BYTES / 6


# ---------------------------------------------------------------- handshake and end


async def test_what_comes_right_behind_the_handshake_is_read():
    async with echo_harness() as harness:
        peer = await harness.connect(behind=frame(TEXT, b"early") + frame(PING, b"p"))
        assert [await peer.receive(), await peer.receive()] == [(0x81, b"early"), (0x8A, b"p")]


@pytest.mark.slow
@WAYS
async def test_the_end_of_the_server_is_sent_to_every_client(own_sockets):
    async with echo_harness(own_sockets=own_sockets) as harness:
        peers = [await harness.connect() for _ in range(200)]
        await harness.client(199)
        ends = [asyncio.ensure_future(peer.closed_with()) for peer in peers]
        began = deadlines.now()
        await harness.server.stop()
        assert deadlines.now() - began < 3
        assert await asyncio.gather(*ends) == [1001] * 200
        assert [client.ends for client in harness.clients] == [1] * 200


async def test_the_shutdown_is_sent_however_long_the_pass_has_been():
    """All are told when the server ends, not only those whose turn comes in the first milliseconds."""
    now = [0.0]
    async with echo_harness(passes_by=lambda: now[0]) as harness:
        peer = await harness.connect()
        client = await harness.client()
        harness.broadcaster.has_time_to_read()
        now[0] += 2 * READ_S
        assert not harness.broadcaster.has_time_to_read()
        client.connection.disconnect(1001, "bye")
        assert await peer.receive() == (0x88, (1001).to_bytes(2, "big") + b"bye")


@pytest.mark.slow
async def test_a_mute_client_is_closed_with_3012():
    quick = {"ping_interval": timedelta(seconds=0.4), "ping_timeout": timedelta(seconds=0.2)}
    async with echo_harness(**quick) as harness:
        dead, alive = await harness.connect(), await harness.connect()

        async def answer() -> None:
            while True:
                assert await alive.receive() == (0x89, b"")
                alive.send(frame(PONG))

        answering = asyncio.ensure_future(answer())
        assert await dead.closed_with() == 3012
        await asyncio.sleep(1.0)
        assert not answering.done()
        answering.cancel()
        assert [client.connection.is_open for client in harness.clients] == [False, True]


async def ended_by_client(harness: EchoHarness, how: str) -> None:
    peer = await harness.connect()
    peer.send(frame(TEXT, b"hello"))
    await peer.receive()
    connection = harness.clients[-1].connection
    if how == "close frame":
        peer.send(frame(CLOSE, b"\x03\xe8"))
        assert await peer.closed_with() == 1000
    elif how == "end of the stream":
        peer.close()
    elif how == "reset":
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.writer.transport.abort()
    elif how == "broken frame":
        peer.send(b"\xff\xff\xff\xff")
        assert await peer.closed_with() == 1002
    else:
        connection.cork(many=True)
        connection.disconnect(3008, "slow")
        assert await peer.closed_with() == 3008


@pytest.mark.slow
@pytest.mark.parametrize("how", ["close frame", "end of the stream", "reset", "broken frame", "the server"])
async def test_a_connection_that_ended_is_freed_without_the_cycle_collector(how):
    async with echo_harness() as harness:
        await ended_by_client(harness, how)
        await harness.wait_until_empty()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await ended_by_client(harness, how)
            connections = [weakref.ref(client.connection) for client in harness.clients]
            clients = [weakref.ref(client) for client in harness.clients]
            protocols = [weakref.ref(ref()._protocol) for ref in connections]
            await harness.wait_until_empty()
            harness.clients.clear()
            await asyncio.sleep(0.01)
            assert [ref() for ref in (*connections, *clients, *protocols)] == [None] * 18
        finally:
            gc.enable()


@pytest.mark.slow
async def test_nothing_is_kept_of_the_handshake():
    def found() -> list[object]:
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, StreamHandler | HTTPServerRequest | IOStream)]

    async with echo_harness() as harness:
        before = found()  # what other tests of this process have left
        for _ in range(20):
            await harness.connect()
        await harness.client(19)
        assert [one for one in found() if not any(one is other for other in before)] == []


@pytest.mark.slow
async def test_a_storm_is_let_in_a_few_per_second_and_the_rest_gets_a_time_to_retry():
    async with echo_harness(max_handshakes_per_second=20) as harness:
        started = time.monotonic()
        peers = await asyncio.gather(*(harness.connect() for _ in range(100)))
        statuses = [int(peer.head.split()[1]) for peer in peers]
        admitted, rejected = statuses.count(101), statuses.count(503)
        assert 10 <= admitted <= 21 + 20 * (time.monotonic() - started)
        assert rejected == 100 - admitted
        waits = [int(found[1]) for peer in peers if (found := re.search(rb"Retry-After: (\d+)", peer.head))]
        assert len(waits) == rejected
        assert all(1 <= wait <= 6 for wait in waits)
        if rejected > 65:  # on a machine that is not busy
            assert (min(waits), max(waits) >= 4) == (1, True), "not spread over the seconds that it takes"
        reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await reader.readline(), "probes are no handshakes"
        writer.close()


# ---------------------------------------------------------------- compression


OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


async def test_large_messages_are_compressed_once_for_all_who_agreed_and_small_ones_never():
    large, small = Frame.from_text("candle " * 2000), Frame.from_text("candle")
    async with echo_harness(compression=True) as harness:
        agreed, plain = await harness.connect(extra=OFFER), await harness.connect()
        assert b"permessage-deflate; server_no_context_takeover; client_no_context_takeover" in agreed.head
        assert b"sec-websocket-extensions" not in plain.head.lower()
        await harness.client(1)
        for client in harness.clients:
            client.connection.send_reply(large)
            client.connection.send_reply(small)
        first, payload = await agreed.receive()
        assert first == 0xC1
        assert len(payload) < len(large) / 10
        assert zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff") == large.payload
        assert await agreed.receive() == (0x81, small.payload)
        assert await plain.receive() == (0x81, large.payload)
        shrunk = zlib.compressobj(wbits=-15)
        body = shrunk.compress(b"asked compressed") + shrunk.flush(zlib.Z_SYNC_FLUSH)
        agreed.send(frame(TEXT, body[:-4], rsv=4))
        assert await agreed.receive() == (0x81, b"asked compressed")
        body = bytes(5000)
        agreed.send(frame(BINARY, body))
        first, payload = await agreed.receive()
        assert (first, zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")) == (0xC2, body)


@pytest.mark.parametrize(
    ("offer", "is_taken"),
    [
        ("permessage-deflate", True),
        ("permessage-deflate; server_max_window_bits=15", True),
        ("permessage-deflate; server_max_window_bits=10", False),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", True),
        ("permessage-deflate; nonsense", False),
        ("x-webkit-deflate-frame", False),
        ("; ;", False),
    ],
)
async def test_an_offer_is_taken_only_if_all_can_share_a_frame(offer, is_taken):
    async with echo_harness(compression=True) as harness:
        peer = await harness.connect(extra=f"Sec-WebSocket-Extensions: {offer}\r\n")
        assert (b"sec-websocket-extensions" in peer.head.lower()) == is_taken


@pytest.mark.slow
@pytest.mark.parametrize("compression", [True, False])
async def test_a_bomb_is_refused_before_it_unfolds(compression):
    """Promise 20, with 200 MB compressed to 200 KB; and a frame that says it has 200 MB."""
    shrink = zlib.compressobj(wbits=-15)
    megabyte = shrink.compress(bytes(2**20)) + shrink.flush(zlib.Z_FULL_FLUSH)  # refers to nothing before it
    bomb = megabyte * 200
    async with echo_harness(compression=compression, largest_message=2**18) as harness:
        before = 0
        for number in range(12):
            if number == 2:  # what the first one took is there for the others, ours to send them as well
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            liar = await harness.connect(extra=OFFER)
            liar.send(frame(TEXT, size=200_000_000))
            assert await liar.closed_with() == 1009
            peer = await harness.connect(extra=OFFER)
            peer.send(frame(TEXT, bomb[:-4], rsv=4))
            assert await peer.closed_with() == (1009 if compression else 1002)
            await harness.wait_until_empty()
            harness.clients.clear()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024  # KiB
