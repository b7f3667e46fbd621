"""OKX: recorded frames, refusals that name a market only in their text, exclusive pages, and volumes in contracts."""

import json
from decimal import Decimal

import pytest
from hypothesis import given

from candled import (
    MINUTE_MS,
    ClosingSoon,
    ExchangeError,
    FeedError,
    Interval,
    InvalidRow,
    Pong,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    Unavailable,
)
from candled_plugins.okx.exchange import Okx, OkxFeed, OkxSettings
from tests.clocks import START_MS, ManualClock
from tests.plugins.local import (
    NOT_FRAMES,
    WINDOWS,
    FakeHttp,
    candles_of,
    opening_times,
    read_all,
    recorded,
    recorded_answer,
    window,
)
from tests.tiers import few_examples

BTC, SWAP, INVERSE = Symbol("BTC", "USDT"), Symbol("BTC", "USDT", "USDT"), Symbol("BTC", "USD", "BTC")
ROW = ["1786538760000", "10", "12", "9", "11", "300", "3", "33", "0"]


def feed(*symbols: Symbol) -> OkxFeed:
    return OkxFeed("ws://localhost", symbols or (BTC, SWAP))


def okx(**settings) -> Okx:
    return Okx(OkxSettings(**settings), ManualClock(START_MS + 30_000))


def push(row: object, inst_id: str = "BTC-USDT") -> str:
    return json.dumps({"arg": {"channel": "candle1m", "instId": inst_id}, "data": [row]})


# ---------------------------------------------------------------- WebSocket


def test_recorded_frames_become_candles():
    first, *events = read_all(feed(), recorded("okx/socket_spot.json"))
    assert first == Subscribed(BTC)
    assert [(one.open_ms, *map(str, one.values), one.as_of_ms, one.final) for one in candles_of(events)] == [
        (1786538760000, "64040.2", "64040.2", "64025.7", "64033.5", "2.16787395", "138825.265446816", 0, False),
        (1786538760000, "64040.2", "64040.2", "64025.7", "64038.2", "2.25101046", "144148.787477696", 0, False),
    ]


@pytest.mark.parametrize(
    ("symbol", "name", "volume"), [(BTC, "BTC-USDT", 300), (SWAP, "BTC-USDT-SWAP", 3), (INVERSE, "BTC-USD-SWAP", 3)]
)
def test_volumes_are_in_base_coins_although_contracts_are_counted(symbol, name, volume):
    (event,) = feed(symbol).read_frame(push(ROW, name))
    (candle,) = event.candles
    assert event.symbol == symbol
    assert (candle.volume, candle.quote_volume) == (volume, 33)


def test_the_last_version_of_a_minute_is_marked():
    assert [one.final for one in candles_of(read_all(feed(), [push(ROW), push([*ROW[:8], "1"])]))] == [False, True]


@pytest.mark.parametrize("row", [ROW[:6], None, [None] * 9, ["x", *ROW[1:]], [*ROW[:2], "8", *ROW[3:]]])
def test_a_bad_row_costs_itself(row):
    frame = json.loads(push(ROW))
    frame["data"].append(row)
    (event,) = feed().read_frame(json.dumps(frame))
    assert len(event.candles) == 1
    assert isinstance(event.invalid[0], InvalidRow)


@pytest.mark.parametrize(
    ("symbol", "name", "volumes"), [(BTC, "BTC-USDT", (300, 3)), (SWAP, "BTC-USDT-SWAP", (3, None))]
)
def test_older_rows_have_no_columns_for_quote_volume_and_end(symbol, name, volumes):
    (event,) = feed(symbol).read_frame(push(ROW[:7], name))
    (candle,) = event.candles
    assert (candle.volume, candle.quote_volume, candle.final) == (*volumes, False)


def test_many_markets_share_a_frame_and_a_renewed_one_has_its_own():
    symbols = [Symbol(f"S{number}", "USDT") for number in range(150)]
    first, second = map(json.loads, feed(*symbols).subscribe(symbols))
    assert (first["op"], len(first["args"]), len(second["args"])) == ("subscribe", 100, 50)
    assert first["args"][0] == {"channel": "candle1m", "instId": "S0-USDT"}
    (alone,) = map(json.loads, feed().unsubscribe([SWAP]))
    assert alone == {"op": "unsubscribe", "args": [{"channel": "candle1m", "instId": "BTC-USDT-SWAP"}]}


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"event": "error", "code": "60018", "msg": "Wrong URL or channel:candle1m,instId:BTC-USDT doesn't exist."},
         SubscriptionRejected(BTC, "60018 Wrong URL or channel:candle1m,instId:BTC-USDT doesn't exist.")),
        ({"event": "error", "code": "60018", "msg": "channel:candle1m,instId:ETH-USDT doesn't exist"},
         FeedError("60018 channel:candle1m,instId:ETH-USDT doesn't exist")),
        ({"event": "error", "code": "60014", "msg": "Requests too frequent"}, FeedError("60014 Requests too frequent")),
        ({"event": "notice", "code": "64008", "msg": "Please reconnect."}, ClosingSoon("64008 Please reconnect.")),
    ],
)  # fmt: skip
def test_errors_and_notices(message, event):
    assert feed().read_frame(json.dumps(message)) == [event]


def test_a_pong_is_text_and_the_answer_to_an_unsubscription_is_nothing():
    assert feed().read_frame("pong") == [Pong()]
    assert feed().read_frame('{"event":"unsubscribe","arg":{"channel":"candle1m","instId":"BTC-USDT"}}') == []


@pytest.mark.parametrize(
    "frame",
    [
        *NOT_FRAMES,
        push(ROW, "ETH-USDT"),
        '{"event":"login"}',
        '{"arg":{"channel":"candle1H","instId":"BTC-USDT"},"data":[]}',
        '{"arg":{"channel":"candle1m","instId":"BTC-USDT"},"data":{}}',
    ],
)
def test_other_frames_are_errors(frame):
    with pytest.raises(ExchangeError):
        feed().read_frame(frame)


# ---------------------------------------------------------------- REST


def answers(limit: int = 300):
    """OKX's pages: newest first, both bounds exclusive, `candles` with the newest 1,440 bars only."""
    steps = {"1m": MINUTE_MS, "1Dutc": 1440 * MINUTE_MS}

    def answer(path: str, query: dict[str, str]):
        step = steps[query["bar"]]
        oldest_ms = START_MS - 1439 * step if path.endswith("/candles") else 0
        first_ms = max(oldest_ms, (int(query["before"]) // step + 1) * step)
        last_ms = min(START_MS, (int(query["after"]) - 1) // step * step)
        rows = [[str(at_ms), *ROW[1:]] for at_ms in range(last_ms, first_ms - 1, -step)]
        return {"code": "0", "msg": "", "data": rows[: min(limit, int(query["limit"]))]}

    return answer


@few_examples
@given(WINDOWS)
async def test_every_minute_of_a_range_is_found_although_pages_may_be_short(ago_and_count):
    start_ms, end_ms = window(*ago_and_count, Okx.max_history_minutes)
    for limit in (300, 100):
        http = FakeHttp(answers(limit))
        rows = await okx().fetch_history(http, BTC, start_ms, end_ms)
        assert opening_times(rows) == list(range(start_ms, end_ms, MINUTE_MS))
        assert len(http.requests) <= -(-300 // limit)
        is_recent = start_ms >= START_MS + 30_000 - 1430 * MINUTE_MS
        assert {(path, budget) for path, _, _, budget in http.requests} == {
            ("/api/v5/market/candles", "candles") if is_recent else ("/api/v5/market/history-candles", "history")
        }


async def test_recorded_rows_are_read_with_all_their_digits():
    http = FakeHttp(lambda path, query: recorded_answer("okx/rest_hours_spot.json"))
    bars = await okx().fetch_bars(http, BTC, Interval.parse("1h"), 1706630400000, 1706641200000)
    assert [(one.open_ms, str(one.volume), str(one.quote_volume)) for one in bars] == [
        (1706630400000, "7137.30786672", "309343235.363089398"),
        (1706634000000, "4492.95408114", "195072853.268772597"),
        (1706637600000, "5070.79611732", "220057933.233687634"),
    ]
    assert len(http.requests) == 1


async def test_days_are_those_of_utc():
    day_ms = 1440 * MINUTE_MS
    start_ms = START_MS // day_ms * day_ms - 400 * day_ms
    http = FakeHttp(answers())
    bars = await okx().fetch_bars(http, BTC, Interval.parse("1D"), start_ms, start_ms + 350 * day_ms)
    assert [one.open_ms for one in bars] == [start_ms + number * day_ms for number in range(350)]
    assert {query["bar"] for _, query, _, _ in http.requests} == {"1Dutc"}
    assert await okx().fetch_bars(http, BTC, Interval.parse("45m"), start_ms, start_ms + day_ms) is None


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"code": "50011", "msg": "Too Many Requests", "data": []}, Unavailable),
        ({"code": "50001", "msg": "Service temporarily unavailable"}, Unavailable),
        ({"code": "51001", "msg": "Instrument ID doesn't exist", "data": []}, ExchangeError),
        ({"code": "0", "data": None}, ExchangeError),
        ([], ExchangeError),
        ({"code": "0", "data": [["1706630400000", *ROW[1:]]]}, ExchangeError),  # another range than asked for
    ],
)
async def test_answers_without_candles(body, error):
    http = FakeHttp(lambda path, query: body)
    with pytest.raises(error):
        await okx().fetch_history(http, BTC, START_MS, START_MS + MINUTE_MS)
    assert bool(http.paused) == ("50011" in str(body))


SPOT_ENTRY = {
    "instType": "SPOT", "instId": "BTC-USDT", "baseCcy": "BTC", "quoteCcy": "USDT", "settleCcy": "", "state": "live",
    "tickSz": "0.1", "lotSz": "0.00000001", "listTime": "1548133413000", "contTdSwTime": "", "uly": "",
}  # fmt: skip
SWAP_ENTRY = {
    "instType": "SWAP", "instId": "BTC-USDT-SWAP", "baseCcy": "", "quoteCcy": "", "settleCcy": "USDT",
    "uly": "BTC-USDT",
    "state": "suspend", "tickSz": "0.1", "lotSz": "0.01", "ctVal": "0.01", "ctValCcy": "BTC",
    "listTime": "1611916828000", "contTdSwTime": "1611917000000",
}  # fmt: skip


def listed(path: str, query: dict[str, str]):
    is_spot = query["instType"] == "SPOT"
    if path.endswith("tickers"):
        one = {"instId": "BTC-USDT" if is_spot else "BTC-USDT-SWAP", "last": "60000", "volCcy24h": "1500.5"}
        return {"code": "0", "data": [one, {"instId": "OLD", "last": "", "volCcy24h": ""}]}
    inverse = {**SWAP_ENTRY, "instId": "BTC-USD-SWAP", "uly": "BTC-USD", "settleCcy": "BTC", "ctVal": "100",
               "ctValCcy": "USD"}  # fmt: skip
    coming = {"instId": "ETH-USD_UM-SWAP", "instType": "SWAP", "state": "preopen"}
    return {"code": "0", "data": [SPOT_ENTRY] if is_spot else [SWAP_ENTRY, inverse, coming]}


async def test_markets_with_their_facts():
    spot, swap, inverse = await okx(markets=("spot", "swap")).fetch_markets(FakeHttp(listed))
    assert (spot.symbol, spot.tick_size, spot.decimals.volume, spot.status) == (BTC, Decimal("0.1"), 8, "trading")
    assert (spot.listed_ms, spot.quote_volume_24h) == (1548133413000, Decimal("1500.5"))
    # a lot is 0.01 contracts of 0.01 BTC each, and the volume of 24 hours is in BTC
    assert (swap.symbol, swap.decimals.volume, swap.status) == (SWAP, 4, "suspended")
    assert (swap.listed_ms, swap.quote_volume_24h) == (1611917000000, 60_000 * Decimal("1500.5"))
    assert (inverse.symbol, inverse.decimals.volume) == (INVERSE, None)
    assert [one.symbol for one in await okx().fetch_markets(FakeHttp(listed))] == [BTC]


async def test_a_list_of_another_form_is_an_error():
    with pytest.raises(ExchangeError, match="not as documented"):
        await okx().fetch_markets(FakeHttp(lambda path, query: {"code": "0", "data": [{**SPOT_ENTRY, "tickSz": "x"}]}))
