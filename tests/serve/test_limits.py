import pytest

from candled.serve.connection_limiter import ConnectionLimiter, client_address, networks

PROXIES = networks(["10.0.0.0/8", "192.168.1.1", "fd00::/8"])


def test_connections_are_counted_in_all_and_per_address():
    limiter = ConnectionLimiter(most=3, most_per_address=2)
    for address in ("a", "a", "b"):
        assert limiter.refusal_for(address) is None
        limiter.add_connection(address)
    assert limiter.refusal_for("c") == (503, "Too many connections: this server takes 3")
    limiter.remove_connection("b")
    assert limiter.refusal_for("a") == (429, "Too many connections from a: at most 2")
    assert limiter.refusal_for("c") is None


def test_a_limit_of_zero_means_none():
    limiter = ConnectionLimiter(0, 0)
    for _ in range(100):
        assert limiter.refusal_for("a") is None
        limiter.add_connection("a")


def test_ipv6_counts_by_network_and_by_customer():
    limiter = ConnectionLimiter(0, 2)
    for network in range(4):
        for host in (1, 2):
            assert limiter.refusal_for(f"2001:db8:0:{network}::{host}") is None
            limiter.add_connection(f"2001:db8:0:{network}::{host}")
        assert limiter.refusal_for(f"2001:db8:0:{network}::ffff")[0] == 429
    assert limiter.refusal_for("2001:db8:0:ff::1")[0] == 429  # the customer's /56 has 4 times as many
    assert limiter.refusal_for("2001:db8:0:100::1") is None
    limiter.remove_connection("2001:db8:0:3::1")
    assert limiter.refusal_for("2001:db8:0:ff::1") is None


@pytest.mark.slow
def test_one_customer_leaves_handshakes_to_others():
    limiter, admitted, refused = ConnectionLimiter(0, 0, 1000), 0, []
    for step in range(20_000):  # 2,000 a second of one customer, and 20 a second of another
        now = step / 2000
        admitted += not limiter.admit_handshake(now, f"2001:db8:0:{step % 256:x}::1")
        if step >= 2000 and step % 100 == 0:
            refused.append(limiter.admit_handshake(now, "192.0.2.1"))
    assert not any(refused)
    assert 10_000 <= admitted + len(refused) <= 11_000  # nothing is lost
    assert len(limiter._shares) == 2


@pytest.mark.slow
def test_a_storm_behind_one_address_has_half_of_a_seconds_handshakes_immediately_and_the_rest_soon():
    limiter = ConnectionLimiter(0, 0, 1000)
    waits = [limiter.admit_handshake(0.0, "192.0.2.1") for _ in range(3000)]
    assert waits[:501] == [0.0] * 501
    assert all(1.0 < wait < 4.0 for wait in waits[501:])
    assert limiter.admit_handshake(0.0, "192.0.2.2") == 0
    for step in range(1, 3000):
        limiter.admit_handshake(step / 1000, "192.0.2.1")
    waits = [limiter.admit_handshake(5.0, "192.0.2.1") for _ in range(500)]
    assert waits == [0.0] * 500


def test_only_customers_with_handshakes_of_the_last_seconds_are_kept():
    limiter = ConnectionLimiter(0, 0, 1000)
    for number in range(1000):
        limiter.admit_handshake(number / 10, f"192.0.2.{number}")
    assert len(limiter._shares) < 3


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("1.2.3.4", None, "1.2.3.4"),
        ("1.2.3.4", "9.9.9.9", "1.2.3.4"),  # anybody can write the header
        ("10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "8.8.8.8, 9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "8.8.8.8, 9.9.9.9, 192.168.1.1", "9.9.9.9"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", " , ", "10.0.0.1"),
        ("10.0.0.1", "garbage", "garbage"),
        ("10.0.0.1", "9.9.9.9:4711", "9.9.9.9"),
        ("10.0.0.1", "8.8.8.8:1, 9.9.9.9:2, 192.168.1.1:3", "9.9.9.9"),
        ("10.0.0.1", "[2001:db8::7]:443", "2001:db8::7"),
        ("10.0.0.1", '"[2001:db8::7]"', "2001:db8::7"),
        ("fd00::1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:10.0.0.1", "9.9.9.9", "9.9.9.9"),  # IPv4 on a socket for both
        ("::ffff:1.2.3.4", "9.9.9.9", "::ffff:1.2.3.4"),
    ],
)
def test_the_forwarded_address_counts_only_from_a_trusted_proxy(peer, forwarded, address):
    assert client_address(peer, forwarded, PROXIES) == address


def test_new_limits_keep_the_counts_and_close_nothing():
    limiter = ConnectionLimiter(most=3, most_per_address=2, most_per_second=2)
    for _ in range(2):
        limiter.add_connection("a")
    assert limiter.refusal_for("a")[0] == 429
    limiter.set_limits(3, 3, 0)
    assert limiter.refusal_for("a") is None
    assert all(limiter.admit_handshake(0.0, "a") == 0.0 for _ in range(100))
    limiter.set_limits(1, 3, 1)
    assert (limiter.count, limiter.refusal_for("b")[0]) == (2, 503)
    assert [limiter.admit_handshake(0.0, "a") > 0 for _ in range(2)] == [False, True]
