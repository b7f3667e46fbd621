"""Binance's kline streams on real sockets: frames, requests, errors, and that no bar's end is left out."""

import asyncio
import json
import time

import pytest
import websockets

from candled.clock import SystemClock
from candled.config.sections import KlinesSettings, ServerSettings
from candled.model import MINUTE_MS
from tests import deadlines
from tests.api.stage import BTC, ETH, FUTURE
from tests.rows import MONDAY_MS, minute

ON = KlinesSettings(enabled=True)
START_MS = MONDAY_MS + 60 * MINUTE_MS
pytestmark = [pytest.mark.gen_test, pytest.mark.stage(clock=SystemClock(), klines=ON)]


async def receive_json(ws, within_s: float = 3.0):
    return json.loads(await deadlines.wait_for(ws.recv(), within_s))


async def ask(ws, method: str, *params, request_id=1):
    await ws.send(json.dumps({"method": method, "params": list(params), "id": request_id}))
    return await receive_json(ws)


async def test_a_stream_begins_with_the_bar_as_it_is_and_goes_on_as_it_changes(stage, connect):
    stage.push(minute(60, close="10.5", volume="1.50"))
    async with connect("/ws/btcusdt@kline_1m") as ws:
        first = await receive_json(ws)
        stage.push(minute(60, close="9", volume="2"))
        second = await receive_json(ws)
    assert abs(first.pop("E") - time.time() * 1000) < 5000
    assert first == {
        "e": "kline", "s": "BTCUSDT",
        "k": {
            "t": START_MS, "T": START_MS + MINUTE_MS - 1, "s": "BTCUSDT", "i": "1m", "f": -1, "L": -1, "o": "10",
            "c": "10.5", "h": "10.5", "l": "10", "v": "1.5", "n": 0, "x": False, "q": "0", "V": "0", "Q": "0", "B": "0",
        },
    }  # fmt: skip
    assert (second["k"]["c"], second["k"]["v"], second["k"]["x"]) == ("9", "2", False)


@pytest.mark.stage(minutes={BTC: []})
async def test_numbers_and_quote_volumes_are_exact_strings(stage, connect):
    candle = minute(0, close="10.00000001", volume="0.123456789012345678")._replace(quote_volume=minute(0).open)
    stage.store.set_complete_from(BTC, MONDAY_MS)
    await stage.bars.start()
    stage.push(candle)
    async with connect("/ws/btcusdt@kline_1m") as ws:
        kline = (await receive_json(ws))["k"]
    assert (kline["c"], kline["v"], kline["q"]) == ("10.00000001", "0.123456789012345678", "10")


async def test_the_combined_stream_names_each(stage, connect):
    names = ["btcusdt@kline_1m", "btcusdt@kline_1d", "btcusdt@kline_1w"]
    async with connect(f"/stream?streams={'/'.join(names)}") as ws:
        received_event = [await receive_json(ws) for _ in names]
        assert [message["stream"] for message in received_event] == names
        assert [message["data"]["k"]["i"] for message in received_event] == ["1m", "1d", "1w"]
        stage.push(minute(60, volume="5"))
        assert {(await receive_json(ws))["stream"] for _ in names} == set(names)


@pytest.mark.slow
@pytest.mark.stage(minutes={BTC: [minute(0, final=True)], ETH: [minute(0, final=True)]})
async def test_streams_are_subscribed_listed_and_left_by_request(stage, connect):
    async with connect("/ws/anything") as ws:  # as ccxt connects
        assert await ask(ws, "LIST_SUBSCRIPTIONS", request_id=3) == {"result": [], "id": 3}
        assert await ask(ws, "SUBSCRIBE", "btcusdt@kline_1m", "ethusdt@kline_5m") == {"result": None, "id": 1}
        assert [(await receive_json(ws))["s"] for _ in range(2)] == ["BTCUSDT", "ETHUSDT"]
        assert await ask(ws, "LIST_SUBSCRIPTIONS", request_id="a") == {
            "result": ["btcusdt@kline_1m", "ethusdt@kline_5m"], "id": "a",
        }  # fmt: skip
        assert await ask(ws, "SUBSCRIBE", "btcusdt@kline_1m", request_id=None) == {"result": None, "id": None}
        assert await ask(ws, "UNSUBSCRIBE", "btcusdt@kline_1m", "nothing") == {"result": None, "id": 1}
        stage.push(minute(1, volume="3"))
        stage.push(minute(1, volume="4"), ETH)
        assert (await receive_json(ws))["k"]["v"] == "5"
        with pytest.raises(TimeoutError):
            await receive_json(ws, 1.2)


async def test_combined_is_a_property(stage, connect):
    async with connect("/ws/btcusdt@kline_1m") as ws:
        assert "stream" not in await receive_json(ws)
        assert await ask(ws, "GET_PROPERTY", "combined") == {"result": False, "id": 1}
        assert await ask(ws, "SET_PROPERTY", "combined", True) == {"result": None, "id": 1}
        assert await ask(ws, "GET_PROPERTY", "combined") == {"result": True, "id": 1}
        stage.push(minute(60, volume="7"))
        received_event = await receive_json(ws)  # the bar that it began with is not sent a second time
        assert (received_event["stream"], received_event["data"]["k"]["v"]) == ("btcusdt@kline_1m", "7")


UNKNOWN = "Invalid request: unknown method, expected one of "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ("", 3, "Invalid JSON: expected value at line 1 column 1"),
        ("[", 3, "Invalid JSON: expected value at line 1 column 2"),
        (b"\xff", 3, "Invalid JSON: expected value"),
        ("[1]", 2, "Invalid request: expected an object"),
        ("{}", 2, UNKNOWN),
        ('{"method":"SUBSCRIBE","id":1}', 2, "Invalid request: params must be a list that is not empty"),
        ('{"method":"SUBSCRIBE","params":"x","id":1}', 2, "Invalid request: params must be a list that is not empty"),
        ('{"method":"SUBSCRIBE","params":[1],"id":1}', 2, "Invalid request: params must be names of streams"),
        ('{"method":"SUBSCRIBE","params":["x@trade"],"id":1}', 2, "Invalid request: unknown stream x@trade"),
        (
            '{"method":"SUBSCRIBE","params":["btcusdt@kline_1m","btcusdt@kline_1m@+08:00"],"id":1}', 2,
            "Invalid request: unknown stream btcusdt@kline_1m@+08:00",
        ),
        ('{"method":"GET_PROPERTY","params":["x"],"id":1}', 0, "Unknown property"),
        ('{"method":"SET_PROPERTY","params":["combined","x"],"id":1}', 1, "Invalid value type: expected Boolean"),
        ('{"method":"LIST_SUBSCRIPTIONS","id":[]}', 2, "Invalid request: request ID must be"),
        ('{"method":"LIST_SUBSCRIPTIONS","id":1.5}', 2, "Invalid request: request ID must be"),
        ('{"method":"LIST_SUBSCRIPTIONS","id":"%s"}' % ("x" * 37), 2, "Invalid request: request ID must be"),
        ('{"method":"LIST_SUBSCRIPTIONS","id":18446744073709551616}', 2, "Invalid request: request ID must be"),
    ],
)  # fmt: skip
async def test_a_mistake_is_answered_as_binance_does_and_nothing_is_subscribed(connect, message, code, text):
    async with connect("/ws/x") as ws:
        await ws.send(message)
        received_event = await receive_json(ws)
        assert received_event.keys() == {"error", "id"}  # without them ccxt waits forever
        assert received_event["error"]["code"] == code
        assert received_event["error"]["msg"].startswith(text)
        known = json.loads(message) if code != 3 else {}
        assert received_event["id"] == (known["id"] if "id" in known and "request ID" not in text else None)
        assert await ask(ws, "LIST_SUBSCRIPTIONS") == {"result": [], "id": 1}


async def test_an_address_with_an_unknown_stream_is_reported(connect):
    async with connect("/ws/nope@kline_1m") as ws:
        refusal = {"code": 2, "msg": "Invalid request: unknown stream nope@kline_1m"}
        assert await receive_json(ws) == {"error": refusal, "id": None}


@pytest.mark.slow
async def test_x_is_true_exactly_once_per_bar_and_last(stage, connect):
    """Bars that end, some of them seconds after the next one opened; a final bar is sent before the next one."""
    async with connect("/ws/btcusdt@kline_1m") as ws:
        received_event = [await receive_json(ws)]
        for number in range(60, 64):
            for volume in ("1", "2"):
                stage.push(minute(number, volume=volume))
                await asyncio.sleep(0.6)
            stage.push(minute(number, volume="3", final=True))
        stage.push(minute(64))
        while received_event[-1]["k"]["t"] < START_MS + 4 * MINUTE_MS:
            received_event.append(await receive_json(ws, 8))
    ends = [message["k"]["t"] for message in received_event if message["k"]["x"]]
    assert ends == [START_MS + number * MINUTE_MS for number in range(-1, 4)]
    times = [(message["k"]["t"], message["k"]["x"]) for message in received_event]
    assert times == sorted(times)
    assert [message["k"]["v"] for message in received_event if message["k"]["x"]][1:] == ["3"] * 4


@pytest.mark.slow
async def test_a_bar_that_opens_is_sent_within_three_seconds_though_the_last_one_is_not_final(stage, connect):
    async with connect("/ws/btcusdt@kline_1m") as ws:
        await receive_json(ws)
        stage.push(minute(60, volume="2"))
        assert (await receive_json(ws))["k"]["v"] == "2"
        stage.push(minute(61, volume="3"), watermark_ms=START_MS)
        kline = (await receive_json(ws, 3.5))["k"]
        assert (kline["t"], kline["x"]) == (START_MS + MINUTE_MS, False)
        stage.push(minute(60, volume="4", final=True))
        kline = (await receive_json(ws))["k"]
        assert (kline["t"], kline["v"], kline["x"]) == (START_MS, "4", True)


@pytest.mark.parametrize("unit", ["MICROSECOND", "microsecond"])
@pytest.mark.parametrize("path", ["/ws/btcusdt@kline_1m?timeUnit=", "/stream?streams=btcusdt@kline_1m&timeUnit="])
async def test_times_are_in_microseconds_where_that_is_asked_for(connect, unit, path):
    async with connect(path + unit) as ws, connect(path + "second") as wrong:
        received_event = await receive_json(ws)
        event = received_event.get("data", received_event)
        assert (event["k"]["t"], event["k"]["T"]) == ((START_MS - MINUTE_MS) * 1000, START_MS * 1000 - 1)
        assert abs(event["E"] / 1e6 - time.time()) < 5
        assert (await receive_json(wrong))["error"]["msg"].startswith("Invalid request: timeUnit")


async def test_bars_that_a_burst_skips_are_sent_with_the_next_resync(stage, connect):
    """More bars in a moment than a room lets wait: each of them ends all the same."""
    async with connect("/ws/btcusdt@kline_1m") as ws:
        await receive_json(ws)
        for number in range(60, 69):
            stage.push(minute(number, volume="3", final=True))
        ends = []
        while len(ends) < 9:
            kline = (await receive_json(ws, 12))["k"]
            ends += [kline["t"]] if kline["x"] else []
    assert ends == [START_MS + number * MINUTE_MS for number in range(9)]


@pytest.mark.slow
@pytest.mark.stage(minutes={BTC: [minute(0, final=True)], FUTURE: [minute(0, final=True)]})
async def test_one_membership_serves_all_clients_of_a_stream_and_ends_with_the_last(stage, get, connect):
    clients = [await connect(path) for path in ["/ws/btcusdt@kline_1m", "/stream?streams=btcusdt@kline_1m"] * 10]
    for ws in clients:
        await receive_json(ws)
    statistics = await get("/health/ws-stats")
    assert statistics["connections"] == 20
    assert next(stage.hub.describe_rooms())["clientCount"] == 1
    stage.push(minute(1, volume="9"))
    klines = [(message.get("data") or message)["k"] for message in [await receive_json(ws) for ws in clients]]
    assert {kline["v"] for kline in klines} == {"9"}
    for ws in clients:
        await ws.close()
    for _ in range(100):
        if not stage.hub.describe()["totalRooms"]:
            break
        await asyncio.sleep(0.02)
    assert stage.hub.describe()["totalRooms"] == 0


@pytest.mark.stage(server=ServerSettings(max_messages_per_second=5))
async def test_a_flood_of_messages_is_ended_and_the_end_of_the_server_is_sent(stage, connect):
    async with connect("/ws/x") as flood:
        for number in range(100):
            await flood.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
        await flood.wait_closed()
        assert flood.close_code == 1008
    raw, combined = (
        await connect("/ws/btcusdt@kline_1m"),
        await connect("/stream?streams=btcusdt@kline_1m"),
    )
    await receive_json(raw)
    await receive_json(combined)
    await stage.server.stop()
    assert (await receive_json(raw))["e"] == "serverShutdown"
    received_event = await receive_json(combined)
    assert (received_event["stream"], received_event["data"]["e"]) == ("!serverShutdown", "serverShutdown")
    with pytest.raises(websockets.ConnectionClosed):
        await receive_json(raw)
    assert raw.close_code == 1001


SUBSCRIBE = '{"method":"SUBSCRIBE","params":["btcusdt@kline_1m"],"id":1}'
BEGUN = {"result": None, "id": 1}, "kline"
PING, PONG = '{"type":"ping"}', {"type": "pong"}
FORMAT = {"type": "error", "message": "Invalid message format"}
NAMED = {**FORMAT, "id": 1, "code": 107, "temporary": False}
METHOD = {
    "error": {"code": 2, "msg": UNKNOWN + "SUBSCRIBE, UNSUBSCRIBE, LIST_SUBSCRIPTIONS, SET_PROPERTY, GET_PROPERTY"}
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "sent", "received"),
    [
        ("/ws", [SUBSCRIBE], [BEGUN]),  # hummingbot's only way, binance-connector's default
        ("/", [SUBSCRIBE], [BEGUN]),
        ("/ws/", [SUBSCRIBE], [BEGUN]),
        ("/ws", [PING, PING], [PONG, PONG]),
        ("/", [PING], [PONG]),
        ("/ws", [PING, SUBSCRIBE, PING], [PONG, NAMED, PONG]),  # the first one decided
        ("/ws", [SUBSCRIBE, PING], [BEGUN, {**METHOD, "id": None}]),
        ("/ws", ["{}", "[", '"x"', SUBSCRIBE], [FORMAT, FORMAT, FORMAT, BEGUN]),  # these are of neither
        ("/ws", [b"\xff", "[" * 9000, PING, SUBSCRIBE], [FORMAT, FORMAT, PONG, NAMED]),
        ("/ws", ['{"type":"ping","method":"SUBSCRIBE"}', SUBSCRIBE], [PONG, NAMED]),
        ("/ws", ['{"method":null}', PING], [{**METHOD, "id": None}, {**METHOD, "id": None}]),
        ("/ws/x", [PING, SUBSCRIBE], [{**METHOD, "id": None}, BEGUN]),  # Binance's path alone
    ],
)
@pytest.mark.parametrize("stage_options", [{"server": ServerSettings(own_sockets=own)} for own in (True, False)])
async def test_the_first_message_decides_which_protocol_a_connection_speaks(connect, path, sent, received):
    async with connect(path) as ws:
        for message, answers in zip(sent, received, strict=True):
            await ws.send(message)
            for wanted in answers if isinstance(answers, tuple) else (answers,):
                received_event = await receive_json(ws)
                assert received_event.get("e", received_event) == wanted


async def test_a_connection_that_never_named_its_protocol_is_let_go(stage, connect):
    silent, malformed = await connect("/ws"), await connect("/ws")
    await malformed.send("{")
    assert await receive_json(malformed) == FORMAT
    await silent.close()
    await stage.server.stop()
    with pytest.raises(websockets.ConnectionClosed):
        await receive_json(malformed)
    assert malformed.close_code == 1001


@pytest.mark.stage(klines=KlinesSettings())
async def test_our_own_protocol_stays_where_it_is(connect):
    async with connect("/ws") as ws:
        await ws.send(SUBSCRIBE)
        assert await receive_json(ws) == NAMED
        await ws.send(PING)
        assert await receive_json(ws) == PONG


@pytest.mark.slow
@pytest.mark.stage(klines=KlinesSettings(enabled=True, prefix="/binance"))
async def test_a_prefix_moves_the_streams(connect):
    for path in ("/binance/ws/btcusdt@kline_1m", "/binance/stream?streams=btcusdt@kline_1m"):
        async with connect(path) as ws:
            assert "kline" in str(await receive_json(ws))
    async with connect("/binance/ws") as ws:
        assert await ask(ws, "LIST_SUBSCRIPTIONS") == {"result": [], "id": 1}
    async with connect("/ws") as ws:
        assert await ask(ws, "LIST_SUBSCRIPTIONS") == NAMED
    with pytest.raises(websockets.InvalidStatus):
        await connect("/ws/btcusdt@kline_1m")
