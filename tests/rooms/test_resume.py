"""Resume: exactly what was missed, whenever a socket was cut and for how long; the chart is then a fresh load's."""

import json
import os

import pytest

from candled.bus.memory_bus import MemoryBus
from candled.model import MINUTE, MINUTE_MS, iso_ms
from tests.rooms.stage import BTC, MONDAY_MS, Chart, Socket, Stage, Stored, stage
from tests.rows import minute

LONG = bool(os.environ.get("CANDLED_TEST_LONG"))
KINDS = [
    {"fields": ["seq"]},
    {"fields": ["final", "seq", "rev", "src"], "corrections": True},
    {"mode": "closed", "fields": ["seq"]},
]


async def reconnect(one: Stage, chart: Chart, interval: str, bars: int = 100, **options) -> Socket:
    """A new socket for a chart that was here before."""
    epoch, seq = chart.position
    socket = one.connect()
    socket.charts["BTC/USDT", interval] = chart
    socket.subscribe(interval, bars, resume={"epoch": epoch, "seq": seq, "time": chart.bars[-1]["time"]}, **options)
    await one.clock.settle()  # what changed is found out first
    return socket


def fresh(one: Stage, interval: str, bars: int = 100, **options) -> list[str]:
    socket = one.connect()
    socket.subscribe(interval, bars, **options)
    shown = texts(socket.chart(interval))
    socket.client.on_close()
    return shown


def texts(chart: Chart) -> list[str]:
    return [json.dumps(bar) for bar in chart.bars]


class Feed:
    """One update a second; each minute is final three seconds after its end; now and then a version comes late."""

    def __init__(self, one: Stage) -> None:
        self.one = one
        self.volume = 0

    async def begin(self) -> None:
        """Nobody knows where in the feed it is before the first message."""
        await self.run(0.02, 0.02)

    async def run(self, seconds: float, step_s: float = 1.0) -> None:
        one = self.one
        for _ in range(round(seconds / step_s)):
            now_ms = one.clock.now_ms()
            number, into_ms = divmod(now_ms - MONDAY_MS, MINUTE_MS)
            self.volume += 1
            if 2000 <= into_ms < 2000 + step_s * 1000 and number > 60:
                one.push(minute(number - 1, "11", str(self.volume), as_of=62_000, final=True)._replace(src="live"))
            final_until = number if into_ms >= 3000 else number - 1
            one.push(minute(number, volume=str(self.volume), as_of=into_ms)._replace(src="live"), final_until)
            if step_s < 10:
                await one.wait(step_s)
            else:
                await one.clock.advance(step_s)
                one.hub.run_due()


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS, ids=["seq", "final", "closed"])
@pytest.mark.parametrize("interval", ["1m", "5m", "1h"] if LONG else ["1m", "5m"])
@pytest.mark.parametrize("cut_s", [58.9, 59.95, 61.0, 62.5, 90.0] if LONG else [59.95, 61.0])
@pytest.mark.parametrize("away_s", [0.1, 90.0])
async def test_a_chart_that_was_cut_off_for_a_moment_is_a_fresh_load(options, interval, cut_s, away_s):
    one = await stage()
    feed = Feed(one)
    await feed.begin()
    others = one.connect()
    others.subscribe(interval, 5)
    socket = one.connect()
    socket.subscribe(interval, **options)
    chart = socket.chart(interval)
    await feed.run(cut_s // 1 - 5)
    await feed.run(5 + cut_s % 1, 0.04)
    socket.client.on_close()
    await feed.run(away_s, min(1.0, away_s))
    again = await reconnect(one, chart, interval, **options)
    assert chart.recovered == [True]
    assert [message["type"] for message in again.received] == ["resumed"]
    assert len(again.received[0]["bars"]) <= 4
    assert texts(chart)[-100:] == fresh(one, interval, **options)
    await feed.run(5, 0.04)
    await one.wait(2)
    assert texts(chart)[-100:] == fresh(one, interval, **options)


@pytest.mark.parametrize("options", KINDS[1:], ids=["final", "closed"])
async def test_a_bar_that_was_not_final_while_it_was_read_again_and_then_was_as_before_is_sent(options):
    one = await stage(120)
    one.stored.clock = one.clock  # reading takes a while
    one.push(minute(120, volume="1", as_of=0), 120)
    one.heal([minute(20, final=True)])
    await one.wait(0.02)
    socket = one.connect()
    socket.subscribe("1h", 3, **options)
    chart = socket.chart("1h")
    hour_0 = [bar for bar in chart.bars if bar["time"] == iso_ms(MONDAY_MS) and bar.get("final", True)]
    assert (hour_0, len(chart.bars)) == ([], 1 if "mode" in options else 3), "it is being read again"
    socket.client.on_close()
    await one.wait(5)
    await reconnect(one, chart, "1h", 3, **options)
    await one.wait(1)
    assert chart.recovered == [True]
    assert texts(chart) == fresh(one, "1h", 3, **options)
    assert chart.bars[0]["time"] == iso_ms(MONDAY_MS)


async def test_without_a_change_nothing_is_sent():
    one = await stage()
    one.push(minute(60, volume="1", as_of=0))
    socket = one.connect()
    socket.subscribe("1m", 5, fields=["seq"])
    one.push(minute(60, volume="2", as_of=1000))
    await one.wait(2)
    socket.client.on_close()
    again = await reconnect(one, socket.chart(), "1m", 5, fields=["seq"])
    assert again.received == [
        {"type": "resumed", "symbol": "BTC/USDT", "interval": "1m", "bars": [], "recovered": True, "epoch": "one",
         "seq": 2}
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS, ids=["seq", "final", "closed"])
@pytest.mark.parametrize("interval", ["1m", "5m", "1h"] if LONG else ["1m", "1h"])
async def test_a_day_and_two_hours_later_only_changes_are_sent(options, interval):
    one = await stage()
    feed = Feed(one)
    await feed.begin()
    socket = one.connect()
    socket.subscribe(interval, 1000, **options)
    chart = socket.chart(interval)
    await feed.run(90)
    await one.wait(2)
    socket.client.on_close()
    one.stored.minutes |= {minute(number).open_ms: minute(number, final=True) for number in range(60, 62)}
    await feed.run(26 * 3600, 30.0)
    one.push(minute(10, "15", "77", as_of=10**9, final=True)._replace(rev=1, src="rest"))
    again = await reconnect(one, chart, interval, 1000, **options)
    for _ in range(5):
        await one.wait(0.1)
    assert chart.recovered == [True]
    assert len(again.received[0]["bars"]) <= {"1m": 1570, "5m": 320, "1h": 30}[interval]
    shown = fresh(one, interval, 1000, **options)
    assert texts(chart)[-len(shown) :] == shown
    assert "77" in again.frames[0].payload.decode()


@pytest.mark.slow
async def test_more_than_two_thousand_bars_are_sent_as_a_fresh_load():
    one = await stage()
    feed = Feed(one)
    await feed.begin()
    socket = one.connect()
    socket.subscribe("1m", 10, fields=["seq"])
    await feed.run(10)
    socket.client.on_close()
    await feed.run(2100 * 60, 60.0)
    one.stored.minutes |= {minute(number).open_ms: minute(number, final=True) for number in range(60, 2100)}
    again = await reconnect(one, socket.chart(), "1m", 10, fields=["seq"])
    await one.wait(0.1)
    assert [message["type"] for message in again.received] == ["initial"]
    assert again.received[0]["recovered"] is False
    assert {"epoch", "seq"} <= again.received[0].keys()
    assert len(again.received[0]["bars"]) == 10


@pytest.mark.parametrize(
    "resume", [{"epoch": "never", "seq": 1}, {"epoch": "one", "seq": 10**12}, {"epoch": "", "seq": 0}]
)
async def test_a_position_that_proves_nothing_is_answered_with_everything(resume):
    one = await stage()
    one.push(minute(60, volume="2", as_of=1000))
    socket = one.connect()
    socket.subscribe("1m", 3, resume={**resume, "time": MONDAY_MS})
    for _ in range(30):
        await one.wait(0.1)
    assert [(message["type"], message["recovered"], len(message["bars"])) for message in socket.received] == [
        ("initial", False, 3)
    ]
    socket.send_json({"type": "ping"})
    one.push(minute(60, volume="3", as_of=2000))
    await one.wait(2)
    assert [message["type"] for message in socket.received] == ["initial", "pong", "update"]
    assert "recovered" not in socket.received[-1]


@pytest.mark.slow
async def test_a_chart_goes_on_at_another_process_that_follows_the_same_feed():
    """Positions belong to the feed: what one process told, another can take up."""
    bus = MemoryBus("one")
    minutes = [minute(number, final=True) for number in range(60)]
    here = await Stage(Stored(minutes), bus=bus).start()
    there = await Stage(Stored(minutes), bus=bus, clock=here.clock).start()
    options = KINDS[1]
    for one in (here, there):
        one.connect().subscribe("1m", 3, **options)
    socket = here.connect()
    socket.subscribe("1m", **options)
    feed = Feed(here)
    for second in range(200):
        await feed.run(1)
        there.hub.run_due()
        if second % 37 == 36:  # from one to the other and back
            socket.client.on_close()
            one = (there, here)[second // 37 % 2]
            chart, socket = socket.chart(), await reconnect(one, socket.chart(), "1m", **options)
            shown = fresh(one, "1m", **options)
            assert texts(chart)[-len(shown) :] == shown
    assert socket.chart().recovered == [True] * 5


@pytest.mark.slow
async def test_a_process_that_began_later_takes_a_chart_up_from_the_log_of_changes():
    bus = MemoryBus("one")
    here = await Stage(Stored([minute(number, final=True) for number in range(60)]), bus=bus).start()
    socket = here.connect()
    socket.subscribe("1m", fields=["seq"])
    feed = Feed(here)
    await feed.run(100)
    await here.wait(2)
    socket.client.on_close()
    await feed.run(30)
    here.heal([minute(20, "14", "9", as_of=10**6, final=True)])
    stored = Stored(here.stored.minutes.values())
    stored.log = list(here.stored.log)
    for number in (60, 61):
        stored.minutes[minute(number).open_ms] = here.bars.get_bar(BTC, MINUTE, minute(number).open_ms)
    there = await Stage(stored, bus=bus, clock=here.clock).start()
    there.facts = here.facts
    await feed.run(3)
    again = await reconnect(there, socket.chart(), "1m", fields=["seq"])
    await there.wait(3)
    assert socket.chart().recovered == [True]
    assert again.received[0]["bars"][0]["time"] == "2025-05-19T00:20:00.000Z"
    shown = fresh(there, "1m", fields=["seq"])
    assert texts(socket.chart())[-len(shown) :] == shown


@pytest.mark.slow
async def test_a_seq_never_promises_what_was_not_sent():
    """Cut at every moment of a boundary with a repair under way: what the last message did not tell is told again."""
    for cut in range(0, 260, 1 if LONG else 9):
        one = await stage()
        script(one, 0)
        socket = one.connect()
        socket.subscribe("1m", 60, fields=["seq", "rev"], corrections=True)
        other = one.connect()
        other.subscribe("1m", 60, fields=["seq"])
        for step in range(cut):
            script(one, step)
            await one.wait(0.02)
        for ws in (socket, other):
            ws.client.on_close()
        for step in range(cut, 300):
            script(one, step)
            await one.wait(0.02)
        await one.wait(10)
        for ws, options in ((socket, {"fields": ["seq", "rev"], "corrections": True}), (other, {"fields": ["seq"]})):
            await reconnect(one, ws.chart(), "1m", 60, **options)
            assert ws.chart().recovered == [True]
            assert texts(ws.chart())[-60:] == fresh(one, "1m", 60, **options)


def script(one: Stage, step: int) -> None:
    """What happens in six seconds around a boundary."""
    if step % 20 == 0:
        number, second = (60, 57 + step // 50) if step < 150 else (61, step // 50 - 3)
        one.push(minute(number, volume=str(step + 2), as_of=second * 1000))
    if step == 160:
        one.push(minute(60, "12", volume="500", as_of=61_000))
    if step == 170:
        one.push(minute(33, "13", volume="7", as_of=10**6, final=True)._replace(rev=1))
    if step == 200:
        one.heal([minute(40, "14", volume="8", as_of=10**6, final=True)._replace(rev=1)])
    if step == 250:
        one.push(minute(60, "12", volume="501", as_of=62_000, final=True), 61)


@pytest.mark.slow
@pytest.mark.parametrize("cut_s", [30.0, 58.0, 61.0])
async def test_one_who_comes_back_is_no_reason_to_resync_the_others(cut_s):
    one, fields = await stage(), {"fields": ["final", "seq"]}
    feed = Feed(one)
    await feed.begin()
    other, socket = one.connect(), one.connect()
    other.subscribe("1m", 60, **fields)
    socket.subscribe("1m", 60, **fields)
    await feed.run(cut_s)
    socket.client.on_close()
    await feed.run(1)
    again = await reconnect(one, socket.chart(), "1m", 60, **fields)
    await feed.run(70)
    assert len(other.of("initial")) == 1
    assert [message["type"] for message in again.received if message["type"] != "update"] == ["resumed"]
    finals = [message["bar"]["time"] for message in again.of("update") if message["bar"]["final"]]
    assert len(finals) == len(set(finals)) == (1 if cut_s < 58 else 2)
    assert texts(again.chart())[-60:] == texts(other.chart())[-60:]


@pytest.mark.parametrize("later", [{"fields": ["final", "seq"]}, {"fields": ["seq"]}], ids=["final", "live"])
async def test_a_client_that_was_disconnected_before_its_first_update_gets_the_bar_that_was_kept_back(later):
    one, fields = await stage(), {"fields": ["final", "seq"]}
    for number, second in ((60, 58), (61, 1)):
        one.push(minute(number, volume="1", as_of=second * 1000), 60)
        await one.wait(0.02)
    socket = one.connect()
    (initial,) = socket.subscribe("1m", 5, **fields)
    newest = [bar["time"] for bar in initial["bars"]][-1]
    assert (newest, initial["seq"]) == (iso_ms(minute(60).open_ms), one.bars.feed_position(BTC).seq)
    socket.client.on_close()
    again = await reconnect(one, socket.chart(), "1m", 5, **later)
    assert again.chart().recovered == [True]
    assert iso_ms(minute(61).open_ms) in {bar["time"] for bar in again.received[0]["bars"]}
    assert again.chart().bars[-1]["time"] == iso_ms(minute(61).open_ms)


@pytest.mark.slow
@pytest.mark.parametrize("cut_off_s", [0.1, 2.0, 70.0])
async def test_the_position_of_a_chart_is_sent_also_while_the_end_of_a_bar_is_open(cut_off_s):
    one, fields = await stage(), {"fields": ["final", "seq"]}
    feed = Feed(one)
    await feed.begin()
    await feed.run(61, 0.5)
    first = one.connect()
    (initial,) = first.subscribe("1m", 60, **fields)
    assert (initial["epoch"], initial["bars"][-1]["final"]) == ("one", False)
    first.client.on_close()
    second = await reconnect(one, first.chart(), "1m", 60, **fields)
    (resumed,) = second.of("resumed")
    assert resumed["epoch"] == "one"
    assert resumed["seq"] >= initial["seq"]
    second.client.on_close()
    await feed.run(cut_off_s, 0.1)
    third = await reconnect(one, second.chart(), "1m", 60, **fields)
    await feed.run(5)
    assert third.chart().recovered == [True, True]
    assert texts(third.chart())[-60:] == fresh(one, "1m", 60, **fields)


@pytest.mark.slow
async def test_one_who_comes_back_alone_is_sent_no_older_bar_after_a_newer_one_by_any_clock():
    one, fields = await stage(), {"fields": ["final", "seq"], "corrections": True}
    await Feed(one).run(62)  # minute 60 is over, and not final
    one.push(minute(61, volume="5", as_of=2_000), 60)
    first = one.connect()
    first.subscribe("1m", 60, **fields)
    await one.wait(31)  # so long the end of minute 60 is waited for
    assert first.chart().bars[-1]["time"] == iso_ms(MONDAY_MS + 61 * MINUTE_MS)
    first.client.on_close()
    one.clock._start_ms -= 3_600_000
    again = await reconnect(one, first.chart(), "1m", 60, **fields)
    one.push(minute(61, volume="6", as_of=40_000), 61)  # minute 60 is final now
    await one.wait(3)  # the chart fails where an update goes back
    assert texts(again.chart())[-60:] == fresh(one, "1m", 60, **fields)


@pytest.mark.slow
async def test_a_bar_that_is_queued_at_the_first_load_is_sent_though_nothing_changes_any_more():
    one = await stage()
    await Feed(one).run(62)
    one.push(minute(61, volume="5", as_of=2_000), 60)
    socket = one.connect()
    socket.subscribe("1m", 60, fields=["final"])
    assert socket.chart().bars[-1]["time"] == iso_ms(MONDAY_MS + 60 * MINUTE_MS)
    await one.wait(31)
    assert socket.chart().bars[-1]["time"] == iso_ms(MONDAY_MS + 61 * MINUTE_MS)
