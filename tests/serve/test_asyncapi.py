"""docs/reference/asyncapi.yaml is valid, and what a running server sends and takes is what it says."""

import asyncio
import copy
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import websockets

from candled.bus import FeedMetadata, HistoryChanged, MinuteChanged, StateChanged
from candled.clock import SystemClock
from candled.config.sections import ServerSettings
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Symbol
from candled.protocol.requests import RequestCodec, RequestError
from tests.api.stage import BTC, ETH, open_stage
from tests.protocol.test_requests import WRONG, subscribe
from tests.rows import MONDAY_MS, minute
from tests.serve.test_server import SUBSCRIBE, receive_json, send_json
from tests.sources import ROOT, read_yaml

[DOCUMENT] = read_yaml(ROOT / "docs" / "reference" / "asyncapi.yaml")
REQUESTS = {"subscribe": "subscribe", "unsubscribe": "unsubscribe", "ping": "ping", "list": "getList",
            "history": "getHistory"}  # fmt: skip
ANSWERS = {
    reference["$ref"].rsplit("/", 1)[1]
    for operation in ("tell", "tellExtended")
    for reference in DOCUMENT["operations"][operation]["messages"]
}


def validator(name: str) -> jsonschema.Draft7Validator:
    """Checks payloads of one message of the document."""
    return jsonschema.Draft7Validator({**DOCUMENT, "$ref": f"#/components/messages/{name}/payload"})


def is_answer(message: dict) -> bool:
    kind = message.get("type")
    return isinstance(kind, str) and kind in ANSWERS and validator(kind).is_valid(message)


# ---------------------------------------------------------------- the document


@pytest.mark.slow
def test_the_document_is_a_valid_asyncapi_3_document():
    schema = json.loads(gzip.decompress((ROOT / "tests" / "data" / "asyncapi-3.0.0-schema.json.gz").read_bytes()))
    assert DOCUMENT["asyncapi"] == "3.0.0"
    jsonschema.Draft7Validator(schema).validate(DOCUMENT)
    broken = copy.deepcopy(DOCUMENT)
    broken["operations"]["ask"]["action"] = "listen"
    assert not jsonschema.Draft7Validator(schema).is_valid(broken)


def references(node: Any) -> list[str]:
    """Every `$ref` of the document."""
    if isinstance(node, list):
        return [found for one in node for found in references(one)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
    return own + [found for one in node.values() for found in references(one)]


def test_every_reference_leads_somewhere_and_every_message_is_sent_by_one_side():
    for reference in references(DOCUMENT):
        node = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    described = {
        reference["$ref"].rsplit("/", 1)[1] for one in DOCUMENT["operations"].values() for reference in one["messages"]
    }
    assert described == DOCUMENT["components"]["messages"].keys() == DOCUMENT["channels"]["stream"]["messages"].keys()


def test_its_schemas_are_schemas():
    for name in DOCUMENT["components"]["messages"]:
        jsonschema.Draft7Validator.check_schema(DOCUMENT["components"]["messages"][name]["payload"])


# ---------------------------------------------------------------- what a client sends

EXAMPLES = [
    example["payload"] for name in REQUESTS.values() for example in DOCUMENT["components"]["messages"][name]["examples"]
]


@pytest.mark.parametrize("message", EXAMPLES, ids=json.dumps)
def test_the_examples_are_understood(message):
    validator(REQUESTS[message["type"]]).validate(message)
    RequestCodec({"replay": [BTC.symbol]}, DEFAULT_INTERVALS).decode_request(json.dumps(message))


@pytest.mark.parametrize(("changes", "text", "code"), [one for one in WRONG if one[2] != 102])
def test_what_the_server_calls_wrong_is_wrong_by_the_document(changes, text, code):
    message = json.loads(subscribe(**changes))
    name = REQUESTS.get(message["type"]) if isinstance(message["type"], str) else None
    assert name is None or not validator(name).is_valid(message)
    with pytest.raises(RequestError):
        RequestCodec({"bitget": [Symbol.parse("BTC/USDT")]}, DEFAULT_INTERVALS).decode_request(json.dumps(message))


# ---------------------------------------------------------------- what a server sends


async def captured(folder: Path) -> list[dict]:
    """What clients of every kind are sent by a running server, each type at least once."""
    received: list[dict] = []

    async def listen(ws) -> None:
        async for text in ws:
            received.append(json.loads(text))

    everything = {"fields": ["final", "seq", "rev", "src"], "status": True, "corrections": True, "id": "all"}
    server = ServerSettings(host="127.0.0.1", port=0)
    async with open_stage(folder, clock=SystemClock(), server=server) as one:
        url = f"ws://127.0.0.1:{one.server.listen()}/"
        facts = FeedMetadata(watermark_ms=MONDAY_MS + 60 * MINUTE_MS)
        one.bus.publish(StateChanged(BTC, "live", MONDAY_MS))
        one.bus.publish(MinuteChanged(BTC, minute(60, volume="2")._replace(src="live"), facts))
        plain, extended, closed, again = [await websockets.connect(url) for _ in range(4)]
        tasks = [asyncio.ensure_future(listen(ws)) for ws in (plain, extended, closed)]
        await send_json(plain, SUBSCRIBE)
        await send_json(plain, {"type": "ping"})
        await send_json(plain, {"type": "unheard"})
        await send_json(extended, {**SUBSCRIBE, **everything})
        several = [{"interval": "5m"}, {"interval": "1D"}, {"interval": "7m"}]
        await send_json(extended, {**SUBSCRIBE, "id": 1, "fields": ["rev"], "subscriptions": several})
        await send_json(extended, {"type": "list", "id": 2})
        await send_json(extended, {"type": "ping", "id": 3})
        await send_json(extended, {"type": "history", "symbol": "BTC/USDT", "interval": "1m", "id": 4, "limit": 3})
        page = {"type": "history", "symbol": "BTC/USDT", "interval": "1m", "id": 6, "limit": 3, "numbers": "string"}
        await send_json(extended, page)
        await send_json(extended, {"type": "unsubscribe", "symbol": "BTC/USDT", "interval": "5m", "id": 5})
        await send_json(closed, {**SUBSCRIBE, "mode": "closed", "fields": ["seq"]})
        await send_json(
            closed, {**SUBSCRIBE, "mode": "closed", "symbol": "*/*", "id": 7, "corrections": True, "markets": True}
        )
        await send_json(closed, {"type": "list"})
        await send_json(closed, {"type": "unsubscribe", "symbol": "!BTC/*", "interval": "1m", "id": 8})
        await send_json(again, {**SUBSCRIBE, "fields": ["seq"]})
        shown = await receive_json(again)
        await again.close()
        await asyncio.sleep(0.3)
        one.bus.publish(MinuteChanged(BTC, minute(60, volume="3", final=True), facts))
        one.bus.publish(
            MinuteChanged(BTC, minute(61, volume="1"), FeedMetadata(watermark_ms=MONDAY_MS + 61 * MINUTE_MS))
        )
        one.store.write_minutes([(BTC, minute(50, "15", final=True, as_of=90_000)._replace(rev=1, src="rest"))])
        span = minute(50).open_ms, minute(51).open_ms
        one.bus.publish(HistoryChanged(BTC, *span, MONDAY_MS, FeedMetadata(watermark_ms=MONDAY_MS + 61 * MINUTE_MS)))
        one.bus.publish(StateChanged(BTC, "stale", MONDAY_MS + 1, "leader_silent"))
        one.universe.set_markets("replay", [BTC.symbol, ETH.symbol])
        again = await websockets.connect(url)
        tasks.append(asyncio.ensure_future(listen(again)))
        position = {"epoch": shown["epoch"], "seq": shown["seq"], "time": shown["bars"][-1]["time"]}
        await send_json(again, {**SUBSCRIBE, "fields": ["seq", "final"], "resume": position})
        await send_json(again, {**SUBSCRIBE, "interval": "5m", "resume": {**position, "epoch": "gone"}})
        await asyncio.sleep(3.5)
        await one.server.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
    return received


@pytest.fixture(scope="module")
def messages(tmp_path_factory) -> list[dict]:
    return asyncio.run(captured(tmp_path_factory.mktemp("store")))


@pytest.mark.slow
def test_every_message_of_a_running_server_is_as_documented(messages):
    assert {message["type"] for message in messages} == ANSWERS - {"authenticated"}  # see test_tokens
    for message in messages:
        validator(message["type"]).validate(message)
    keys = {key for message in messages for key in message}
    assert {"epoch", "seq", "recovered", "temporary", "end", "existed", "reason"} <= keys
    bars = [bar for message in messages for bar in [message.get("bar"), *message.get("bars", [])] if bar]
    assert {"final", "rev", "src"} <= {key for bar in bars for key in bar}
    assert {type(bar["close"]) for bar in bars} == {int, str}


def mutants(message: dict) -> list[tuple[str, dict]]:
    """The same message with one thing wrong, in each way that a careless change of the server could make it so."""
    found: list[tuple[str, dict]] = []

    def with_one(path: list, change) -> None:
        other = copy.deepcopy(message)
        node = other
        for step in path:
            node = node[step]
        change(node)
        found.append((f"{path}: {json.dumps(other)[:200]}", other))

    def visit(node: Any, path: list) -> None:
        if isinstance(node, list):
            for at in range(min(len(node), 2)):
                visit(node[at], [*path, at])
            return
        if not isinstance(node, dict):
            return
        with_one(path, lambda node: node.update(surprise=1))
        for key, value in node.items():
            with_one(path, lambda node, key=key: node.update({key: {"not": "this"}}))
            with_one(path, lambda node, key=key: node.update({key: None}))
            if key not in (
                "exchange",
                "quoteVolume",
                "final",
                "rev",
                "src",
                "epoch",
                "seq",
                "recovered",
                "id",
                "reason",
                "pattern",
            ):
                with_one(path, lambda node, key=key: node.pop(key))
            if isinstance(value, int | float) and key != "id":
                wrong = (
                    "1e5" if path and path[0] in ("bar", "bars") else str(value)
                )  # no decimal as the server prints it
                with_one(path, lambda node, key=key, wrong=wrong: node.update({key: wrong}))
            if key == "time":
                with_one(path, lambda node, value=value: node.update(time=value.replace(".000Z", "Z")))
            visit(value, [*path, key])

    visit(message, [])
    return found


@pytest.mark.slow
def test_a_message_with_anything_wrong_in_it_is_noticed(messages):
    kinds = {(message["type"], *sorted(message)): message for message in messages}
    made = [mutant for message in kinds.values() for mutant in mutants(message)]
    assert len(made) > 300
    assert [text for text, mutant in made if is_answer(mutant)] == []


@pytest.mark.slow
def test_clients_that_did_not_ask_get_specified_messages_only(messages):
    """The document's own division: what `tell` holds needs no more keys than the specification has."""
    plain = {reference["$ref"].rsplit("/", 1)[1] for reference in DOCUMENT["operations"]["tell"]["messages"]}
    assert plain == {"initial", "update", "error", "pong"}
    specified = {"type", "symbol", "interval", "exchange", "bars", "bar", "message"}
    for name in plain:
        payload = DOCUMENT["components"]["messages"][name]["payload"]
        assert set(payload["required"]) <= specified
