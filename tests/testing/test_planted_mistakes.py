"""Mistakes in the description of an exchange, which its plugin repeats: the kit finds each, and names it."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from candled import Candles, Symbol
from candled.model import MINUTE_MS
from candled.testing.kit import Result, run_checks
from candled.testing.recording import Closed, Received, Recording, Request
from tests.testing.plumline import RECORDINGS, Plumline, PlumlineFeed

MINUTE_S = 60


def edited(kind: type, change: Callable[[Any], Any]) -> dict[str, Recording]:
    """The recordings of an exchange that differs from the description."""
    found = {}
    for name, recording in RECORDINGS.items():
        events = tuple(change(one) if isinstance(one, kind) else one for one in recording.events)
        found[name] = Recording(recording.header, events)
    return found


def failures(kind: type[Plumline], recordings: dict[str, Recording]) -> dict[str, str]:
    results: list[Result] = list(run_checks(kind, recordings))
    return {one.check.name: one.detail for one in results if one.outcome == "failed"}


def asked_before(request: Request, shift_s: int) -> Request:
    """A request for a page that ends earlier, and its answer, without the newest rows."""
    found = re.search(r"before=(\d+)", request.url)
    if found is None or request.status != 200:
        return request
    before_s = int(found[1]) + shift_s
    answer = json.loads(request.answer)
    answer["candles"] = [row for row in answer["candles"] if row["t"] < before_s]
    return replace(request, url=request.url.replace(found[0], f"before={before_s}"), answer=json.dumps(answer))


def test_an_exclusive_end_that_is_described_as_inclusive():
    class Inclusive(Plumline):
        async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
            return await super().fetch_history(http, symbol, start_ms, end_ms - MINUTE_MS)

    found = failures(Inclusive, edited(Request, lambda one: asked_before(one, -MINUTE_S)))
    assert "the end of a page is exclusive on this exchange: a page up to before=" in found["every range is complete"]
    assert "REST has each minute of the stream" in found


def test_an_inclusive_end_that_is_described_as_exclusive():
    """The plugin takes the row of the end for the newest of its range, and the oldest does not fit."""

    class Exclusive(Plumline):
        max_history_minutes = 100

        async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
            query = {
                "market": "BTC_USDT",
                "before": str(end_ms // 1000),
                "limit": str((end_ms - start_ms) // MINUTE_MS),
            }
            body = await http.get_json(f"{self.settings.rest_url}/candles", query)
            candles = PlumlineFeed("", [symbol])
            frames = [
                {"op": "candle", "market": "BTC_USDT", "sent": body["sent"], "candle": row} for row in body["candles"]
            ]
            events = [event for one in frames for event in candles.read_frame(json.dumps(one, default=str))]
            rows = [row for event in events for row in event.candles]
            return [row for row in rows if start_ms <= row.open_ms < end_ms]

    def with_end(request: Request) -> Request:
        found = re.search(r"before=(\d+)", request.url)
        if found is None or request.status != 200:
            return request
        answer = json.loads(request.answer)
        newest = {**answer["candles"][0], "t": int(found[1])}
        answer["candles"] = [newest, *answer["candles"][:-1]]
        return replace(request, answer=json.dumps(answer))

    found = failures(Exclusive, edited(Request, with_end))
    assert "the end of a page is inclusive on this exchange" in found["every range is complete"]


def test_seconds_that_are_described_as_milliseconds():
    class Milliseconds(PlumlineFeed):
        def read_frame(self, frame: str | bytes) -> list[Any]:
            message = json.loads(frame)
            if message.get("op") == "candle":
                message["candle"]["t"] /= 1000
            return super().read_frame(json.dumps(message))

    class Wrong(Plumline):
        feed_class = Milliseconds

    found = failures(Wrong, RECORDINGS)
    assert "the opening time is in seconds, but the plugin reads it as milliseconds" in found["every row is a candle"]


def test_a_request_with_milliseconds_instead_of_seconds():
    class Wrong(Plumline):
        async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
            url = f"{self.settings.rest_url}/candles"
            body = await http.get_json(url, {"market": "BTC_USDT", "before": str(end_ms), "limit": "100"})
            assert body["candles"] == []
            return []

    def empty(request: Request) -> Request:
        answer = json.dumps({"sent": 1, "candles": []})
        return replace(request, url=re.sub(r"before=(\d+)", r"before=\g<1>000", request.url), answer=answer)

    found = failures(Wrong, edited(Request, lambda one: empty(one) if "before" in one.url else one))
    mistake = "The request has times in milliseconds, the frames in milliseconds and seconds"
    assert mistake in found["pages of minutes are read"]


@pytest.mark.parametrize(
    ("check", "is_closed", "mistake"),
    [
        ("no minute is final before its end", True, "the closed flag lies"),
        ("no version follows the final one", True, "the closed flag lies"),
        ("no version follows the final one", False, "none of 3 minutes that ended is marked as closed"),
    ],
)
def test_a_closed_flag_that_lies(check, is_closed, mistake):
    def lie(received: Received) -> Received:
        message = json.loads(received.text or "")
        if message["op"] == "candle":
            message["candle"]["closed"] = is_closed
        return replace(received, text=json.dumps(message))

    assert mistake in failures(Plumline, edited(Received, lie))[check]


def test_columns_in_another_order_are_found():
    class Wrong(PlumlineFeed):
        def read_frame(self, frame: str | bytes) -> list[Any]:
            return [
                Candles(event.symbol, tuple(one._replace(open=one.close, close=one.open) for one in event.candles))
                if isinstance(event, Candles)
                else event
                for event in super().read_frame(frame)
            ]

    class Swapped(Plumline):
        feed_class = Wrong

    assert "the columns of open and close interchanged" in failures(Swapped, RECORDINGS)["versions of a minute grow"]


def test_a_ping_without_an_answer():
    """The exchange ends the connection, and the recording has the time and the reason."""

    def end_early(closed: Closed) -> Closed:
        return replace(closed, reason="connection closed: 1008 no pong")

    found = failures(Plumline, edited(Closed, end_early))["the connection stays open"]
    assert re.search(r"1 connections ended, the first after \d+ s: connection closed: 1008 no pong. Does the", found)


def test_a_page_that_is_smaller_than_described():
    """Each request is answered with the newest 50 of 100 rows; the plugin takes a short page for the end of history."""

    def half(request: Request) -> Request:
        if "before" not in request.url or request.status != 200:
            return request
        answer = json.loads(request.answer)
        return replace(request, answer=json.dumps({**answer, "candles": answer["candles"][:50]}))

    found = failures(Plumline, edited(Request, half))["every range is complete"]
    assert "a page has the newest 50 rows, and the plugin does not ask for the others (1 of 51 minutes" in found


def test_a_market_that_is_seldom_traded_is_no_mistake():
    """Pages lack minutes here and there, which is no limit of rows."""

    class Quiet(Plumline):
        publishes_empty_candles = False

    def thin(request: Request) -> Request:
        if "before" not in request.url or request.status != 200:
            return request
        answer = json.loads(request.answer)
        rows = [row for row in answer["candles"] if row["t"] // MINUTE_S % 3 or row["t"] > 1788000000]
        return replace(request, answer=json.dumps({**answer, "candles": rows}))

    assert "every range is complete" not in failures(Quiet, edited(Request, thin))
