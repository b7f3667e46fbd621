"""The recorder against fakes: a recording has all that passed, and the plugin reads it as it read the exchange."""

import asyncio
import contextlib
import gzip
import json
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import msgspec
import pytest
from tornado.web import RequestHandler
from websockets.asyncio.server import ServerConnection

from candled import (
    Candle,
    Candles,
    ConfigError,
    Event,
    Exchange,
    Http,
    Market,
    PollingFeed,
    Settings,
    SocketFeed,
    Symbol,
    Unavailable,
    WebSocketUrl,
    hookimpl,
    setting,
)
from candled.cli import main
from candled.model import MINUTE_MS
from candled.testing.findings import CHECKS, judge
from candled.testing.modules import choose_exchange, make_exchange
from candled.testing.recording import (
    Call,
    Closed,
    Opened,
    Received,
    Recording,
    Request,
    Sent,
    read_recording,
)
from candled.testing.replayed import RecordedClock, Replay, replay_recording
from candled.tools.plugin_record import record_exchange, reread_minutes
from tests.clocks import START_MS, FairScaledClock, ScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.plugins.local import socket_server, web_server

BTC = Symbol("BTC", "USDT")
MINUTES = 2


def play(recording: Recording) -> tuple[Replay, dict[str, bool | None]]:
    clock = RecordedClock()
    exchange = make_exchange(choose_exchange(recording.header.module), (), clock)
    replay = asyncio.run(replay_recording(recording, exchange, clock))
    return replay, {name: judge(name, recording, exchange, replay).is_right for name in CHECKS}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, FakeBitget]:
    """A recording of the fake Bitget, with an hour later in which one minute has changed."""
    path = tmp_path_factory.mktemp("recording") / "a.jsonl"
    clock = FairScaledClock(300.0, START_MS - 1000)
    fake = FakeBitget(clock, [FakeMarket(symbol=BTC, tape=Synthetic(7))], push_interval_s=5)
    fake.enforce_limits = False

    async def record() -> None:
        async with fake:
            settings = [f"ws_url={fake.ws_url}", f"rest_url={fake.rest_url}"]
            assert await record_exchange("bitget", BTC, clock, minutes=MINUTES, path=path, assignments=settings) == 0
            with pytest.raises(ConfigError, match="expected an hour after the last minute; try again at"):
                await reread_minutes(path, clock, settings)
            start_ms = read_recording(path).select(Call)[-1].start_ms
            fake.revise(BTC, start_ms, Synthetic(8).row(start_ms))
            assert await reread_minutes(path, FairScaledClock(300.0, clock.now_ms() + 60 * MINUTE_MS), settings) == 0

    asyncio.run(record())
    return path, fake


def test_a_recording_has_every_frame_and_request_that_passed(recorded):
    path, fake = recorded
    recording = read_recording(path)
    assert (recording.header.exchange, recording.header.module, recording.symbol) == ("bitget", "bitget", BTC)
    assert [one.text for one in recording.select(Sent) if one.text != "ping"] == fake.frames
    assert [urlsplit(one.url).path for one in recording.select(Request)] == [one.path for one in fake.requests]
    assert [one.url for one in recording.select(Opened)] == [fake.ws_url]
    assert [one.reason for one in recording.select(Closed)] == ["the recording is complete"]
    assert len(recording.select(Received)) > 20
    times = [event.at_ms for event in recording.events if not isinstance(event, Request)]
    assert times == sorted(times)


def test_the_same_minutes_are_read_after_the_stream_and_an_hour_later(recorded):
    recording = read_recording(recorded[0])
    calls = recording.select(Call)
    assert [(one.method, one.phase) for one in calls] == [
        ("fetch_markets", "before"),
        *[("fetch_history", "before")] * 4,
        ("fetch_bars", "before"),
        ("fetch_bars", "before"),
        ("fetch_history", "after"),
        ("fetch_history", "later"),
    ]
    after, later = calls[-2:]
    assert (after.start_ms, after.end_ms) == (later.start_ms, later.end_ms)
    long, first, middle, last = calls[1:5]
    assert first.start_ms == long.start_ms < middle.start_ms < last.start_ms < last.end_ms < long.end_ms
    assert after.end_ms - after.start_ms == MINUTES * MINUTE_MS
    assert later.at_ms >= after.end_ms + 60 * MINUTE_MS
    # the markets are in two answers: their list, and their volumes
    assert [len(recording.requests_of(call)) for call in calls] == [2, *[1] * 8]


def test_a_plugin_reads_its_recording_as_it_read_the_exchange(recorded):
    recording = read_recording(recorded[0])
    replay, findings = play(recording)
    assert replay.problems == []
    noted = {"no version follows the final one", "REST has the same minutes an hour later"}
    assert findings == {name: None if name in noted else True for name in CHECKS}
    after, later = replay.minutes["after"], replay.minutes["later"]
    assert [at for at in after if after[at][1:7] != later[at][1:7]] == [min(after)]
    assert len(replay.bars["1h"]) == 24


def edited(recording: Recording, change: Callable[[str], str], kind: type[Event]) -> Recording:
    """A recording in which a function has changed the text of each line of a kind."""
    field = "answer" if kind is Request else "text"
    events = tuple(
        msgspec.structs.replace(one, **{field: change(getattr(one, field))}) if isinstance(one, kind) else one
        for one in recording.events
    )
    return Recording(recording.header, events)


@pytest.mark.parametrize(
    ("kind", "old", "new", "wrong"),
    [
        (Received, '"action":"update"', '"action":"other"', {"every frame and answer is read"}),
        (
            Received,
            r'(\["17\d*)","[^"]*',
            r'\1","0',
            {"every row is a candle", "the stream has candles of the symbol"},
        ),
        (Received, r',"([^"]*","[^"]*","[^"]*"\])', r',"9\1', {"the minutes of the stream are those of REST"}),
        (Sent, "candle1m", "candle5m", {"every frame and answer is read"}),
        (Request, '"BTC"', '"ETH"', {"the list of markets has the symbol"}),
        (Request, r'"data": \[\[.*\]', '"data": []', {"REST has each minute of the stream"}),
        (Request, "^", "<html>", {"every frame and answer is read"}),
    ],
)
def test_a_mistake_is_found(recorded, kind, old, new, wrong):
    """Each finding can fail: here the exchange differs instead of the plugin."""
    _, findings = play(edited(read_recording(recorded[0]), lambda text: re.sub(old, new, text), kind))
    assert wrong <= {name for name, is_right in findings.items() if is_right is False}


def test_a_request_that_was_not_recorded_is_a_problem(recorded):
    recording = read_recording(recorded[0])
    events = tuple(
        msgspec.structs.replace(one, url=one.url.replace("symbol=BTCUSDT", "symbol=ETHUSDT"))
        if isinstance(one, Request)
        else one
        for one in recording.events
    )
    replay, _ = play(Recording(recording.header, events))
    assert "the recording has no answer to GET /api/v2/spot/market/candles?" in replay.problems[0]


@pytest.mark.slow
def test_the_command_tests_a_plugin_with_a_recording(recorded, capsys):
    main(["plugin", "test", "bitget", "--recording", str(recorded[0])])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"bitget: {recorded[0]}"
    assert lines[1] == "passed  every frame and answer is read"
    assert "passed  the minutes of the stream are those of REST: 2 of 2 minutes" in lines
    corrected = "note    REST has the same minutes an hour later: the exchange changed 1 of 2: 2025-"
    assert any(line.startswith(corrected) for line in lines)
    print(lines)


# ---------------------------------------------------------------- binary frames, and an exchange that fails


class GzipFeed(SocketFeed):
    compression = "gzip"

    def subscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        return ["subscribe"]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        return [Candles(BTC, (Candle.parse(*json.loads(frame)["row"], None, as_of_ms=0),))]


class GzipSettings(Settings):
    ws_url: WebSocketUrl = setting("wss://x.example", "the WebSocket")


class Gzipped(Exchange):
    name = "gzipped"
    Settings = GzipSettings
    feed_class = GzipFeed

    async def fetch_markets(self, http: Http) -> list[Market]:
        raise Unavailable("no list today")

    async def fetch_history(self, http: Http, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle]:
        return []


@pytest.fixture
def gzipped(monkeypatch):
    module = ModuleType("gzipped_plugin")
    module.candled_exchanges = hookimpl(lambda: [Gzipped])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


async def test_binary_frames_are_recorded_before_decompression(gzipped, tmp_path, capsys):
    frame = gzip.compress(json.dumps({"row": [START_MS, 1, 1, 1, 1, 1], "token": "a" * 32}).encode(), mtime=0)

    async def send(connection: ServerConnection) -> None:
        await connection.recv()
        while True:
            await connection.send(frame)
            await asyncio.sleep(0.02)

    path, clock = tmp_path / "a.jsonl.gz", FairScaledClock(600.0, START_MS - 100)
    async with socket_server(send) as url:
        await record_exchange(gzipped, BTC, clock, minutes=1, path=path, assignments=[f"ws_url={url}"])
    recording = read_recording(path)
    received = {one.data for one in recording.select(Received)}
    assert recording.header.compression == "gzip"
    assert {gzip.decompress(data) for data in received} == {gzip.decompress(frame).replace(b"a" * 32, b"redacted")}
    assert "failed: fetch_markets: no list today" in capsys.readouterr().err
    clock = RecordedClock()
    replay = await replay_recording(recording, Gzipped(GzipSettings(), clock), clock)
    assert len(replay.versions(BTC)[START_MS]) == len(recording.select(Received))
    assert replay.problems == ["call 1, fetch_markets: no list today"]


async def test_a_recording_without_a_candle_has_status_1_and_the_reason(gzipped, tmp_path, capsys):
    async def refuse(connection: ServerConnection) -> None:
        await connection.close(1008, "go")

    path, clock = tmp_path / "a.jsonl", FairScaledClock(600.0, START_MS - 100)
    async with socket_server(refuse) as url:
        status = await record_exchange(gzipped, BTC, clock, minutes=1, path=path, assignments=[f"ws_url={url}"])
    assert status == 1
    assert "no frame with a candle arrived: connection closed: " in capsys.readouterr().err
    assert {one.connection for one in read_recording(path).select(Closed)} >= {1}


class SkippingClock(FairScaledClock):
    """A clock on which long pauses take no time."""

    async def sleep(self, seconds: float) -> None:
        if seconds >= 600:
            self._start_ms += round(seconds * 1000)
        else:
            await super().sleep(seconds)


TOKEN = "2neAiuYvAU61ZDXANAGAsiL4"


class TokenFeed(GzipFeed):
    compression = None
    rest_url = ""

    async def prepare_connection(self, http: Http) -> str:
        body = await http.post_json(f"{self.rest_url}/token")
        return f"{self.url}?token={body['token']}"


async def test_a_token_is_used_but_not_recorded_and_the_minutes_are_read_again_after_an_hour(
    gzipped, tmp_path, monkeypatch
):
    class Tokens(RequestHandler):
        def post(self) -> None:
            self.finish({"token": TOKEN, "ip": "203.0.113.5"})

    paths = []

    async def send(connection: ServerConnection) -> None:
        paths.append(connection.request.path)
        async for _ in connection:
            await connection.send(json.dumps({"row": [START_MS, 1, 1, 1, 1, 1]}))

    monkeypatch.setattr(Gzipped, "feed_class", TokenFeed)
    path, clock = tmp_path / "a.jsonl", SkippingClock(600.0, START_MS - 100)
    async with socket_server(send) as url, web_server(("/token", Tokens)) as rest_url:
        monkeypatch.setattr(TokenFeed, "rest_url", rest_url)
        await record_exchange(
            gzipped, BTC, clock, minutes=1, path=path, is_hour_later=True, assignments=[f"ws_url={url}"]
        )
    recording = read_recording(path)
    assert paths == [f"/?token={TOKEN}"]
    assert TOKEN not in path.read_text("utf-8")
    assert "203.0.113.5" not in path.read_text("utf-8")
    [request] = recording.select(Request)
    assert (request.call, request.method, json.loads(request.answer)["token"]) == (0, "POST", "redacted")
    assert [one.url.partition("?")[2] for one in recording.select(Opened)] == ["token=redacted"]
    *_, after, later = recording.select(Call)
    assert (after.phase, later.phase) == ("after", "later")
    assert later.at_ms - after.at_ms >= 60 * MINUTE_MS


async def test_of_a_feed_without_a_websocket_the_requests_are_recorded(gzipped, tmp_path, monkeypatch, capsys):
    class Rows(RequestHandler):
        def get(self) -> None:
            self.finish({"rows": []})

    async def fetch_history(self, http, symbol, start_ms, end_ms):
        return (await http.get_json(self.settings.ws_url.replace("ws:", "http:")))["rows"]

    monkeypatch.setattr(Gzipped, "make_feed", lambda self, symbols: PollingFeed(self, symbols))
    monkeypatch.setattr(Gzipped, "fetch_history", fetch_history)
    path, clock = tmp_path / "a.jsonl", FairScaledClock(600.0, START_MS - 100)
    async with web_server(("/", Rows)) as url:
        assignments = [f"ws_url={url.replace('http', 'ws')}/"]
        await record_exchange(gzipped, BTC, clock, minutes=1, path=path, assignments=assignments)
    recording = read_recording(path)
    polls = [one for one in recording.select(Request) if one.call == 0]
    assert len(polls) >= 2
    assert recording.select(Received) == []
    assert "gzipped has a feed of its own: only its requests over REST are recorded" in capsys.readouterr().err


@pytest.mark.parametrize("signals", [1, 2])
def test_after_ctrl_c_the_whole_minutes_are_still_read_and_a_second_one_skips_them(
    gzipped, tmp_path, monkeypatch, capsys, signals
):
    path, clock, sent = tmp_path / "a.jsonl", FairScaledClock(600.0, START_MS - 100), []

    def send_signal() -> None:
        sent.append(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    async def send(connection: ServerConnection) -> None:
        await connection.recv()
        await clock.sleep(3 * 60 + 30)
        send_signal()
        await connection.wait_closed()

    async def fetch_history(self, http, symbol, start_ms, end_ms):
        if sent and signals == 2:
            send_signal()
        return []

    async def record() -> int:
        async with socket_server(send) as url:
            return await record_exchange(
                gzipped, BTC, clock, minutes=60, path=path, is_hour_later=True, assignments=[f"ws_url={url}"]
            )

    monkeypatch.setattr(GzipFeed, "compression", None)
    monkeypatch.setattr(Gzipped, "fetch_history", fetch_history)
    with contextlib.nullcontext() if signals == 1 else pytest.raises(KeyboardInterrupt):
        asyncio.run(record())
    recording = read_recording(path)
    call = recording.select(Call)[-1]
    minutes = (call.end_ms - call.start_ms) // MINUTE_MS
    assert (call.phase, minutes >= 2) == ("after", True)
    assert [one.reason for one in recording.select(Closed)] == ["the recording is complete"]
    shown = capsys.readouterr()
    assert f"whole minutes to read over REST: {minutes}. Press Ctrl-C again to skip" in shown.err
    assert (f"wrote {path}" in shown.out) == (signals == 1)


class HalfWrittenFeed(GzipFeed):
    def read_frame(self, frame: str | bytes) -> list[Event]:
        raise NotImplementedError("fill in read_frame")


async def test_frames_are_recorded_before_the_plugin_can_read_them(gzipped, tmp_path, capsys, monkeypatch):
    async def send(connection: ServerConnection) -> None:
        await connection.recv()
        while True:
            await connection.send("frame")
            await asyncio.sleep(0.02)

    monkeypatch.setattr(Gzipped, "feed_class", HalfWrittenFeed)
    path, clock = tmp_path / "a.jsonl", FairScaledClock(600.0, START_MS - 100)
    async with socket_server(send) as url:
        status = await record_exchange(gzipped, BTC, clock, minutes=1, path=path, assignments=[f"ws_url={url}"])
    recording = read_recording(path)
    assert len(recording.select(Opened)) == 1
    assert len(recording.select(Received)) > 1
    assert status == 1
    assert capsys.readouterr().err.count("failed: read_frame: NotImplementedError: fill in read_frame") == 1


async def test_a_plugin_that_cannot_subscribe_is_not_recorded(gzipped, tmp_path, monkeypatch):
    def fail(self, symbols):
        raise NotImplementedError("fill in subscribe")

    monkeypatch.setattr(GzipFeed, "subscribe", fail)
    with pytest.raises(ConfigError, match="gzipped: cannot subscribe: NotImplementedError: fill in subscribe"):
        await record_exchange(gzipped, BTC, ScaledClock(), minutes=1, path=tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- mistakes of the author


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["record", "no_such_module", "A/B"], "no_such_module: no such plugin or module; `candled plugins` lists"),
        (["record", "binance", "A/B"], "expected --exchange with one of binance, binance-usdm, got several exchanges"),
        (["record", "binance", "A/B", "--exchange", "x"], "one of binance, binance-usdm, got x"),
        (["record", "bitget", "A/B", "--set", "ws_url"], "--set: expected KEY=VALUE, got ws_url"),
        (["record", "bitget", "A/B", "--set", "ws_ulr=x"], "--set.ws_ulr: unknown setting, did you mean ws_url?"),
        (["record", "bitget", "A/B", "--set", "ws_url=["], "--set ws_url: expected a value in YAML, got ["),
        (["record", "bitget", "A/B", "--output", "no/a.jsonl"], "no/a.jsonl: cannot be written: No such file"),
        (["record", "bitget", "AB"], "expected BASE/QUOTE"),
        (["record", "json", "A/B"], "json: implements no hook; is the @hookimpl missing?"),
        (["test", "bitget", "--recording", "no.jsonl"], "no.jsonl: cannot be read: No such file"),
        (["reread", "no.jsonl"], "no.jsonl: cannot be read: No such file"),
    ],
)
def test_a_mistake_is_a_line_and_status_2(arguments, error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", *arguments]) == 2
    assert error in capsys.readouterr().err


def test_a_plugin_is_found_in_the_current_directory_and_its_error_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_broken_plugin.py").write_text("import no_such_library", "utf-8")
    with pytest.raises(ConfigError, match="own_broken_plugin: ModuleNotFoundError: No module named 'no_such_library'"):
        choose_exchange("own_broken_plugin")
