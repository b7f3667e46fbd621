"""Steps that plugins share: names of symbols, commands, pages of bars, and the rows of a range."""

import asyncio
from collections.abc import Mapping
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from candled import (
    Candle,
    CommandFeed,
    Exchange,
    ExchangeError,
    Http,
    InvalidRow,
    Market,
    Settings,
    Symbol,
    find_symbol,
    rows_within,
)
from candled.model import MINUTE, Interval
from tests.clocks import ManualClock
from tests.plugins.local import FakeHttp

BTC, ETH = Symbol("BTC", "USDT"), Symbol("ETH", "USDT")
HTTP = FakeHttp(lambda path, query: None)
M5 = Interval.parse("5m")


def bar(number: int, interval: Interval = M5) -> Candle:
    return Candle.parse(number * interval.ms, "1", "1", "1", "1", "1", None, as_of_ms=0, final=True)


class OfRows(Exchange):
    """An exchange with minutes and bars of five minutes, which also returns the rows around a range."""

    name = "of-rows"
    Settings = Settings
    intervals: ClassVar[Mapping[str, str]] = {"1m": "1", "5m": "5"}

    def __init__(self, page_rows: int = 200) -> None:
        super().__init__(Settings(), ManualClock())
        self.max_history_minutes = page_rows
        self.asked: list[int] = []
        self.extra: list[Candle | InvalidRow] = []

    async def fetch_markets(self, http: Http) -> list[Market]:
        return []

    async def fetch_rows(self, http, symbol, interval, start_ms, end_ms):
        numbers = range(start_ms // interval.ms, end_ms // interval.ms)
        assert 0 < len(numbers) <= self.max_history_minutes
        self.asked.extend(numbers)
        around = range(max(0, numbers.start - 2), numbers.stop + 2)
        return [*(bar(number, interval) for number in reversed(around)), *self.extra]


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 7))
@example(first=0, count=7, page_rows=7)
def test_a_range_is_fetched_in_pages_that_neither_overlap_nor_leave_a_gap(first, count, page_rows):
    exchange = OfRows(page_rows)
    start_ms, end_ms = first * M5.ms, (first + count) * M5.ms
    found = asyncio.run(exchange.fetch_bars(HTTP, BTC, M5, start_ms, end_ms))
    assert exchange.asked == list(range(first, first + count))
    assert found == [bar(number) for number in exchange.asked]


class Plain(CommandFeed):
    def make_commands(self, command, symbols):
        return [f"{command} {self.name_symbol(symbol)}" for symbol in symbols]

    def read_frame(self, frame):
        return []


class Lower(Plain):
    commands = ("sub", "unsub")
    name_symbol = staticmethod(lambda symbol: f"{symbol.base}{symbol.quote}".lower())


@pytest.mark.parametrize(
    ("kind", "name", "commands"),
    [(Plain, "BTC/USDT", ("subscribe", "unsubscribe")), (Lower, "btcusdt", Lower.commands)],
)
def test_a_feed_keeps_its_symbols_by_the_names_of_the_exchange(kind, name, commands):
    feed = kind("ws://localhost", [BTC, ETH])
    feed.set_symbols([BTC])
    assert (feed.symbols, feed.by_name) == ((BTC,), {name: BTC})
    assert feed.subscribe([BTC]) == [f"{commands[0]} {name}"]
    assert feed.unsubscribe([BTC]) == [f"{commands[1]} {name}"]


def test_a_name_that_the_feed_does_not_carry_is_an_exchange_error():
    feed = Lower("ws://localhost", [BTC])
    assert find_symbol(feed.by_name, "btcusdt") == BTC
    with pytest.raises(ExchangeError, match="got a message about 'ethusdt', which was not subscribed"):
        find_symbol(feed.by_name, "ethusdt")


async def test_the_minutes_of_a_range_are_those_of_the_rows():
    unread = InvalidRow(None, "no time")
    exchange = OfRows()
    exchange.extra = [unread]
    found = await exchange.fetch_history(HTTP, BTC, 3 * MINUTE.ms, 5 * MINUTE.ms)
    assert found == [bar(4, MINUTE), bar(3, MINUTE), unread]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (InvalidRow(2 * M5.ms, "no price"), "no price"),
        (InvalidRow(None, "no time"), "no time"),
        (bar(2)._replace(open_ms=2 * M5.ms + MINUTE.ms), "on their boundaries in UTC"),
    ],
)
async def test_longer_bars_are_refused_with_a_row_that_is_none(extra, reason):
    exchange = OfRows()
    exchange.extra = [extra]
    with pytest.raises(ExchangeError, match=reason):
        await exchange.fetch_bars(HTTP, BTC, M5, M5.ms, 4 * M5.ms)


async def test_bars_of_an_interval_without_a_name_are_not_asked_for():
    exchange = OfRows()
    assert await exchange.fetch_bars(HTTP, BTC, Interval.parse("1h"), 0, 3_600_000) is None
    assert exchange.asked == []


def test_the_rows_of_a_range_begin_with_its_start_and_end_before_its_end():
    unread = InvalidRow(None, "no time")
    rows = [bar(1), bar(2), unread, bar(3), InvalidRow(3 * M5.ms, "no price"), bar(4)]
    assert rows_within(rows, 2 * M5.ms, 3 * M5.ms) == [bar(2), unread]
