"""Exchanges that drop old minutes: those are not requested, and count as dropped instead of as quiet."""

import pytest

from candled.exchange import Exchange
from candled.ingest.coverage import Coverage, Urgency, Window
from candled.ingest.evidence import Evidence, find_evidence
from candled.ingest.retention import fetch_kept, kept_since
from candled.model import MINUTE_MS, Candle, Range, Symbol
from candled.settings import Settings
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS, minute

BTC = Symbol("BTC", "USDT")


def at(number: int) -> int:
    return MONDAY_MS + number * MINUTE_MS


class Forgetful(Exchange):
    """It keeps an hour."""

    name = "forgetful"
    Settings = Settings
    history_minutes = 60

    def __init__(self, now_ms: int) -> None:
        super().__init__(Settings(), ManualClock(now_ms))
        self.asked: list[Range] = []

    async def fetch_markets(self, http):
        return []

    async def fetch_history(self, http, symbol, start_ms, end_ms):
        self.asked.append(Range(start_ms, end_ms))
        return []


class Keeping(Forgetful):
    history_minutes = None


def test_the_oldest_minute_that_is_kept():
    assert kept_since(60, at(100) + 30_000) == at(40)
    assert kept_since(None, at(100)) == 0


@pytest.mark.parametrize(
    ("make", "start", "end", "asked"),
    [
        (Forgetful, 10, 40, []),
        (Forgetful, 10, 50, [(40, 50)]),
        (Forgetful, 45, 50, [(45, 50)]),
        (Keeping, 10, 40, [(10, 40)]),
    ],
)
async def test_only_minutes_that_are_kept_are_requested(make, start, end, asked):
    exchange = make(at(100) + 5_000)
    await fetch_kept(exchange, None, BTC, Range(at(start), at(end)), exchange.now_ms())
    assert exchange.asked == [Range(at(first), at(last)) for first, last in asked]


@pytest.mark.slow
def test_minutes_that_were_dropped_are_no_quiet_ones():
    covered = Coverage(
        present=[Range(at(0), at(10)), Range(at(90), at(100))],
        known_gaps=[],
        since_ms=MONDAY_MS,
        from_ms=MONDAY_MS,
        absence="no_trades",
    )
    window = Window(Urgency.HISTORY, at(10), at(90))
    covered.on_answer(window, at(100), at(100), kept_ms=at(40))
    assert [(one.start_ms, one.end_ms, one.reason) for one in covered.known_gaps] == [
        (at(10), at(40), "exchange_outage"),
        (at(40), at(90), "no_trades"),
    ]
    covered.on_answer(window, at(100), at(100) + 86_400_000, kept_ms=at(90))  # an answer about them stays true
    assert [one.reason for one in covered.known_gaps] == ["exchange_outage", "no_trades"]


@pytest.mark.parametrize(
    ("make", "evidence"), [(Forgetful, Evidence(begins_ms=at(40))), (Keeping, Evidence())], ids=["drops", "keeps"]
)
async def test_history_begins_with_the_oldest_minute_once_the_time_before_is_dropped(make, evidence):
    exchange = make(at(100))
    first: Candle = minute(40)
    kept_ms = kept_since(exchange.history_minutes, exchange.now_ms())
    found = await find_evidence(exchange, None, BTC, Range(at(0), at(40)), first, None, kept_ms)
    assert found == evidence
    assert bool(exchange.asked) == (make is Keeping)
