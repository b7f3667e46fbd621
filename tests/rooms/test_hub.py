import asyncio

import pytest

from tests.rooms.stage import BTC, MONDAY_MS, Stage, Stored, stage, topic
from tests.rows import minute


async def test_a_member_gets_initial_then_updates_and_ends_with_what_a_reload_shows():
    one = await stage()
    chart = one.join()
    for second in range(1, 130):
        one.push(minute(60 + second // 60, volume=str(second % 60 + 1), as_of=(second % 60) * 1000))
        await one.wait(1)
    await one.wait(2)
    assert chart.bars == one.join().bars
    assert len(chart.initials) == 1


async def test_one_clients_number_of_bars_changes_nothing_for_another():
    """Fault 4: one client's initialBars changing what another client sees."""
    one = await stage()
    many, few = one.join(bars=50), one.join(bars=3)
    assert (len(many.bars), len(few.bars)) == (50, 3)
    one.heal([minute(55, "15", final=True, as_of=90_000)])
    await one.wait(6)
    assert [len(bars) for bars in many.initials] == [50, 50]
    assert [len(bars) for bars in few.initials] == [3]  # nothing it was shown has changed
    one.heal([minute(58, "15", final=True, as_of=90_000)])
    await one.wait(6)
    assert [len(bars) for bars in few.initials] == [3, 3]
    assert few.bars == many.bars[-3:]


async def test_a_repaired_past_goes_out_as_a_fresh_initial_at_most_once_in_five_seconds():
    one = await stage()
    chart = one.join()
    for tenth in range(100):
        one.heal([minute(30, str(11 + tenth % 7), str(tenth + 2), final=True, as_of=70_000 + tenth)])
        await one.wait(0.1)
    assert 2 <= len(chart.initials) - 1 <= 3
    await one.wait(6)
    assert chart.bars == one.join().bars


async def test_a_late_last_version_after_the_boundary_reaches_clients_without_moving_back():
    one = await stage()
    chart = one.join()
    one.push(minute(60, volume="5", as_of=59_000))
    await one.wait(1.5)
    one.push(minute(61, volume="1", as_of=500))
    await one.wait(1.5)
    one.push(minute(60, "19", volume="6", as_of=64_000))
    await one.wait(0.1)
    assert chart.bars[-2]["volume"] == 6
    assert chart.bars == one.join().bars


async def test_a_subscriber_in_the_middle_of_a_boundary_sees_no_older_update_after_its_initial():
    one = await stage()
    early = one.join()
    one.push(minute(60, volume="1", as_of=1_000))
    await one.wait(0.1)
    one.push(minute(60, volume="9", as_of=59_900))  # held: the second is not over
    one.push(minute(61, volume="1", as_of=100))
    late = one.join()
    assert late.bars[-1]["time"] > late.bars[-2]["time"]
    await one.wait(3)
    one.push(minute(61, volume="2", as_of=4_000))
    await one.wait(2)
    assert late.bars == early.bars == one.join().bars
    assert [bar["time"] for bar in early.updates] == sorted(bar["time"] for bar in early.updates)


async def test_bars_older_than_what_history_is_complete_from_are_not_shown_cut():
    """Fault 16: a first bar of initial cut in the middle of its bucket."""
    stored = Stored([minute(number, final=True) for number in range(7, 60)], complete_from=minute(7).open_ms)
    one = await Stage(stored).start()
    assert [bar["time"][11:16] for bar in one.join("15m").bars] == ["00:15", "00:30", "00:45"]
    assert one.join("1h").bars == []
    one.stored.since = MONDAY_MS
    hourly = one.join("1h")
    one.heal([minute(number, final=True) for number in range(7)])
    await one.wait(6)
    assert [bar["volume"] for bar in hourly.bars] == [60]


async def test_nothing_is_encoded_or_sent_for_rooms_without_members():
    one = await stage()
    chart = one.join()
    one.hub.leave(chart.membership)
    one.push(minute(60))
    await one.wait(2)
    assert chart.updates == []
    assert one.hub.describe() == {"totalRooms": 0, "totalClients": 0, "rooms": []}


async def test_statistics_have_exactly_the_documented_keys():
    one = await stage()
    one.join()
    one.join("5m")
    facts = one.hub.describe()
    assert (facts["totalRooms"], facts["totalClients"]) == (2, 2)
    assert facts["rooms"][0] == {"key": "BTC/USDT:1m", "clientCount": 1, "hasCandle": True, "lastBroadcast": 0}
    one.push(minute(60))
    assert one.hub.describe()["rooms"][0]["lastBroadcast"] == one.clock.now_ms()


async def test_deep_history_is_read_once_and_then_served_from_memory():
    one = await stage(count=900)
    assert not one.bars.ready(BTC, topic("1m").interval, 800)
    await one.bars.prepare(BTC, topic("1m").interval, 800, 0)
    before = one.stored.queries
    assert len(one.join(bars=800).bars) == 800
    await one.bars.prepare(BTC, topic("1m").interval, 800, 0)
    assert one.stored.queries == before


async def test_a_read_that_overlapped_a_repair_is_not_believed():
    one = await stage(count=900)
    loading = asyncio.ensure_future(one.bars.prepare(BTC, topic("1m").interval, 800, 0))
    await asyncio.sleep(0)
    one.heal([minute(200, "15", final=True, as_of=90_000)])
    await asyncio.gather(loading, one.wait(0.1))
    shown = {bar["time"]: bar for bar in one.join(bars=800).bars}
    assert len(shown) == 800
    assert shown["2025-05-19T03:20:00.000Z"]["close"] == 15


@pytest.mark.parametrize("interval", ["1m", "5m", "1h", "1D", "1W"])
async def test_ten_thousand_subscriptions_around_boundaries_see_no_hole_and_no_double(interval):
    """Fault 5: an update before its initial; and nothing lost between the two (`Chart` asserts the order)."""
    one = await stage()
    charts = []
    for step in range(400):
        second = 50 + step / 10
        number = 60 + int(second // 60)
        one.push(minute(number, volume=str(step + 1), as_of=round(second % 60 * 1000)))
        charts += [one.join(interval, bars) for bars in (1, 2, 5, 100, 0)]
        await one.wait(0.1)
    await one.wait(8)
    reload = one.join(interval).bars
    for chart in charts:
        assert chart.bars == reload[-len(chart.bars) :]
        assert chart.bars
