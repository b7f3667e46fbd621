"""A Redis that speaks TLS: everything works as without, and what is wrong with a certificate is told."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
import redis

from candled.bus.redis.address import RedisAddress
from candled.bus.redis.connections import check_files
from candled.bus.redis.leases import LeaseState
from candled.errors import ConfigError
from tests import deadlines
from tests.bus.rig import BTC, new_prefix, process, until
from tests.certificates import Authority
from tests.redis_servers import RedisServer, program, shared_redis
from tests.system.daemon import Daemon

pytestmark = pytest.mark.usefixtures("redis")

HOST = "127.0.0.1"


class TlsServer(RedisServer):
    """A server whose only port speaks TLS."""

    def __init__(self, authority: Authority, host: str = HOST, asks: str = "no") -> None:
        certificate, key = authority.sign(host)
        super().__init__(
            program(),
            tls_cert_file=str(certificate),
            tls_key_file=str(key),
            tls_ca_cert_file=str(authority.certificate),
            tls_auth_clients=asks,
        )
        self._settings |= {"port": "0", "tls_port": str(self.port)}  # after --port, so that it holds
        self._files = str(certificate), str(key)

    def client(self) -> "redis.Redis[bytes]":
        certificate, key = self._files
        return redis.Redis(
            HOST, self.port, socket_timeout=5, ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False,
            ssl_certfile=certificate, ssl_keyfile=key,
        )  # fmt: skip

    def tls_url(self, ca: Path, **more: Path) -> str:
        """Its address, as `bus.url` has it."""
        files = "&".join(f"{name}={path}" for name, path in {"ca": ca, **more}.items())
        return f"rediss://{HOST}:{self.port}/0?{files}"


@contextmanager
def running(server: TlsServer) -> Iterator[TlsServer]:
    try:
        try:
            server.start()
        except RuntimeError as error:
            if any(text in str(error) for text in ("Bad directive", "Failed finding TLS support")):
                pytest.skip("this Redis has no TLS: install your system's redis-server package")
            raise
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(authority) -> Iterator[TlsServer]:
    with running(TlsServer(authority)) as one:
        yield one


async def all_works(url: str) -> None:
    """One leads and publishes, one hears; budgets and counters have connections of the same kind."""
    prefix = new_prefix()
    async with process(url, prefix, ingests=True) as leader, process(url, prefix) as hearer:
        await until(lambda: leader.state is LeaseState.LEADER and hearer.is_ready)
        candle = leader.publish()
        await until(lambda: hearer.listener.newest.get(BTC) == candle)
        with patch("candled.bus.redis.shared_limits._REPLY_TIMEOUT_S", 30):  # a handshake takes a busy machine longer
            assert (await hearer.parts.counter.count_hit("127.0.0.1", 60.0))[0] == 1


async def problem_of(url: str) -> str:
    """What a process says that cannot connect; it goes on trying, in whatever it does."""
    async with process(url, new_prefix(), ingests=True) as one:
        await until(lambda: "trouble" in one.bus.describe())
        facts = one.bus.describe()
        assert not facts["connected"]
        assert one.state is not LeaseState.LEADER
        return str(facts["trouble"])


async def test_publishing_hearing_and_leading_over_tls(server, authority):
    await all_works(server.tls_url(authority.certificate))


async def test_a_server_that_asks_for_a_certificate_gets_one(authority):
    certificate, key = authority.sign("client.example.org")
    with running(TlsServer(authority, asks="yes")) as server:
        await all_works(server.tls_url(authority.certificate, cert=certificate, key=key))
        assert await problem_of(server.tls_url(authority.certificate))  # it may do no more than hang up


async def test_a_certificate_of_another_authority_is_refused_with_the_reason(server, authority, tmp_path):
    stranger = Authority(tmp_path, "stranger")
    assert "certificate verify failed" in await problem_of(server.tls_url(stranger.certificate))


async def test_a_certificate_for_another_host_is_refused_with_the_reason(authority):
    with running(TlsServer(authority, host="redis.example.org")) as server:
        assert "certificate is not valid for '127.0.0.1'" in await problem_of(server.tls_url(authority.certificate))


async def test_tls_where_the_server_has_none_and_none_where_it_has_it_is_an_error_too(server, authority):
    assert await problem_of(f"redis://{HOST}:{server.port}/0")
    plain = urlsplit(shared_redis())
    assert await problem_of(f"rediss://{plain.hostname}:{plain.port}/0?ca={authority.certificate}")


def test_files_that_cannot_be_used_are_named(authority, tmp_path):
    certificate, _ = authority.sign("a.example.org")
    _, other_key = authority.sign("b.example.org")
    nothing, text = tmp_path / "nothing.crt", tmp_path / "text.crt"
    text.write_text("no certificate")
    for query, expected in (
        (f"ca={nothing}", f"bus.url: ca: {nothing}: No such file or directory"),
        (f"ca={text}", f"bus.url: ca: {text}: no certificate in it"),
        (f"cert={certificate}&key={other_key}", f"bus.url: cert, key: {certificate}, {other_key}: "),
        (f"key={other_key}", "bus.url: key: needs cert too"),
    ):
        with pytest.raises(ConfigError) as refused:
            check_files(RedisAddress.parse(f"rediss://host?{query}"))
        assert str(refused.value).startswith(expected)


def test_a_daemon_with_the_wrong_authority_serves_tries_again_and_logs_the_reason(server, authority, tmp_path):
    stranger = Authority(tmp_path, "stranger")
    config = {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
        "bus": {"url": server.tls_url(stranger.certificate)},
    }
    with Daemon(tmp_path) as daemon:
        daemon.start(config)  # not connected, and it serves
        deadline = deadlines.now() + 10
        while "certificate verify failed" not in (expected := str(daemon.get("/health?verbose")["bus"].get("trouble"))):
            assert deadlines.now() < deadline, expected
            time.sleep(0.1)
        assert "certificate verify failed" in daemon.get("/health/ready")["checks"]["bus"]
        time.sleep(2.0)
        assert (
            1 <= daemon.output.count("certificate verify failed") <= 4
        )  # told by each who noticed, not at each attempt
        stranger.certificate.write_bytes(authority.certificate.read_bytes())  # the operator's remedy
        deadline = deadlines.now() + 10
        while daemon.get("/health/ready")["checks"]["bus"] != "ok":
            assert deadlines.now() < deadline, daemon.output
            time.sleep(0.1)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.output
