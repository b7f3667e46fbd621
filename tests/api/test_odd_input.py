"""Lone surrogates, NUL, characters of four bytes, deep nesting: every dialect answers, and nothing logs a traceback."""

import asyncio
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from candled.clock import SystemClock
from candled.config.sections import KlinesSettings, ServerSettings
from candled.model import DEFAULT_INTERVALS
from candled.protocol.requests import RequestCodec, RequestError
from tests import deadlines
from tests.api.stage import BTC, open_stage

LONG = bool(os.environ.get("CANDLED_TEST_LONG"))
SHORT = settings(
    max_examples=60 if LONG else 6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = [
    "\ud800",
    "\udfff\ud800",
    "x\ud83d",
    "\ud83d\ude00",
    "\0",
    "a\0b",
    "😀",
    "\u2028",
    "\x7f",
    "é" * 70,
    "😀" * 70,
    "\ud800" * 70,
]
TEXTS = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=()), max_size=80)
DEPTHS = st.sampled_from([50, 500, 2000]) | st.integers(960, 1010)  # the interpreter's limit is near 1000


def nested(depth: int) -> str:
    return f"{'[' * depth}{']' * depth}"


def nested_objects(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def own(key: str, value: str, kind: str) -> str:
    """A request of candled's protocol whose `key` is the JSON text `value`."""
    known = {"type": json.dumps(kind), "symbol": '"BTC/USDT"', "interval": '"5m"', key: value}
    return f"{{{','.join(f'{json.dumps(name)}:{text}' for name, text in known.items())}}}"


def binance(key: str, value: str, kind: str) -> str:
    """The same in Binance's."""
    known = {"method": json.dumps(kind), "params": '["btcusdt@kline_1m"]', "id": "1", key: value}
    return f"{{{','.join(f'{json.dumps(name)}:{text}' for name, text in known.items())}}}"


VALUES = (
    TEXTS.map(json.dumps)
    | TEXTS.map(lambda text: json.dumps([text]))
    | TEXTS.map(lambda text: json.dumps({text: text}))
    | DEPTHS.map(nested)
    | DEPTHS.map(nested_objects)
)
OWN_KEYS = [
    "type", "symbol", "interval", "exchange", "id", "fields", "numbers", "mode", "status", "corrections", "resume",
    "subscriptions", "initialBars", "before", "limit", "unknown",
]  # fmt: skip
OWN_KINDS = ["subscribe", "history", "unsubscribe"]
BINANCE_KEYS = ["method", "params", "id", "unknown"]
BINANCE_KINDS = ["SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY"]
OWN = st.builds(own, st.sampled_from(OWN_KEYS), VALUES, st.sampled_from(OWN_KINDS))
BINANCE = st.builds(binance, st.sampled_from(BINANCE_KEYS), VALUES, st.sampled_from(BINANCE_KINDS))
EACH = [json.dumps(value) for text in ODD for value in (text, [text], {text: text})]
EACH += [make(depth) for depth in (500, 985, 990, 995, 2000) for make in (nested, nested_objects)]
PATHS = {
    "/api/candles": ["symbol", "interval", "exchange", "from", "to", "limit", "format", "numbers", "odd"],
    "/api/gaps": ["symbol", "exchange", "from"],
    "/api/coverage": ["symbol", "to"],
    "/udf/symbols": ["symbol"],
    "/udf/search": ["query", "type", "limit"],
    "/udf/history": ["symbol", "resolution", "from", "to", "countback"],
    "/udf/quotes": ["symbols"],
    "/udf/marks": ["symbol", "from", "to", "resolution"],
    "/api/v3/klines": ["symbol", "interval", "startTime", "limit", "timeZone", "timeUnit", "odd"],
    "/events": ["symbol", "interval", "exchange", "fields", "mode", "numbers", "initialBars", "status"],
}
KNOWN = {"symbol": "BTC/USDT", "interval": "1m", "resolution": "1", "from": "0", "to": "9999999999"}
EVERY_PARAMETER = [(path, name) for path, names in PATHS.items() for name in names]


def address(parameter: tuple[str, str], text: str) -> str:
    path, name = parameter
    values = {key: quote(KNOWN[key]) for key in PATHS[path] if key in KNOWN} | {name: escaped(text)}
    return f"{path}?{'&'.join(f'{key}={value}' for key, value in values.items())}"


def escaped(text: str) -> str:
    """A text in an address, as a careless program would put it there."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def strict(text: str | bytes) -> Any:
    """Read JSON as a strict reader does: UTF-8, and no lone surrogate, not even in an escape."""
    return msgspec.json.decode(text)


def served(check) -> None:
    """Run a check of one server, in whose log nothing may be at the end that names a mistake of its own."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]

    async def run() -> None:
        server = ServerSettings(host="127.0.0.1", port=0, max_messages_per_second=0)
        with tempfile.TemporaryDirectory() as folder:
            klines = KlinesSettings(enabled=True)
            async with open_stage(Path(folder), clock=SystemClock(), server=server, klines=klines) as one:
                await check(one.server.listen())

    logging.getLogger().addHandler(handler)
    try:
        asyncio.run(run())
    finally:
        logging.getLogger().removeHandler(handler)
    mistakes = [record.getMessage() for record in records if record.exc_info or record.levelno >= logging.ERROR]
    assert not mistakes


async def send_all_json(port: int, path: str, messages: list[str], last: str, name: Any) -> None:
    """Send messages on one connection; every answer is strict JSON, and the last request is still answered."""
    async with websockets.connect(f"ws://127.0.0.1:{port}{path}", max_size=None, max_queue=None) as ws:
        for message in messages:
            await ws.send(message)
        await ws.send(last)
        while strict(await deadlines.wait_for(ws.recv(decode=False), 10)).get("id") != name:
            pass


PING, LIST = '{"type":"ping","id":"the last"}', '{"method":"LIST_SUBSCRIPTIONS","id":"the-last"}'


@pytest.mark.slow
def test_each_odd_value_is_answered_wherever_it_stands():
    async def check(port: int) -> None:
        messages = [own(key, value, kind) for key in OWN_KEYS for value in EACH for kind in OWN_KINDS[:2]]
        await send_all_json(port, "/ws", ['{"type":"ping"}', *messages], PING, "the last")
        messages = [binance(key, value, kind) for key in BINANCE_KEYS for value in EACH for kind in BINANCE_KINDS]
        await send_all_json(port, "/ws/x", messages, LIST, "the-last")
        for text in ODD:
            for parameter in EVERY_PARAMETER:
                await check_address(port, parameter, text)
            for path in (f"/ws/{escaped(text)}@kline_1m", f"/stream?streams={escaped(text)}@kline_1m"):
                await send_all_json(port, path, [], LIST, "the-last")
        last = "/events?symbol=BTC/USDT&interval=1m"
        await asyncio.gather(*(ask(port, last, {"Last-Event-ID": f"{text}:1:1"}) for text in ODD))

    served(check)


@pytest.mark.slow
@SHORT
@given(st.lists(OWN, min_size=20, max_size=40), st.lists(BINANCE, min_size=20, max_size=40))
def test_odd_messages_are_answered_in_both_protocols(own_messages, binance_messages):
    async def check(port: int) -> None:
        await send_all_json(port, "/ws", ['{"type":"ping"}', *own_messages], PING, "the last")
        await send_all_json(port, "/ws/x", binance_messages, LIST, "the-last")

    served(check)


@pytest.mark.slow
@SHORT
@given(st.lists(OWN | BINANCE, min_size=5, max_size=15))
def test_odd_first_messages_are_answered(messages):
    async def check(port: int) -> None:
        for message in messages:
            async with websockets.connect(f"ws://127.0.0.1:{port}/", max_size=None) as ws:
                await ws.send(message)
                await ws.send(PING)
                await ws.send(LIST)
                strict(await deadlines.wait_for(ws.recv(decode=False), 10))

    served(check)


@pytest.mark.slow
@SHORT
@given(st.lists(st.tuples(st.sampled_from(EVERY_PARAMETER), TEXTS), min_size=20, max_size=40))
def test_odd_addresses_are_answered(parameters):
    async def check(port: int) -> None:
        for parameter, text in parameters:
            await check_address(port, parameter, text)

    served(check)


async def check_address(port: int, parameter: tuple[str, str], text: str) -> None:
    """The answer to an odd parameter is no mistake of the server's, and a strict reader can read it."""
    status, body = await ask(port, address(parameter, text))
    assert status < 500, (parameter, text)
    body.decode("utf-8", "strict")
    for line in body.splitlines():
        if line.startswith((b"{", b"[")):
            strict(line)


async def ask(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """The status and the body of an answer, or its first event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"{name}: {value.translate(dict.fromkeys(range(32)))}" for name, value in (headers or {}).items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogatepass"))
    try:
        async with deadlines.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"text/event-stream" in head:
                event = await reader.readuntil(b"}\n\n")
                return int(head.split()[1]), event[event.index(b"data: ") + 6 :]
            return int(head.split()[1]), await reader.read()
    finally:
        writer.close()


@pytest.mark.slow
def test_no_depth_of_nesting_is_anything_but_a_clear_error():
    """Near the interpreter's limit a value can be read, but not be printed in the error: that was a traceback."""
    codec = RequestCodec({"replay": [BTC.symbol]}, DEFAULT_INTERVALS)
    for depth in range(900, 1002):
        for key in ("id", "fields", "numbers", "mode", "resume", "initialBars", "status", "symbol"):
            for value in (nested(depth), nested_objects(depth)):
                with pytest.raises(RequestError):
                    codec.decode_request(own(key, value, "subscribe"))
