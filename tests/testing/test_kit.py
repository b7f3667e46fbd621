"""The conformance kit: a right plugin passes, and for each check there is a plugin that fails it."""

import asyncio
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from candled import (
    Candle,
    Candles,
    ExchangeError,
    InvalidRow,
    Market,
    SubscriptionRejected,
    Symbol,
    Unavailable,
)
from candled.exchange import Http
from candled.ingest.http import HttpClient
from candled.model import MINUTE, MINUTE_MS
from candled.testing import exchange_tests
from candled.testing import findings as of_recordings
from candled.testing.kit import CHECKS, Result, format_result, run_check
from candled.testing.replayed import RecordedHttp
from candled.testing.scripted_pages import ScriptedHttp
from candled.testing.stage import Stage
from tests.sources import ROOT
from tests.testing.plumline import EXAMPLE, RECORDINGS, Plumline, PlumlineFeed

BTC = Symbol("BTC", "USDT")
BY_NAME = {check.name: check for check in CHECKS}


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as one:
        yield one


def result_of(runner: asyncio.Runner, name: str, kind: type, recordings: Any = None) -> Result:
    recordings = RECORDINGS if recordings is None else recordings
    return run_check(BY_NAME[name], kind, {key: Stage(kind, one, (), runner) for key, one in recordings.items()})


@pytest.mark.parametrize("name", BY_NAME)
def test_a_right_plugin_passes(runner, name):
    result = result_of(runner, name, Plumline)
    assert result.outcome == ("note" if "hour later" in name else "passed"), result.detail


# ---------------------------------------------------------------- feeds that are wrong


class Feed(PlumlineFeed):
    """A feed with state, for mutations."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: set[Any] = set()
        self.newest_ms = 0
        self.clock: Any = None


Change = Callable[[Feed, Candle], Candle | None]


def changing(change: Change) -> type[Plumline]:
    """An exchange whose feed changes each candle, or drops it."""

    def read_frame(self: Feed, frame: str | bytes) -> list[Any]:
        events = PlumlineFeed.read_frame(self, frame)
        found = []
        for event in events:
            if isinstance(event, Candles):
                candles = [changed for one in event.candles if (changed := change(self, one)) is not None]
                event = Candles(event.symbol, tuple(candles), event.snapshot, event.invalid)
            found.append(event)
        return found

    return reading(read_frame)


def reading(read_frame: Callable[[Any, str | bytes], list[Any]]) -> type[Plumline]:
    kind = type("WrongFeed", (Feed,), {"read_frame": read_frame})

    class Wrong(Plumline):
        feed_class = kind

        def make_feed(self, symbols: Any) -> Any:
            feed = super().make_feed(symbols)
            feed.clock = self.clock
            return feed

    return Wrong


def swap_columns(feed: Feed, one: Candle) -> Candle:
    return one._replace(open=one.close, close=one.open)


def five_minutes(feed: Feed, one: Candle) -> Candle:
    feed.seen.add(one.open_ms)
    first_ms = min(feed.seen)
    return one._replace(open_ms=first_ms + 5 * (one.open_ms - first_ms))


def quote_volume(feed: Feed, one: Candle) -> Candle:
    return one._replace(volume=one.quote_volume or Decimal(0), quote_volume=None)


def drop_twice(feed: Feed, one: Candle) -> Candle | None:
    is_new = one not in feed.seen
    feed.seen.add(one)
    return one if is_new else None


def drop_old(feed: Feed, one: Candle) -> Candle | None:
    feed.newest_ms = max(feed.newest_ms, one.open_ms)
    return one if one.open_ms == feed.newest_ms else None


def drop_after_silence(feed: Feed, one: Candle) -> Candle | None:
    last_ms, feed.newest_ms = feed.newest_ms, one.open_ms
    return one if not last_ms or one.open_ms - last_ms < 10 * MINUTE_MS else None


def by_clock(feed: Feed, one: Candle) -> Candle:
    return one._replace(as_of_ms=feed.clock.now_ms())


def by_sending(feed: Feed, one: Candle) -> Candle:
    return one._replace(open_ms=MINUTE.floor(one.as_of_ms))


def final_once(feed: Feed, one: Candle) -> Candle:
    is_new = one.open_ms not in feed.seen
    if one.final:
        feed.seen.add(one.open_ms)
    return one._replace(final=one.final and is_new)


def zero_for_nothing(self: Any, frame: str | bytes) -> list[Any]:
    try:
        document = json.loads(frame)
        if document.get("op") == "candle":
            document["candle"]["v"] = document["candle"]["v"] or "0"
        frame = json.dumps(document)
    except (ValueError, TypeError):
        pass
    return PlumlineFeed.read_frame(self, frame)


def last_for_part(self: Any, frame: str | bytes) -> list[Any]:
    try:
        events = PlumlineFeed.read_frame(self, frame)
    except ExchangeError:
        return list(self.seen)
    self.seen.update(event for event in events if isinstance(event, Candles))
    return events


def unguarded(self: Any, frame: str | bytes) -> list[Any]:
    json.loads(frame)
    return PlumlineFeed.read_frame(self, frame)


def first_symbol(self: Any, frame: str | bytes) -> list[Any]:
    return [
        Candles(self.symbols[0], event.candles) if isinstance(event, Candles) else event
        for event in PlumlineFeed.read_frame(self, frame)
    ]


def first_refused(self: Any, frame: str | bytes) -> list[Any]:
    return [
        SubscriptionRejected(self.symbols[0], event.reason) if isinstance(event, SubscriptionRejected) else event
        for event in PlumlineFeed.read_frame(self, frame)
    ]


# ---------------------------------------------------------------- requests that are wrong


def fetching(fetch: Callable[..., Any]) -> type[Plumline]:
    return type("WrongHistory", (Plumline,), {"fetch_history": fetch})


def flat(open_ms: int) -> Candle:
    return Candle(open_ms, *(Decimal(1),) * 4, Decimal(0))


async def seconds_as_ms(self: Plumline, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
    rows = await Plumline.fetch_history(self, http, symbol, start_ms, end_ms)
    return [InvalidRow((row.open_ms or 0) // 1000, "expected a minute") for row in rows]


async def end_as_inclusive(self: Plumline, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
    return await Plumline.fetch_history(self, http, symbol, start_ms, end_ms - MINUTE_MS)


async def one_page(self: Plumline, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
    first_ms = max(start_ms, end_ms - 100 * MINUTE_MS)
    return await Plumline.fetch_history(self, http, symbol, first_ms, end_ms)


async def unique(self: Plumline, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
    rows = await Plumline.fetch_history(self, http, symbol, start_ms, end_ms)
    if len({row.open_ms for row in rows}) < len(rows):
        raise ExchangeError("expected each minute once")
    return rows


async def filled(self: Plumline, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
    rows = await Plumline.fetch_history(self, http, symbol, start_ms, end_ms)
    have = {row.open_ms for row in rows}
    return [*rows, *(flat(at) for at in range(start_ms, end_ms, MINUTE_MS) if at not in have)]


async def strict(self: Plumline, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
    rows = await Plumline.fetch_history(self, http, symbol, start_ms, end_ms)
    return [] if any(isinstance(row, InvalidRow) for row in rows) else rows


async def empty_when_refused(self: Plumline, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> Any:
    try:
        return await Plumline.fetch_history(self, http, symbol, start_ms, end_ms)
    except (Unavailable, ExchangeError):
        return []


class InventsMarkets(Plumline):
    async def fetch_markets(self, http: Any) -> list[Market]:
        return [Market(symbol=BTC)]


class KeepsOldName(Plumline):
    async def fetch_markets(self, http: Any) -> list[Market]:
        return [replace(one, symbol=BTC, former=None) for one in await Plumline.fetch_markets(self, http)]


class ContinuesItself(Plumline):
    async def fetch_markets(self, http: Any) -> list[Market]:
        return [replace(one, former=one.symbol) for one in await Plumline.fetch_markets(self, http)]


class ContinuesOneTwice(Plumline):
    async def fetch_markets(self, http: Any) -> list[Market]:
        markets = [*await Plumline.fetch_markets(self, http), Market(symbol=Symbol("NEW", "USDT"))]
        return [replace(one, former=Symbol("OLD", "USDT")) for one in markets]


RENAMED = "a renamed market is followed"
WRONG = [
    ("candles are of one minute", changing(five_minutes), "the candles of the stream are 5 minutes apart"),
    ("versions of a minute grow", changing(swap_columns), "the columns of open and close interchanged"),
    ("volumes of the stream and of REST agree", changing(quote_volume), "volume of the stream is in quote currency"),
    ("frames may come twice", changing(drop_twice), "a frame that arrives twice"),
    ("frames may come in any order", changing(drop_old), "expected the minute"),
    ("a silence ends", changing(drop_after_silence), "expected the minute"),
    ("a late last version is shown", changing(drop_old), "of the late version on the chart"),
    ("a wrong clock changes nothing", changing(by_clock), "depends on the machine's clock"),
    ("wrong times of sending change nothing", changing(by_sending), "expected the minute"),
    ("bad numbers are refused", reading(zero_for_nothing), "None instead of the number at candle.v is read as"),
    ("a part of a frame is an error", reading(last_for_part), "a candle in the part of a frame"),
    ("HTML is an error", reading(unguarded), "raises JSONDecodeError"),
    ("symbols are kept apart", reading(first_symbol), "is read as one of another symbol"),
    ("a refusal names its symbol", reading(first_refused), "the refusal of NOCOIN/USDT is read as"),
    ("a closed minute may come twice", changing(final_once), "a closed minute that arrives twice"),
    ("pages of minutes are read", fetching(seconds_as_ms), "times in seconds, and the plugin reads none of them"),
    ("every range is complete", fetching(end_as_inclusive), "the end of a page is exclusive on this exchange"),
    ("every range is complete", fetching(one_page), "the plugin does not ask for the others (1 of 101 minutes"),
    ("pages may overlap", fetching(unique), "expected each minute once"),
    ("pages may be partial", fetching(filled), "minutes are invented that no answer has"),
    ("an empty answer is empty", fetching(filled), "is read as 30 minutes"),
    ("history begins at the listing", fetching(filled), "minutes are invented that no answer has"),
    ("a bad row costs one minute", fetching(strict), "costs 19 good ones"),
    ("refused requests are repeated", fetching(empty_when_refused), "status 429 is read as 0 rows"),
    ("HTML over REST is an error", fetching(empty_when_refused), "a page of HTML with status 200 is read as 0 rows"),
    ("the list of markets is followed", InventsMarkets, "markets are invented"),
    (RENAMED, KeepsOldName, "BTC/USDT is listed although the exchange renamed it"),
    (RENAMED, ContinuesItself, "has the former symbol BTC/USDT, which is traded"),
    (RENAMED, ContinuesOneTwice, "have the former symbol OLD/USDT"),
]


@pytest.mark.parametrize(("name", "kind", "mistake"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_wrong_plugin_fails_and_the_mistake_is_named(runner, name, kind, mistake):
    result = result_of(runner, name, kind)
    assert result.outcome == "failed"
    assert mistake in result.detail


def test_there_is_a_wrong_plugin_for_each_check():
    by_line = {"the connection stays open"}  # test_planted_mistakes.py
    assert {name for name, _, _ in WRONG} | by_line | set(of_recordings.CHECKS) == set(BY_NAME)


# ---------------------------------------------------------------- the report


def test_a_check_without_material_fails_unless_the_plugin_has_a_reason(runner):
    class Reasoned(Plumline):
        bypass_reasons = {"a refusal names its symbol": "Plumline is silent"}  # noqa: RUF012

    recordings = {name: one for name, one in RECORDINGS.items() if "btc" in name}
    result = result_of(runner, "a refusal names its symbol", Plumline, recordings)
    assert result.outcome == "failed"
    assert "give the reason in bypass_reasons['a refusal names its symbol']" in result.detail
    result = result_of(runner, "a refusal names its symbol", Reasoned, recordings)
    assert (result.outcome, result.detail) == ("skipped", "Plumline is silent")
    assert result_of(runner, "a refusal names its symbol", Reasoned).outcome == "passed"


def test_a_failure_says_why_it_matters(runner):
    lines = format_result(result_of(runner, "frames may come twice", changing(drop_twice))).splitlines()
    assert lines[0].startswith("FAILED  frames may come twice: ")
    assert lines[1] == "        a candle disappears after a reconnect"


def test_every_check_is_on_the_page():
    page = " ".join((ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8").split())
    assert [one.name for one in CHECKS if f"| {one.name} | {one.why} |" not in page] == []


TestPlumline = exchange_tests(Plumline, recordings=EXAMPLE / "tests")


@pytest.mark.parametrize("kind", [RecordedHttp, ScriptedHttp, HttpClient])
@pytest.mark.parametrize("method", ["get_json", "post_json", "fetch_text"])
def test_every_http_client_takes_exactly_the_documented_arguments(kind, method):
    documented = inspect.signature(getattr(Http, method)).parameters
    assert {**inspect.signature(getattr(kind, method)).parameters} == {**documented}
