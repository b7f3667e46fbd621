"""The format of recordings: written, read, documented, and without personal details."""

import base64
import gzip
import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.ingest.decompression import decompress
from candled.testing import recording
from candled.testing.recording import (
    VERSION,
    Call,
    Closed,
    Event,
    Header,
    Opened,
    Received,
    RecordingError,
    RecordingWriter,
    Request,
    Sent,
    read_recording,
    redacted_line,
)
from candled.testing.redaction import compress, redact_binary, redact_text
from tests.sources import ROOT
from tests.tiers import few_examples

HEADER = Header(version=VERSION, exchange="coinfair", symbol="BTC/USDT", module="coinfair")
EVENTS: list[Event] = [
    Call(number=1, method="fetch_markets", at_ms=1),
    Request(at_ms=2, answered_ms=3, call=1, url="https://h.example/a?b=c", status=200, answer='{"é":1.50}'),
    Opened(at_ms=4, connection=1, url="wss://h.example/"),
    Sent(at_ms=5, connection=1, text="ping"),
    Received(at_ms=6, connection=1, text=" pong\n"),
    Received(at_ms=7, connection=1, data=b"\x00\xff"),
    Received(connection=1, text=""),
    Closed(at_ms=8, connection=1, reason="over"),
]


def write(path, events=EVENTS, header=HEADER):
    with RecordingWriter(path) as writer:
        for line in (header, *events):
            writer.write(line)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_recording_is_read_as_it_was_written(tmp_path, name):
    path = tmp_path / name
    write(path, EVENTS[:-1])
    with RecordingWriter(path, "ab") as writer:
        writer.write(EVENTS[-1])
    read = read_recording(path)
    assert read.header == HEADER
    assert read.events == tuple(EVENTS)
    assert str(read.symbol) == "BTC/USDT"
    assert [one.content for one in read.select(Received)] == [" pong\n", b"\x00\xff", ""]
    [call] = read.select(Call)
    assert read.requests_of(call) == read.select(Request)
    content = path.read_bytes()
    lines = (gzip.decompress(content) if name.endswith(".gz") else content).splitlines()
    assert [json.loads(line)["type"] for line in lines[:4]] == ["header", "call", "request", "opened"]


def test_a_recording_is_not_overwritten(tmp_path):
    write(tmp_path / "a.jsonl")
    with pytest.raises(RecordingError, match=r"a.jsonl: cannot be written: File exists"):
        write(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "a.jsonl:1: expected the header of a recording, got ''"),
        ("{}\n", "a.jsonl:1: expected the header of a recording, got '{}'"),
        ('{"type":"header","version":2,"exchange":"x","symbol":"A/B"}\n', "expected version 1 of the format, got 2"),
        ('{"type":"header","version":1,"exchange":"x","symbol":"A"}\n', "a.jsonl:1: "),
        ('HEADER{"type":"sent","connection":1,"text":"a","at":1}\n', "a.jsonl:2: expected a line of a recording"),
        ('HEADER{"type":"other"}\n', "a.jsonl:2: expected a line of a recording"),
        ('HEADER{"type":"received","connection":1}\n', "a.jsonl:2: expected a received frame with text or data"),
        ("HEADER\n", "a.jsonl:2: expected a line of a recording, got ''"),
    ],
)
def test_a_file_in_another_format_is_refused_with_its_line(tmp_path, text, error):
    header = '{"type":"header","version":1,"exchange":"x","symbol":"A/B"}\n'
    (tmp_path / "a.jsonl").write_text(text.replace("HEADER", header), "utf-8")
    with pytest.raises(RecordingError, match=re.escape(error)):
        read_recording(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name):
    with pytest.raises(RecordingError, match="cannot be read: No such file"):
        read_recording(tmp_path / name)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"{}\n")[:-4])
        with pytest.raises(RecordingError, match="cannot be read"):
            read_recording(tmp_path / name)


def test_a_last_line_without_its_end_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert read_recording(path).events == tuple(EVENTS[:-1])


# ---------------------------------------------------------------- personal details


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"data":{"token":"2neAiuYvAU61ZDXANAGA", "t":1}}', '{"data":{"token":"redacted", "t":1}}'),
        ('{"api_key" : "k\\"k","b":1.50}', '{"api_key" : "redacted","b":1.50}'),
        ('{"connId":"4bf7ba4d-2d5c-4e13-a4d2-8a2f1f8e"}', '{"connId":"redacted"}'),
        ("wss://ann:s3cret@h.example/p?token=2neAiuYvAU61ZDXANAGA&x=1", "wss://h.example/p?token=redacted&x=1"),
        ("https://h.example/p?signature=ab&symbol=BTC", "https://h.example/p?signature=redacted&symbol=BTC"),
        ("Your IP 203.0.113.77, or 2001:db8::7, is limited", "Your IP 0.0.0.0, or ::, is limited"),
    ],
)
def test_personal_details_are_replaced(text, expected):
    assert redact_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"token":"USDT","key":"BTCUSDT","s":"BTC","t":1788000000000}',  # the name of a coin
        '{"version":"2.0.10","time":"2026-08-12T10:11:12.123Z","p":["1.25","300.1.2.3"]}',
        "http://127.0.0.1:8080/x?symbol=BTC-USDT&from=1&to=2",
        "[1788000000000,1.5]",
        "12:30:45",
    ],
)
def test_prices_names_and_times_stay(text):
    assert redact_text(text) == text


@given(st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
@few_examples
def test_json_without_secrets_stays_byte_for_byte(value):
    text = json.dumps(value, ensure_ascii=False)
    if not re.search(r"[:.].*[:.]|://|[?&]", text):
        assert redact_text(text) == text


@pytest.mark.parametrize("compression", [None, "gzip", "zlib", "deflate"])
def test_a_binary_frame_is_compressed_again_only_if_it_has_a_secret(compression):
    plain = compress(b'{"a":[1.50]}', compression)
    assert redact_binary(plain, compression) is plain
    secret = redact_binary(compress(b'{"email":"a@b.example"}', compression), compression)
    content = secret if compression is None else decompress(secret, compression, 1000)
    assert content == b'{"email":"redacted"}'


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_binary_frame_that_is_no_text_stays(compression):
    assert redact_binary(b"\xff\x00token", compression) == b"\xff\x00token"


def test_every_text_of_a_line_is_redacted():
    secret = "email=x&email=y 203.0.113.77"
    texts = {"url", "text", "body", "answer", "reason"}
    for kind in (Opened, Sent, Received, Closed, Request):
        fields = {one.name for one in msgspec.structs.fields(kind)}
        given = dict.fromkeys(fields & texts, f"?{secret}")
        if kind is Request:
            given |= {"status": 200, "headers": {"x": secret}}
        else:
            given["connection"] = 1
        line = redacted_line(kind(**given))
        assert fields & texts
        assert "203" not in repr(line)


# ---------------------------------------------------------------- the page

PAGE = (ROOT / "docs" / "reference" / "recordings.md").read_text("utf-8")


def test_the_example_of_the_page_is_a_recording(tmp_path):
    [example] = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "a.jsonl").write_text(example, "utf-8")
    assert len(read_recording(tmp_path / "a.jsonl").events) == len(example.splitlines()) - 1


def test_every_line_and_field_is_on_the_page_and_no_other():
    kinds = {"header": Header, **{one.__struct_config__.tag: one for one in Event.__args__}}
    documented = {}
    for heading, section in re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL):
        for kind in heading.split(", "):
            documented[kind] = {
                name
                for names, text in re.findall(r"^\| (`.+?`) \| (.+)", section, re.MULTILINE)
                for name in re.findall(r"\w+", names)
                if name != "field" and ("opened" not in heading or kind in text or text.startswith("all"))
            }
    assert documented == {name: {one.name for one in msgspec.structs.fields(kind)} for name, kind in kinds.items()}
    listed = re.findall(r"^\| `(\w+)` \| ", PAGE.split("## Lines")[1].split("###")[0], re.MULTILINE)
    assert listed == ["type", *kinds]
    assert f"version of the format: {recording.VERSION} |" in PAGE


def test_binary_frames_are_base64_in_the_file(tmp_path):
    write(tmp_path / "a.jsonl", [Received(connection=1, data=b"\x00\xff")])
    line = json.loads((tmp_path / "a.jsonl").read_text("utf-8").splitlines()[1])
    assert base64.b64decode(line["data"]) == b"\x00\xff"
