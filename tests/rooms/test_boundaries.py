"""Where one bar ends and the next begins: the last version late, and thousands who subscribe just then."""

import os

import pytest

from candled.bus import FeedMetadata
from candled.model import MINUTE_MS
from tests.clocks import ManualClock
from tests.rooms.stage import MONDAY_MS, Stage, Stored, stage
from tests.rooms.test_resume import fresh, texts
from tests.rows import minute

LONG = bool(os.environ.get("CANDLED_TEST_LONG"))
WEEK_MS = 7 * 24 * 60 * MINUTE_MS
FINAL = {"fields": ["final"]}


@pytest.mark.parametrize("options", [FINAL, {"mode": "closed", **FINAL}], ids=["final", "closed"])
@pytest.mark.parametrize("interval", ["1m", "5m", "15m", "1h", "4h", "1D", "1W"])
async def test_a_boundary_minute_that_comes_late_is_in_the_final_bar_and_no_final_was_sent_before(interval, options):
    """The last minute of Sunday, the last of every interval, is heard whole only five seconds into Monday."""
    last_hour = [minute(number, final=True) for number in range(-60, -1)]
    stored = Stored(last_hour, complete_from=MONDAY_MS - WEEK_MS)
    one = await Stage(stored, ManualClock(MONDAY_MS - 30_000)).start()
    one.facts = FeedMetadata(watermark_ms=MONDAY_MS - MINUTE_MS)
    ws = one.connect()
    ws.subscribe(interval, **options)
    one.push(minute(-1, volume="5", as_of=30_000))
    await one.wait(30.5)
    for second in range(1, 10):
        if second == 5:
            one.push(minute(-1, "19", volume="8", as_of=64_000))
        one.push(minute(0, volume=str(second), as_of=second * 1000))
        await one.wait(1)
        assert not [bar for bar in ws.chart(interval).updates if bar["final"]]
    one.push(minute(-1, "19", volume="8", as_of=64_001, final=True), 0)
    await one.wait(3)
    (final_bar,) = [bar for bar in ws.chart(interval).updates if bar["final"]]
    parts = 60 if interval in ("1h", "4h", "1D", "1W") else int(interval[:-1])
    assert (final_bar["close"], final_bar["high"], final_bar["volume"]) == (19, 19, parts - 1 + 8)
    assert texts(ws.chart(interval)) == fresh(one, interval, **options)
    if options is FINAL:
        times = [(bar["time"], bar["final"]) for bar in ws.chart(interval).updates]
        assert times == sorted(times)  # nothing of the next bar before it, nothing of it after


KINDS = (
    {},
    {"fields": ["seq"]},
    {"fields": ["final"]},
    {"fields": ["final", "rev"], "corrections": True},
    {"mode": "closed"},
)


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["1m", "5m"])
async def test_thousands_who_subscribe_around_boundaries_see_no_gap_no_double_and_no_update_before_initial(interval):
    """Fault 5: an update before its initial. `Chart` asserts the order, the end is compared with a fresh load."""
    one = await stage()
    sockets = []
    for step in range(1000 if LONG else 100):
        second = 50 + step * 20 / (1000 if LONG else 100)
        number = 60 + int(second // 60)
        one.push(minute(number, volume=str(step + 2), as_of=round(second % 60 * 1000)), number if second > 63 else None)
        for kind in KINDS:
            ws = one.connect()
            ws.subscribe(interval, (1, 2, 5, 100, 0)[(step + len(kind)) % 5], **kind)
            sockets.append((ws, kind))
        await one.wait(0.02 if LONG else 0.2)
    one.push(minute(61, volume="5000", as_of=30_000), 61)
    await one.wait(40)
    for kind in KINDS:
        shown = fresh(one, interval, **kind)
        for ws, kind_of_ws in sockets:
            if kind_of_ws == kind:
                kept = texts(ws.chart(interval))
                assert kept == shown[len(shown) - len(kept) :]
                assert ws.received[0]["type"] == "initial"
    assert len(sockets) == (5000 if LONG else 500)
