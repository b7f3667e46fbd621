"""The sockets of feeds against a real server: what is read, and what is said of each end."""

import asyncio
import http
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus, InvalidURI, SecurityError
from websockets.http11 import Response

from candled.clock import SystemClock
from candled.errors import ExchangeError, Unavailable
from candled.exchange import Candles, ConnectionLimits, Event, InvalidRow, SocketFeed, Subscribed, SubscriptionRejected
from candled.ingest import feeds
from candled.ingest.feeds import FeedRunner, LoopBudget
from candled.ingest.prepared_address import find_address
from candled.model import Symbol
from candled.token_bucket import TokenBucket
from tests import deadlines
from tests.rows import minute

BTC = Symbol("BTC", "USDT")


class Numbers(SocketFeed):
    """Frames are numbers: the volume of a minute. Without a ping of its own the protocol's is sent."""

    ping_every_s = 0.2
    pong_within_s = 0.2

    def subscribe(self, symbols):
        return [f"+{symbol}" for symbol in symbols]

    def unsubscribe(self, symbols):
        return [f"-{symbol}" for symbol in symbols]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        frame = frame if isinstance(frame, str) else frame.decode()
        if frame.startswith("ok"):
            return [Subscribed(BTC)]
        if not frame.isdecimal():
            raise ExchangeError(f"expected a number, got {frame!r}")
        return [Candles(BTC, (minute(0, volume=frame),))]


class Sink:
    """What a runner tells."""

    def __init__(self) -> None:
        self.volumes: list[int] = []
        self.reasons: asyncio.Queue[str] = asyncio.Queue()
        self.connections = 0

    def on_connected(self, feed) -> None:
        self.connections += 1

    def on_event(self, event) -> None:
        self.volumes.append(int(event.candles[0].volume))

    def on_interrupted(self, feed, reason: str) -> None:
        self.reasons.put_nowait(reason)

    async def reason(self) -> str:
        return await deadlines.wait_for(self.reasons.get(), 5)


class Patient(Numbers):
    ping_every_s = 60.0
    pong_within_s = 60.0


@asynccontextmanager
async def running(
    handle: Callable[[ServerConnection], Awaitable[None]], feed: type[SocketFeed] = Numbers, **options
) -> AsyncIterator[tuple[Sink, "asyncio.Task[None]"]]:
    """A server that treats each connection so, and a runner that reads from it."""
    async with serve(
        handle, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=0.5, **options
    ) as server:
        port = server.sockets[0].getsockname()[1]
        sink = Sink()
        runner = sink.runner = FeedRunner(
            "test",
            feed(f"ws://127.0.0.1:{port}/", [BTC]),
            sink,
            SystemClock(),
            TokenBucket(100, 100),
            LoopBudget(),
            limits=ConnectionLimits(frames_per_s=1000.0),
        )
        task = asyncio.create_task(runner.run())
        try:
            yield sink, task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_frames_are_read_in_order_and_a_bad_one_is_skipped():
    async def handle(peer):
        assert await peer.recv() == "+BTC/USDT"
        for frame in ("ok", "1", "what", "2", b"3", '{"', "4"):
            await peer.send(frame)
        await peer.close(4000, "enough")

    async with running(handle) as (sink, _):
        reason = await sink.reason()
        assert sink.volumes == [1, 2, 3, 4]
        assert "4000" in reason
        assert "enough" in reason


class Clumsy(Patient):
    def read_frame(self, frame: str) -> list[Event]:
        return [Candles(BTC, (minute(0, volume=str(int(frame))),))]


@pytest.mark.parametrize("feed", [Patient, Clumsy])
async def test_frames_that_cannot_be_read_are_one_log_line_and_a_count_also_where_the_plugin_fails(feed, caplog):
    async def handle(peer):
        await peer.recv()
        for number in range(1, 292):
            await peer.send(f"what {number}")
        await peer.send("5")
        await peer.wait_closed()

    caplog.set_level(logging.INFO, "candled")
    async with running(handle, feed) as (sink, _):
        async with deadlines.timeout(5):
            while not sink.volumes:
                await asyncio.sleep(0.01)
        assert sink.volumes == [5]
        assert sink.runner.malformed.total == 291
    assert len([record for record in caplog.records if "frame" in record.getMessage()]) == 1


@pytest.mark.slow
async def test_it_connects_again_after_each_end():
    async def handle(peer):
        await peer.recv()
        await peer.send("7")
        peer.transport.abort()

    async with running(handle) as (sink, _):
        for _ in range(3):
            assert "connection closed" in await sink.reason()
        assert sink.connections >= 3
        assert sink.volumes[:3] == [7, 7, 7]


async def test_a_refused_handshake_is_reported():
    def refuse(peer, request):
        return peer.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "busy\n")

    async def handle(peer):
        raise AssertionError("a connection was accepted")

    async with running(handle, process_request=refuse) as (sink, _):
        assert "503" in await sink.reason()
        assert not sink.connections


async def test_text_that_is_no_utf_8_ends_the_connection():
    async def handle(peer):
        await peer.recv()
        await peer.send(b"\xff\xfe", text=True)
        await peer.wait_closed()
        assert peer.close_code == 1007

    async with running(handle) as (sink, _):
        assert "1007" in await sink.reason()


@pytest.mark.slow
async def test_a_peer_that_answers_no_ping_is_left():
    async def handle(peer):
        peer.transport.pause_reading()
        await asyncio.sleep(2)

    async with running(handle) as (sink, _):
        assert "keepalive" in await sink.reason()


@pytest.mark.slow
@pytest.mark.parametrize(
    "last",
    [b"\x88\x02\x03\xe9", b"\x81\x7f" + (2**20 + 1).to_bytes(8, "big") + b"x", b"\xf1\x01a"],
    ids=["a close frame", "a frame of more than 1 MB", "reserved bits"],
)
async def test_a_peer_that_ends_and_does_not_hang_up_is_left(last):
    async def handle(peer):
        await peer.recv()
        peer.transport.write(last)
        peer.transport.pause_reading()
        await asyncio.sleep(3)

    async with running(handle, Patient) as (sink, _):
        assert "connection closed" in await sink.reason()


@pytest.mark.slow
async def test_a_peer_that_reads_nothing_is_left_at_last(monkeypatch):
    monkeypatch.setattr(feeds, "_SEND_TIMEOUT_S", 0.3)

    class Talkative(Patient):
        def subscribe(self, symbols):
            return ["x" * 1_000_000] * 30

    async def handle(peer):
        peer.transport.pause_reading()
        await asyncio.sleep(4)

    async with running(handle, Talkative) as (sink, task):
        assert await sink.reason() == "the exchange does not read the frames sent to it"
        task.cancel()
        await deadlines.wait_for(asyncio.gather(task, return_exceptions=True), 2)


async def test_a_plugin_that_fails_leaves_no_connection_open():
    class Broken(Patient):
        def subscribe(self, symbols):
            raise LookupError("no such thing")

    ends = asyncio.Queue()

    async def handle(peer):
        await peer.wait_closed()
        ends.put_nowait(None)

    async with running(handle, Broken) as (sink, _):
        assert "no such thing" in await sink.reason()
        await deadlines.wait_for(ends.get(), 3)


async def test_feeds_share_the_time_of_a_pass():
    turns = LoopBudget()
    for at in (0.0, 0.01):
        turns.add_frame(at, at + 0.004)
        assert not turns.is_over
        turns.add_frame(at + 0.004, at + 0.008)
        assert turns.is_over
        await asyncio.sleep(0)
        assert not turns.is_over


async def test_feeds_with_more_frames_than_can_be_read_get_half_of_the_time():
    turns, at, spent = LoopBudget(), 100.0, 0.0
    for _ in range(20):
        began = at = at + 0.015  # the rest of a pass
        while not turns.is_over:
            turns.add_frame(at, at + 0.001)
            at += 0.001
        spent += at - began
        await asyncio.sleep(0)
    assert 0.4 < spent / (at - 100.0) < 0.6


@pytest.mark.slow
async def test_the_end_of_the_daemon_does_not_wait_for_a_peer_that_is_dead():
    async def handle(peer):
        await peer.recv()
        await peer.send("1")
        peer.transport.pause_reading()
        await asyncio.sleep(2)

    async with running(handle) as (sink, task):
        while not sink.volumes:
            await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asyncio.get_running_loop().time() - began < 2


@pytest.mark.slow
async def test_a_flood_of_frames_lets_others_have_their_turn(monkeypatch):
    """What is there already is read without waiting, so that somebody has to let the loop go on."""
    monkeypatch.setattr(Numbers, "pong_within_s", 60.0)  # pongs wait behind the flood, longer on a slow machine
    count = 20_000
    monkeypatch.setattr(feeds, "_FRAMES_PER_S", count)

    async def handle(peer):
        await peer.recv()
        for number in range(1, count + 1):
            await peer.send(str(number))
        await peer.wait_closed()

    async with running(handle) as (sink, _):
        longest_s, loop = 0.0, asyncio.get_running_loop()
        while len(sink.volumes) < count:
            began, volume_count = loop.time(), len(sink.volumes)
            await asyncio.sleep(0)
            longest_s = max(longest_s, loop.time() - began)
            assert len(sink.volumes) - volume_count < 5_000
        assert sink.volumes == list(range(1, count + 1))


async def test_a_password_in_an_address_that_cannot_be_used_is_not_printed():
    sink = Sink()
    feed = Numbers("https://user:secret@127.0.0.1/", [BTC])
    runner = FeedRunner("test", feed, sink, SystemClock(), TokenBucket(100, 100), LoopBudget())
    task = asyncio.create_task(runner.run())
    reason = await sink.reason()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert reason.startswith("the address cannot be used")
    assert "secret" not in reason


@pytest.mark.slow
@pytest.mark.parametrize("url", ["ws://127.0.0.1:1/", "http://127.0.0.1/", "ws://no-such-host.invalid/"])
async def test_an_address_that_cannot_be_reached_is_reported_and_tried_again(url):
    sink = Sink()
    runner = FeedRunner("test", Numbers(url, [BTC]), sink, SystemClock(), TokenBucket(100, 100), LoopBudget())
    task = asyncio.create_task(runner.run())
    try:
        assert await sink.reason()
        assert await sink.reason()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_sockets_are_read_on_uvloop_too():
    uvloop = pytest.importorskip("uvloop", reason='pip install -e ".[test]"')
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_frames_are_read_in_order_and_a_bad_one_is_skipped())
        runner.run(test_a_refused_handshake_is_reported())


class Foreign(Numbers):
    """Every frame is also about a market of another connection."""

    def read_frame(self, frame: str) -> list[Event]:
        other = Symbol("ETH", "USDT")
        rejected = SubscriptionRejected(other, "no")
        return [Candles(other, (minute(0, volume="999"),)), rejected, *super().read_frame(frame)]


async def test_events_about_symbols_that_were_not_subscribed_are_ignored_and_counted():
    async def handle(peer):
        await peer.recv()
        await peer.send("1")
        await peer.send("2")
        await peer.close()

    async with running(handle, Foreign) as (sink, _):
        await sink.reason()
        assert sink.volumes == [1, 2]
        assert sink.runner.unsubscribed_events == 4


@pytest.mark.slow
async def test_symbols_change_on_the_open_connection():
    eth, frames = Symbol("ETH", "USDT"), asyncio.Queue()

    async def handle(peer):
        async for frame in peer:
            frames.put_nowait((peer, frame))

    async def next_frame() -> str:
        peer, frame = await deadlines.wait_for(frames.get(), 5)
        assert peer is peers.setdefault("only", peer)
        return frame

    peers = {}
    async with running(handle, Patient) as (sink, _):
        assert await next_frame() == "+BTC/USDT"
        sink.runner.add_symbols([eth])
        assert await next_frame() == "+ETH/USDT"
        sink.runner.remove_symbols([BTC])
        assert await next_frame() == "-BTC/USDT"
        await peers["only"].send("1")  # it was on its way
        async with deadlines.timeout(5):
            while not sink.runner.unsubscribed_events:
                await asyncio.sleep(0.01)
        assert sink.volumes == []
        assert sink.runner.symbols == {eth}
        assert sink.connections == 1


async def send_many(peer):
    for number in range(40):
        await peer.send(str(number))


async def send_large(peer):
    for _ in range(40):
        await peer.send("0" * 30_000 + "7")


async def send_long(peer):
    await peer.send("1" * (1024 * 1024 + 1))


class ManyRows(Numbers):
    """Each frame has 90 rows, and one event: 10.1 frames."""

    def read_frame(self, frame: str) -> list[Event]:
        return [replace(event, invalid=(InvalidRow(None, "no"),) * 89) for event in super().read_frame(frame)]


@pytest.mark.parametrize(
    ("send", "feed", "reason", "most"),
    [
        (send_many, Numbers, feeds.FLOODED, 20),
        (send_many, ManyRows, feeds.FLOODED, 1),
        (send_large, Numbers, feeds.FLOODED, 1),
        (send_long, Numbers, "1009", 0),
    ],
    ids=["many frames", "many rows", "large frames", "a long one"],
)
async def test_a_feed_that_sends_too_much_is_interrupted(send, feed, reason, most, monkeypatch):
    monkeypatch.setattr(feeds, "_FRAMES_PER_S", 1e-9)
    monkeypatch.setattr(feeds, "_FRAMES_PER_S_AND_SYMBOL", 1e-9)
    monkeypatch.setattr(feeds, "_FRAMES_BURST_S", 1e10)

    async def handle(peer):
        await peer.recv()
        await send(peer)
        await peer.wait_closed()

    async with running(handle, feed) as (sink, _):
        assert reason in await sink.reason()
        assert len(sink.volumes) <= most


PUBLIC = "wss://ws.example.org/ws"
PRIVATE = [
    "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "127.1", "2130706433", "0x7f000001",
    "0177.0.0.1", "0.0.0.0", "169.254.169.254", "[::1]", "[::]", "[fe80::1]", "[fd00::1]", "[::ffff:10.0.0.1]",
    "[::ffff:7f00:1]", "[64:ff9b::a00:1]", "[2002:a00:1::]", "localhost", "ws.example.org:x@10.0.0.1",
]  # fmt: skip
NOT_CONFIGURED = [*PRIVATE, "ws.example.org.", "evil.example.org", "ws.example.org:8443"]


@pytest.mark.parametrize(
    ("source", "location", "target"),
    [
        (PUBLIC, "/other", "wss://ws.example.org/other"),
        (PUBLIC, "wss://WS.example.org:443/v2", "wss://WS.example.org:443/v2"),
        (PUBLIC, "ws://ws.example.org/", None),
        (PUBLIC, "http://127.0.0.1/", InvalidURI),
        *((PUBLIC, f"wss://{host}/", None) for host in NOT_CONFIGURED),
        *((PUBLIC, f"//{host}/", None) for host in NOT_CONFIGURED),
        # a configured address, and no other one
        ("ws://10.0.0.1:80/ws", "ws://10.0.0.1/v2", "ws://10.0.0.1/v2"),
        ("ws://[::1]:7000/ws", "/v2", "ws://[::1]:7000/v2"),
        *(("ws://10.0.0.2/ws", f"ws://{host}/", None) for host in NOT_CONFIGURED),
    ],
)
async def test_a_redirect_leads_only_to_the_same_host_and_scheme(source, location, target):
    connecting = feeds._Connect(source)
    answer = InvalidStatus(Response(302, "Found", Headers(Location=location)))
    if target is InvalidURI:
        with pytest.raises(InvalidURI):
            connecting.process_redirect(answer)
        return
    found = connecting.process_redirect(answer)
    assert found == target if target else isinstance(found, SecurityError)


@pytest.mark.parametrize("resolves", [True, False])
@pytest.mark.parametrize("host", PRIVATE)
async def test_no_address_that_an_exchange_gives_out_leads_into_a_private_network(host, resolves):
    with pytest.raises(Unavailable, match="private network") as error:
        await find_address(f"wss://{host}/ws?token=s3cret", PUBLIC, resolves=resolves)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "configured", "resolves", "found"),
    [
        ("wss://8.8.8.8/ws", PUBLIC, True, "8.8.8.8"),
        ("wss://[2a00:1450::1]/ws", PUBLIC, True, "2a00:1450::1"),
        ("wss://8.8.8.8/ws", PUBLIC, False, None),
        ("wss://other.example.org/ws", PUBLIC, False, None),  # the proxy resolves it
        (PUBLIC, PUBLIC, True, None),
        ("wss://WS.example.org:8443/token", PUBLIC, True, None),
        ("ws://10.0.0.1:81/ws", "http://10.0.0.1:80", True, None),  # the settings name it
    ],
)
async def test_other_addresses_are_used(url, configured, resolves, found):
    assert await find_address(url, configured, resolves=resolves) == found


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["8.8.8.8", "fd00::1"]])
async def test_a_name_that_leads_into_a_private_network_is_refused(addresses, monkeypatch):
    async def getaddrinfo(*_, **__):
        return [(2, 1, 6, "", (address, 443)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(Unavailable, match=r"private network: a\.example\.org"):
        await find_address("wss://a.example.org/", PUBLIC, resolves=True)
