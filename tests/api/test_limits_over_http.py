"""Promise 22: the limit holds whatever a client writes into its headers; promise 21: which pages may connect."""

import json
from collections import Counter

import pytest

from candled.config.sections import LimitSettings, ServerSettings
from candled.model import MINUTE_MS
from tests.api.raw import ask_all
from tests.api.stage import open_stage
from tests.rows import MONDAY_MS, minute

PATH = "/api/intervals"
pytestmark = [pytest.mark.gen_test, pytest.mark.usefixtures("http_server")]


def forged(number: int) -> dict[str, str]:
    address = f"203.0.{number // 250}.{number % 250 + 1}"
    return {
        "X-Forwarded-For": f"{address}, 10.0.0.1",
        "X-Real-Ip": address,
        "Forwarded": f"for={address}",
        "X-Client-Ip": address,
        "CF-Connecting-IP": address,
        "True-Client-IP": address,
    }


@pytest.mark.slow
@pytest.mark.stage(limits=LimitSettings())
async def test_a_thousand_requests_with_forged_headers_are_a_hundred_answers(http_port):
    answers = await ask_all(http_port, [(PATH, forged(number)) for number in range(1000)])
    assert Counter(answer.status for answer in answers) == {200: 100, 429: 900}
    assert [answer.status for answer in answers[:101]] == [200] * 100 + [429]


@pytest.mark.slow
@pytest.mark.stage(limits=LimitSettings(), server=ServerSettings(trusted_proxies=("127.0.0.1",)))
async def test_256_addresses_of_one_56_are_one_client(http_port):
    asked = [(PATH, {"X-Forwarded-For": f"2001:db8:0:12{number:02x}::{number + 1:x}"}) for number in range(256)]
    answers = await ask_all(http_port, asked)
    (other,) = await ask_all(http_port, [(PATH, {"X-Forwarded-For": "2001:db8:0:1300::1"})])
    assert Counter(answer.status for answer in answers) == {200: 100, 429: 156}
    assert other.status == 200


@pytest.mark.slow
@pytest.mark.stage(limits=LimitSettings(), server=ServerSettings(trusted_proxies=("127.0.0.0/8",)))
async def test_three_clients_behind_a_trusted_proxy_are_three_limits_and_x_real_ip_is_none(http_port):
    asked = [
        (
            PATH,
            {"X-Forwarded-For": f"198.51.100.77, 203.0.113.{number % 3}", "X-Real-Ip": f"192.0.2.{number % 250}"},
        )
        for number in range(600)
    ]
    answers = await ask_all(http_port, asked)
    assert Counter(answer.status for answer in answers) == {200: 300, 429: 300}


@pytest.mark.stage(limits=LimitSettings(api_requests=5))
async def test_every_answer_of_a_limited_path_has_the_requests_left_and_a_refusal_the_time_to_retry(http_port):
    paths = [PATH, "/api/candles", "/api/nowhere", "/api", f"{PATH}?x=%ff"]
    answers = await ask_all(http_port, [(path, {}) for path in paths])
    assert [answer.status for answer in answers] == [200, 400, 404, 404, 400]
    for left, answer in zip(range(4, -1, -1), answers, strict=True):
        assert answer.headers["x-ratelimit-remaining"] == answer.headers["ratelimit-remaining"] == str(left)
        assert "retry-after" not in answer.headers
    refused, text, other = await ask_all(
        http_port, [(PATH, {"Accept": "application/json"}), (PATH, {"Accept": "*/*"}), ("/udf/time", {})]
    )
    assert (refused.status, text.status, other.status) == (429, 429, 200)
    assert json.loads(refused.body) == {
        "error": {"code": "too_many_requests", "message": "Too many requests, please try again later."}
    }
    assert text.body == b"Too many requests, please try again later."
    assert text.headers["content-type"] == "text/html; charset=utf-8"
    assert refused.headers["retry-after"] == "900"
    assert "retry-after" in refused.headers["access-control-expose-headers"].lower()


@pytest.mark.stage(limits=LimitSettings(api_requests=1))
async def test_health_and_the_page_are_not_limited(http_port):
    answers = await ask_all(http_port, [(PATH, {})] * 3 + [("/health", {}), ("/", {}), ("/health/ws-stats", {})] * 5)
    assert [answer.status for answer in answers] == [200, 429, 429] + [200] * 15


@pytest.mark.stage(limits=LimitSettings(api_requests=2))
async def test_a_preflight_costs_nothing(http_port):
    asked = await ask_all(http_port, [(PATH, {"Origin": "https://a.example"})] * 10, "OPTIONS")
    assert {answer.status for answer in asked} == {204}
    answers = await ask_all(http_port, [(PATH, {})] * 3)
    assert [answer.status for answer in answers] == [200, 200, 429]


# ---------------------------------------------------------------- promise 21


@pytest.fixture
def allowed() -> tuple[str, ...]:
    """Give the origins that may connect and read; the tests below have it as a parameter."""
    return ("*",)


@pytest.fixture
def stage_options(allowed):
    return {"server": ServerSettings(allowed_origins=allowed)}


HOST = "candles.example"
MINE, OTHER = f"http://{HOST}", "https://charts.example"
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


@pytest.mark.parametrize(
    ("allowed", "origin", "fetched_from", "status"),
    [
        # any page may connect
        (("*",), None, None, 101),
        (("*",), MINE, "same-origin", 101),
        (("*",), OTHER, "cross-site", 101),
        (("*",), "null", "cross-site", 101),
        # only the server's own page may
        ((), None, None, 101),  # not a browser: it could write any header
        ((), MINE, "same-origin", 101),
        ((), MINE, None, 101),
        ((), OTHER, "cross-site", 403),
        ((), OTHER, None, 403),
        ((), "null", "cross-site", 403),
        # its own and one other
        ((OTHER,), MINE, "same-origin", 101),
        ((OTHER,), OTHER, "cross-site", 101),
        ((OTHER,), OTHER, None, 101),
        ((OTHER,), "http://charts.example", "cross-site", 403),  # another scheme
        ((OTHER,), f"{OTHER}.evil.example", "cross-site", 403),
        ((OTHER,), f"https://{HOST}.evil.example", "same-site", 403),
    ],
)
async def test_the_matrix_of_origins(http_port, origin, fetched_from, status):
    headers = {"Host": HOST, **HANDSHAKE}
    headers |= {"Origin": origin} if origin else {}
    headers |= {"Sec-Fetch-Site": fetched_from} if fetched_from else {}
    (answer,) = await ask_all(http_port, [("/ws", headers)])
    assert answer.status == status


@pytest.mark.parametrize(
    ("allowed", "origin", "readable"),
    [
        (("*",), None, "*"),
        (("*",), OTHER, "*"),
        ((OTHER,), OTHER, OTHER),
        ((OTHER,), OTHER.upper(), OTHER.upper()),
        ((OTHER,), "https://elsewhere.example", None),
        ((OTHER,), None, None),
        ((), OTHER, None),
    ],
)
async def test_which_pages_may_read_an_answer(http_port, allowed, origin, readable):
    headers = {"Origin": origin} if origin else {}
    for path in (PATH, "/api/candles", "/api/nowhere", "/udf/config"):
        (answer,) = await ask_all(http_port, [(path, headers)])
        assert answer.headers.get("access-control-allow-origin") == readable
        assert ("origin" in answer.headers.get("vary", "").lower()) == (allowed != ("*",))
    (asked,) = await ask_all(http_port, [(PATH, {**headers, "Access-Control-Request-Method": "GET"})], "OPTIONS")
    assert asked.headers.get("access-control-allow-origin") == readable
    assert asked.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"


CLOSED = f"/api/candles?symbol=BTC/USDT&interval=1m&limit=5&to={MONDAY_MS + 20 * MINUTE_MS}"


@pytest.mark.slow
@pytest.mark.parametrize("is_hot", [False, True])
@pytest.mark.parametrize("exempt", [False, True])
async def test_answers_that_clients_and_caches_keep_count_unless_they_are_exempt(tmp_path, exempt, is_hot):
    """Beyond the limit too, a client may ask whether its bars are current, and for pages that never change."""
    limits = LimitSettings(api_requests=3, exempt_cached=exempt)
    (tmp_path / "own").mkdir()
    async with open_stage(tmp_path / "own", 2500, limits=limits, now_ms=MONDAY_MS + 2502 * MINUTE_MS) as one:
        one.push(minute(2500))
        port = one.server.listen()
        if not is_hot:
            one.server._hot_path._find = lambda _: None
        page = f"/api/pages?symbol=BTC/USDT&interval=1m&page={MONDAY_MS // MINUTE_MS // 1000 + 1}"
        first, redirect = await ask_all(port, [(CLOSED, {}), (page, {})])
        kept = [
            (CLOSED, {"If-None-Match": first.headers["etag"]}),
            (f"/api/pages{redirect.headers['location']}", {}),
            (f"/api/pages{redirect.headers['location']}", {"If-None-Match": f'"{redirect.headers["location"][-16:]}"'}),
        ]
        answers = await ask_all(port, [*kept, *kept, (CLOSED, {}), (CLOSED, {}), *kept])
    statuses = [answer.status for answer in answers]
    if exempt:
        assert statuses == [304, 200, 304, 304, 200, 304, 200, 429, 304, 200, 304]
        assert ["ratelimit-remaining" in answer.headers for answer in answers[:7]] == [False] * 6 + [True]
    else:
        assert statuses == [304] + [429] * 10


async def test_an_answer_kept_without_a_limit_counts_after_a_reload_that_sets_one(tmp_path):
    (tmp_path / "own").mkdir()
    async with open_stage(tmp_path / "own", 10, limits=LimitSettings(api_requests=0)) as one:
        port, path = one.server.listen(), "/api/candles?symbol=BTC/USDT&interval=1m&limit=5"
        (first,) = await ask_all(port, [(path, {})])
        asked = [(path, {"If-None-Match": first.headers["etag"]})] * 3
        statuses = []
        for limits in (LimitSettings(api_requests=0), LimitSettings(api_requests=2), LimitSettings(api_requests=0)):
            one.rate_limits.set_limits(limits)
            answers = await ask_all(port, asked)
            statuses.append([answer.status for answer in answers])
    assert statuses == [[304] * 3, [304, 304, 429], [304] * 3]
    assert not any("ratelimit" in name for answer in answers for name in answer.headers)
