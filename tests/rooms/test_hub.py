import asyncio
import random
from collections import Counter

import pytest

from candled.aggregate.live_bars import LiveBars
from candled.bus import MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.model import DEFAULT_INTERVALS, MarketKey, Symbol, Topic
from candled.protocol.messages import FINAL, PLAIN, SEQ, Options
from candled.protocol.requests import RequestCodec
from candled.rooms.hub import Hub
from tests.clocks import ManualClock
from tests.rooms.stage import BTC, MONDAY_MS, Joined, Publisher, Stage, Stored, stage, topic
from tests.rows import minute
from tests.tiers import LONG


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("options", [PLAIN, Options(FINAL)], ids=["live", "final"])
async def test_a_bar_that_changes_back_is_sent_to_clients_that_came_in_between(options):
    one = await stage()
    first = one.join(options=options)
    one.push(minute(60, "11", volume="5", as_of=1_000))
    one.push(minute(60, "12", volume="5", as_of=1_200))
    late = one.join(options=options)
    assert late.bars[-1]["close"] == 12
    one.push(minute(60, "11", volume="5", as_of=1_400))
    await one.wait(6)
    assert len(first.updates) == 1, "the first client was sent an update, though nothing changed for it"
    assert first.bars[-1] == late.bars[-1] == one.join(options=options).bars[-1]


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
    one.hub.leave_room(chart.membership)
    one.push(minute(60))
    await one.wait(2)
    assert chart.updates == []
    assert one.hub.describe() == {"totalRooms": 0, "totalClients": 0}
    assert not list(one.hub.describe_rooms())


async def test_statistics_have_exactly_the_documented_keys():
    one = await stage()
    one.join()
    one.join("5m")
    assert one.hub.describe() == {"totalRooms": 2, "totalClients": 2}
    assert next(one.hub.describe_rooms()) == {
        "key": "BTC/USDT:1m",
        "clientCount": 1,
        "hasCandle": True,
        "lastBroadcast": 0,
    }
    one.push(minute(60))
    assert next(one.hub.describe_rooms())["lastBroadcast"] == one.clock.now_ms()


async def test_a_room_that_ends_while_others_are_described_is_left_out():
    one = await stage()
    charts = [one.join(interval) for interval in ("1m", "5m", "1h")]
    described = one.hub.describe_rooms()
    assert next(described)["key"] == "BTC/USDT:1m"
    one.hub.leave_room(charts[1].membership)
    one.join("1D")
    assert [room["key"] for room in described] == ["BTC/USDT:1h"]


async def test_deep_history_is_read_once_and_then_served_from_memory():
    one = await stage(count=900)
    assert not one.bars.is_loaded(BTC, topic("1m").interval, 800)
    await one.bars.load_bars(BTC, topic("1m").interval, 800, 0)
    before = one.stored.queries
    assert len(one.join(bars=800).bars) == 800
    await one.bars.load_bars(BTC, topic("1m").interval, 800, 0)
    assert one.stored.queries == before


async def test_a_read_that_overlapped_a_repair_is_not_believed():
    one = await stage(count=900)
    loading = asyncio.ensure_future(one.bars.load_bars(BTC, topic("1m").interval, 800, 0))
    await asyncio.sleep(0)
    one.heal([minute(200, "15", final=True, as_of=90_000)])
    await asyncio.gather(loading, one.wait(0.1))
    shown = {bar["time"]: bar for bar in one.join(bars=800).bars}
    assert len(shown) == 800
    assert shown["2025-05-19T03:20:00.000Z"]["close"] == 15


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["1m", "5m", "1h", "1D", "1W"] if LONG else ["1m", "5m", "1W"])
async def test_thousands_of_subscriptions_around_boundaries_see_no_gap_and_no_double(interval):
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


# ---------------------------------------------------------------- many rooms, large rooms


@pytest.mark.slow
async def test_rooms_that_changed_in_one_moment_have_their_next_turn_apart():
    symbols = [Symbol("S", str(number)) for number in range(100)]
    markets = [MarketKey("replay", symbol) for symbol in symbols]
    clock = ManualClock(MONDAY_MS + 3_600_000)
    bars = LiveBars(markets, DEFAULT_INTERVALS, Stored([minute(number) for number in range(60)]), clock)
    sent: list[tuple[float, tuple[str, str]]] = []

    class RecordingListener(Joined):
        def take(self, message) -> None:
            if message["type"] == "update":
                sent.append((clock.monotonic(), (message["symbol"], message["interval"])))

    codec = RequestCodec({"replay": symbols}, DEFAULT_INTERVALS)
    hub = Hub(codec, bars, clock, Publisher())
    bars.add_listener(hub)
    await bars.start()
    bus = MemoryBus("one")
    bus.add_listener(bars)
    for market in markets:
        for interval in DEFAULT_INTERVALS:
            listener = RecordingListener(hub)
            listener.request_initial(hub.join_room(listener, listener, Topic(market, interval), 1, PLAIN))
    for step in range(400):
        if step % 20 == 0:  # all of them, five times a second
            for market in markets:
                bus.publish(MinuteChanged(market, minute(60, volume=str(step + 2), as_of=step * 10)))
        await clock.advance(0.01)
        while hub.run_due():
            pass
    at_once = Counter(round(moment, 3) for moment, _ in sent)
    first, *later = sorted(at_once)
    assert at_once[first] == 700  # what was idle is told at once
    assert max(at_once[moment] for moment in later) < 150
    for room in {room for _, room in sent}:
        moments = [moment for moment, name in sent if name == room]
        assert len(moments) >= 4
        assert min(b - a for a, b in zip(moments, moments[1:], strict=False)) >= 1.0 - 1e-6, (room, moments)


async def test_an_update_does_not_wait_for_a_resync_that_no_client_needs_any_more():
    one = await stage()
    client = one.connect()
    client.subscribe("1m", 50)
    one.push(minute(60, volume="1", as_of=10_000))
    await one.wait(1.2)
    for number in (30, 31):  # the second of them would be told 5 s after the first
        one.heal([minute(number, volume="5", final=True)])
        await one.wait(1.0)
    client.subscribe("1m", 50)
    await one.wait(0.2)
    began = one.clock.monotonic()
    for volume in ("2", "3"):
        one.push(minute(60, volume=volume, as_of=20_000))
        await one.wait(0.3)
    await one.wait(2.0)
    sent_at = {message["bar"]["volume"]: at - began for at, message in client.at if message["type"] == "update"}
    assert sent_at[3] <= 1.1


async def test_while_a_broadcast_is_under_way_the_newest_state_waits_and_no_other_is_queued():
    one = await stage(draw=random.Random(1))
    charts = [one.join() for _ in range(50)]
    one.push(minute(60, volume="2"))  # begins to go out, five links at a time
    jobs = one.publisher.waiting
    assert jobs == 1
    for second in range(3, 8):
        await one.clock.advance(1)
        one.push(minute(60, volume=str(second)))
        one.hub.run_due()
    assert one.publisher.waiting == 1
    await one.wait(5)
    assert {tuple(bar["volume"] for bar in chart.updates) for chart in charts} == {(2, 7)}


@pytest.mark.slow
async def test_a_large_room_is_resynced_in_turns():
    one = await stage()
    charts = [one.join() for _ in range(1200)]
    one.heal([minute(30, "15", final=True, as_of=90_000)])
    await one.clock.settle()
    assert sum(len(chart.initials) == 2 for chart in charts) == 0, "a snapshot was sent in the middle of a change"
    assert one.hub.run_due()
    assert sum(len(chart.initials) == 2 for chart in charts) == 500
    assert one.hub.run_due()
    assert sum(len(chart.initials) == 2 for chart in charts) == 1000
    assert not one.hub.run_due()
    assert all(len(chart.initials) == 2 for chart in charts)


@pytest.mark.slow
async def test_who_leaves_while_it_waits_for_its_turn_is_not_asked_for_it():
    one = await stage()
    charts = [one.join() for _ in range(700)]
    one.heal([minute(30, "15", final=True, as_of=90_000)])
    await one.clock.settle()
    ws = charts[-1]
    one.hub.leave_room(ws.membership)
    ws.left = True
    one.hub.run_due()
    assert len(ws.initials) == 1


async def test_one_encoding_serves_all_with_the_same_fields():
    one = await stage()
    plain = [one.join(bars=number) for number in range(3)]
    correcting = one.join(options=Options(corrections=True))
    counted = [one.join(options=Options(fields=SEQ)) for _ in range(2)]
    one.push(minute(60, volume="2"))
    assert len({id(chart.frames[-1]) for chart in [*plain, correcting]}) == 1
    assert len({id(chart.frames[-1]) for chart in counted}) == 1
    assert plain[0].frames[-1] != counted[0].frames[-1]
    first, second = one.join(), one.join()
    assert first.frames[0] is second.frames[0]
