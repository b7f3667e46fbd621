"""Files of other programs become recordings: ccxt's static tests, logs of cryptofeed, and samples."""

import asyncio
from pathlib import Path

import pytest

from candled import Symbol
from candled.cli import main
from candled.model import MINUTE_MS
from candled.testing.conversion import convert_files
from candled.testing.modules import choose_exchange, make_exchange
from candled.testing.recording import Call, Opened, Received, Recording, RecordingError, Request, Sent, read_recording
from candled.testing.replayed import RecordedClock, Replay, replay_recording

HOUR_MS = 60 * MINUTE_MS
BTC = Symbol("BTC", "USDT")
FRAMES = Path(__file__).parents[1] / "plugins"

# In the form of ccxt's static files, with numbers that are not in any of them.
RESPONSE = """{"exchange": "coinfair", "skipKeys": [], "options": {}, "methods": {
  "fetchOrder": [{"description": "an order", "method": "fetchOrder", "input": ["1"], "httpResponse": {"id": 1}}],
  "fetchOHLCV": [
    {"description": "a", "method": "fetchOHLCV", "input": ["BTC/USDT", "1h", 1700000000000, 3],
     "httpResponse": {"rows": [[1700002800000, "1.10", 2.50, 9007199254740993]]}, "parsedResponse": []},
    {"description": "b", "method": "fetchOHLCV", "input": ["BTC/USDT", "1m", 1699999980000, 2], "httpResponse": []},
    {"description": "c", "method": "fetchOHLCV", "input": ["BTC/USDT"], "httpResponse": {"d": null}},
    {"description": "d", "method": "fetchOHLCV", "input": ["BTC/USDT", "1M", 1700000000000], "httpResponse": [1]},
    {"description": "e", "method": "fetchOHLCV", "input": ["ETH/USDT", "1d", 1700000000000],
     "url": null, "output": null, "httpResponse": [2]}
  ]}}"""
REQUEST = """{"exchange": "coinfair", "outputType": "json", "methods": {"fetchOHLCV": [
    {"description": "a", "method": "fetchOHLCV", "url": "https://api.coinfair.example/h?s=BTC",
     "input": ["BTC/USDT", "1h", 1700000000000, 3]},
    {"description": "f", "method": "fetchOHLCV", "url": "https://api.coinfair.example/f",
     "input": ["BTC/USDT", "1h"], "output": "{\\"from\\":1}"}
  ]}}"""
STREAM = """{"exchange": "coinfair", "methods": {"watchOHLCV": [
    {"description": "a", "input": ["BTC/USDT", "1m"], "url": "wss://stream.coinfair.example/v1",
     "sentMessages": [{"subscribe": "btc-usdt"}, "ping"],
     "messages": [{"market": "btc-usdt"}, "pong", {"candle": [1.50, 2]}], "parsedResponses": []}
  ]}}"""


def test_answers_of_ccxt_become_calls_and_requests_byte_for_byte():
    recording = convert_files([("coinfair.json", RESPONSE)], symbol=BTC)
    assert (recording.header.exchange, recording.symbol, recording.header.module) == ("coinfair", BTC, "")
    assert recording.header.source == "converted from coinfair.json"
    hour, minutes = recording.select(Call)
    assert (hour.method, hour.interval) == ("fetch_bars", "1h")
    assert (hour.start_ms, hour.end_ms) == (1_700_002_800_000, 1_700_002_800_000 + 3 * HOUR_MS)
    assert (minutes.method, minutes.start_ms, minutes.end_ms) == ("fetch_history", 1699999980000, 1700000100000)
    answers = [(one.call, one.status, one.answer) for one in recording.select(Request)]
    assert answers == [
        (1, 200, '{"rows": [[1700002800000, "1.10", 2.50, 9007199254740993]]}'),
        (2, 200, "[]"),
        (0, 200, '{"d": null}'),  # without a time, no call asks for the same rows
        (0, 200, "[1]"),  # months are no interval of candled
    ]


def test_the_days_of_ccxt_are_those_of_candled():
    recording = convert_files([("coinfair.json", RESPONSE)], symbol=Symbol("ETH", "USDT"))
    [call] = recording.select(Call)
    assert (call.method, call.interval, call.start_ms) == ("fetch_bars", "1D", 1_700_006_400_000)
    assert call.end_ms - call.start_ms == 100 * 24 * HOUR_MS
    assert [one.answer for one in recording.select(Request)] == ["[2]"]


def test_the_addresses_of_requests_join_the_answers():
    recording = convert_files([("response.json", RESPONSE), ("request.json", REQUEST)], symbol=BTC)
    first, *_, last = recording.select(Request)
    assert (first.method, first.url, first.status) == ("GET", "https://api.coinfair.example/h?s=BTC", 200)
    assert (last.method, last.body, last.status) == ("POST", '{"from":1}', 0)
    assert last.answer == "the source has no answer"


def test_frames_of_ccxt_become_a_connection():
    recording = convert_files([("ws.json", STREAM)])
    assert [one.url for one in recording.select(Opened)] == ["wss://stream.coinfair.example/v1"]
    assert [one.text for one in recording.select(Sent)] == ['{"subscribe": "btc-usdt"}', "ping"]
    assert [one.text for one in recording.select(Received)] == [
        '{"market": "btc-usdt"}',
        "pong",
        '{"candle": [1.50, 2]}',
    ]


def test_a_log_of_cryptofeed_has_times_and_frames_that_match():
    log = """wss://s.example/v1?token=AAAAAAAAAAAAAAAAAAAA <-> 1649290076.511507
wss://s.example/v1?token=AAAAAAAAAAAAAAAAAAAA <- 1649290077.3: {"op":"subscribe"}
1649290077.519851: {"market":"btc-usdt"}
1649290078: {"market":"eth-usdt"}
"""
    recording = convert_files([("a.txt", log)], exchange="coinfair", symbol=BTC, match="btc")
    times = [(type(one).__name__, one.at_ms) for one in recording.events]
    assert times == [("Opened", 1649290076512), ("Sent", 1649290077300), ("Received", 1649290077520)]


def test_samples_of_frames_and_answers_are_read():
    stream = '> {"id":"|1|"}\n< { "ok": |1| }\n= \n{\n  "candle": [\n    1\n  ]\n}\n'
    recording = convert_files([("a.txt", stream)], exchange="coinfair", symbol=BTC)
    assert [one.text for one in recording.select(Sent)] == ['{"id":1}']
    assert [one.text for one in recording.select(Received)] == ['{ "ok": 1 }', '{\n  "candle": [\n    1\n  ]\n}']
    answer = convert_files([("a.txt", 'POST\n/info\nfalse\n{"a": 1}')], exchange="coinfair", symbol=BTC)
    [request] = answer.select(Request)
    assert (request.method, request.url, request.answer) == ("POST", "/info", '{"a": 1}')


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        ("other", {}, "a.txt: expected a file of ccxt or cryptofeed, or a sample, got 'other'"),
        ('{"methods": 1}', {}, "a.txt: expected a file of ccxt, or frames of JSON, one a line: "),
        ("{", {}, "a.txt: expected a file of ccxt, or frames of JSON, one a line: "),
        ("wss://s.example/ <-> 1649290076\nx\n", {"exchange": "x"}, "a.txt:2: expected a line of cryptofeed, got 'x'"),
        (RESPONSE, {}, "expected --symbol, because the files have BTC/USDT, ETH/USDT"),
        (RESPONSE, {"symbol": Symbol("LTC", "USDT")}, "expected frames or answers about LTC/USDT, got none"),
        ("GET\n/\nfalse\n{}", {"symbol": BTC}, "expected --exchange with the name of the exchange"),
        ("GET\n/\nfalse\n{}", {"exchange": "x"}, "expected --symbol, because the files have no symbols"),
        ("GET\n/", {"exchange": "x", "symbol": BTC}, "a.txt: expected a sample of a request"),
    ],
)
def test_a_file_in_another_form_is_refused(text, options, error):
    with pytest.raises(RecordingError) as raised:
        convert_files([("a.txt", text)], **options)
    assert error in str(raised.value)


# ---------------------------------------------------------------- with the bundled plugins


def play(plugin: str, recording: Recording) -> Replay:
    clock = RecordedClock(1_786_540_000_000)
    exchange = make_exchange(choose_exchange(plugin, recording.header.exchange), (), clock)
    return asyncio.run(replay_recording(recording, exchange, clock))


@pytest.mark.parametrize(
    ("plugin", "file", "symbol", "versions", "hours"),
    [
        ("okx", "socket_spot.json", "BTC/USDT", 2, 0),
        ("okx", "rest_hours_spot.json", "BTC/USDT", 0, 3),
        ("bybit", "socket_spot.json", "BTC/USDT", 2, 0),
        ("gate", "socket_spot.json", "BTC/USDT", 2, 0),
        ("htx", "socket.json", "BTC/USDT", 2, 0),
        ("kraken", "socket.json", "BTC/USD", 11, 0),
        ("kraken", "rest_hours.json", "BTC/USDT", 0, 3),
        ("kucoin", "rest_hours.json", "BTC/USDT", 0, 3),
        ("binance", "rest_hours_spot.json", "BTC/USDT", 0, 3),
        ("binance", "boundary_spot.txt", "XEM/USDT", None, 0),
    ],
)
def test_a_bundled_plugin_reads_a_converted_file(plugin, file, symbol, versions, hours):
    text = (FRAMES / plugin / "frames" / file).read_text("utf-8")
    match = symbol[:3] if file.endswith(".txt") else ""  # a log of several symbols
    recording = convert_files([(file, text)], exchange=plugin, symbol=Symbol.parse(symbol), match=match)
    replay = play(plugin, recording)
    assert replay.problems == []
    found = sum(map(len, replay.versions(recording.symbol).values()))
    assert found == versions if versions is not None else found > 1
    assert sum(map(len, replay.bars.values())) == hours


# ---------------------------------------------------------------- the command


def test_the_command_writes_a_recording_without_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = 'wss://s.example/v1?token=AAAAAAAAAAAAAAAAAAAA <-> 1649290076.5\n1649290077: {"market":"btc-usdt"}\n'
    Path("log.txt").write_text(log, "utf-8")
    options = ["--exchange", "coinfair", "--symbol", "BTC/USDT"]
    assert main(["plugin", "convert", "log.txt", "--output", "a.jsonl", *options]) == 0
    assert capsys.readouterr().out == "wrote a.jsonl: 2 lines\n"
    assert read_recording(Path("a.jsonl")).select(Opened)[0].url == "wss://s.example/v1?token=redacted"


@pytest.mark.parametrize(
    ("file", "output", "error"),
    [
        ("no.txt", "a.jsonl", "no.txt: cannot be read: No such file or directory"),
        ("bad.txt", "a.jsonl", "bad.txt: cannot be read: not UTF-8 text"),
        ("other.txt", "a.jsonl", "other.txt: expected a file of ccxt"),
        ("good.txt", "good.txt", "good.txt: cannot be written: File exists"),
    ],
)
def test_a_mistake_is_one_line(file, output, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_bytes(b"\xff")
    Path("other.txt").write_text("other", "utf-8")
    Path("good.txt").write_text("GET\n/\nfalse\n{}", "utf-8")
    options = ["--exchange", "coinfair", "--symbol", "BTC/USDT"]
    assert main(["plugin", "convert", file, "--output", output, *options]) == 2
    assert error in capsys.readouterr().err
