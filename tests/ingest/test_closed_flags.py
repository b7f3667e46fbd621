"""Closed flags that are final, advisory, or lie."""

import pytest

from candled.exchange import Candles
from candled.ingest.coverage import Coverage
from candled.ingest.market import MarketIngest
from candled.ingest.market_status import Rules
from candled.model import MINUTE_MS, MarketKey, Symbol
from candled_plugins.binance.exchange import BinanceFeed
from tests.plugins.local import recorded
from tests.rows import MONDAY_MS, minute

BTC = Symbol("BTC", "USDT")
GRACE_MS = 2_000
END_S = 60  # of the minute that is pushed


def market(flag: str, from_ms: int = MONDAY_MS) -> MarketIngest:
    coverage = Coverage(present=[], known_gaps=[], since_ms=None, from_ms=from_ms, absence="exchange_outage")
    rules = Rules(
        grace_period_ms=GRACE_MS,
        quiet_after_ms=60_000,
        confirm=False,
        max_history_minutes=1000,
        opens_at_previous_close=False,
        publishes_empty_candles=True,
        closed_flag=flag,
    )
    return MarketIngest(MarketKey("one", BTC), coverage, rules)


def push(one: MarketIngest, seconds: float, *, number: int = 0, volume: str = "1", final: bool = False) -> list[bool]:
    now_ms = MONDAY_MS + round(seconds * 1000)
    candle = minute(number, volume=volume)._replace(as_of_ms=now_ms, final=final)
    return [candle.final for candle in one.on_push(Candles(BTC, (candle,)), now_ms).live]


def finals(one: MarketIngest, seconds: float) -> list[str]:
    return [str(candle.volume) for candle in one.finalize_minutes(MONDAY_MS + round(seconds * 1000))]


def test_a_final_flag_ends_the_minute():
    one = market("final")
    assert push(one, END_S + 0.1, final=True) == [True]


def test_an_advisory_flag_begins_the_grace_period_without_the_next_minute():
    one = market("advisory")
    assert push(one, END_S + 0.1, final=True) == [False]
    assert one.minutes.awaits_late_versions
    assert finals(one, END_S + 2.0) == []
    assert push(one, END_S + 1.5, volume="2", final=True) == [False]  # twice, as Bybit did
    assert finals(one, END_S + 2.2) == ["2"]
    assert one.revisions == 0


def test_a_flag_that_comes_before_the_end_of_the_minute_ends_nothing():
    for flag in ("final", "advisory", "ignored"):
        one = market(flag)
        assert push(one, 30, final=True) == [False]
        assert finals(one, END_S - 1) == []
        assert finals(one, END_S + 30) == []


def test_an_ignored_flag_leaves_the_minute_to_its_successor():
    one = market("ignored")
    assert push(one, END_S + 0.1, final=True) == [False]
    assert finals(one, END_S + 30) == []
    assert push(one, END_S + 30, number=1) == [False]
    assert finals(one, END_S + 33) == ["1"]


@pytest.mark.parametrize("flag", ["final", "advisory", "ignored"])
def test_a_final_minute_that_changes_is_a_revision(flag):
    one = market(flag)
    push(one, END_S + 0.1, final=True)
    push(one, END_S + 0.2, number=1)
    finals(one, END_S + 3)
    push(one, END_S + 4, volume="5", final=True)
    assert one.revisions == 1


@pytest.mark.parametrize(("flag", "is_final"), [("final", [True, False]), ("advisory", [False, False])])
def test_recorded_frames_of_binance(flag, is_final):
    symbol = Symbol("LTC", "BRL")
    feed = BinanceFeed("ws://localhost", [symbol])
    events = [
        event
        for frame in recorded("binance/boundary_spot.txt")
        if "ltcbrl" in frame
        for event in feed.read_frame(frame)
    ]
    first = events[0].candles[0]
    one = market(flag, first.open_ms - first.open_ms % (1440 * MINUTE_MS))
    seen = [candle.final for event in events for candle in one.on_push(event, event.candles[-1].as_of_ms + 50).live]
    assert seen == is_final
    late = one.finalize_minutes(first.open_ms + MINUTE_MS + GRACE_MS + 100)
    assert [candle.values for candle in late] == ([] if flag == "final" else [first.values])
