"""The fake Bitget does what Bitget does, faults included; its stream is read through the plugin's own feed."""

import asyncio
import json
from itertools import pairwise

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPError
from tornado.websocket import websocket_connect

from candled import Candles, FeedError, Pong, Subscribed, SubscriptionRejected, Symbol
from candled.model import MINUTE_MS
from candled_plugins.bitget.exchange import BitgetFeed
from candled_plugins.bitget.messages import SPOT, USDT_FUTURES
from tests import deadlines
from tests.clocks import START_MS, ManualClock
from tests.fakes.bitget import FakeBitget, FakeMarket, synthetic_markets
from tests.fakes.tapes import Recorded, Synthetic, grown

BTC, ETH, EWZ = Symbol("BTC", "USDT"), Symbol("ETH", "USDT", "USDT"), Symbol("EWZ", "USDT", "USDT")
CANDLES = "/api/v2/mix/market/candles"
HISTORY = "/api/v2/mix/market/history-candles"


@pytest.fixture
async def fake():
    markets = [
        FakeMarket(symbol=BTC, tape=Recorded.load("bitget-spot-btcusdt")),
        FakeMarket(symbol=ETH, tape=Recorded.load("bitget-usdt-futures-ethusdt")),
        FakeMarket(symbol=EWZ, tape=Recorded.load("bitget-usdt-futures-ewzusdt")),
    ]
    async with FakeBitget(ManualClock(START_MS), markets) as fake:
        yield fake


class Client:
    """One connection, read through the feed of the plugin."""

    def __init__(self, fake, symbols, products):
        self._fake = fake
        self.feed = BitgetFeed(fake.ws_url, symbols, products)

    async def connect(self):
        self.socket = await websocket_connect(self.feed.url)
        self.socket.protocol.set_nodelay(True)
        return self

    async def subscribe(self, *symbols):
        for frame in self.feed.subscribe(symbols or self.feed.symbols):
            await self.socket.write_message(frame)
        return await self.events()

    async def events(self):
        """All that came up to now: the pong of a ping comes after it."""
        await self.socket.write_message("ping")
        events = []
        while (frame := await deadlines.wait_for(self.socket.read_message(), 5)) is not None:
            found = self.feed.read_frame(frame)
            if found == [Pong()]:
                return events
            events += found
        return [*events, None]

    async def watch(self, seconds):
        """The events of so many seconds, the clock moved on in steps of half a second."""
        events = []
        for _ in range(round(seconds * 2)):
            await self._fake.clock.advance(0.5)
            events += await self.events()
        return events

    async def end(self):
        """Wait until the connection ends; the code of the close frame, None without one."""
        while await deadlines.wait_for(self.socket.read_message(), 5) is not None:
            pass
        return self.socket.close_code


async def until_closed(fake):
    """Wait until the fake has noticed that its only connection ended."""
    async with deadlines.timeout(5):
        while fake.open_connections:
            await asyncio.sleep(0.01)


@pytest.fixture
async def connect(fake):
    clients = []

    async def connect(symbols=(ETH,), to=fake, products=(SPOT, USDT_FUTURES)):
        clients.append(await Client(to, symbols, products).connect())
        return clients[-1]

    yield connect
    for client in clients:
        client.socket.close()


@pytest.fixture
async def client(connect):
    return await connect()


def versions(events):
    return [(candle.open_ms, *candle.values) for event in events for candle in event.candles]


def last_versions(events):
    return {version[0]: version for version in versions(events)}


def final_values(fake, symbol, start_ms, end_ms):
    return {candle.open_ms: (candle.open_ms, *candle.values) for candle in fake.truth(symbol, start_ms, end_ms)}


async def get(fake, path, **query):
    url = fake.rest_url + path + "?" + "&".join(f"{name}={value}" for name, value in query.items())
    response = await AsyncHTTPClient().fetch(url, raise_error=False)
    return response.code, json.loads(response.body), response.headers


def futures(**query):
    return {"symbol": "ETHUSDT", "granularity": "1m", "productType": "USDT-FUTURES", **query}


# ---------------------------------------------------------------- candles


@pytest.mark.parametrize(
    "name", ["bitget-spot-btcusdt", "bitget-usdt-futures-ethusdt", "bitget-usdt-futures-ewzusdt", 3]
)
def test_every_minute_opens_at_the_close_of_the_one_before_and_grows_into_its_final_values(name):
    tape = Synthetic(name) if isinstance(name, int) else Recorded.load(name)
    for open_ms in range(START_MS, START_MS + 400 * MINUTE_MS, MINUTE_MS):
        row, before = tape.row(open_ms), tape.row(open_ms - MINUTE_MS)
        assert row.open == before.close
        stages = [grown(row, elapsed_ms) for elapsed_ms in range(0, MINUTE_MS, 7_000)]
        for earlier, later in zip(stages, [*stages[1:], row], strict=True):
            later.candle(open_ms).checked()
            assert later.low <= earlier.low <= earlier.high <= later.high
            assert later.volume >= earlier.volume
        assert grown(row, MINUTE_MS) == row
        assert not row.volume or grown(row, MINUTE_MS - 1) != row


# ---------------------------------------------------------------- the stream as it should be


async def test_a_subscription_is_acknowledged_and_followed_by_500_rows_ending_in_the_running_minute(fake, client):
    acknowledged, snapshot = await client.subscribe()
    assert acknowledged == Subscribed(ETH)
    assert snapshot.snapshot
    assert len(snapshot.candles) == 500
    assert snapshot.candles[-1].open_ms == START_MS
    finished = final_values(fake, ETH, START_MS - 499 * MINUTE_MS, START_MS)
    assert last_versions([Candles(ETH, snapshot.candles[:-1])]) == finished


@pytest.mark.slow
async def test_minutes_are_pushed_whole_and_in_order_at_most_twice_a_second(fake, client):
    await client.subscribe()
    events = await client.watch(130)
    times = [candle.as_of_ms for event in events for candle in event.candles]
    assert [version[0] for version in versions(events)] == sorted(version[0] for version in versions(events))
    assert min(later - earlier for earlier, later in pairwise(times)) >= 500
    seen, finished = last_versions(events), final_values(fake, ETH, START_MS, START_MS + 2 * MINUTE_MS)
    assert len(finished) == 2
    assert {open_ms: seen[open_ms] for open_ms in finished} == finished
    assert len(versions(events)) > 200


async def test_an_update_carries_strings_and_equal_last_fields_and_its_time_is_a_number(fake, client):
    await client.subscribe()
    await fake.clock.advance(1)
    push = json.loads(await client.socket.read_message())
    [row] = push["data"]
    assert len(row) == 8
    assert all(isinstance(cell, str) for cell in row)
    assert row[6] == row[7]
    assert push["ts"] == START_MS + 500


@pytest.mark.slow
@pytest.mark.parametrize("pushed", [True, False])
async def test_a_quiet_minute_is_flat_and_may_go_without_a_push(fake, pushed, connect):
    fake.push_quiet_minutes = pushed
    client = await connect([EWZ])
    await client.subscribe()
    events = await client.watch(250)
    finished = fake.truth(EWZ, START_MS, START_MS + 4 * MINUTE_MS)
    quiet = [candle.open_ms for candle in finished if not candle.volume]
    assert len(quiet) >= 3
    assert all(len(set(candle.values[:4])) == 1 for candle in finished if not candle.volume)
    assert (set(quiet) <= set(last_versions(events))) is pushed


@pytest.mark.slow
async def test_who_subscribes_twice_is_acknowledged_twice_and_gets_a_second_snapshot(fake, client):
    await client.subscribe()
    events = await client.subscribe()
    assert [type(event) for event in events] == [Subscribed, Candles]
    assert events[1].snapshot
    assert fake.subscribes["ETHUSDT"] == 2


@pytest.mark.slow
async def test_who_unsubscribes_hears_no_more(fake, client):
    await client.subscribe()
    [frame] = client.feed.unsubscribe([ETH])
    await client.socket.write_message(frame)
    assert await client.watch(3) == []


async def test_an_unknown_market_is_refused_and_the_others_of_the_frame_are_served(fake, connect):
    client = await connect([Symbol("NOPE", "USDT", "USDT"), ETH])
    refused, acknowledged, snapshot = await client.subscribe()
    assert isinstance(refused, SubscriptionRejected)
    assert refused.reason.startswith("30001 instType:USDT-FUTURES,channel:candle1m,instId:NOPEUSDT")
    assert acknowledged == Subscribed(ETH)
    assert snapshot.symbol == ETH


@pytest.mark.parametrize("text", ["ETH/USDT:ETH", "ETH/USDT:USDT-261225", "ETH/USDT:USDC"])
async def test_a_contract_of_another_kind_is_refused_by_its_name(fake, connect, text):
    client = await connect([Symbol.parse(text), ETH])
    refused, acknowledged, snapshot = await client.subscribe()
    assert refused == SubscriptionRejected(
        Symbol.parse(text), f"30001 instType:SPOT,channel:candle1m,instId:{text},precision:null doesn't exist"
    )
    assert (acknowledged, snapshot.symbol) == (Subscribed(ETH), ETH)


async def test_a_market_of_another_type_is_acknowledged_and_silent_forever(fake, connect):
    spot = Symbol("ETH", "USDT")
    client = await connect([spot])
    assert await client.subscribe() == [Subscribed(spot)]
    assert await client.watch(3) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("hello", "30002"),
        ('{"op":"ping"}', "30002"),
        ('{"op":"dance","args":[]}', "30003"),
        ('{"op":"subscribe","args":{}}', "30016"),
        ('{"op":"subscribe","args":[{"instType":"SPOT","channel":"candle7m","instId":"BTCUSDT"}]}', "30016"),
    ],
)
async def test_a_frame_that_is_no_command_is_answered_with_its_code_and_the_connection_stays(fake, client, frame, code):
    await client.socket.write_message(frame)
    answer = json.loads(await client.socket.read_message())
    assert (answer["event"], str(answer["code"])) == ("error", code)
    assert len(await client.subscribe()) == 2


async def test_the_clock_of_the_exchange_may_be_ahead(fake, client):
    fake.skew_ms = 90_000
    _, snapshot = await client.subscribe()
    assert {candle.as_of_ms for candle in snapshot.candles} == {START_MS + 90_000}
    assert snapshot.candles[-1].open_ms == START_MS + MINUTE_MS


# ---------------------------------------------------------------- limits and ends of connections


@pytest.mark.slow
async def test_a_connection_without_text_pings_is_cut_without_a_close_frame_although_data_flow(fake, client):
    await client.subscribe()
    await fake.clock.advance(119)
    assert fake.open_connections == 1
    await fake.clock.advance(27)
    assert fake.open_connections == 0
    assert await client.end() is None


async def test_text_pings_keep_a_connection_until_it_is_a_day_old(fake, client):
    fake.push_interval_s = 10.0
    for _ in range(20):
        await fake.clock.advance(60)
        assert None not in await client.events()
    fake.max_age_s = 20 * 60
    await fake.clock.advance(60)
    assert await client.end() is None


async def test_more_than_ten_frames_a_second_end_the_connection(fake, client):
    for _ in range(11):
        await client.socket.write_message("ping")
    await client.end()
    await until_closed(fake)


async def test_a_frame_beyond_4096_bytes_ends_the_connection(fake, client):
    await client.socket.write_message('{"op":"subscribe","args":[]}' + " " * 4096)
    assert client.feed.read_frame(await client.socket.read_message()) == [
        FeedError("30007 request frame too long", reconnect=True)
    ]
    await client.end()
    await until_closed(fake)


@pytest.mark.slow
async def test_more_than_240_subscriptions_an_hour_end_the_connection(fake, client):
    for _ in range(240):
        await client.socket.write_message('{"op":"subscribe","args":[]}')
        await client.events()
        await fake.clock.advance(0.5)
    events = await client.subscribe()
    assert events[0].reconnect


@pytest.mark.slow
async def test_the_301st_attempt_within_five_minutes_is_refused(fake):
    for _ in range(300):
        (await websocket_connect(fake.ws_url)).close()
    with pytest.raises(HTTPError, match="429"):
        await websocket_connect(fake.ws_url)


# ---------------------------------------------------------------- faults


@pytest.mark.slow
async def test_silence_keeps_the_pongs_and_ends_with_a_new_connection(fake, client, connect):
    await client.subscribe()
    fake.silence_all()
    assert await client.watch(5) == []
    other = await connect()
    assert len(await other.subscribe()) == 2


async def test_silence_may_cover_new_connections_until_it_is_healed(fake, client, connect):
    fake.silence_all(new_too=True)
    other = await connect()
    assert await other.subscribe() == [Subscribed(ETH)]
    fake.heal()
    assert len(await other.subscribe()) == 2


@pytest.mark.slow
async def test_one_silent_channel_leaves_the_others_and_heals_by_subscribing_again(fake, connect):
    client = await connect([ETH, EWZ])
    await client.subscribe()
    fake.silence(ETH)
    assert {event.symbol for event in await client.watch(60)} == {EWZ}
    await client.subscribe(ETH)
    assert {event.symbol for event in await client.watch(60)} == {ETH, EWZ}


async def test_a_mute_subscription_is_acknowledged_and_never_sends(fake, client):
    fake.mute_subscription(ETH)
    assert await client.subscribe() == [Subscribed(ETH)]
    assert await client.watch(5) == []


@pytest.mark.slow
async def test_a_late_final_comes_after_the_first_row_of_the_next_minute(fake, client):
    fake.late_final(ETH, by_s=1.5)
    await client.subscribe()
    events = await client.watch(65)
    opens = [version[0] for version in versions(events)]
    late = next(index for index in range(1, len(opens)) if opens[index] < opens[index - 1])
    [event] = [event for event in events if event.candles[0].open_ms == opens[late]][-1:]
    assert event.candles[0].as_of_ms >= START_MS + MINUTE_MS + 1_500
    assert last_versions(events)[START_MS] == final_values(fake, ETH, START_MS, START_MS + MINUTE_MS)[START_MS]


@pytest.mark.slow
async def test_a_skipped_push_leaves_the_minute_incomplete_in_the_stream_but_not_over_rest(fake, client):
    fake.skip_push(ETH)
    await client.subscribe()
    events = await client.watch(65)
    finished = final_values(fake, ETH, START_MS, START_MS + MINUTE_MS)[START_MS]
    assert last_versions(events)[START_MS][5] < finished[5]
    _, body, _ = await get(fake, CANDLES, **futures(endTime=START_MS, limit=1))
    assert body["data"][0][5] == str(finished[5])


async def test_duplicate_updates_come_twice(fake, client):
    fake.duplicate_updates = True
    await client.subscribe()
    events = versions(await client.watch(3))
    assert events[::2] == events[1::2]
    assert len(events) >= 8


@pytest.mark.slow
async def test_a_half_open_connection_neither_answers_nor_ends(fake, client):
    await client.subscribe()
    fake.half_open()
    await client.socket.write_message("ping")
    await fake.clock.advance(200)
    with pytest.raises(asyncio.TimeoutError):
        await deadlines.wait_for(client.socket.read_message(), 0.2)
    assert fake.open_connections == 1


@pytest.mark.slow
async def test_dropped_connections_end_without_a_close_frame(fake, client):
    await client.subscribe()
    fake.drop_all()
    assert await client.end() is None


async def test_refused_connections_are_counted_and_come_back(fake):
    fake.refuse_connections = True
    with pytest.raises(Exception, match="closed"):
        await websocket_connect(fake.ws_url)
    assert (fake.refused_connections, fake.connections) == (1, 0)
    fake.refuse_connections = False
    (await websocket_connect(fake.ws_url)).close()
    assert fake.connections == 1


async def test_a_short_age_makes_a_storm_of_reconnects(fake, connect):
    fake.max_age_s = 0.2
    for _ in range(3):
        client = await connect()
        await client.subscribe()
        await fake.clock.advance(0.5)
        assert await client.end() is None
    assert fake.connections == 3


@pytest.mark.slow
async def test_minutes_the_exchange_does_not_have_are_neither_pushed_nor_in_snapshots_nor_over_rest(fake, client):
    gap = (START_MS - 10 * MINUTE_MS, START_MS + MINUTE_MS)
    fake.missing_minutes(ETH, gap)
    _, snapshot = await client.subscribe()
    assert len(snapshot.candles) == 489
    events = await client.watch(65)
    assert min(last_versions(events)) == START_MS + MINUTE_MS
    _, body, _ = await get(fake, CANDLES, **futures(endTime=START_MS + MINUTE_MS, limit=20))
    assert [int(row[0]) for row in body["data"]][-2:] == [gap[0] - MINUTE_MS, START_MS + MINUTE_MS]
    assert all(candle.open_ms < gap[0] for candle in fake.truth(ETH, START_MS - 20 * MINUTE_MS, gap[1]))
    fake.give_back_minutes(ETH)
    assert len((await client.subscribe())[1].candles) == 500


@pytest.mark.slow
async def test_synthetic_markets_are_served_by_the_hundred(connect):
    async with FakeBitget(ManualClock(START_MS), synthetic_markets(100), push_interval_s=1.0) as fake:
        symbols = [Symbol(f"SYM{number:03}", "USDT") for number in range(100)]
        client = await connect(symbols, fake)
        for first in (0, 50):
            events = await client.subscribe(*symbols[first : first + 50])
            assert len(events) == 100
            await fake.clock.advance(1)
            await client.events()
        assert len({event.symbol for event in await client.watch(5)}) > 80


# ---------------------------------------------------------------- REST


async def test_the_minute_in_progress_is_on_candles_only(fake):
    await fake.clock.advance(30)
    end_ms = START_MS + MINUTE_MS
    for path, newest in ((CANDLES, START_MS), (HISTORY, START_MS - MINUTE_MS)):
        _, body, _ = await get(fake, path, **futures(endTime=end_ms, limit=5))
        assert int(body["data"][-1][0]) == newest


async def test_candles_take_in_the_minute_at_the_end_and_history_does_not(fake):
    end_ms = START_MS - 100 * MINUTE_MS
    for path, newest in ((CANDLES, end_ms), (HISTORY, end_ms - MINUTE_MS)):
        _, body, _ = await get(fake, path, **futures(endTime=end_ms + 59_999, limit=5))
        assert int(body["data"][-1][0]) == newest
        assert len(body["data"]) == 5
        assert all(len(row) == 7 for row in body["data"])


async def test_rows_of_spot_have_a_field_more(fake):
    query = {"symbol": "BTCUSDT", "granularity": "1min", "endTime": START_MS, "limit": 3}
    for endpoint in ("candles", "history-candles"):
        _, body, _ = await get(fake, f"/api/v2/spot/market/{endpoint}", **query)
        assert [len(row) for row in body["data"]] == [8, 8, 8]


async def test_beyond_a_month_candles_are_empty_and_history_goes_on(fake):
    end_ms = START_MS - fake.recent_reach_ms - MINUTE_MS
    assert (await get(fake, CANDLES, **futures(endTime=end_ms, limit=5)))[1]["data"] == []
    assert len((await get(fake, HISTORY, **futures(endTime=end_ms, limit=5)))[1]["data"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("/api/v2/spot/market/history-candles", {"symbol": "BTCUSDT", "granularity": "1min"}, "400172"),
        (CANDLES, futures(limit=1001), "400172"),
        (HISTORY, futures(limit=201, endTime=START_MS), "400172"),
        (CANDLES, futures(endTime="soon"), "400172"),
        (CANDLES, {"symbol": "ETHUSDT", "granularity": "1m"}, "400172"),
        (CANDLES, futures(symbol="NOPEUSDT"), "40034"),
        ("/api/v2/spot/market/candles", {"symbol": "BTCUSDT", "granularity": "1m"}, "400171"),
        ("/api/v2/spot/public/symbols", {"symbol": "NOPEUSDT"}, "40034"),
        ("/api/v9/anything", {}, "40404"),
    ],
)
async def test_a_wrong_request_is_answered_with_400_and_its_code(fake, path, query, code):
    status, body, _ = await get(fake, path, **query)
    assert (status, body["code"], body["data"]) == (400, code, None)


@pytest.mark.slow
async def test_the_21st_request_of_a_second_is_answered_with_429(fake):
    answers = [await get(fake, CANDLES, **futures()) for _ in range(21)]
    assert [status for status, _, _ in answers] == [200] * 20 + [429]
    assert answers[0][2]["x-mbx-used-remain-limit"] == "19"
    assert answers[-1][1] == {"code": "429", "msg": "Too Many Requests", "requestTime": START_MS, "data": None}
    await fake.clock.advance(1)
    assert (await get(fake, CANDLES, **futures()))[0] == 200


async def test_a_429_may_ask_for_a_pause(fake):
    fake.rest_429(retry_after=7, times=1)
    status, _, headers = await get(fake, CANDLES, **futures())
    assert (status, headers["Retry-After"]) == (429, "7")
    assert (await get(fake, CANDLES, **futures()))[0] == 200


async def test_the_time_is_the_exchanges(fake):
    fake.skew_ms = 1234
    _, body, _ = await get(fake, "/api/v2/public/time")
    assert body["data"] == {"serverTime": str(START_MS + 1234)}


@pytest.mark.slow
async def test_requests_are_remembered_with_their_windows(fake):
    await get(fake, HISTORY, **futures(endTime=START_MS, limit=3))
    [request] = fake.requests_to("history-candles")
    assert request.query == {key: str(value) for key, value in futures(endTime=START_MS, limit=3).items()}
    assert request.at_ms == START_MS
