"""IPv4 and IPv6: where the server listens, what it prints, and which address is named when it cannot."""

import asyncio
import errno
import logging
import socket

import pytest
import websockets
import yaml

from candled.addresses import with_port
from candled.config import as_plain, load
from candled.config.sections import ServerSettings
from candled.errors import ConfigError
from candled.plugins import discover
from candled.serve import listening
from candled.serve.listening import in_browser, listen
from tests import deadlines
from tests.api.stage import open_stage
from tests.clocks import ManualClock
from tests.metrics.scrape import running
from tests.system.daemon import free_port

V4, V6 = "127.0.0.1", "::1"
LOCAL = ["127.0.0.1", "::1"]


def has_ipv6() -> bool:
    try:
        with socket.create_server((V6, 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on the loopback interface")


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("127.0.0.1", [V4]),
        ("0.0.0.0", [V4]),
        ("::1", [V6]),
        ("[::1]", [V6]),
        ("::", [V6]),
        ("", [V4, V6]),
        (("127.0.0.1", "::1"), [V4, V6]),
        (("::", "0.0.0.0"), [V4, V6]),
        (("127.0.0.1", "127.0.0.2"), [V4]),
        (("::1", "[::1]"), [V6]),  # an address that two of them mean is taken once
    ],
    ids=str,
)
async def test_clients_are_served_on_every_address_with_one_port(tmp_path, caplog, host, answers):
    caplog.set_level(logging.INFO, "candled.serve.server")
    async with open_stage(tmp_path, server=ServerSettings(host=host, port=0)) as one:
        port = one.server.listen()
        reached = []
        for address in LOCAL:
            try:
                async with websockets.connect(f"ws://{with_port(address, port)}/ws") as client:
                    await client.send('{"type":"ping"}')
                    assert "pong" in await client.recv()
                    reached.append(address)
            except OSError:
                continue
    assert reached == answers
    lines = [text for text in caplog.messages if text.startswith("listening on ")]
    assert len(lines) == (len(answers) > 1 or "127.0.0.2" in host)
    assert all(f"[::1]:{port}" in line or f"[::]:{port}" in line for line in lines if V6 in answers)


@pytest.mark.parametrize("hosts", [("",), ("127.0.0.1", "::1"), ("::1", "127.0.0.1")], ids=str)
@pytest.mark.parametrize("taken", [("0.0.0.0", "127.0.0.1"), ("::", "::1")], ids=["IPv4", "IPv6"])
def test_a_port_that_is_taken_on_one_of_them_names_the_address(hosts, taken):
    address = taken[0] if hosts == ("",) else taken[1]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as refused:
            listen(hosts, port, 8)
        assert str(refused.value) == f"server: cannot listen on {with_port(address, port)}: the port is in use"
    for one in listen(hosts, port, 8):  # nothing stayed open
        one.close()


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (("203.0.113.1",), "cannot listen on 203.0.113.1:7001: Cannot assign"),
        (("2001:db8::1",), "cannot listen on [2001:db8::1]:7001: Cannot assign"),
        (("no.such.invalid",), "cannot listen on no.such.invalid: "),
        (("127.0.0.1", "2001:db8::1"), "cannot listen on [2001:db8::1]:7001: Cannot assign"),
        (("a" * 70 + ".example",), "cannot listen on aaa"),
    ],
    ids=str,
)
def test_an_address_that_the_machine_lacks_is_named(hosts, expected):
    with pytest.raises(ConfigError) as refused:
        listen(hosts, 7001, 8)
    assert expected in str(refused.value)


def failing(monkeypatch, fails) -> None:
    """Let sockets fail where `fails(family, port)` gives an error number."""
    usual = listening._listening

    def listening_(family, address, *more):
        number = fails(family, address[1])
        if number:
            raise OSError(number, "as the test wants it")
        return usual(family, address, *more)

    monkeypatch.setattr(listening, "_listening", listening_)


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_without_ipv6_every_address_means_those_of_ipv4(monkeypatch, number):
    failing(monkeypatch, lambda family, _: number if family == socket.AF_INET6 else 0)
    (one,) = listen([""], 0, 8)
    with one:
        assert one.family == socket.AF_INET
    with pytest.raises(ConfigError, match=r"cannot listen on \[::1\]"):  # it was asked for by name
        listen(LOCAL, free_port(), 8)


def test_the_system_chooses_a_port_that_is_free_on_all_addresses(monkeypatch):
    left = [errno.EADDRINUSE, errno.EADDRINUSE]
    failing(monkeypatch, lambda family, _: left.pop() if family == socket.AF_INET6 and left else 0)
    sockets = listen(LOCAL, 0, 8)
    assert len({one.getsockname()[1] for one in sockets}) == 1
    assert not left
    for one in sockets:
        one.close()


@pytest.mark.parametrize(
    ("hosts", "address"),
    [
        (("0.0.0.0",), "localhost:7000"),
        (("",), "localhost:7000"),
        (("::",), "localhost:7000"),
        (("127.0.0.1", "::1"), "localhost:7000"),
        (("192.0.2.1",), "192.0.2.1:7000"),
        (("2001:db8::1", "192.0.2.1"), "[2001:db8::1]:7000"),
        (("[2001:db8::1]",), "[2001:db8::1]:7000"),
    ],
    ids=str,
)
def test_the_address_for_a_browser(hosts, address):
    assert in_browser(hosts, 7000) == address


# ---------------------------------------------------------------- in the settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "env", "hosts"),
    [
        ("127.0.0.1", {}, ("127.0.0.1",)),
        ("", {}, ("",)),
        (["127.0.0.1", "::1"], {}, ("127.0.0.1", "::1")),
        ("1.2.3.4", {"CANDLED_SERVER__HOST": "::"}, ("::",)),
        ("1.2.3.4", {"CANDLED_SERVER__HOST": "[::1]"}, ("[::1]",)),
        ("1.2.3.4", {"CANDLED_SERVER__HOST": '""'}, ("",)),
        ("1.2.3.4", {"CANDLED_SERVER__HOST": "['127.0.0.1', '::1']"}, ("127.0.0.1", "::1")),
    ],
)
def test_one_host_or_a_list_can_be_written(tmp_path, written, env, hosts):
    path = tmp_path / "candled.yaml"
    path.write_text(yaml.safe_dump({"server": {"host": written}}))
    config = load(path, env, discover())
    assert config.server.hosts == hosts
    path.write_text(yaml.safe_dump(as_plain(config)))
    assert load(path, {}, discover()).server.hosts == hosts


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ([], 'server.host: at least one address is needed; "" means every address of this machine'),
        (["", "::1"], 'server.host: "" means every address of this machine, so it cannot be one of several'),
        (["::1", "::1"], "server.host: ::1 is listed twice"),
        (["::1", 7], "server.host[1]: expected text, got 7: put it in quotes"),
        ({":": None}, "server.host: expected text, got a mapping"),
        (" ", "server.host: blanks are no address"),
    ],
)
def test_hosts_that_cannot_work_are_refused(tmp_path, written, problem):
    path = tmp_path / "candled.yaml"
    path.write_text(yaml.safe_dump({"server": {"host": written}}))
    with pytest.raises(ConfigError) as refused:
        load(path, {}, discover())
    (only,) = refused.value.problems
    assert only.endswith(f": {problem}")


async def test_a_process_that_loads_its_bars_takes_no_connections_from_others_on_its_port(tmp_path):
    shared = ServerSettings(host=(V4,), port=free_port(), reuse_port=True)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with open_stage(tmp_path / "one", server=shared) as one, open_stage(tmp_path / "two", server=shared) as two:
        assert one.server.listen() == two.server.listen(accepts=False) == shared.port
        first = [await websockets.connect(f"ws://{V4}:{shared.port}/ws") for _ in range(20)]
        assert (one.server.connection_count, two.server.connection_count) == (20, 0)
        two.server.accept_clients()
        one.server.stop_accepting()
        later = [await websockets.connect(f"ws://{V4}:{shared.port}/ws") for _ in range(5)]
        assert two.server.connection_count == 5
        for connection in (*first, *later):
            await connection.close()
        two.server.stop_accepting()


async def test_a_process_that_stops_early_accepts_no_connections(tmp_path):
    shared = ServerSettings(host=(V4,), port=free_port(), reuse_port=True)
    async with open_stage(tmp_path, server=shared) as one:
        one.server.listen(accepts=False)
        one.server.stop_accepting()
        one.server.accept_clients()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(V4, shared.port)


@pytest.mark.slow
async def test_several_processes_share_a_port_if_all_of_them_want_to(tmp_path):
    reuse = ServerSettings(host=("127.0.0.1", "::1"), port=free_port(), reuse_port=True)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    async with (
        open_stage(tmp_path / "one", server=reuse) as one,
        open_stage(tmp_path / "two", server=reuse) as two,
        open_stage(tmp_path / "three", server=reuse.model_copy(update={"reuse_port": False})) as three,
    ):
        assert one.server.listen() == two.server.listen() == reuse.port
        with pytest.raises(ConfigError, match="in use"):
            three.server.listen()
        connections = [await websockets.connect(f"ws://{with_port(V4, reuse.port)}/ws") for _ in range(60)]
        assert one.server.connection_count + two.server.connection_count == 60
        assert min(one.server.connection_count, two.server.connection_count) > 5
        for connection in connections:
            await connection.close()
        one.server.stop_accepting()
        async with websockets.connect(f"ws://{with_port(V6, reuse.port)}/ws") as connection:
            await connection.send('{"type":"ping"}')
            assert "pong" in await connection.recv()


async def can_connect(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(V4, port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("has_store", [True, False])
async def test_a_daemon_on_a_shared_port_waits_for_its_bars_but_not_forever(tmp_path, has_store):
    clock, port = ManualClock(), free_port()
    stores = {} if has_store else {"store": {"url": "postgresql://candled@127.0.0.1:1/none", "journal": ""}}
    async with running(tmp_path, clock=clock, sections=stores, port=port, reuse_port=True) as deployment:
        assert (await deployment.get("/livez")).startswith("ok")
        if has_store:
            while not deployment.daemon.health.is_reading:
                await clock.advance(0.1)
        else:
            await clock.advance(9.0)
            assert not await can_connect(port)
            await clock.advance(1.5)
        async with deadlines.timeout(10):
            while not await can_connect(port):
                await asyncio.sleep(0.01)
