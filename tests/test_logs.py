"""The log under attack: one line for each record, no secrets, and a bounded number of lines a minute."""

import io
import json
import logging

import pytest

from candled.logs import BoundedHandler, JsonFormatter
from candled.model.texts import printable
from candled.tasks import TaskSet
from tests.clocks import ManualClock

FORGED = "x\n2026-01-01 00:00:00,000 CRITICAL candled.app: forged"


def handler_to_text() -> tuple[BoundedHandler, io.TextIOWrapper]:
    handler = BoundedHandler("%(asctime)s %(levelname)s %(name)s: %(message)s")
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    handler.setStream(stream)
    return handler, stream


def written(stream: io.TextIOWrapper) -> list[str]:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8").split("\n")[:-1]  # type: ignore[attr-defined]


def record(text: str, *arguments, name: str = "tornado.access", at: float = 60.0, line: int = 1, **kwargs):
    made = logging.LogRecord(
        name, kwargs.pop("level", logging.WARNING), "x.py", line, text, arguments, **kwargs or {"exc_info": None}
    )
    made.created = at
    return made


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("404 GET /static/é😀", "404 GET /static/é😀"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred\x07\x9b", "\\x1b[31mred\\x07\\x9b"),
        ("\u2028\u202e\ud800", "\\u2028\\u202e\\ud800"),
        (FORGED, FORGED.replace("\n", "\\n")),
        ("connect to wss://x/ws?auth=s3cret&a=1", "connect to wss://x/ws?auth=***&a=1"),
        ("'/x?a=1&sig=ab%20c' failed", "'/x?a=1&sig=***' failed"),
        ("/x?API_KEY=abc#token=def", "/x?API_KEY=***#token=***"),
        ("x" * 10**6, "x" * (4000 - len("1970-01-01T00:01:00.000Z WARNING tornado.access: "))),
    ],
)
def test_a_record_is_one_line_without_secrets_whichever_library_wrote_it(text, line):
    for made in (record("%s", text), record(text)):
        handler, stream = handler_to_text()
        handler.emit(made)
        (found,) = written(stream)
        assert found.partition("tornado.access: ")[2] == line


def test_a_traceback_forges_no_line_and_is_bounded():
    def fail(depth: int) -> None:
        if depth:
            fail(depth - 1)
        raise ValueError(f"{FORGED} https://x/?sig=s3cret")

    try:
        fail(200)
    except ValueError as error:
        made = record("failed", exc_info=(type(error), error, error.__traceback__))
    handler, stream = handler_to_text()
    handler.emit(made)
    first, *rest = written(stream)
    assert first.endswith("tornado.access: failed")
    assert len(rest) <= 61
    assert all(line.startswith("    ") for line in rest)
    assert "s3cret" not in "".join(rest)


@pytest.mark.slow
def test_a_flood_from_one_place_is_a_bounded_number_of_lines_and_their_count():
    handler, stream = handler_to_text()
    for number in range(20_000):
        handler.emit(record("a bad row: %d", number))
        handler.emit(record("debug %d", number, level=logging.DEBUG)) if number < 100 else None
    handler.emit(record("another place", line=2))
    handler.emit(record("a bad row: %d", 20_000, at=120.0))
    lines = written(stream)
    assert sum("debug" in line for line in lines) == 100
    rows = [line.partition("tornado.access: ")[2] for line in lines if "debug" not in line]
    assert rows[:20] == [f"a bad row: {number}" for number in range(20)]
    assert rows[20:] == [
        "another place",
        "left out 19980 lines of the last minute, similar to: a bad row: %d",
        "a bad row: 20000",
    ]


async def test_lines_that_were_left_out_are_counted_when_the_minute_ends_though_none_follows():
    clock, tasks = ManualClock(59_000), TaskSet()
    handler, stream = handler_to_text()
    tasks.start_periodic(lambda: handler.end_minute(clock.now_ms() / 1000), clock, 1.0)
    for at, count in ((60, 100), (61, 2)):
        await clock.advance(1)
        for _ in range(count):
            handler.emit(record("again", at=float(at)))
    await clock.advance(58)
    assert len(written(stream)) == 1
    await clock.advance(1)
    (line,) = written(stream)[1:]
    assert line.endswith(" tornado.access: 102 times in the last minute: again")
    await clock.advance(200)
    assert len(written(stream)) == 2
    await tasks.cancel()


def test_lines_that_were_left_out_are_counted_at_the_end():
    handler, stream = handler_to_text()
    for _ in range(100):
        handler.emit(record("again"))
    handler.close()
    assert "100 times in the last minute: again" in written(stream)[-1]


def test_a_text_is_one_line_a_minute_and_the_latest_state_is_the_last_count():
    handler, stream = handler_to_text()
    for at in (60.0, 120.0):
        for number in range(5):
            for state in ("connected", "lost"):
                for exchange in ("one", "two"):
                    handler.emit(record("%s: %s", exchange, state, at=at + number))
        handler.emit(record("one: connected", at=at + 6))
    handler.end_minute(180.0)
    rows = [line.partition("tornado.access: ")[2] for line in written(stream)]
    states = ["one: connected", "two: connected", "one: lost", "two: lost"]
    counts = [
        "5 times in the last minute: two: connected",
        "5 times in the last minute: one: lost",
        "5 times in the last minute: two: lost",
        "6 times in the last minute: one: connected",
    ]
    assert rows == [*states, *counts] * 2


@pytest.mark.parametrize(
    ("text", "shown"), [("abc", "abc"), ("a\nb", "a\\nb"), ("\ud800", "\\ud800"), ("x" * 99, "x" * 9)]
)
def test_a_text_from_outside_can_be_printed_and_encoded(text, shown):
    assert printable(text, 9) == shown
    printable(text, 9).encode()


def test_json_lines_have_utc_the_process_and_the_traceback_and_no_secret():
    handler = BoundedHandler(JsonFormatter("serve-2"))
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    handler.setStream(stream)
    try:
        raise ValueError("wss://x/ws?token=s3cret")
    except ValueError as error:
        caught = type(error), error, error.__traceback__
    handler.emit(record("%s", f"{FORGED} ?auth=s3cret", exc_info=caught))
    handler.emit(record("again"))
    handler.emit(record("again"))
    handler.close()
    lines = [json.loads(line) for line in written(stream)]
    first, *rest = lines
    assert first.pop("traceback").endswith("ValueError: wss://x/ws?token=***")
    assert first == {
        "time": "1970-01-01T00:01:00.000Z",
        "level": "warning",
        "logger": "tornado.access",
        "message": FORGED.replace("\n", "\\n") + " ?auth=***",
        "process": "serve-2",
    }
    assert [line["message"] for line in rest] == ["again", "2 times in the last minute: again"]
