"""A feed that polls an exchange over REST, in phase with its minutes."""

import asyncio
from itertools import pairwise

import pytest

from candled import (
    MINUTE_MS,
    Candle,
    Candles,
    Exchange,
    ExchangeError,
    PollingFeed,
    Settings,
    Symbol,
    Unavailable,
    read_rows,
)
from candled.model import MINUTE
from tests.clocks import START_MS, ManualClock

BTC, ETH = Symbol("BTC", "USDT"), Symbol("ETH", "USDT")


class Kraken(Exchange):
    name = "kraken"
    Settings = Settings

    async def fetch_markets(self, http):
        return []

    def make_feed(self, symbols):
        return PollingFeed(self, symbols, every_s=15.0, delay_s=1.5)

    async def fetch_history(self, http, symbol, start_ms, end_ms):
        answer = await http.get_json("/0/public/OHLC", {"pair": symbol.base, "since": str(start_ms // 1000 - 60)})
        if answer["error"]:
            raise Unavailable(answer["error"][0])
        (rows,) = (rows for name, rows in answer["result"].items() if name != "last")
        found = read_rows(rows, read_row, open_ms=lambda row: row[0] * 1000)
        return [row for row in found if row.open_ms is None or start_ms <= row.open_ms < end_ms]


def read_row(row):
    open_s, opened, high, low, close, _vwap, volume, _ = row
    return Candle.parse(open_s * 1000, opened, high, low, close, volume)


class FakeKraken:
    """Answers as Kraken does: 720 rows at most, the last one of the forming minute. It knows the time."""

    def __init__(self, clock: ManualClock, ahead_ms: int = 0, states_time: bool = False) -> None:
        self.clock = clock
        self.ahead_ms = ahead_ms
        self.asked: list[tuple[str, int]] = []
        self.fails: dict[str, Exception] = {}

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms() + self.ahead_ms

    async def get_json(self, url, params=None, **_):
        self.asked.append((params["pair"], self.now_ms))
        if params["pair"] in self.fails:
            raise self.fails[params["pair"]]
        newest = MINUTE.floor(self.now_ms)
        rows = [
            [at // 1000, "10", "12", "9", "11", "10.5", str((self.now_ms - at) // 1000), 3]
            for at in range(newest - 5 * MINUTE_MS, newest + 1, MINUTE_MS)
            if at > int(params["since"]) * 1000
        ]
        return {"error": [], "result": {"XBTUSDT": rows, "last": newest // 1000 - 60}}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS + 37_300)  # in the middle of a minute


async def polled(exchange: Kraken, http: FakeKraken, seconds: int, *symbols: Symbol) -> list[Candles]:
    events: list[Candles] = []

    async def read() -> None:
        async for event in exchange.make_feed(symbols or (BTC,)).stream_events(http):
            events.append(event)

    task = asyncio.ensure_future(read())
    for _ in range(seconds * 4):
        await exchange.clock.advance(0.25)
    task.cancel()
    (error,) = await asyncio.gather(task, return_exceptions=True)
    if not isinstance(error, asyncio.CancelledError):
        raise error
    return events


async def test_polls_follow_the_ends_of_minutes_and_divide_the_rest(clock):
    http = FakeKraken(clock)
    events = await polled(Kraken(Settings(), clock), http, 120)
    first, *later = [at_ms for _, at_ms in http.asked]
    assert first == clock.now_ms() - 120_000
    assert {at_ms % 15_000 for at_ms in later} == {1_500}
    assert {after - before for before, after in pairwise(later)} == {15_000}
    assert [len(event.candles) for event in events] == [2] * len(events)
    for before, after in pairwise(events):  # each minute is seen once more after its end
        assert after.candles[-1].open_ms == before.candles[-1].open_ms or after.candles[0] == before.candles[
            -1
        ]._replace(volume=after.candles[0].volume)


class Stamping(Kraken):
    async def fetch_history(self, http, symbol, start_ms, end_ms):
        rows = await super().fetch_history(http, symbol, start_ms, end_ms)
        return [row._replace(as_of_ms=http.now_ms) for row in rows]


@pytest.mark.parametrize("ahead_ms", [-20_000, 7_000, 40_000])
async def test_the_phase_is_that_of_the_exchanges_clock_where_its_answers_have_a_time(ahead_ms, clock):
    http = FakeKraken(clock, ahead_ms)
    await polled(Stamping(Settings(), clock), http, 60)
    assert {at_ms % 15_000 for _, at_ms in http.asked[1:]} == {1_500}


async def test_a_symbol_that_cannot_be_read_leaves_the_others_alone(clock):
    http = FakeKraken(clock)
    http.fails["ETH"] = ExchangeError("EQuery:Unknown asset pair")
    events = await polled(Kraken(Settings(), clock), http, 60, BTC, ETH)
    assert {event.symbol for event in events} == {BTC}
    assert {name for name, _ in http.asked} == {"BTC", "ETH"}


async def test_a_feed_of_which_nothing_can_be_read_is_interrupted_and_passes_the_pause_on(clock):
    http = FakeKraken(clock)
    http.fails = dict.fromkeys(("BTC", "ETH"), Unavailable("EAPI:Rate limit exceeded", retry_after_s=30.0))
    with pytest.raises(Unavailable, match="Rate limit") as caught:
        await polled(Kraken(Settings(), clock), http, 1, BTC, ETH)
    assert caught.value.retry_after_s == 30.0
