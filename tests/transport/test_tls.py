"""TLS by the settings, on real sockets: HTTP, WebSockets, slow clients, and a certificate that changes."""

import asyncio
import logging
import ssl
import time
from contextlib import asynccontextmanager, suppress

import pytest
import websockets

from candled.errors import ConfigError
from candled.protocol.frames import Frame
from candled.transport.library_internals import certificate_end
from candled.transport.socket_connection import SocketConnection
from candled.transport.tls import ServerTls
from candled.transport.tornado_connection import TornadoConnection
from tests import deadlines
from tests.certificates import Authority
from tests.serve.peers import HANDSHAKE, TEXT, Peer, echo_harness, frame

HOST = "127.0.0.1"


@asynccontextmanager
async def secure_harness(directory, **settings):
    """A server with a certificate for its address, and the context of clients that trust it."""
    authority = Authority(directory)
    certificate, key = authority.sign(HOST)
    trusting = ssl.create_default_context(cafile=str(authority.certificate))
    async with echo_harness(tls_certificate=str(certificate), tls_key=str(key), **settings) as harness:
        yield harness, trusting, authority


async def connect(port: int, trusting: ssl.SSLContext, behind: bytes = b"") -> Peer:
    reader, writer = await asyncio.open_connection(HOST, port, ssl=trusting)
    writer.write(f"{HANDSHAKE}\r\n".encode() + behind)
    head = await deadlines.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 101 ")
    return Peer(reader, writer, head)


async def ask(port: int, trusting: ssl.SSLContext, path: str, times: int = 1) -> list[bytes]:
    reader, writer = await asyncio.open_connection(HOST, port, ssl=trusting)
    answers = []
    for _ in range(times):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await deadlines.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        answers.append(head + await reader.readexactly(size))
    writer.close()
    return answers


async def test_requests_are_answered_from_memory_and_by_handlers(tmp_path):
    async with secure_harness(tmp_path) as (harness, trusting, _):
        live = await ask(harness.port, trusting, "/livez", times=3)
        assert all(answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"ok\n") for answer in live)
        (health,) = await ask(harness.port, trusting, "/health")
        assert b'"tls":{"status":"pass","expires":"' in health


@pytest.mark.parametrize(("own_sockets", "kind"), [(True, SocketConnection), (False, TornadoConnection)])
async def test_frames_go_both_ways_and_the_connection_closes_in_order(tmp_path, own_sockets, kind):
    async with secure_harness(tmp_path, own_sockets=own_sockets) as (harness, trusting, _):
        peer = await connect(harness.port, trusting, frame(TEXT, b"with the handshake"))
        assert await peer.receive() == (0x81, b"with the handshake")
        client = await harness.client()
        assert isinstance(client.connection, kind)
        for size in (1, 5_000, 15_000):
            peer.send(frame(TEXT, b"x" * size))
            assert await peer.receive() == (0x81, b"x" * size)
        peer.send(b"".join(frame(TEXT, b"%d" % number) for number in range(40)))  # more than one turn
        assert [(await peer.receive())[1] for _ in range(40)] == [b"%d" % number for number in range(40)]
        client.connection.disconnect(3008, "slow")
        assert await peer.closed_with() == 3008
        await harness.wait_until_empty()


async def test_a_common_client_connects_and_leaves(tmp_path):
    async with secure_harness(tmp_path) as (harness, trusting, _):
        async with websockets.connect(f"wss://{HOST}:{harness.port}/ws", ssl=trusting) as ws:
            await ws.send("hello")
            assert await deadlines.wait_for(ws.recv(), 3) == "hello"
        await harness.wait_until_empty()


async def test_a_client_that_stops_reading_gets_every_byte_once_it_reads_again(tmp_path):
    async with secure_harness(tmp_path) as (harness, trusting, _):
        peer = await connect(harness.port, trusting)
        connection = (await harness.client()).connection
        peer.writer.transport.pause_reading()
        texts = [f"{number:03}" + "x" * 20_000 for number in range(200)]
        for text in texts:
            connection.send_reply(Frame.from_text(text))
            await asyncio.sleep(0)
            if connection.blocked_since is not None:
                break
        sent = texts.index(text) + 1
        assert connection.blocked_since is not None
        connection.cork(many=True)
        for text in texts[sent : sent + 5]:
            connection.send_reply(Frame.from_text(text))
        peer.writer.transport.resume_reading()
        received = [(await peer.receive(10))[1].decode() for _ in range(sent + 5)]
        assert received == texts[: sent + 5]
        peer.close()


async def test_a_crowd_of_small_frames_in_one_pass_arrives_in_order(tmp_path):
    async with secure_harness(tmp_path) as (harness, trusting, _):
        peer = await connect(harness.port, trusting)
        connection = (await harness.client()).connection
        connection.cork(many=True)
        texts = [f"{number}" + "y" * 300 for number in range(2000)]
        peer.writer.transport.pause_reading()
        for at in range(0, 2000, 20):
            for text in texts[at : at + 20]:
                connection.send_frame(Frame.from_text(text))
            await asyncio.sleep(0.001)
        peer.writer.transport.resume_reading()
        received = [(await peer.receive(10))[1].decode() for _ in range(40)]
        assert received == texts[:40]
        peer.close()


async def test_another_peer_than_tls_is_closed_without_harm(tmp_path):
    async with secure_harness(tmp_path) as (harness, trusting, _):
        reader, writer = await asyncio.open_connection(HOST, harness.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"HTTP/1.1" not in await deadlines.wait_for(reader.read(), 5)
        writer.close()
        assert (await ask(harness.port, trusting, "/livez"))[0].endswith(b"ok\n")
        assert harness.server.describe()["http"]["connections"] <= 1


# ---------------------------------------------------------------- the certificate


async def test_a_new_certificate_is_used_without_a_restart_and_a_broken_one_is_not(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    async with secure_harness(tmp_path) as (harness, trusting, _):
        old = await connect(harness.port, trusting)
        other = Authority(tmp_path, "other")
        other.sign(HOST)  # replaces the files
        harness.server.tls.refresh()
        newly = ssl.create_default_context(cafile=str(other.certificate))
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(harness.port, trusting, "/livez")
        assert (await ask(harness.port, newly, "/livez"))[0].endswith(b"ok\n")
        (tmp_path / f"{HOST}.crt").write_text("broken")
        harness.server.tls.refresh()
        assert "the former certificate stays in use" in caplog.text
        assert (await ask(harness.port, newly, "/livez"))[0].endswith(b"ok\n")
        old.send(frame(TEXT, b"still"))
        assert await old.receive() == (0x81, b"still")
        old.close()


async def test_an_expired_certificate_is_a_warning(tmp_path):
    async with secure_harness(tmp_path) as (harness, _, _authority):
        reports = harness.server.reports
        assert ((await reports.summarize())["status"], (await reports.report())["status"]) == ("pass", "pass")
        assert abs(harness.server.tls.expires_ms / 1000 - time.time() - 86_400) < 600
        harness.server.tls.expires_ms = int((time.time() - 1) * 1000)
        for report in (await reports.summarize(), await reports.report()):
            assert (report["status"], report["tls"]["status"]) == ("warn", "warn")


@pytest.mark.parametrize(
    ("certificate", "problem"),
    [("none.crt", "No such file"), ("text.crt", "cannot be used"), ("other.crt", "KEY_VALUES")],
)
def test_files_that_cannot_be_used_are_refused_at_the_start(tmp_path, certificate, problem):
    _, key = Authority(tmp_path).sign(HOST)
    (tmp_path / "text.crt").write_text("text")
    Authority(tmp_path, "b").sign("other")
    with pytest.raises(ConfigError, match=problem):
        ServerTls(str(tmp_path / certificate), str(key))


def test_the_end_of_a_certificate_is_read(tmp_path):
    certificate, _ = Authority(tmp_path).sign(HOST)
    assert abs(certificate_end(str(certificate)) - time.time() - 86_400) < 600
