import asyncio
import json

import pytest

from candled.aggregate.live_bars import LiveBars
from candled.bus import Healed, MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, MarketKey, Symbol, fold
from candled.rooms.hub import Hub
from candled.rooms.protocol import Protocol, Subscribe, Topic
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS, minute

BTC = MarketKey("replay", Symbol.parse("BTC/USDT"))
PROTOCOL = Protocol({"replay": [BTC.symbol]}, DEFAULT_INTERVALS)


class Stored:
    """A history in memory, folded on demand."""

    def __init__(self, minutes=(), complete_from=MONDAY_MS) -> None:
        self.minutes = {candle.open_ms: candle for candle in minutes}
        self.since = complete_from
        self.queries = 0

    async def bars_between(self, market, interval, start_ms, end_ms):
        self.queries += 1
        await asyncio.sleep(0)
        buckets = {}
        for candle in sorted(self.minutes.values()):
            if start_ms <= interval.floor(candle.open_ms) < end_ms:
                buckets.setdefault(interval.floor(candle.open_ms), []).append(candle)
        return [fold(parts, open_ms, final=True) for open_ms, parts in sorted(buckets.items())]

    async def bars(self, market, interval, before_ms, limit):
        return (await self.bars_between(market, interval, 0, before_ms))[-limit:]

    async def running(self, market):
        return None

    async def complete_from(self, market):
        return self.since

    async def holes(self, market, within):
        return ()

    async def changes_since(self, market, epoch, seq, **_):
        return None


class Chart:
    """The documented client: replaces its bars on `initial`, replaces its last bar or appends on `update`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.initials: list[list[dict]] = []
        self.updates: list[dict] = []
        self.bars: list[dict] = []

    def want_initial(self, topic) -> None:
        bars = json.loads(self._hub.initial(self, topic))["bars"]
        self.initials.append(bars)
        self.bars = list(bars)

    def send_update(self, topic, open_ms, text) -> None:
        bar = json.loads(text)["bar"]
        self.updates.append(bar)
        assert self.initials, "an update came before its initial"
        if self.bars and self.bars[-1]["time"] == bar["time"]:
            self.bars[-1] = bar
        else:
            assert not self.bars or bar["time"] > self.bars[-1]["time"], "the chart moved back"
            self.bars.append(bar)


class Stage:
    """A hub over live bars over a stored history, with a clock that is turned by hand."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.clock = ManualClock(MONDAY_MS + 3_600_000)
        self.bars = LiveBars([BTC], DEFAULT_INTERVALS, stored, self.clock)
        self.hub = Hub(PROTOCOL, self.bars, self.clock)
        self.bars.listen(self.hub)
        self.bus = MemoryBus("one")
        self.bus.listen(self.bars.on_message)

    async def start(self) -> "Stage":
        await self.bars.start()
        return self

    def push(self, candle) -> None:
        self.bus.publish(MinuteChanged(BTC, candle))

    def heal(self, candles) -> None:
        self.stored.minutes |= {candle.open_ms: candle for candle in candles}
        times = [candle.open_ms for candle in candles]
        self.bus.publish(Healed(BTC, min(times), max(times) + MINUTE_MS, self.stored.since))

    async def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            await self.clock.advance(0.02)
            self.hub.run_due()

    def join(self, interval: str = "1m", bars: int = 100) -> Chart:
        chart = Chart(self.hub)
        self.hub.join(chart, topic(interval), bars)
        return chart


def topic(interval: str) -> Topic:
    request = PROTOCOL.decode(json.dumps({"type": "subscribe", "symbol": "BTC/USDT", "interval": interval}))
    assert isinstance(request, Subscribe)
    return request.topic


async def stage(count: int = 60) -> Stage:
    return await Stage(Stored(minute(number, final=True) for number in range(count))).start()


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
    one.hub.leave(chart, topic("1m"))
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
