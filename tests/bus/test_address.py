"""Addresses of a Redis, as `bus.url` has them."""

import pytest

from candled.bus.redis.address import RedisAddress
from candled.config import load
from candled.errors import ConfigError
from candled.plugins import discover
from candled.settings import without_passwords


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "localhost:6379"),
        ("redis://localhost:6380/2", "localhost:6380"),
        ("rediss://[::1]:7000/0?ca=/etc/ca.pem", "[::1]:7000"),
        ("unix:///run/redis.sock?db=3", "/run/redis.sock"),
        ("redis+sentinel://a,b:26380/mymaster/1", "mymaster at a:26379,b:26380"),
        ("redis+cluster://a:7000,b:7001", "a:7000,b:7001"),
    ],
)
def test_what_is_shown_of_an_address_is_where_it_leads(url, shown):
    assert str(RedisAddress.parse(url)) == shown


def test_user_and_password_are_read_and_never_shown():
    address = RedisAddress.parse("redis+sentinel://me:p%40ss%2Fword@a/one?sentinel_password=other")
    assert (address.username, address.password, address.sentinel_password) == ("me", "p@ss/word", "other")
    assert address.service == "one"
    assert "p@ss" not in f"{address} {address!r}"
    assert "other" not in f"{address} {address!r}"


def test_a_password_needs_no_user():
    address = RedisAddress.parse("redis://:secret@host/0")
    assert (address.username, address.password) == (None, "secret")


def test_the_database_and_the_files_of_tls_are_read():
    address = RedisAddress.parse("rediss://host/7?ca=ca.pem&cert=me.pem&key=me.key")
    assert (address.database, address.tls) == (7, True)
    assert address.files == {"ssl_ca_certs": "ca.pem", "ssl_certfile": "me.pem", "ssl_keyfile": "me.key"}
    assert RedisAddress.parse("unix:///a/b?db=4").database == 4


WRONG = [
    "redis://",
    "redis://:hidden@",
    "redis://host:hidden",
    "redis://host:0",
    "redis://host:70000/0",
    "redis://host/hidden",
    "redis://hidden@host/0",
    "redis://user:hid/den@host",
    "redis://a,hidden",
    "redis://host?hidden=1",
    "unix://hidden/run/redis.sock",
    "unix:///",
    "redis+sentinel://host",
    "redis+sentinel://host/",
    "redis+cluster://host/1",
    "http://hidden",
]


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_address_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError) as caught:
        RedisAddress.parse(url)
    assert "hidden" not in str(caught.value)
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_address_is_a_line_of_the_settings(url):
    with pytest.raises(ConfigError) as caught:
        load(None, {"CANDLED_BUS__URL": url}, discover())
    (problem,) = caught.value.problems
    assert problem.startswith("bus.url (CANDLED_BUS__URL): ")
    assert "hidden" not in problem


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:hidden@host:6379/0",
        "rediss://:hidden@host",
        "unix://:hidden@/run/redis.sock",
        "redis+sentinel://me:hidden@a:1,b:2/name?sentinel_password=hidden",
        "redis+cluster://:hidden@a,b",
    ],
)
def test_a_right_address_is_printed_with_stars(url):
    assert load(None, {"CANDLED_BUS__URL": url}, discover()).bus.url == url
    assert "hidden" not in without_passwords(url)
    assert "***" in without_passwords(url)


@pytest.mark.slow
def test_a_prefix_that_would_move_keys_or_match_patterns_is_refused():
    for prefix in ("{a}", "a b", "x*"):
        with pytest.raises(ConfigError, match=r"bus\.prefix"):
            load(None, {"CANDLED_BUS__PREFIX": f'"{prefix}"'}, discover())
