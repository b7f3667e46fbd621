"""Steps that plugins share: names of symbols, commands, pages of bars, and the rows of a range."""

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from candled import (
    Candle,
    CommandFeed,
    ConnectionLimits,
    Exchange,
    ExchangeError,
    FeedError,
    Http,
    InvalidCandle,
    InvalidRow,
    Market,
    Settings,
    SubscriptionRejected,
    Symbol,
    Unavailable,
    check_code,
    find_symbol,
    parse_object,
    read_candles,
    read_rows,
    reading,
    reject_symbol,
    rows_within,
    setting,
    take_cells,
    take_list,
    write_object,
)
from candled.model import MINUTE, Interval
from candled_plugins.gate import messages as gate
from candled_plugins.kucoin import messages as kucoin
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

    def __init__(self, page_rows: int = 200, settings: Settings | None = None) -> None:
        super().__init__(settings or Settings(), ManualClock())
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
    def make_command(self, command, symbols):
        return f"{command} {','.join(map(self.name_symbol, symbols))}"

    def read_frame(self, frame):
        return []


class Lower(Plain):
    commands = ("sub", "unsub")
    symbols_per_frame = 2
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


def test_a_frame_of_a_command_has_at_most_so_many_symbols():
    assert Lower("ws://localhost", []).subscribe([BTC, ETH, BTC]) == ["sub btcusdt,ethusdt", "sub btcusdt"]
    assert Plain("ws://localhost", []).subscribe([BTC, ETH]) == ["subscribe BTC/USDT", "subscribe ETH/USDT"]
    assert Plain("ws://localhost", []).subscribe([]) == []


def test_a_name_that_the_feed_does_not_carry_is_an_exchange_error():
    feed = Lower("ws://localhost", [BTC])
    assert find_symbol(feed.by_name, "btcusdt") == BTC
    with pytest.raises(ExchangeError, match="got a message about 'ethusdt', which was not subscribed"):
        find_symbol(feed.by_name, "ethusdt")


def test_a_refusal_is_about_the_symbol_of_the_name_or_else_about_the_connection():
    feed = Lower("ws://localhost", [BTC])
    assert reject_symbol(feed.by_name, "btcusdt", "no such market") == SubscriptionRejected(BTC, "no such market")
    assert reject_symbol(feed.by_name, None, "too busy") == FeedError("too busy")


def test_an_object_is_written_without_blanks_and_read_back():
    assert write_object({"id": 1, "args": ["é"]}) == '{"id":1,"args":["\\u00e9"]}'
    assert parse_object(write_object({"id": 1, "args": ["é"]})) == {"id": 1, "args": ["é"]}


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ({"code": "50011", "msg": "busy"}, Unavailable, "Coinfair answered 50011: busy"),
        ({"code": 7}, ExchangeError, "Coinfair answered 7: None"),
        ({"msg": "busy"}, ExchangeError, "expected an object with a code, got {'msg': 'busy'}"),
        (["0"], ExchangeError, "expected an object with a code, got ['0']"),
        (None, ExchangeError, "expected an object with a code, got None"),
    ],
)
def test_the_code_of_an_answer_is_its_error(body, error, text):
    with pytest.raises(error) as raised:
        check_code(body, "Coinfair", "0", {"50011"})
    assert (type(raised.value), str(raised.value)) == (error, text)


@pytest.mark.parametrize(("body", "names"), [({"code": 0}, {}), ({"ret": "0"}, {"code": "ret", "text": "why"})])
def test_an_answer_with_the_code_of_success_passes(body, names):
    check_code(body, "Coinfair", "0", {"50011"}, **names)


def test_a_row_without_enough_cells_is_no_candle():
    assert take_cells(["a", "b", "c"], 2) == ["a", "b"]
    for row in (["a"], {"a": 1, "b": 2}, "ab", None):
        with pytest.raises(InvalidCandle, match="expected a row of 2 columns or more, got"):
            take_cells(row, 2)


@pytest.mark.parametrize("rows", [None, {"rows": []}, "rows", 7])
def test_rows_that_are_no_list_are_an_exchange_error(rows):
    with pytest.raises(ExchangeError, match="expected a list of rows, got"):
        read_rows(rows, lambda row: bar(0))


@pytest.mark.parametrize(
    "read", [lambda: {}["name"], lambda: None + 1, lambda: int("x"), lambda: Decimal("x"), lambda: "x".get("name")]
)
def test_an_entry_that_cannot_be_read_is_an_exchange_error(read):
    with pytest.raises(ExchangeError, match="a market is not as documented: "), reading("a market"):
        read()


def test_other_errors_of_a_reader_are_passed_on():
    with pytest.raises(InvalidCandle, match="too long"), reading("a market"):
        raise InvalidCandle("too long")


class Limited(OfRows):
    limits = ConnectionLimits(symbols_per_connection=7, frames_per_s=3.0)


class LimitedSettings(Settings):
    symbols_per_connection: int = setting(50, "symbols on one connection")


def test_the_setting_for_symbols_of_a_connection_replaces_that_limit_of_the_exchange():
    assert Limited().limits == ConnectionLimits(symbols_per_connection=7, frames_per_s=3.0)
    exchange = Limited(settings=LimitedSettings())
    assert exchange.limits == ConnectionLimits(symbols_per_connection=50, frames_per_s=3.0)


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


def test_the_candles_of_a_frame_are_in_order_of_time_and_versions_in_that_of_their_rows():
    rows = [bar(3), bar(2)._replace(quote_volume=Decimal(7)), bar(2), bar(1)]
    assert list(read_candles(BTC, rows, lambda row: row).candles) == [rows[3], rows[1], rows[2], rows[0]]


@pytest.mark.parametrize("value", [{}, "", None, {"a": 1}])
def test_a_value_that_is_no_list_is_refused(value):
    assert take_list([1]) == [1]
    with pytest.raises(ExchangeError, match="expected a list, got"):
        take_list(value)


@pytest.mark.parametrize("answer", [{}, "", None])
def test_lists_of_markets_that_are_no_lists_are_refused(answer):
    for read, arguments in (
        (gate.read_sizes, (answer,)),
        (gate.read_spot_markets, ([], answer)),
        (gate.read_futures_markets, (answer, [])),
        (kucoin.read_sizes, (answer,)),
        (kucoin.read_contracts, (answer,)),
        (kucoin.read_markets, ([], {"ticker": answer})),
    ):
        with pytest.raises(ExchangeError):
            read(*arguments)
