"""Access tokens in every dialect: where they are given, their validity, claims and limits, on real sockets."""

import asyncio
import json
import random
import statistics
import string
import time
from contextlib import asynccontextmanager
from pathlib import Path

import jwt
import pytest
import websockets

from candled.access.token_file import Entry, digest_of, make_token, write_entries
from candled.config.sections import AccessSettings, KlinesSettings
from candled.model import iso_ms
from tests import deadlines
from tests.api.raw import ask_all
from tests.api.stage import BTC, ETH, open_stage
from tests.bus.rig import until
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS, minute

SECRET = "a secret of at least 32 bytes, made for this test"
NOW_MS = MONDAY_MS + 61 * 60_000
CANDLES = "/api/candles?symbol=BTC/USDT&interval=5m&limit=1"
DIALECTS = {
    "api": "/api/candles?limit=1&symbol={symbol}&interval={interval}",
    "pages": "/api/pages?page=1&symbol={symbol}&interval={interval}",
    "udf": "/udf/history?from=0&to=9999999999&countback=1&symbol={symbol}&resolution={interval}",
    "klines": "/api/v3/klines?limit=1&symbol={symbol}&interval={interval}",
    "events": "/events?symbol={symbol}&interval={interval}",
}
BEARER = 'Bearer realm="candled"'
INVALID, SCOPE = f'{BEARER}, error="invalid_token"', f'{BEARER}, error="insufficient_scope"'


class Guarded:
    """A stage behind tokens: `tokens` by name."""

    def __init__(self, stage, port: int, tokens: dict[str, str], path: Path) -> None:
        self.stage, self.port, self.tokens, self.path = stage, port, tokens, path

    def sign(self, key: str = SECRET, algorithm: str = "HS256", **claims) -> str:
        return jwt.encode({"sub": "jay", "exp": NOW_MS // 1000 + 60, **claims}, key, algorithm=algorithm)

    async def get(self, path: str, token: str | None = None, **headers: str):
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return (await ask_all(self.port, [(path, headers)]))[0]

    def connect(self, path: str = "/ws", **options):
        return websockets.connect(f"ws://127.0.0.1:{self.port}{path}", **options)


ENTRIES = {
    "all": {},
    "old": {"expires": iso_ms(MONDAY_MS)},
    "btc": {"symbols": ["BTC/USDT"], "intervals": ["5m", "1D"]},
    "one": {"connections": 1, "rooms": 1, "messages": 1, "requests": 2},
}


def write_tokens(path: Path, tokens: dict[str, str]) -> None:
    write_entries(path, {name: Entry(sha256=digest_of(token), **ENTRIES[name]) for name, token in tokens.items()})


@asynccontextmanager
async def open_guarded(tmp_path: Path, **settings):
    tokens, path, key = {name: make_token(name) for name in ENTRIES}, tmp_path / "tokens.yaml", tmp_path / "key"
    write_tokens(path, tokens)
    key.write_text(SECRET)
    access = AccessSettings(tokens_file=str(path), jwt_key_file=str(key), jwt_algorithm="HS256")
    minutes = {market: [minute(number, final=True) for number in range(60)] for market in (BTC, ETH)}
    async with open_stage(
        tmp_path, minutes, clock=ManualClock(NOW_MS), access=access, klines=KlinesSettings(enabled=True), **settings
    ) as stage:
        yield Guarded(stage, stage.server.listen(), tokens, path)


@pytest.fixture
def guarded(enter, tmp_path):
    return enter(open_guarded(tmp_path))


async def receive(ws):
    return json.loads(await deadlines.wait_for(ws.recv(), 3))


async def send(ws, **message):
    await ws.send(json.dumps(message))
    return await receive(ws)


async def close_of(ws) -> tuple[int, str]:
    await deadlines.wait_for(ws.wait_closed(), 3)
    return ws.close_code, ws.close_reason


def token_of(guarded: Guarded, validity: str) -> str:
    return {
        "file": guarded.tokens["all"],
        "jwt": guarded.sign(),
        "wrong": guarded.tokens["all"][:-1] + "~",
        "expired": guarded.tokens["old"],
    }[validity]


# ---------------------------------------------------------------- where given × validity

PROBLEMS = {"wrong": "Invalid token", "expired": "The token has expired"}
VALIDITIES = ("file", "jwt", "wrong", "expired")


@pytest.mark.gen_test
@pytest.mark.parametrize("validity", VALIDITIES)
@pytest.mark.parametrize("where", ["header", "query"])
async def test_a_request_is_answered_if_its_token_is_valid(guarded, where, validity):
    token = token_of(guarded, validity)
    answers = [
        await (guarded.get(CANDLES, token) if where == "header" else guarded.get(f"{CANDLES}&token={token}"))
        for _ in range(2)  # the second time from memory
    ]
    for answer in answers:
        if validity in PROBLEMS:
            error = {"error": {"code": "unauthorized", "message": PROBLEMS[validity]}}
            assert (answer.status, json.loads(answer.body)) == (401, error)
            assert answer.headers["www-authenticate"] == INVALID
        else:
            assert answer.status == 200
            assert len(json.loads(answer.body)["bars"]) == 1
    assert answers[0].headers.keys() == answers[1].headers.keys()


@pytest.mark.gen_test
@pytest.mark.parametrize("validity", VALIDITIES)
@pytest.mark.parametrize("where", ["header", "query", "subprotocol"])
async def test_a_handshake_is_accepted_if_its_token_is_valid(guarded, where, validity):
    token = token_of(guarded, validity)
    if where == "header":
        connecting = guarded.connect(additional_headers={"Authorization": f"Bearer {token}"})
    elif where == "query":
        connecting = guarded.connect(f"/ws?token={token}")
    else:
        connecting = guarded.connect(subprotocols=["candled", f"bearer.{token}"])
    if validity in PROBLEMS:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connecting
        body = {"error": {"code": 401, "message": PROBLEMS[validity]}}
        assert (refused.value.response.status_code, json.loads(refused.value.response.body)) == (401, body)
        return
    async with connecting as ws:
        assert ws.subprotocol == ("candled" if where == "subprotocol" else None)
        assert await send(ws, type="ping") == {"type": "pong"}


@pytest.mark.gen_test
@pytest.mark.parametrize("validity", VALIDITIES)
async def test_the_first_message_may_carry_the_token(guarded, validity):
    async with guarded.connect() as ws:
        early = await send(ws, type="ping", id=1)
        message = 'Unauthorized: expected {"type": "auth", "token": …} first'
        assert early == {"type": "error", "id": 1, "message": message, "code": 101, "temporary": False}
        answer = await send(ws, type="auth", token=token_of(guarded, validity), id=2)
        if validity in PROBLEMS:
            problem = {"message": PROBLEMS[validity], "code": 101, "temporary": False}
            assert answer == {"type": "error", "id": 2, **problem}
            assert await close_of(ws) == (3500, "invalid token")
            return
        expires = iso_ms((NOW_MS // 1000 + 60) * 1000) if validity == "jwt" else None
        assert answer == {"type": "authenticated", "id": 2, "expires": expires}
        assert await send(ws, type="ping", id=3) == {"type": "pong", "id": 3}


@pytest.mark.gen_test
async def test_a_message_without_id_gets_the_texts_without_a_code(guarded):
    async with guarded.connect("/") as ws:
        assert await send(ws, type="auth", token=guarded.tokens["all"]) == {"type": "authenticated", "expires": None}
        await ws.send('{"method": "LIST_SUBSCRIPTIONS", "id": 1}')  # the next message selects the protocol
        assert await receive(ws) == {"result": [], "id": 1}


@pytest.mark.gen_test
async def test_a_request_without_a_token_gets_nothing_but_probes_and_files(guarded):
    for path in (
        CANDLES,
        "/",
        "/events",
        "/udf/config",
        "/api/v3/klines",
        "/api/openapi.json",
        "/health/ws-stats",
        "/x",
    ):
        answer = await guarded.get(path)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, BEARER), path
    for path in ("/livez", "/readyz", "/health", "/health/live", "/health/ready", "/static/page.js"):
        assert (await guarded.get(path)).status == 200, path
    half = await guarded.get("/", Upgrade="websocket", **{"Content-Length": "0"})  # no handshake: it lacks a key
    assert half.status == 400
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
    writer.write(b"GET / HTTP/1.0\r\nHost: x\r\nUpgrade: websocket\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
    writer.close()
    two = await guarded.get(f"{CANDLES}&token={guarded.tokens['all']}", guarded.tokens["all"])
    assert (two.status, json.loads(two.body)["error"]["message"]) == (400, "Expected one token, got several")
    basic = await guarded.get(CANDLES, Authorization="Basic YTpi")
    assert basic.status == 401


@pytest.mark.gen_test
async def test_a_connection_without_a_token_is_closed(guarded):
    async with guarded.connect() as ws:
        await guarded.stage.clock.leap(9)
        assert (await send(ws, type="ping"))["type"] == "error"
        await guarded.stage.clock.leap(3)
        assert await close_of(ws) == (3502, "no token")


# ---------------------------------------------------------------- claims


def spelled(dialect: str, symbol: str, interval: str) -> str:
    if dialect == "udf":
        symbol, interval = symbol.replace("/", ""), interval.rstrip("m")
    elif dialect == "klines":
        symbol = symbol.replace("/", "")
    return DIALECTS[dialect].format(symbol=symbol, interval=interval)


@pytest.mark.gen_test
@pytest.mark.parametrize(("symbol", "interval", "problem"), [("ETH/USDT", "5m", "ETH/USDT"), ("BTC/USDT", "1m", "1m")])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_request_for_more_than_the_claims_is_refused_in_the_words_of_its_dialect(
    guarded, dialect, symbol, interval, problem
):
    message = f"Not allowed with this token: {problem}"
    bodies = {
        "udf": {"s": "error", "errmsg": message},
        "klines": {"code": -1002, "msg": message},
        "events": {"error": {"code": 403, "message": message}},
    }
    for token in (guarded.tokens["btc"], guarded.sign(symbols=["BTC/USDT"], intervals=["5m"])):
        answer = await guarded.get(spelled(dialect, symbol, interval), token)
        expected = bodies.get(dialect, {"error": {"code": "forbidden", "message": message}})
        assert (answer.status, json.loads(answer.body)) == (403, expected)
        if dialect != "events":
            assert answer.headers["www-authenticate"] == SCOPE
            allowed = await guarded.get(spelled(dialect, "BTC/USDT", "5m"), token)
            assert allowed.status in (200, 302)
            assert "public" not in allowed.headers["cache-control"]


@pytest.mark.gen_test
@pytest.mark.parametrize(("path", "status"), [("/status.json", 404), ("/health/ws-stats", 200)])  # the one is off here
async def test_what_describes_all_markets_is_only_for_tokens_without_symbols(guarded, path, status):
    for token in (guarded.tokens["btc"], guarded.sign(symbols=["BTC/USDT"]), guarded.sign(symbols=["*"])):
        answer = await guarded.get(path, token)
        assert (answer.status, answer.headers["www-authenticate"]) == (403, SCOPE)
        assert json.loads(answer.body)["error"]["message"] == "Not allowed with this token: all symbols"
    for token in (guarded.tokens["all"], guarded.sign(intervals=["5m"])):
        assert (await guarded.get(path, token)).status == status


@pytest.mark.gen_test
async def test_every_value_of_a_parameter_is_checked(guarded):
    token = guarded.tokens["btc"]
    for path in (
        f"{CANDLES}&symbol=ETH/USDT",
        "/api/candles?symbol=ETH%2FUSDT&interval=5m",
        "/udf/quotes?symbols=BTCUSDT,ethusdt",
        "/udf/marks?symbol=replay:ethusdt&from=0&to=1&resolution=5",
        "/api/gaps",
        "/api/gaps?symbol=ETH/USDT",
        "/api/coverage?symbol=ETH/USDT",
    ):
        assert (await guarded.get(path, token)).status == 403, path
    for path in (
        "/api/symbols",
        "/api/gaps?symbol=BTC/USDT",
        "/udf/quotes?symbols=BTCUSDT",
        "/udf/symbols?symbol=ETHUSDT",
    ):
        assert (await guarded.get(path, token)).status == 200, path


@pytest.mark.gen_test
async def test_a_subscription_to_more_than_the_claims_is_refused(guarded):
    def refused(what):
        return {
            **{"type": "error", "id": 1, "message": f"Not allowed with this token: {what}"},
            **{"code": 103, "temporary": False},
        }

    async with guarded.connect(f"/ws?token={guarded.tokens['btc']}") as ws:
        ask = {"type": "subscribe", "id": 1, "interval": "5m"}
        assert await send(ws, **ask, symbol="ETH/USDT") == refused("ETH/USDT")
        assert await send(ws, **{**ask, "interval": "1m"}, symbol="BTC/USDT") == refused("1m")
        assert await send(ws, **ask, symbol="*", mode="closed") == refused("*")
        page = {"type": "history", "id": 1, "interval": "5m"}
        assert await send(ws, **page, symbol="ETH/USDT") == refused("ETH/USDT")
        assert (await send(ws, **ask, symbol="BTC/USDT"))["type"] == "subscribed"
        assert (await receive(ws))["type"] == "initial"
    wide = guarded.sign(symbols=["*/USDT"])
    async with guarded.connect(f"/ws?token={wide}") as ws:
        assert (await send(ws, **ask, symbol="*/USDT", mode="closed"))["type"] == "subscribed"
        assert await send(ws, **ask, symbol="*", mode="closed") == refused("*")
    async with guarded.connect(f"/ws/ethusdt@kline_5m?token={guarded.tokens['btc']}") as ws:
        message = "Invalid request: not allowed with this token: ethusdt@kline_5m"
        assert await receive(ws) == {"error": {"code": 2, "msg": message}, "id": None}
    async with guarded.connect("/stream?streams=btcusdt@kline_5m") as ws:
        assert (await send(ws, type="auth", token=guarded.tokens["btc"]))["type"] == "authenticated"
        assert (await receive(ws))["stream"] == "btcusdt@kline_5m"


# ---------------------------------------------------------------- limits


@pytest.mark.gen_test
async def test_requests_are_counted_per_minute(guarded):
    token = guarded.tokens["one"]
    assert [(await guarded.get(CANDLES, token)).status for _ in range(3)] == [200, 200, 429]
    over = await guarded.get("/udf/time", token)
    message = "Too many requests: at most 2 per minute with this token"
    assert (over.status, over.headers["retry-after"]) == (429, "60")
    assert json.loads(over.body) == {"s": "error", "errmsg": message}
    await guarded.stage.clock.leap(61)
    assert (await guarded.get(CANDLES, token)).status == 200


@pytest.mark.gen_test
async def test_each_process_of_several_counts_for_itself(tmp_path):
    """They share the file of tokens, not the counts: with two processes a token may have twice its requests."""
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory in directories:
        directory.mkdir()
    async with open_guarded(directories[0]) as one, open_guarded(directories[1]) as two:
        two.path.write_bytes(one.path.read_bytes())
        await two.stage.clock.leap(1)  # a changed file is read within a second
        token = one.tokens["one"]
        for process in (one, two, one, two):
            assert (await process.get(CANDLES, token)).status == 200
        assert [(await process.get(CANDLES, token)).status for process in (one, two)] == [429, 429]
        for process in (one, two):
            await process.stage.clock.leap(61)
        async with one.connect(f"/ws?token={token}"), two.connect(f"/ws?token={token}"):
            for process in (one, two):
                with pytest.raises(websockets.InvalidStatus):
                    await process.connect(f"/ws?token={token}")


@pytest.mark.gen_test
async def test_connections_rooms_and_messages_have_the_limits_of_the_token(guarded):
    token = guarded.tokens["one"]
    path = f"/ws?token={token}"
    async with guarded.connect(path) as ws:
        assert (await send(ws, type="subscribe", id=1, symbol="BTC/USDT", interval="1m"))["type"] == "subscribed"
        await receive(ws)
        await guarded.stage.clock.leap(5)
        second = await send(ws, type="subscribe", id=2, symbol="BTC/USDT", interval="5m")
        assert (second["message"], second["code"]) == ("Too many subscriptions: at most 1 per connection", 106)
        answers = [await send(ws, type="ping", id=n) for n in range(3)]
        assert answers[-1]["message"] == "Too many messages: at most 1 per second"
        with pytest.raises(websockets.InvalidStatus) as refused:
            await guarded.connect(path)
        assert refused.value.response.status_code == 429
        await guarded.stage.clock.leap(61)
        async with guarded.connect() as other:
            answer = await send(other, type="auth", token=token, id=3)
            message = "Too many connections: at most 1 with this token"
            assert answer == {"type": "error", "id": 3, "message": message, "code": 106, "temporary": True}
            assert await close_of(other) == (3504, "too many connections")
    await until(lambda: not guarded.stage.server.guard.count_connections(), 3)
    async with guarded.connect(f"/ws/a?token={token}") as ws:
        ask = {"method": "SUBSCRIBE", "id": 1}
        answer = await send(ws, **ask, params=["btcusdt@kline_1m", "btcusdt@kline_5m"])
        assert answer["error"]["msg"] == "Invalid request: at most 1 streams per connection"


# ---------------------------------------------------------------- the end of a token


@pytest.mark.gen_test
async def test_connections_end_with_their_token(guarded):
    revoked, kept = guarded.tokens["btc"], guarded.tokens["all"]
    async with (
        guarded.connect(f"/ws?token={revoked}") as first,
        guarded.connect(f"/ws?token={guarded.sign()}") as second,
        guarded.connect(f"/ws?token={kept}") as third,
    ):
        for ws in (first, second, third):
            await send(ws, type="ping")
        del guarded.tokens["btc"]
        write_tokens(guarded.path, guarded.tokens)
        await guarded.stage.clock.leap(2)
        assert await close_of(first) == (3500, "token revoked")
        assert (await guarded.get(CANDLES, revoked)).status == 401
        await guarded.stage.clock.leap(60)
        assert await close_of(second) == (3005, "token expired")
        assert await send(third, type="ping") == {"type": "pong"}
        guarded.path.write_text("tokens: [")
        await guarded.stage.clock.leap(2)
        assert (await guarded.get(CANDLES, kept)).status == 200  # a broken file changes nothing


@pytest.mark.gen_test
async def test_no_log_has_a_token(guarded, caplog, monkeypatch):
    caplog.set_level("DEBUG")
    token = guarded.tokens["all"]
    monkeypatch.setattr(guarded.stage.pages, "read_page", lambda *_, **__: 1 / 0)
    path = f"/api/candles?symbol=BTC/USDT&interval=5m&format=arrow&limit=1&%74oken={token}"
    assert (await guarded.get(path)).status == 500
    await guarded.get("/api/candles?token=wrong-token")
    async with guarded.connect(f"/ws?token={token}") as ws:
        await send(ws, type="ping")
    records = [one for one in caplog.records if one.name != "websockets.client"]  # the test's own client
    texts = [f"{one.getMessage()} {one.exc_text or ''}" for one in records]
    assert any("division by zero" in text for text in texts)
    assert not any(token in text or "wrong-token" in text for text in texts)


# ---------------------------------------------------------------- wrong tokens


def fuzzed(source: random.Random, token: str) -> str:
    """A token that differs from a valid one in some characters, or any text."""
    signs = string.ascii_letters + string.digits + "-_.~"
    kind = source.randrange(4)
    if kind == 0:
        at = source.randrange(len(token))
        return f"{token[:at]}{source.choice(signs)}!{token[at + 1 :]}"
    if kind == 1:
        return token[: source.randrange(len(token))]
    if kind == 2:
        return "".join(source.choices(signs + "%&=;:, \t", k=source.randrange(1, 300))).strip() or "x"
    return ".".join("".join(source.choices(signs, k=source.randrange(0, 60))) for _ in range(3))


@pytest.mark.slow
@pytest.mark.gen_test
@pytest.mark.parametrize(
    "count", [pytest.param(300, id="short"), pytest.param(10_000, id="long", marks=[pytest.mark.long])]
)
async def test_fuzzed_tokens_get_401_and_nothing_else(guarded, count):
    source = random.Random(17)
    bases = (guarded.tokens["all"], guarded.sign())
    asked = [(CANDLES, {"Authorization": f"Bearer {fuzzed(source, source.choice(bases))}"}) for _ in range(count)]
    statuses = set()
    for at in range(0, count, 500):
        statuses |= {answer.status for answer in await ask_all(guarded.port, asked[at : at + 500])}
        await guarded.stage.clock.leap(60)  # budgets of work are paid
    assert statuses == {401}


@pytest.mark.gen_test
@pytest.mark.slow
async def test_the_time_of_a_refusal_does_not_depend_on_the_right_characters(guarded):
    guard, token = guarded.stage.server.guard, guarded.tokens["all"]
    kinds = {
        "last character": token[:-1] + "~",
        "first character": f"candled_all_~{token[13:]}",
        "other name": token.replace("_all_", "_xyz_"),
    }
    times = {name: [] for name in kinds}
    for _ in range(2000):
        for name, wrong in kinds.items():
            before = time.perf_counter_ns()
            with pytest.raises(Exception, match="Invalid token"):
                guard._verify(wrong)
            times[name].append(time.perf_counter_ns() - before)
    medians = {name: statistics.median(found) for name, found in times.items()}
    spread = statistics.quantiles(times["last character"], n=4)
    noise = max(spread[2] - spread[0], 0.1 * medians["last character"])
    assert max(medians.values()) - min(medians.values()) <= noise, (medians, noise)
