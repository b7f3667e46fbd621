"""Minutes that were not final when candled stopped: shown as they were, or as missing, and never lost."""

import asyncio
from decimal import Decimal

import pytest

from candled.aggregate.live_bars import LiveBars
from candled.ingest.coverage import Coverage
from candled.ingest.market import MarketIngest
from candled.ingest.market_status import Rules
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Gap, Interval, MarketKey, Range, Symbol
from candled.store import make_store
from tests.clocks import FairScaledClock, ManualClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.passes import run_through
from tests.rooms.stage import Stored
from tests.rows import MONDAY_MS, minute
from tests.system.rig import MONDAY_MORNING_MS, Rig

BTC = Symbol("BTC", "USDT")
KEY = MarketKey("bitget", BTC)
M5 = Interval.parse("5m")
RULES = Rules(
    grace_period_ms=2_000,
    quiet_after_ms=60_000,
    confirm=True,
    max_history_minutes=1000,
    opens_at_previous_close=False,
    publishes_empty_candles=True,
)


def span(start: int, end: int) -> Range:
    return Range(MONDAY_MS + start * MINUTE_MS, MONDAY_MS + end * MINUTE_MS)


def known_gap(start: int, end: int) -> Gap:
    return Gap(**span(start, end)._asdict(), reason="exchange_outage", attempts=5, retry_ms=None)


def restored(final: range, forming: list[int], known_gaps=()) -> MarketIngest:
    coverage = Coverage(
        present=[span(final.start, final.stop)],
        known_gaps=known_gaps,
        since_ms=MONDAY_MS,
        from_ms=MONDAY_MS,
        absence="exchange_outage",
    )
    recent = [minute(at, final=True) for at in final] + [minute(at, as_of=30_000) for at in forming]
    return MarketIngest(KEY, coverage, RULES, sorted(recent))


@pytest.mark.parametrize(
    ("final", "forming", "known_gaps", "seconds", "missing", "gap"),
    [
        (range(100), [100], [], 100 * 60 + 2, 0, None),
        (range(100), [100, 101], [], 101 * 60 + 2, 0, span(100, 101)),
        (range(100), [101], [], 101 * 60 + 2, 1, span(100, 101)),
        (range(100), [101], [known_gap(100, 101)], 101 * 60 + 2, 0, None),
        (range(100), [103, 104], [], 104 * 60 + 2, 3, span(100, 104)),
        (range(100), [100, 101], [], 110 * 60, 8, span(100, 101)),
    ],
)
def test_a_minute_lost_before_a_restored_one_is_missing_from_the_start(
    final, forming, known_gaps, seconds, missing, gap
):
    one = restored(final, forming, known_gaps)
    assert one.missing_minutes(MONDAY_MS + seconds * 1000) == missing
    facts = one.feed_metadata(0)
    assert (facts.watermark_ms, facts.gap) == (MONDAY_MS + forming[-1] * MINUTE_MS, gap)
    assert [candle.open_ms for candle in one.minutes.forming] == [minute(at).open_ms for at in forming]


def test_a_restored_minute_becomes_final_by_the_exchanges_word_not_by_its_successor():
    one = restored(range(100), [100, 101])
    now_ms = MONDAY_MS + 101 * MINUTE_MS + 30_000
    assert one.finalize_minutes(now_ms + 10_000) == []
    window = one.next_request(now_ms)
    assert window is not None
    assert window.end_ms == MONDAY_MS + 101 * MINUTE_MS
    answer = [minute(100, "12", volume="9", as_of=90_000)]
    [live] = one.on_history(window, answer, now_ms).live
    assert (live.final, live.rev, live.close) == (True, 0, Decimal(12))


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    ("final", "forming", "known_gaps", "shown", "not_final"),
    [
        (range(7), [7], [], [*range(8)], [7]),
        (range(7), [7, 8], [], [*range(9)], [7, 8]),
        (range(7), [8], [], [*range(7)], []),
        (range(7), [8], [known_gap(7, 8)], [*range(7), 8], [8]),
        (range(7), [7, 9], [], [*range(8)], [7]),
        (range(9), [4, 9], [], [*range(10)], [4, 9]),
        (range(0), [3, 4], [], [3, 4], [3, 4]),
    ],
)
async def test_restored_minutes_are_shown_as_far_as_they_adjoin_what_is_final(
    final, forming, known_gaps, shown, not_final
):
    stored = Stored([minute(at, final=True) for at in final if at not in forming])
    stored.unfinished = [minute(at, as_of=30_000) for at in forming]
    stored.absent = known_gaps
    bars = LiveBars([KEY], DEFAULT_INTERVALS, stored, ManualClock(MONDAY_MS + 3600_000))  # long after the stop
    await bars.start()
    minutes = bars.newest_bars(KEY, MINUTE, 99)
    assert [(bar.open_ms - MONDAY_MS) // MINUTE_MS for bar in minutes] == shown
    is_open = [at for at in shown if not bars.is_final(KEY, MINUTE, bars.get_bar(KEY, MINUTE, minute(at).open_ms))]
    assert is_open == not_final
    sums = [sum(1 for at in shown if at // 5 == number) for number in range(2)]
    assert [bar.volume for bar in bars.newest_bars(KEY, M5, 9)] == [volume for volume in sums if volume]
    for bar in bars.newest_bars(KEY, M5, 9):
        number = (bar.open_ms - MONDAY_MS) // M5.ms
        kept = [at for at in shown if at // 5 == number]
        may_be_final = number < max(shown) // 5 and not set(kept) & set(not_final)
        assert bars.is_final(KEY, M5, bar) == may_be_final


# ---------------------------------------------------------------- the whole daemon


async def until_second(clock: FairScaledClock, second: float) -> None:
    """Wait until so many seconds after the beginning of a minute."""
    while not second <= clock.now_ms() % MINUTE_MS / 1000 < second + 2:
        await asyncio.sleep(0.005)


@pytest.mark.usefixtures("daemon")
async def test_after_a_stop_behind_a_boundary_and_a_start_without_the_exchange_every_minute_is_shown(tmp_path):
    clock = FairScaledClock(10.0, MONDAY_MORNING_MS)
    fake = FakeBitget(clock, [FakeMarket(symbol=BTC, tape=Synthetic(3), listed_ms=MONDAY_MORNING_MS - 86_400_000)])
    await fake.start()
    rig = Rig(tmp_path, fake, clock, [BTC])
    try:
        await rig.start()
        await rig.until(lambda: rig.health(BTC)["state"] == "live" and not rig.health(BTC)["missingMinutes"])
        chart = rig.open_chart(BTC, "1m", 20)
        await rig.minutes(1.5)
        await until_second(clock, 2.0)
        stopped_ms = clock.now_ms()
        await rig.stop()
    finally:
        await fake.close()
    current_ms = MINUTE.floor(stopped_ms)
    store = make_store(rig.store_url, None)
    store.open()
    forming = store.read_forming(KEY)
    newest_ms = store.newest_minutes("bitget")[BTC]
    store.close()
    assert [candle.open_ms for candle in forming] == list(range(newest_ms + MINUTE_MS, current_ms + 1, MINUTE_MS))
    assert len(forming) == 2  # the minute before is over, and late versions of it might have come

    again = Rig(tmp_path, fake, clock, [BTC])
    try:
        await again.start()
        await again.until(
            lambda: again.health(BTC)["trouble"] or run_through(again.daemon.health.report())["status"] == "warn"
        )
        minutes = await again.reload(chart)
        times = [bar["time"] for bar in minutes]
        shown = [bar["time"] for bar in chart.bars]
        count = times.index(shown[-1]) + 1
        assert count >= len(times) - 1  # at the stop the newest bar may have been two seconds old, and not sent yet
        assert times[:count][-len(shown) :] == shown[-count:]
        assert minutes[count - 2] == chart.bars[-2]
        fives = await again.reload(again.open_chart(BTC, "5m", 3))
        first = times.index(fives[-1]["time"]) if fives[-1]["time"] in times else None
        assert first is not None
        volume = sum(Decimal(str(bar["volume"])) for bar in minutes[first:])
        assert Decimal(str(fives[-1]["volume"])) == volume
        assert again.health(BTC)["missingMinutes"] <= 1 + (clock.now_ms() - stopped_ms) // MINUTE_MS
    finally:
        await again.stop()
