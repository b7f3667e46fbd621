"""Which proxy an exchange is reached through, and how it is written and shown."""

import re

import pytest
import yaml

from candled.config import as_plain, load
from candled.errors import ConfigError
from candled.plugins import discover
from candled.proxies import Proxies, ProxyAddress, is_exempt


@pytest.mark.parametrize(
    ("text", "shown", "user", "password"),
    [
        ("http://proxy:3128", "http://proxy:3128", None, None),
        ("proxy:3128", "http://proxy:3128", None, None),
        ("HTTP://Proxy.Example/", "http://proxy.example:80", None, None),
        ("http://ann:s%40c%2Fr%23t@proxy:3128", "http://proxy:3128", "ann", "s@c/r#t"),
        ("ann:secret@proxy:3128", "http://proxy:3128", "ann", "secret"),
        ("http://ann@proxy:3128", "http://proxy:3128", "ann", ""),
        ("socks5://127.0.0.1", "socks5://127.0.0.1:1080", None, None),
        ("socks5h://a:b@[fd00::1]:9050", "socks5h://[fd00::1]:9050", "a", "b"),
        ("socks://127.0.0.1:1080/", "socks5://127.0.0.1:1080", None, None),
        ("socks4a://host:1", "socks4a://host:1", None, None),
    ],
)
def test_a_proxy_is_read(text, shown, user, password):
    proxy = ProxyAddress.parse(text)
    assert (str(proxy), proxy.user, proxy.password) == (shown, user, password)
    assert ProxyAddress.parse(str(proxy)) == ProxyAddress(proxy.scheme, proxy.host, proxy.port)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://ann:secret@proxy:3128", "TLS to the proxy itself"),
        ("ftp://ann:secret@proxy:3128", "http://, socks5://"),
        ("http://ann:secret@", "expected a proxy such as"),
        ("http://ann:secret@proxy:0", "expected a proxy such as"),
        ("http://ann:secret@proxy:x", "expected a proxy such as"),
        ("http://ann:secret@[::1:3128", "expected a proxy such as"),
        ("http://ann:secret@proxy:3128/path", "%2F"),
        ("http://ann:se/secret@proxy:3128", "expected a proxy"),
        ("http://a%3An:secret@proxy:3128", "no : in a user"),
        ("http://ann:secret\u0142@proxy:3128", "Latin"),
        ("socks5://ann:" + 300 * "secret" + "@proxy", "255 bytes"),
        ("http://", "expected a proxy such as"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        ProxyAddress.parse(text)
    assert "secret" not in str(refused.value)


EVERYTHING = {"HTTPS_PROXY": "http://secure:1", "HTTP_PROXY": "http://plain:2", "ALL_PROXY": "socks5h://all:3"}


@pytest.mark.parametrize(
    ("written", "env", "host", "is_secure", "through"),
    [
        (None, {}, "api.x", True, None),
        (None, EVERYTHING, "api.x", True, "http://secure:1"),
        (None, EVERYTHING, "api.x", False, "http://plain:2"),
        (None, {"ALL_PROXY": "socks5h://all:3"}, "api.x", True, "socks5h://all:3"),
        (None, {"HTTP_PROXY": "http://plain:2"}, "api.x", True, None),
        (None, {"HTTPS_PROXY": "", "ALL_PROXY": "all:3"}, "api.x", True, "http://all:3"),
        (None, {"https_proxy": "small:1", "HTTPS_PROXY": "large:1"}, "api.x", True, "http://small:1"),
        (None, {**EVERYTHING, "NO_PROXY": "x"}, "api.x", True, None),
        (None, {**EVERYTHING, "no_proxy": "*"}, "api.x", False, None),
        (None, {**EVERYTHING, "NO_PROXY": "y"}, "api.x", True, "http://secure:1"),
        *((None, EVERYTHING, host, False, None) for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1")),
        ("", EVERYTHING, "api.x", True, None),
        ("direct", EVERYTHING, "api.x", True, None),
        (" Direct ", EVERYTHING, "api.x", True, None),
        ("own:4", EVERYTHING, "api.x", True, "http://own:4"),
        ("own:4", {**EVERYTHING, "NO_PROXY": "*"}, "127.0.0.1", False, "http://own:4"),  # it is meant
        ("own:4", {"HTTPS_PROXY": "nonsense://"}, "api.x", True, "http://own:4"),
    ],
)
def test_the_setting_goes_before_the_environment(written, env, host, is_secure, through):
    proxy = Proxies.from_setting(written, env).choose(host, 443 if is_secure else 80, is_secure=is_secure)
    assert (None if proxy is None else str(proxy)) == through


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "expected"),
    [
        ("", "api.x", 443, False),
        ("*", "api.x", 443, True),
        ("api.x", "api.x", 443, True),
        ("API.x.", "api.X.", 443, True),
        ("x", "api.x", 443, True),
        (".x", "api.x", 443, True),
        (".x", "x", 443, True),
        ("*.x", "api.x", 443, True),
        ("x", "apix", 443, False),
        ("pi.x", "api.x", 443, False),
        ("api.x:443", "api.x", 443, True),
        ("api.x:443", "api.x", 8443, False),
        ("y , api.x", "api.x", 443, True),
        ("y api.x", "api.x", 443, True),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.1/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("10.1.2.3:80", "10.1.2.3", 443, False),
        ("10.1.2.3:443", "10.1.2.3", 443, True),
        (".2.3", "10.1.2.3", 443, False),  # an address is no name
        ("10.0.0.0/8", "::ffff:10.1.2.3", 443, True),
        ("fd00::/8", "fd12::1", 443, True),
        ("fd00::1", "[fd00:0::1]", 443, True),
        ("[fd00::1]", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 80, False),
        ("10.0.0.0/8", "ten.example", 443, False),
        ("a:b:c,,.,:,[", "api.x", 443, False),
    ],
)
def test_hosts_without_a_proxy(no_proxy, host, port, expected):
    assert is_exempt(no_proxy, host, port) is expected


# ---------------------------------------------------------------- in the settings


def loaded(tmp_path, proxy, env):
    path = tmp_path / "candled.yaml"
    path.write_text(yaml.safe_dump({"exchanges": {"bitget": {} if proxy is None else {"proxy": proxy}}}))
    return load(path, env, discover())


@pytest.mark.parametrize(
    ("proxy", "env", "described", "plain"),
    [
        (None, {}, "direct", None),
        ("direct", {"HTTPS_PROXY": "a:1"}, "direct, from the settings", "direct"),
        ("", {"HTTPS_PROXY": "a:1"}, "direct, from the settings", ""),
        ("http://ann:secret@p:1", {}, "http://p:1 as ann, from the settings", "http://ann:***@p:1"),
        ("ann:secret@p:1", {}, "http://p:1 as ann, from the settings", "http://ann:***@p:1"),
        (None, {"HTTPS_PROXY": "a:secret@p"}, "http://p:80 as a (http:// and ws://: direct), from the environment", None),  # noqa: E501
        (None, {"ALL_PROXY": "p:1", "NO_PROXY": ".x,::1"}, "http://p:1, from the environment, except for .x,::1", None),
        (None, {"CANDLED_EXCHANGES__BITGET__PROXY": "socks5://p:1"}, "socks5://p:1, from the settings", "socks5://p:1"),
    ],
)  # fmt: skip
def test_check_config_shows_what_is_in_use_without_a_password(tmp_path, proxy, env, described, plain):
    config = loaded(tmp_path, proxy, env)
    (exchange,) = config.exchanges
    assert exchange.proxies.describe() == described
    assert as_plain(config)["exchanges"]["bitget"]["proxy"] == plain
    assert "secret" not in repr(config)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(as_plain(config, redact=False)))
    assert load(tmp_path / "again.yaml", env, discover()).exchanges == config.exchanges


@pytest.mark.parametrize(
    ("proxy", "env", "problem"),
    [
        ("ftp://ann:secret@p", {}, "exchanges.bitget.proxy: a proxy begins with one of http://"),
        (None, {"HTTPS_PROXY": "ftp://ann:secret@p"}, "exchanges.bitget.proxy: the variable HTTPS_PROXY: a proxy"),
        (None, {"ALL_PROXY": "https://ann:secret@p"}, "exchanges.bitget.proxy: the variable ALL_PROXY: TLS to the"),
    ],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_ends_the_start(tmp_path, proxy, env, problem):
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, proxy, env)
    assert problem in str(refused.value)
    assert "secret" not in str(refused.value)
