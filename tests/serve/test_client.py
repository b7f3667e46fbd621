"""One client and its requests, over a hub, with a link that notes what it is given."""

import asyncio
import gc
import json
import tracemalloc

import pytest

from candled.errors import Unavailable
from candled.model import MINUTE_MS, Range, iso_ms
from candled.protocol import messages
from candled.serve.client import ClientSession
from candled.serve.pager import MOST_WAITING
from tests.rooms.stage import MONDAY_MS, Limits, Socket, Stage, Stored, stage
from tests.rows import minute


def at(number: int) -> str:
    """When a minute begins, as the wire says it."""
    return iso_ms(MONDAY_MS + number * MINUTE_MS)


# ---------------------------------------------------------------- without extensions


async def test_a_client_without_extensions_gets_the_specified_messages_byte_for_byte():
    one = await stage()
    ws = one.connect()
    ws.subscribe("1m", 2)
    one.push(minute(60, volume="2.50", as_of=1_000))
    await one.wait(2)
    ws.send_json({"type": "ping"})
    ws.send_json({"type": "unsubscribe", "symbol": "BTC/USDT", "interval": "1m"})
    one.push(minute(60, volume="3", as_of=2_000))
    await one.wait(2)
    bars = [
        f'{{"time":"{at(number)}","open":10,"high":10,"low":10,"close":10,"volume":{volume}}}'
        for number, volume in ((58, 1), (59, 1), (60, 2.5))
    ]
    head = '"symbol":"BTC/USDT","interval":"1m"'
    assert [frame.payload.decode() for frame in ws.frames] == [
        f'{{"type":"initial",{head},"bars":[{bars[0]},{bars[1]}]}}',
        f'{{"type":"update",{head},"bar":{bars[2]}}}',
        '{"type":"pong"}',
    ]


@pytest.mark.slow
async def test_what_a_client_without_extensions_is_told_depends_on_nobody_elses():
    """The same feed with and without other members, down to the byte and the moment."""

    async def run(others) -> list:
        one = await stage()
        for options in others:
            one.connect().subscribe("1m", **options)
        ws = one.connect()
        ws.subscribe("1m", 5)
        for step in range(100):
            one.push(minute(60 + step // 40, volume=str(step + 1), as_of=(step % 40) * 1000), 59 + step // 40)
            await one.wait(0.24)
        await one.wait(2)
        one.heal([minute(57, "15", final=True, as_of=90_000)])
        await one.wait(8)
        return [(round(moment, 3), json.dumps(message)) for moment, message in ws.at]

    alone = await run([])
    assert len(alone) > 20
    assert alone == await run(
        [
            {},
            {"fields": ["final", "seq", "rev", "src"]},
            {"mode": "closed"},
            {"corrections": True, "status": True},
            {"initialBars": 50},
        ]
    )


# ---------------------------------------------------------------- id, list, several at once


async def test_requests_with_an_id_are_acknowledged_and_the_acknowledgement_comes_first():
    one = await stage()
    ws = one.connect()
    received = ws.subscribe("5m", 1, id="a")
    assert [message["type"] for message in received] == ["subscribed", "initial"]
    assert received[0] == {"type": "subscribed", "id": "a", "symbol": "BTC/USDT", "interval": "5m"}
    gone = {"type": "unsubscribe", "symbol": "BTC/USDT", "interval": "5m", "id": 2}
    assert ws.send_json(gone) == [
        {"type": "unsubscribed", "id": 2, "symbol": "BTC/USDT", "interval": "5m", "existed": True}
    ]
    assert ws.send_json(gone)[0]["existed"] is False
    assert ws.send_json({"type": "ping", "id": -1}) == [{"type": "pong", "id": -1}]
    assert ws.send_json({"type": "subscribe", "symbol": "BTC/USDT", "interval": "10m", "id": "b"}) == [
        {
            "type": "error",
            "message": "Invalid interval: 10m. Valid: 1m, 5m, 15m, 1h, 4h, 1D, 1W",
            "id": "b",
            "code": 102,
            "temporary": False,
        }
    ]


async def test_several_subscriptions_in_one_message_are_answered_each():
    one = await stage()
    ws = one.connect()
    intervals = ["1m", "5m", "9m", "1h"]
    received = ws.send_json(
        {
            "type": "subscribe",
            "id": 4,
            "symbol": "BTC/USDT",
            "initialBars": 1,
            "subscriptions": [{"interval": interval} for interval in intervals],
        }
    )
    assert [(message["type"], message.get("interval"), message.get("id")) for message in received] == [
        ("subscribed", "1m", 4), ("initial", "1m", None), ("subscribed", "5m", 4), ("initial", "5m", None),
        ("error", None, 4), ("subscribed", "1h", 4), ("initial", "1h", None),
    ]  # fmt: skip
    assert ws.send_json({"type": "list", "id": 5}) == [
        {
            "type": "list",
            "id": 5,
            "subscriptions": [{"symbol": "BTC/USDT", "interval": one} for one in ("1m", "5m", "1h")],
        }
    ]
    assert ws.gathers
    for interval in ("1m", "5m"):
        ws.send_json({"type": "unsubscribe", "symbol": "BTC/USDT", "interval": interval})
    assert not ws.gathers
    assert [one["interval"] for one in ws.send_json({"type": "list"})[0]["subscriptions"]] == ["1h"]


async def test_limits_are_told_with_their_codes():
    one = await stage()
    one.limits = Limits(rooms=1, rate=2)
    ws = one.connect()
    ws.subscribe("1m", 1, id=1)
    wrong = ws.subscribe("5m", 1, id=2)
    assert wrong == [
        {
            "type": "error",
            "message": "Too many subscriptions: at most 1 per connection",
            "id": 2,
            "code": 106,
            "temporary": False,
        }
    ]
    for _ in range(2):
        ws.send_json({"type": "ping"})
    text = "Too many messages: at most 2 per second"
    assert ws.send_json({"type": "ping"}) == [{"type": "error", "message": text}]
    assert ws.send_json("{") == [{"type": "error", "message": text}]
    named = {"type": "error", "message": text, "id": 9, "code": 111, "temporary": True}
    assert ws.send_json({"type": "ping", "id": 9}) == [named]
    await one.wait(1)
    assert ws.send_json({"type": "ping", "id": 9}) == [{"type": "pong", "id": 9}]


async def test_each_message_above_the_limit_is_charged():
    one = await stage()
    one.limits = Limits(rate=2)
    ws, charges = one.connect(), []
    ws.charge_refusal = lambda: charges.append(1)
    for _ in range(7):
        ws.send_json({"type": "ping"})
    assert len(charges) == 3


async def test_a_message_with_many_subscriptions_is_handled_in_turns_and_later_messages_wait():
    one = await stage()
    one.limits = Limits(rate=0)
    ws = one.connect()
    ws.blocked = True
    ws.send_json({"type": "subscribe", "symbol": "BTC/USDT", "subscriptions": [{"interval": "1m"}] * 100, "id": 1})
    ws.send_json({"type": "unsubscribe", "symbol": "BTC/USDT", "interval": "1m", "id": 2})
    ws.send_json({"type": "subscribe", "symbol": "BTC/USDT", "subscriptions": [{}] * 40, "id": 3})
    ws.send_json({"type": "ping", "id": 4})
    assert len(ws._replies) == 16, "one turn"
    ws.let_go()
    replies = [(reply["type"], reply["id"]) for reply in ws.received if "id" in reply]
    assert replies == [("subscribed", 1)] * 100 + [("unsubscribed", 2)] + [("error", 3)] * 40 + [("pong", 4)]
    assert not one.hub.room_count


async def test_a_client_that_sends_on_while_its_message_waits_is_closed():
    one = await stage()
    one.limits = Limits(rate=0)
    ws, codes = one.connect(), []
    ws.disconnect = lambda code, reason: codes.append(code)
    ws.blocked = True
    ws.send_json({"type": "subscribe", "symbol": "BTC/USDT", "subscriptions": [{"interval": "1m"}] * 17})
    for _ in range(99):
        ws.send_json({"type": "ping"})
    assert not codes
    ws.send_json({"type": "ping"})
    assert codes == [3013]


async def test_a_store_that_cannot_be_read_is_told_once_to_the_request_and_the_initial_follows():
    stored = Stored([minute(number, final=True) for number in range(900)])
    one = await Stage(stored).start()

    async def fail(*_):
        raise Unavailable("gone")

    works, stored.read_bars = stored.read_bars, fail
    ws = one.connect()
    ws.subscribe("1m", 900, id="x")
    await one.wait(3)
    assert [message["type"] for message in ws.received] == ["subscribed", "error"]
    assert ws.received[1] == {
        "type": "error",
        "message": messages.FAILED_TO_SUBSCRIBE,
        "id": "x",
        "code": 100,
        "temporary": True,
    }
    ws.subscribe("1m", 900, id="y")
    await one.wait(3)
    assert [(message["type"], message["id"]) for message in ws.received[2:]] == [("subscribed", "y"), ("error", "y")]
    stored.read_bars = works
    await one.wait(2)
    assert len(ws.chart().bars) == 900


# ---------------------------------------------------------------- status


async def test_the_state_is_told_once_per_symbol_at_the_subscription_and_when_it_changes():
    one = await stage()
    one.state("live")
    since = one.clock.now_ms()
    ws, other = one.connect(), one.connect()
    ws.subscribe("1m", 1, status=True)
    ws.subscribe("5m", 1, status=True)
    other.subscribe("1m", 1)
    assert ws.of("status") == [{"type": "status", "symbol": "BTC/USDT", "state": "live", "since": iso_ms(since)}]
    await one.wait(3)
    one.state("stale")
    one.state("stale")
    assert [message["state"] for message in ws.of("status")] == ["live", "stale"]
    ws.send_json({"type": "unsubscribe", "symbol": "BTC/USDT", "interval": "1m"})
    one.state("recovering")
    ws.send_json({"type": "unsubscribe", "symbol": "BTC/USDT", "interval": "5m"})
    one.state("live")
    assert [message["state"] for message in ws.of("status")] == ["live", "stale", "recovering"]
    assert other.of("status") == []


async def test_a_slow_client_is_told_the_newest_state_only():
    one = await stage()
    one.state("live")
    ws = one.connect()
    ws.subscribe("1m", 1, status=True)
    ws.blocked = True
    for state in ("stale", "recovering", "live", "quiet", "stale"):
        one.state(state)
    ws.let_go()
    assert [message["state"] for message in ws.of("status")] == ["live", "stale"]


# ---------------------------------------------------------------- final, closed, corrections


async def test_final_is_said_once_as_the_last_word_on_a_bar_and_the_next_bar_waits_for_it():
    one = await stage()
    ws = one.connect()
    ws.subscribe("1m", 3, fields=["final"])
    assert [bar["final"] for bar in ws.chart().bars] == [True, True, True]
    one.push(minute(60, volume="5", as_of=59_000))
    await one.wait(1.5)
    one.push(minute(61, volume="1", as_of=500))
    await one.wait(3)
    one.push(minute(60, "19", volume="6", as_of=64_000))  # 5 s late
    await one.wait(2)
    assert [(bar["volume"], bar["final"]) for bar in ws.chart().updates] == [(5, False), (6, False)]
    one.push(minute(60, "19", volume="6", as_of=64_001, final=True), 61)
    await one.wait(2)
    sent_updates = [(bar["time"], bar["volume"], bar["final"]) for bar in ws.chart().updates]
    assert sent_updates[2:] == [(at(60), 6, True), (at(61), 1, False)]
    assert ws.chart().bars == fresh(one, "1m", 5, fields=["final"])[-5:]


async def test_a_bar_whose_end_stays_open_is_passed_over_and_made_good_later():
    one = await stage()
    plain, correcting = one.connect(), one.connect()
    plain.subscribe("1m", 5, fields=["final"])
    correcting.subscribe("1m", 5, fields=["final"], corrections=True)
    one.push(minute(60, volume="5", as_of=59_000))
    await one.wait(1.5)
    one.push(minute(61, volume="1", as_of=500))
    await one.wait(29)
    assert [bar["time"] for bar in plain.chart().updates] == [at(60)]
    await one.wait(2)
    assert [bar["time"] for bar in plain.chart().updates] == [at(60), at(61)]
    one.push(minute(61, volume="2", as_of=1_000), 61)
    await one.wait(8)
    assert [(bar["time"], bar["final"]) for bar in correcting.chart().corrections] == [(at(60), True)]
    assert [len(one.initials) for one in (plain.chart(), correcting.chart())] == [2, 1]
    assert plain.chart().bars[-5:] == correcting.chart().bars[-5:] == fresh(one, "1m", 5, fields=["final"])


@pytest.mark.slow
@pytest.mark.parametrize("fields", [[], ["final"]])
async def test_closed_clients_get_each_final_bar_once_when_it_becomes_final(fields):
    one = await stage()
    ws = one.connect()
    ws.subscribe("1m", 3, mode="closed", fields=fields)
    assert [bar["time"] for bar in ws.chart().bars] == [at(57), at(58), at(59)]
    for number in range(60, 64):
        for second in range(0, 60, 10):
            one.push(minute(number, volume=str(second + 1), as_of=second * 1000))
            await one.wait(10)
        one.push(minute(number + 1, volume="0.5", as_of=1))
        assert [bar["time"] for bar in ws.chart().updates] == [at(done) for done in range(60, number)]
        await one.wait(1)
        one.push(minute(number, volume="99", final=True), number + 1)
        await one.wait(3)
        assert ws.chart().updates[-1]["volume"] == 99
    assert [bar["time"] for bar in ws.chart().updates] == [at(done) for done in range(60, 64)]
    assert all(bar.get("final") is (True if fields else None) for bar in ws.chart().bars)
    one.push(minute(62, "12", volume="100", final=True, as_of=400_000)._replace(rev=1))
    await one.wait(8)
    assert len(ws.chart().updates) == 4
    assert ws.chart().bars[-3:] == fresh(one, "1m", 3, mode="closed", fields=fields)
    assert ws.chart().bars[-2]["volume"] == 100


async def test_a_gap_keeps_bars_out_of_a_closed_chart_until_it_is_healed():
    one = await stage()
    ws, correcting = one.connect(), one.connect()
    ws.subscribe("5m", 4, mode="closed")
    correcting.subscribe("5m", 4, mode="closed", corrections=True)
    for number in (60, 61, 63, 64, *range(65, 76)):
        one.push(minute(number, final=True))
        await one.wait(0.1)
    one.settle(75, Range(minute(62).open_ms, minute(63).open_ms))
    one.push(minute(75, volume="2"))
    await one.wait(5)
    assert [bar["time"][11:16] for bar in ws.chart("5m").bars[-3:]] == ["00:55", "01:05", "01:10"]
    one.settle(75)
    one.heal([minute(62, "11", final=True, as_of=90_000)])
    await one.wait(8)
    expected = ["00:55", "01:00", "01:05", "01:10"]
    assert [bar["time"][11:16] for bar in ws.chart("5m").bars[-4:]] == expected
    assert [bar["time"][11:16] for bar in correcting.chart("5m").bars[-4:]] == expected
    assert len(correcting.chart("5m").initials) == 1
    assert {bar["time"][11:16] for bar in correcting.chart("5m").corrections} == {"01:00"}
    assert ws.chart("5m").bars[-4:] == correcting.chart("5m").bars[-4:] == fresh(one, "5m", 4, mode="closed")


async def test_corrections_go_to_those_who_asked_and_a_fresh_initial_to_the_others():
    one = await stage()
    plain, correcting = one.connect(), one.connect()
    plain.subscribe("1m", 40)
    correcting.subscribe("1m", 40, corrections=True, fields=["rev", "src"])
    one.heal([minute(number, "15", final=True, as_of=90_000)._replace(rev=1, src="rest") for number in (40, 41)])
    await one.wait(6)
    assert [len(socket.chart().initials) for socket in (plain, correcting)] == [2, 1]
    assert [(bar["time"], bar["rev"], bar["src"]) for bar in correcting.chart().corrections] == [
        (at(40), 1, "rest"),
        (at(41), 1, "rest"),
    ]
    assert plain.of("correction") == []
    assert correcting.chart().bars == fresh(one, "1m", 40, fields=["rev", "src"])


@pytest.mark.slow
async def test_a_repair_of_thousands_of_minutes_is_one_fresh_initial():
    one = await stage(count=2000)
    ws = one.connect()
    ws.subscribe("1m", 1000, corrections=True)
    await one.wait(1)
    one.heal([minute(number, "15", final=True, as_of=90_000) for number in range(100, 1900)])
    await one.wait(8)
    assert len(ws.chart().corrections) == 0
    assert len(ws.chart().initials) == 2
    assert ws.chart().bars == fresh(one, "1m", 1000)


async def test_corrections_are_at_most_one_batch_a_second():
    one = await stage()
    ws = one.connect()
    ws.subscribe("1m", 40, corrections=True)
    for tenth in range(50):
        one.push(minute(40, str(10 + tenth % 7), str(tenth + 2), final=True, as_of=70_000 + tenth))
        await one.wait(0.1)
    await one.wait(2)
    moments = [moment for moment, message in ws.at if message["type"] == "correction"]
    assert 4 <= len(moments) <= 7
    assert all(later - earlier >= 1.0 - 1e-9 for earlier, later in zip(moments, moments[1:], strict=False))
    assert ws.chart().bars == fresh(one, "1m", 40)


def fresh(one: Stage, interval: str, bars: int, **options) -> list[dict]:
    """What a new client of the same kind is shown."""
    ws = one.connect()
    ws.subscribe(interval, bars, **options)
    ws.client.on_close()
    return ws.chart(interval).bars


# ---------------------------------------------------------------- history


async def test_history_is_paged_back_to_its_end():
    one = await stage(count=250)
    await one.clock.advance(250 * 60)
    ws = one.connect()
    before, pages = None, []
    while True:
        ask = {"type": "history", "symbol": "BTC/USDT", "interval": "1m", "limit": 100, "id": len(pages)}
        ws.send_json(ask | ({} if before is None else {"before": before}))
        await one.wait(0.1)
        page = ws.of("history")[-1]
        pages.append(page)
        if page["end"]:
            break
        before = page["bars"][0]["time"]
    assert [(page["id"], len(page["bars"]), page["end"]) for page in pages] == [
        (0, 100, False), (1, 100, False), (2, 50, True),
    ]  # fmt: skip
    times = [bar["time"] for page in reversed(pages) for bar in page["bars"]]
    assert times == [at(number) for number in range(250)]


async def test_history_before_a_time_is_exclusive_and_carries_the_fields_asked_for():
    one = await stage(count=60)
    ws = one.connect()
    ask = {"type": "history", "symbol": "BTC/USDT", "interval": "1m", "before": at(5), "limit": 3, "id": "h"}
    ws.send_json(ask | {"fields": ["final", "rev"]})
    ws.send_json(ask | {"before": MONDAY_MS, "id": "z"})
    await one.wait(0.1)
    first, last = ws.of("history")
    assert (first["id"], [bar["time"] for bar in first["bars"]], first["end"]) == ("h", [at(2), at(3), at(4)], False)
    assert {(bar["final"], bar["rev"]) for bar in first["bars"]} == {(True, 0)}
    assert (last["id"], last["bars"], last["end"]) == ("z", [], True)
    assert list(first) == ["type", "id", "symbol", "interval", "bars", "end"]


async def test_one_page_at_a_time_the_others_wait_in_order_and_too_many_are_refused():
    one = await stage()
    running, barriers = [], []

    async def history(key, interval, before_ms, limit):
        running.append(limit)
        barrier = asyncio.get_running_loop().create_future()
        barriers.append(barrier)
        await barrier
        return [], True

    one.history = history
    ws = one.connect()
    for number in range(MOST_WAITING + 2):
        ws.send_json({"type": "history", "symbol": "BTC/USDT", "interval": "1m", "limit": number + 1, "id": number})
    await one.wait(0.1)
    assert running == [1]
    assert ws.received == [
        {
            "type": "error",
            "message": f"Too many history requests: at most {MOST_WAITING} wait",
            "id": MOST_WAITING + 1,
            "code": 108,
            "temporary": True,
        }
    ]
    for number in range(MOST_WAITING + 1):
        barriers[number].set_result(None)
        await one.wait(0.1)
    assert [message["id"] for message in ws.of("history")] == list(range(MOST_WAITING + 1))


async def test_pages_of_all_clients_are_made_two_at_a_time_in_the_order_of_the_requests():
    """Clients that wait for the same read would otherwise all go on, and encode their pages, in one pass."""
    one = await stage(count=250)
    await one.clock.advance(250 * 60)
    running, most, order = 0, 0, []

    async def history(key, interval, before_ms, limit):
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        order.append(limit)
        await asyncio.sleep(0)
        running -= 1
        return await read(key, interval, before_ms, limit)

    read, one.history = one.history, history
    clients = [one.connect() for _ in range(20)]
    for number, ws in enumerate(clients):
        ws.send_json({"type": "history", "symbol": "BTC/USDT", "interval": "1m", "limit": 100 + number})
    await one.wait(0.1)
    assert most == 2
    assert order == list(range(100, 120))
    assert [len(ws.of("history")[0]["bars"]) for ws in clients] == order


async def test_a_client_that_does_not_read_has_no_page_made_for_it():
    one = await stage()
    asked = []
    one.history = lambda *request: asked.append(request)
    ws = one.connect()
    ws.blocked = True
    ws.send_json({"type": "history", "symbol": "BTC/USDT", "interval": "1m"})
    await one.wait(1)
    assert asked == []
    ws.client.on_close()
    ws.let_go()
    await one.wait(1)
    assert asked == []


async def test_history_that_cannot_be_read_is_told_and_the_next_request_is_answered():
    one = await stage()

    async def fail(*_):
        raise Unavailable("gone")

    one.history = fail
    ws = one.connect()
    ws.send_json({"type": "history", "symbol": "BTC/USDT", "interval": "1m", "id": 1})
    ws.send_json({"type": "history", "symbol": "BTC/USDT", "interval": "1m"})
    await one.wait(0.1)
    assert ws.received == [
        {"type": "error", "message": "History cannot be read now", "id": 1, "code": 108, "temporary": True},
        {"type": "error", "message": "History cannot be read now"},
    ]


# ---------------------------------------------------------------- slow, leaving


@pytest.mark.slow
async def test_a_client_that_fell_behind_gets_one_fresh_initial_and_then_goes_on():
    one = await stage()
    ws = one.connect()
    ws.subscribe("1m", 20, fields=["final", "seq"])
    ws.blocked = True
    for second in range(400):
        number = 60 + second // 60
        one.push(minute(number, volume=str(second % 60 + 1), as_of=(second % 60) * 1000), number)
        await one.wait(1)
    ws.let_go()
    await one.wait(3)
    assert len(ws.chart().initials) == 2
    assert ws.chart().bars[-20:] == fresh(one, "1m", 20, fields=["final", "seq"])


async def test_goodbye_is_said_only_to_those_who_used_an_extension():
    one = await stage()
    plain, extended = one.connect(), one.connect()
    plain.subscribe("1m", 1)
    plain.send_json({"type": "unheard"})
    extended.send_json({"type": "ping", "id": 1})
    for ws in (plain, extended):
        ws.client.notify_shutdown(1800)
    assert plain.of("bye") == []
    assert extended.of("bye") == [{"type": "bye", "reconnectAfterMs": 1800}]


@pytest.mark.slow
async def test_a_client_that_left_leaves_nothing_behind():
    one = await stage()
    for _ in range(20):
        ws = one.connect()
        for interval in ("1m", "5m", "1D"):
            ws.subscribe(interval, 5, fields=["final"], status=True, corrections=True)
        ws.subscribe("1m", 5, mode="closed")
        ws.send_json({"type": "history", "symbol": "BTC/USDT", "interval": "1m"})
        ws.client.on_close()
    await one.wait(1)
    assert one.hub.describe() == {"totalRooms": 0, "totalClients": 0}
    assert one.hub._statuses._watchers == {}
    one.push(minute(60, volume="7"))
    await one.wait(2)
    assert not one.hub._schedule._due


@pytest.mark.slow
async def test_a_subscribed_client_is_small():
    """At most 3 KB without its socket, and nothing runs for it while nothing happens."""
    one = await stage()
    counted = measure(one, 200)
    before = one.clock.sleepers, len(asyncio.all_tasks())
    assert counted < 3_000
    await one.wait(1)
    assert (one.clock.sleepers, len(asyncio.all_tasks())) == before


def measure(one: Stage, count: int) -> float:
    """Bytes per client that is subscribed to one room, without its link."""
    text = json.dumps({"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m"})
    connections, context = [Quiet() for _ in range(count)], one.session_context()
    gc.collect()
    tracemalloc.start()
    for connection in connections:
        connection.client = ClientSession(connection, context)
        connection.client.on_client_message(text)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / count


class Quiet(Socket):
    """A link that keeps nothing."""

    def __init__(self) -> None:
        self.client = None

    def send_frame(self, frame) -> int:
        return len(frame)

    def send_reply(self, frame) -> None:
        pass

    def request_snapshot(self, topic) -> None:
        self.client.make_initial(topic)

    def cancel_topic(self, topic) -> None:
        pass
