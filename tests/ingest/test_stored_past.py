"""History that others stored: served from its first minute on, gaps named, and noticed while it comes."""

import asyncio
import json
import urllib.request
from collections.abc import Iterable
from typing import Any
from urllib.parse import urljoin

import pytest
import websockets

from candled.ingest.coverage import Coverage
from candled.ingest.market import MarketIngest
from candled.ingest.market_status import Rules
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Candle, Gap, Interval, MarketKey, Range, Symbol, iso_ms
from candled.store import make_store
from candled.tools.store_access import put_past
from candled.tools.transfer import extend_coverage
from tests import deadlines
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.rows import MONDAY_MS, minute
from tests.system.rig import MONDAY_MORNING_MS, Rig

BTC = Symbol("BTC", "USDT")
KEY = MarketKey("bitget", BTC)
D1, H1, W1 = (Interval.parse(text) for text in ("1D", "1h", "1W"))
DAY_MS = D1.ms


def days(number: float) -> int:
    """A time so many days before the rig's Monday morning."""
    return MONDAY_MORNING_MS - round(number * DAY_MS)


def store_past(url: str, minutes: Iterable[Candle], *, fresh: bool) -> None:
    """Do what `candled import` does."""
    store = make_store(url, DEFAULT_INTERVALS if fresh else None)
    store.open()
    page: list[Candle] = []
    for candle in minutes:
        page.append(candle._replace(final=True, src=""))
        if len(page) == 10_080:
            put_past(store, KEY, page)
            page = []
    put_past(store, KEY, page)
    extend_coverage(store, KEY)
    store.close()


async def get(rig: Rig, path: str) -> Any:
    url = f"http://127.0.0.1:{rig.daemon.port}{path}"
    return json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=30).read()))


async def all_bars(rig: Rig, interval: str) -> list[dict[str, Any]]:
    """Page back through REST to the beginning."""
    bars: list[dict[str, Any]] = []
    path = f"/api/candles?symbol=BTC/USDT&interval={interval}&limit=200"
    while path:
        page = await get(rig, path)
        bars = page["bars"] + bars
        path = page["next"] and urljoin(path, page["next"])
    return bars


def stored(rig: Rig, interval: Interval) -> list[Candle]:
    store = make_store(rig.store_url, None)
    store.open()
    try:
        return store.read_bars_between(KEY, interval, 0, 2**60)
    finally:
        store.close()


def shown(bars: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(bar["time"], bar["volume"]) for bar in bars]


def expected(bars: list[Candle], from_ms: int) -> list[tuple[str, float]]:
    return [(iso_ms(bar.open_ms), float(bar.volume)) for bar in bars if bar.open_ms >= from_ms]


@pytest.fixture
async def fake():
    clock = FairScaledClock(20.0, MONDAY_MORNING_MS)
    fake = FakeBitget(clock, [FakeMarket(symbol=BTC, tape=Synthetic(11), listed_ms=days(90))], push_interval_s=2.0)
    fake.clock = clock
    await fake.start()
    fake.enforce_limits = False
    yield fake
    await fake.close()


# ---------------------------------------------------------------- at the start


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("spans", "gaps"),
    [
        ([(20, 5)], []),
        ([(16.3, 0.1)], []),
        ([(18, 13), (12, 5)], [(13, 12)]),
        ([(20, 15), (14.99, 10), (8, 2)], [(15, 14.99), (10, 8)]),
    ],
    ids=["days ago", "until now", "two pieces", "three pieces"],
)
async def test_imported_history_is_served_with_the_exchange_out_of_reach(tmp_path, fake, spans, gaps):
    rig = Rig(tmp_path, fake, fake.clock, [BTC])
    minutes = [candle for first, last in spans for candle in fake.truth(BTC, days(first), days(last))]
    store_past(rig.store_url, minutes, fresh=True)
    await fake.close()
    try:
        await rig.start()
        for interval in (D1, H1, W1):
            bars = await all_bars(rig, str(interval))
            assert shown(bars) == expected(stored(rig, interval), minutes[0].open_ms)
        oldest = iso_ms(D1.floor(minutes[0].open_ms - 1) + DAY_MS)
        assert (await get(rig, "/api/candles?symbol=BTC/USDT&interval=1D&limit=5"))["hasMore"]
        for first, last in gaps:
            at_ms = MINUTE.floor(days(first))
            path = f"/api/gaps?symbol=BTC/USDT&from={at_ms - 60 * MINUTE_MS}&to={MINUTE.floor(days(last)) + 3_600_000}"
            [gap] = (await get(rig, path))["gaps"]
            assert gap["reason"] == "missing"
            assert abs(gap["minutes"] - (first - last) * 1440) <= 1
        udf = f"/udf/history?symbol=bitget:BTC/USDT&resolution=1D&from=0&to={MONDAY_MORNING_MS // 1000}&countback=10"
        assert len((await get(rig, udf))["t"]) == 10
        async with websockets.connect(f"ws://127.0.0.1:{rig.daemon.port}/", max_size=None) as ws:
            question = {"type": "history", "symbol": "BTC/USDT", "interval": "1D", "limit": 1000, "id": 1}
            await ws.send(json.dumps({**question, "before": iso_ms(days(6))}))
            answer = json.loads(await ws.recv())
        assert (answer["bars"][0]["time"], answer["end"]) == (oldest, True)
        # what has nothing missing after it counts as complete, without the exchange
        complete_ms = days(min((last for _, last in gaps), default=spans[0][0]))
        await rig.until(lambda: rig.health(BTC)["completeFrom"] is not None)
        await rig.until(lambda: abs(at(rig.health(BTC)["completeFrom"]) - complete_ms) <= MINUTE_MS)
    finally:
        await rig.stop()


def at(text: str) -> int:
    from candled.model import parse_iso_ms

    return parse_iso_ms(text)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("known_gap", "complete", "begins"),
    [
        (None, None, "after"),
        (None, 9.3, "after"),
        (Range(0, days(9.3)), 9.3, "with"),
        (Range(days(20), days(9.3)), None, "with"),
        (Range(0, days(9.4)), 9.3, "after"),
    ],
)
async def test_the_bar_in_which_history_begins_is_served_where_nothing_exists_before(
    tmp_path, fake, known_gap, complete, begins
):
    """As earlier versions of `candled backfill` left a store, too: complete since the first minute."""
    rig = Rig(tmp_path, fake, fake.clock, [BTC])
    store_past(rig.store_url, fake.truth(BTC, days(9.3), days(5)), fresh=True)
    store = make_store(rig.store_url, None)
    store.open()
    if known_gap is not None:
        store.save_known_gaps(KEY, [Gap(**known_gap._asdict(), reason="beyond_history", attempts=1, retry_ms=None)])
    if complete is not None:
        store.set_complete_from(KEY, days(complete))
    store.close()
    await fake.close()
    try:
        await rig.start()
        day_ms = D1.floor(days(9.3)) + (0 if begins == "with" else DAY_MS)
        hour_ms = H1.floor(days(9.3)) + (0 if begins == "with" else H1.ms)
        await rig.clock.sleep(60)
        for interval, first_ms in ((D1, day_ms), (H1, hour_ms)):
            bars = await all_bars(rig, str(interval))
            assert bars[0]["time"] == iso_ms(first_ms)
            assert shown(bars) == expected(stored(rig, interval), first_ms)
    finally:
        await rig.stop()


@pytest.mark.usefixtures("daemon")
async def test_what_is_missing_between_imported_pieces_is_fetched(tmp_path, fake):
    rig = Rig(tmp_path, fake, fake.clock, [BTC], ingest={"backfill": "10d"})
    minutes = [*fake.truth(BTC, days(19.3), days(16)), *fake.truth(BTC, days(15), days(10))]
    store_past(rig.store_url, minutes, fresh=True)
    try:
        await rig.start()
        begins_ms = W1.floor(days(19.3))
        await rig.until(lambda: at(rig.health(BTC)["completeFrom"] or iso_ms(2**41)) <= begins_ms, 60)
        await rig.until(lambda: not rig.health(BTC)["missingMinutes"], 60)
        bars = await all_bars(rig, "1D")
        async with deadlines.timeout(60):
            while bars[0]["time"] != iso_ms(begins_ms) or not all(bar["final"] for bar in bars[:-1]):
                await asyncio.sleep(0.1)  # known, but not stored yet
                bars = await all_bars(rig, "1D")
        assert shown(bars)[:-1] == expected(stored(rig, D1), begins_ms)[: len(bars) - 1]
        truth = {candle.open_ms: candle.values for candle in fake.truth(BTC, begins_ms, days(5))}
        assert {one.open_ms: one.values for one in stored(rig, MINUTE) if one.open_ms < days(5)} == truth
    finally:
        await rig.stop()


# ---------------------------------------------------------------- while it runs


@pytest.mark.usefixtures("daemon")
async def test_a_running_daemon_shows_what_is_imported_within_seconds(tmp_path, fake):
    rig = Rig(tmp_path, fake, fake.clock, [BTC], ingest={"backfill": "1h"})
    try:
        await rig.start()
        await rig.until(lambda: rig.health(BTC)["state"] == "live" and not rig.health(BTC)["missingMinutes"])
        chart = rig.open_chart(BTC, "1D", 1000)
        await rig.until(lambda: chart.initials == 1)
        minutes = fake.truth(BTC, days(20), days(8))
        await asyncio.to_thread(store_past, rig.store_url, minutes, fresh=False)
        bars = await all_bars(rig, "1D")
        first_ms = D1.floor(minutes[0].open_ms - 1) + DAY_MS
        assert bars[0]["time"] == iso_ms(first_ms)
        assert not bars[0]["final"]  # until nothing is missing after it
        await rig.until(lambda: chart.bars[0]["time"] == iso_ms(first_ms), 3)
        await rig.until(lambda: at(rig.health(BTC)["completeFrom"]) <= W1.floor(days(20)), 60)
        await rig.until(lambda: len(chart.bars) > 20)
    finally:
        await rig.stop()


@pytest.mark.usefixtures("daemon")
async def test_what_the_stream_brings_of_the_week_before_does_not_make_that_wanted(tmp_path, fake):
    """With a subscription come the last 500 minutes, on a Monday morning some of Sunday."""
    rig = Rig(tmp_path, fake, fake.clock, [BTC])
    try:
        await rig.start()
        await rig.until(lambda: rig.health(BTC)["state"] == "live" and not rig.health(BTC)["missingMinutes"])
        await rig.clock.sleep(60)
        assert rig.health(BTC)["completeFrom"] == iso_ms(W1.floor(MONDAY_MORNING_MS))
        assert stored(rig, MINUTE)[0].open_ms == W1.floor(MONDAY_MORNING_MS)
    finally:
        await rig.stop()


# ---------------------------------------------------------------- one stretch, without a loop

RULES = Rules(
    grace_period_ms=2_000,
    quiet_after_ms=60_000,
    confirm=True,
    max_history_minutes=1000,
    opens_at_previous_close=False,
    publishes_empty_candles=True,
)
WEEKS_MS = MONDAY_MS - 4 * W1.ms
NOW_MS = MONDAY_MS + 601 * MINUTE_MS


def cover(present, since_ms: int | None, from_ms: int, known_gaps=()) -> Coverage:
    return Coverage(
        present=present, known_gaps=known_gaps, since_ms=since_ms, from_ms=from_ms, absence="exchange_outage"
    )


def known_gap(start_ms: int, end_ms: int) -> Gap:
    return Gap(start_ms=start_ms, end_ms=end_ms, reason="exchange_outage", attempts=5, retry_ms=None)


@pytest.mark.parametrize(
    ("present", "known_gaps", "complete_ms", "asked"),
    [
        ([Range(WEEKS_MS, MONDAY_MS)], [], WEEKS_MS, None),
        ([Range(WEEKS_MS, MONDAY_MS - MINUTE_MS)], [known_gap(MONDAY_MS - MINUTE_MS, MONDAY_MS)], WEEKS_MS, None),
        (
            [Range(WEEKS_MS, MONDAY_MS - 90 * MINUTE_MS), Range(MONDAY_MS - 60 * MINUTE_MS, MONDAY_MS)],
            [],
            MONDAY_MS - 60 * MINUTE_MS,
            Range(MONDAY_MS - 90 * MINUTE_MS, MONDAY_MS - 60 * MINUTE_MS),
        ),
        ([Range(WEEKS_MS, MONDAY_MS - 5 * MINUTE_MS)], [], None, Range(MONDAY_MS - 5 * MINUTE_MS, MONDAY_MS)),
    ],
)
def test_of_a_stretch_what_adjoins_is_complete_and_what_is_missing_is_asked_for_last(
    present, known_gaps, complete_ms, asked
):
    one = MarketIngest(KEY, cover([Range(MONDAY_MS, NOW_MS)], MONDAY_MS, MONDAY_MS), RULES)
    added = one.examine_older(cover(present, MONDAY_MS, WEEKS_MS, known_gaps), MONDAY_MS)
    assert added == (None if complete_ms is None else Range(complete_ms, MONDAY_MS))
    assert one.coverage.since_ms == (complete_ms or MONDAY_MS)
    window = one.next_request(NOW_MS)
    assert (window and Range(window.start_ms, window.end_ms)) == asked
    if window is None:
        return
    assert one.missing_minutes(NOW_MS) == (asked.end_ms - asked.start_ms) // MINUTE_MS
    rows = [minute((at_ms - MONDAY_MS) // MINUTE_MS, final=True) for at_ms in range(*asked, MINUTE_MS)]
    outcome = one.on_history(window, rows, NOW_MS)
    assert [candle.open_ms for candle in outcome.past] == [candle.open_ms for candle in rows]
    assert outcome.repaired.start_ms == one.coverage.since_ms == WEEKS_MS
    assert one.next_request(NOW_MS) is None


def test_an_answer_for_a_stretch_that_is_examined_no_more_leaves_no_gap_that_nobody_asks_for_again():
    """Another process stored the range and its gaps while the request was on its way."""
    one = MarketIngest(KEY, cover([Range(MONDAY_MS, NOW_MS)], MONDAY_MS, MONDAY_MS), RULES)
    one.examine_older(cover([Range(WEEKS_MS, MONDAY_MS - 5 * MINUTE_MS)], MONDAY_MS, WEEKS_MS), MONDAY_MS)
    window = one.next_request(NOW_MS)
    assert window.start_ms == MONDAY_MS - 5 * MINUTE_MS
    one.older = None
    outcome = one.on_history(window, [], NOW_MS)
    assert (outcome.past, outcome.repaired) == ([], None)
    assert one.known_gaps == []
    assert one.coverage.take_changes() is None  # nothing replaces the gap that the other process stored


# ---------------------------------------------------------------- with a retention


@pytest.mark.slow
@pytest.mark.usefixtures("daemon")
async def test_minutes_that_the_store_has_dropped_are_neither_missing_nor_fetched(tmp_path, fake):
    """More is wanted by `ingest.backfill` than the store keeps, and history was complete before."""
    url = f"sqlite:///{tmp_path / 'candled.db'}"
    store = {"url": url, "journal": "", "retention": "5d"}
    rig = Rig(tmp_path, fake, fake.clock, [BTC], ingest={"backfill": "16d"}, sections={"store": store})
    first_ms, kept_ms = W1.floor(days(16)), W1.floor(days(5))
    store_past(url, fake.truth(BTC, first_ms, days(0.1)), fresh=True)
    guest = make_store(url, None)
    guest.open()
    guest.set_complete_from(KEY, first_ms)
    guest.close()
    days_before = stored(rig, D1)
    try:
        await rig.start()
        await rig.until(lambda: stored(rig, MINUTE)[0].open_ms == kept_ms, 60)
        await rig.until(lambda: rig.health(BTC)["state"] == "live" and not rig.health(BTC)["missingMinutes"], 60)
        fake.requests.clear()
        await rig.stop()
        await rig.start()  # another process reads the store as it is now
        await rig.until(lambda: rig.health(BTC)["state"] == "live" and not rig.health(BTC)["missingMinutes"], 60)
        await rig.clock.sleep(60)
        ends = [int(page.query["endTime"]) for page in fake.requests_to("history-candles")]
        assert [end for end in ends if end < kept_ms] == []
        path = f"?symbol=BTC/USDT&from={first_ms}&to={days(1)}"
        assert (await get(rig, "/api/gaps" + path))["gaps"] == []
        assert (await get(rig, "/api/coverage" + path))["days"][0]["day"] == iso_ms(kept_ms)[:10]
        assert stored(rig, D1)[: len(days_before) - 1] == days_before[:-1]
        assert stored(rig, MINUTE)[0].open_ms == kept_ms
    finally:
        await rig.stop()
