"""Binance's klines: rows, errors and names as Binance has them."""

import json
from decimal import Decimal
from typing import Literal

import msgspec
import pytest

from candled.config import KlinesSettings, LimitSettings
from candled.errors import StoreUnavailable
from candled.model import MINUTE_MS, Candle, Market, MarketKey, Symbol
from tests.api.stage import BTC, ETH, FUTURE, stage
from tests.rows import MONDAY_MS, minute

ON = KlinesSettings(enabled=True)
KLINES = "/api/v3/klines?symbol=BTCUSDT&interval=1m"
DAY_MS = 86_400_000


def numbers(rows) -> list[int]:
    return [(int(row[0]) - MONDAY_MS) // MINUTE_MS for row in rows]


async def test_a_row_is_binances_and_what_no_candle_says_is_zero(tmp_path):
    first = Candle.parse(
        MONDAY_MS, "0.00000001", "67340.00", "0.00000001", "67310.2500", "145.23", "9772345.670", as_of_ms=1, final=True
    )
    async with stage(tmp_path, {BTC: [first]}, klines=ON) as one:
        one.push(minute(1, volume="0.10"))
        answer = await one.ask(KLINES)
        again = await one.ask(KLINES.replace("klines", "uiKlines"))
    start, end = MONDAY_MS, MONDAY_MS + MINUTE_MS
    assert answer.body.decode() == (
        f'[[{start},"0.00000001","67340","0.00000001","67310.25","145.23",{end - 1},"9772345.67",0,"0","0","0"],'
        f'[{end},"10","10","10","10","0.1",{end + MINUTE_MS - 1},"0",0,"0","0","0"]]'
    )
    assert again.body == answer.body


async def test_start_and_end_choose_by_opening_time_and_both_belong_to_it(tmp_path):
    async with stage(tmp_path, klines=ON) as one:

        async def rows(query: str) -> list[int]:
            return numbers(await one.get(f"{KLINES}&{query}"))

        at = [MONDAY_MS + number * MINUTE_MS for number in range(60)]
        assert await rows("limit=3") == [57, 58, 59]
        assert await rows(f"endTime={at[10]}&limit=3") == [8, 9, 10]
        assert await rows(f"endTime={at[10] - 1}&limit=3") == [7, 8, 9]
        assert await rows(f"startTime={at[10]}&limit=3") == [10, 11, 12]
        assert await rows(f"startTime={at[10] + 1}&limit=3") == [11, 12, 13]
        assert await rows(f"startTime={at[10]}&endTime={at[12]}") == [10, 11, 12]
        assert await rows(f"startTime={at[12]}&endTime={at[10]}") == []
        assert await rows("startTime=0&limit=2") == [0, 1]
        assert await rows(f"startTime={10**19}") == []
        assert await rows("limit=5000") == list(range(60))


async def test_500_are_the_default_and_1000_the_most(tmp_path):
    async with stage(tmp_path, {BTC: [minute(number, final=True) for number in range(1300)]}, klines=ON) as one:
        assert len(await one.get(KLINES)) == 500
        assert len(await one.get(f"{KLINES}&limit=5000")) == 1000


async def test_longer_bars_have_binances_names_and_close_a_millisecond_before_the_next(tmp_path):
    minutes = [minute(number, final=True) for number in range(1500)]
    async with stage(tmp_path, {BTC: minutes}, klines=ON) as one:
        day, *_ = await one.get(KLINES.replace("1m", "1d"))
        (week,) = await one.get(KLINES.replace("1m", "1w"))
    assert (day[0], day[5], day[6]) == (MONDAY_MS, "1440", MONDAY_MS + DAY_MS - 1)
    assert (week[0], week[5], week[6]) == (MONDAY_MS, "1500", MONDAY_MS + 7 * DAY_MS - 1)


async def test_the_answer_says_whether_its_last_row_is_final_and_how_old_what_it_says_is(tmp_path):
    async with stage(tmp_path, klines=ON) as one:
        done = await one.ask(KLINES)
        one.push(minute(60, as_of=10_000))  # the clock stands at minute 61
        running = await one.ask(KLINES)
        empty = await one.ask(f"{KLINES}&endTime=0")
    assert (done.headers["X-Candled-Last-Final"], done.headers.get("Age")) == ("true", None)
    assert (running.headers["X-Candled-Last-Final"], running.headers["Age"]) == ("false", "50")
    assert "X-Candled-Last-Final" not in empty.headers


INVALID = "Data sent for parameter '{}' is not valid."
ILLEGAL = "Illegal characters found in parameter '{}'; legal range is '^[0-9]{{1,20}}$'."
MISSING = "Mandatory parameter '{}' was not sent, was empty/null, or malformed."


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        ("", -1102, MISSING.format("symbol")),
        ("symbol=&interval=1m", -1102, MISSING.format("symbol")),
        ("symbol=BTCUSDT", -1102, MISSING.format("interval")),
        ("symbol=NOPE&interval=1m", -1121, "Invalid symbol."),
        ("symbol=btcusdt&interval=1m", -1121, "Invalid symbol."),
        ("symbol=BTC/USDT&interval=1m", -1121, "Invalid symbol."),
        ("symbol=BTCUSDT&interval=1D", -1120, "Invalid interval."),
        ("symbol=BTCUSDT&interval=1M", -1120, "Invalid interval."),
        ("symbol=BTCUSDT&interval=2m", -1120, "Invalid interval."),
        ("symbol=BTCUSDT&interval=1m&limit=0", -1130, INVALID.format("limit")),
        ("symbol=BTCUSDT&interval=1m&limit=-1", -1100, ILLEGAL.format("limit")),
        ("symbol=BTCUSDT&interval=1m&limit=1.5", -1100, ILLEGAL.format("limit")),
        ("symbol=BTCUSDT&interval=1m&limit=", -1105, "Parameter 'limit' was empty."),
        ("symbol=BTCUSDT&interval=1m&startTime=NaN", -1100, ILLEGAL.format("startTime")),
        (f"symbol=BTCUSDT&interval=1m&endTime={'9' * 21}", -1100, ILLEGAL.format("endTime")),
        ("symbol=BTCUSDT&symbol=BTCUSDT&interval=1m", -1101, "Duplicate values for parameter 'symbol' detected."),
        ("symbol=%ff&interval=1m", -1100, "Illegal characters found in parameter 'symbol'."),
        (
            "symbol=BTCUSDT&interval=1d&timeZone=8", -1130,
            "Data sent for parameter 'timeZone' is not valid: days and weeks begin by UTC here.",
        ),
        ("symbol=BTCUSDT&interval=1m&timeUnit=SECOND", -1130, INVALID.format("timeUnit")),
        (
            "symbol=BTCUSDT&interval=1m&limt=2&x=%ff", -1104,
            "Not all sent parameters were read; read '2' parameter(s) but was sent '4'.",
        ),
    ],
)  # fmt: skip
async def test_mistakes_have_binances_bodies(tmp_path, query, code, message):
    async with stage(tmp_path, klines=ON) as one:
        answer = await one.ask(f"/api/v3/klines?{query}")
    assert (answer.code, json.loads(answer.body)) == (400, {"code": code, "msg": message})


@pytest.mark.parametrize(
    ("zone", "interval", "accepted"),
    [("0", "1d", True), ("8", "4h", True), ("-1:00", "1h", True), ("05:45", "15m", True), ("05:45", "1h", False),
     ("8", "1w", False), ("x", "1m", False), ("99:99", "1m", False)],
)  # fmt: skip
async def test_another_zone_is_refused_only_where_bars_would_begin_at_other_times(tmp_path, zone, interval, accepted):
    async with stage(tmp_path, klines=ON) as one:
        answer = await one.ask(f"/api/v3/klines?symbol=BTCUSDT&interval={interval}&timeZone={zone}")
    assert answer.code == (200 if accepted else 400)


@pytest.mark.parametrize("path", ["klines", "uiKlines", "exchangeInfo", "time", "ping"])
async def test_no_path_ignores_a_parameter_that_it_does_not_know(tmp_path, path):
    known = "symbol=BTCUSDT&interval=1m&" if "lines" in path else ""
    async with stage(tmp_path, klines=ON) as one:
        assert (await one.ask(f"/api/v3/{path}?{known}")).code == 200
        answer = await one.ask(f"/api/v3/{path}?{known}strartTime=5")
    assert (answer.code, json.loads(answer.body)["code"]) == (400, -1104)


def by_query(path: str, unit: str) -> tuple[str, dict[str, str]]:
    return f"{path}{'&' if '?' in path else '?'}timeUnit={unit}", {}


def by_header(path: str, unit: str) -> tuple[str, dict[str, str]]:
    return path, {"X-MBX-TIME-UNIT": unit}


@pytest.mark.parametrize("wanted", [by_query, by_header])
@pytest.mark.parametrize(("unit", "times"), [("MICROSECOND", 1000), ("microsecond", 1000), ("MILLISECOND", 1)])
async def test_times_are_in_the_unit_that_is_asked_for(tmp_path, wanted, unit, times):
    async with stage(tmp_path, klines=ON) as one:

        async def ask(path: str):
            path, headers = wanted(path, unit)
            return json.loads((await one.ask(path, headers=headers)).body)

        (row,) = await ask(f"{KLINES}&limit=1&startTime={MONDAY_MS}")
        assert (row[0], row[6]) == (MONDAY_MS * times, (MONDAY_MS + MINUTE_MS) * times - 1)
        assert await ask("/api/v3/time") == {"serverTime": one.clock.now_ms() * times}
        assert (await ask("/api/v3/exchangeInfo"))["serverTime"] == one.clock.now_ms() * times


async def test_asked_times_are_microseconds_where_they_are_too_late_for_milliseconds(tmp_path):
    async with stage(tmp_path, klines=ON) as one:

        async def rows(query: str) -> list[int]:
            return numbers(await one.get(f"{KLINES}&{query}"))

        at = [(MONDAY_MS + number * MINUTE_MS) * 1000 for number in range(60)]
        assert await rows(f"startTime={at[10]}&endTime={at[12]}") == [10, 11, 12]
        assert await rows(f"startTime={at[10] + 1}&endTime={at[12] - 1}") == [11]


async def test_trouble_has_binances_bodies_too(tmp_path, monkeypatch):
    limits = LimitSettings(klines_requests=4)
    async with stage(tmp_path, klines=ON, limits=limits) as one:

        def away(*_):
            raise StoreUnavailable("gone")

        first = await one.ask("/api/v3/ping")
        nowhere, posted = await one.ask("/api/v3/order"), await one.ask("/api/v3/klines", "POST")
        monkeypatch.setattr(one.store, "served_from", away)
        stopped, refused = await one.ask(KLINES), await one.ask(KLINES)
        api = await one.ask("/api/intervals")
    answers = [first, nowhere, posted, stopped, refused]
    assert [answer.code for answer in answers] == [200, 404, 405, 503, 429]
    assert [json.loads(answer.body).get("code") for answer in answers] == [None, -1020, -1020, -1001, -1003]
    assert (first.headers["X-MBX-USED-WEIGHT-1M"], refused.headers["Retry-After"]) == ("1", "60")
    assert api.headers["X-RateLimit-Remaining"] == "99"  # a limit of its own


async def test_exchange_info_lists_the_symbols_of_one_exchange_with_their_steps(tmp_path):
    described = {BTC: Market(symbol=BTC.symbol, price_decimals=2, volume_decimals=6)}
    minutes = {BTC: [], ETH: [], FUTURE: []}
    async with stage(tmp_path, minutes, klines=ON, limits=LimitSettings(), described=described) as one:
        info = await one.get("/api/v3/exchangeInfo")
        picked = await one.get("/api/v3/exchangeInfo?symbols=%5B%22ETHUSDT%22%5D")
        single = await one.get("/api/v3/exchangeInfo?symbol=BTCUSDT")
        wrong = [
            json.loads((await one.ask(f"/api/v3/exchangeInfo?{query}")).body)["code"]
            for query in ("symbol=X", "symbols=X", "symbols=%5B1%5D", "symbols=%5B%22X%22%5D")
        ]
    assert (info["timezone"], info["serverTime"]) == ("UTC", one.clock.now_ms())
    assert info["rateLimits"] == [
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "SECOND", "intervalNum": 60, "limit": 6000}
    ]
    assert [(symbol["symbol"], symbol["baseAsset"], symbol["status"]) for symbol in info["symbols"]] == [
        ("BTCUSDT", "BTC", "TRADING"), ("ETHUSDT", "ETH", "TRADING"),
    ]  # fmt: skip
    filters = {one["filterType"]: one for one in info["symbols"][0]["filters"]}
    assert (filters["PRICE_FILTER"]["tickSize"], filters["LOT_SIZE"]["stepSize"]) == ("0.01", "0.000001")
    assert ([one["symbol"] for one in picked["symbols"]], [one["symbol"] for one in single["symbols"]]) == (
        ["ETHUSDT"], ["BTCUSDT"],
    )  # fmt: skip
    assert wrong == [-1121, -1100, -1100, -1121]


class _Filter(msgspec.Struct, forbid_unknown_fields=True):
    filterType: Literal["PRICE_FILTER", "LOT_SIZE"]
    minPrice: str | None = None
    maxPrice: str | None = None
    tickSize: str | None = None
    minQty: str | None = None
    maxQty: str | None = None
    stepSize: str | None = None


class _Symbol(msgspec.Struct):
    """Every field that Binance documents; typed decoders such as nautilus_trader's want most of them."""

    symbol: str
    status: Literal["TRADING"]
    baseAsset: str
    baseAssetPrecision: int
    quoteAsset: str
    quotePrecision: int
    quoteAssetPrecision: int
    baseCommissionPrecision: int
    quoteCommissionPrecision: int
    orderTypes: list[str]
    icebergAllowed: bool
    ocoAllowed: bool
    otoAllowed: bool
    opoAllowed: bool
    quoteOrderQtyMarketAllowed: bool
    allowTrailingStop: bool
    cancelReplaceAllowed: bool
    amendAllowed: bool
    pegInstructionsAllowed: bool
    isSpotTradingAllowed: bool
    isMarginTradingAllowed: bool
    filters: list[_Filter]
    permissions: list[str]
    permissionSets: list[list[str]]
    defaultSelfTradePreventionMode: str
    allowedSelfTradePreventionModes: list[str]


class _Limit(msgspec.Struct):
    rateLimitType: Literal["REQUEST_WEIGHT"]
    interval: Literal["SECOND", "MINUTE", "DAY"]
    intervalNum: int
    limit: int


class _Info(msgspec.Struct):
    timezone: str
    serverTime: int
    rateLimits: list[_Limit]
    exchangeFilters: list[dict]
    symbols: list[_Symbol]


async def test_exchange_info_has_every_field_that_a_typed_decoder_wants(tmp_path):
    described = {BTC: Market(symbol=BTC.symbol, price_decimals=2, volume_decimals=6)}
    minutes = {BTC: [minute(0, final=True)], ETH: []}
    async with stage(tmp_path, minutes, klines=ON, limits=LimitSettings(), described=described) as one:
        answer = await one.ask("/api/v3/exchangeInfo")
    info = msgspec.json.decode(answer.body, type=_Info)
    assert [(one.symbol, one.baseAsset, one.quoteAsset) for one in info.symbols] == [
        ("BTCUSDT", "BTC", "USDT"), ("ETHUSDT", "ETH", "USDT"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "candles", "steps"),
    [
        ((2, 6), [], ("0.01", "0.000001")),
        ((2, 6), ["10.0001"], ("0.01", "0.000001")),  # the exchange's word counts
        ((0, 0), ["10.5"], ("1", "1")),
        ((None, None), ["10.00125", "10.5"], ("0.00001", "0.001")),  # else what candles show
        ((2, None), ["10.00125"], ("0.01", "0.001")),
        ((None, None), [], ("0", "0")),  # no rule at Binance
    ],
)
async def test_a_step_is_the_exchanges_or_what_candles_show_and_never_made_up(tmp_path, said, candles, steps):
    described = {BTC: Market(symbol=BTC.symbol, price_decimals=said[0], volume_decimals=said[1])}
    stored = [minute(number, close=close, volume="1.125", final=True) for number, close in enumerate([*candles] * 200)]
    async with stage(tmp_path, {BTC: stored}, klines=ON, described=described) as one:
        (symbol,) = (await one.get("/api/v3/exchangeInfo"))["symbols"]
    price, lot = symbol["filters"]
    assert (price["tickSize"], lot["stepSize"]) == (price["minPrice"], lot["minQty"]) == steps


async def test_markets_whose_names_would_be_one_are_both_reachable_and_the_second_is_named(tmp_path, caplog):
    alike = [MarketKey("replay", Symbol.parse(text)) for text in ("AB/USDT", "A/BUSDT", "a/BUSDT")]
    minutes = {key: [minute(0, volume=str(number), final=True)] for number, key in enumerate(alike)}
    async with stage(tmp_path, minutes, klines=ON) as one:
        symbols = (await one.get("/api/v3/exchangeInfo"))["symbols"]
        rows = [await one.get(f"/api/v3/klines?symbol={one_['symbol']}&interval=1m") for one_ in symbols]
    assert [(one_["symbol"], one_["baseAsset"], one_["quoteAsset"]) for one_ in symbols] == [
        ("ABUSDT", "AB", "USDT"), ("A-BUSDT", "A", "BUSDT"), ("A_BUSDT", "a", "BUSDT"),
    ]  # fmt: skip
    assert [row[0][5] for row in rows] == ["0", "1", "2"]
    assert "klines: A/BUSDT is served as A-BUSDT: ABUSDT is AB/USDT" in caplog.text


async def test_the_facade_is_off_by_default_and_can_stand_below_a_prefix_for_another_exchange(tmp_path):
    minutes = {BTC: [minute(0, final=True)], FUTURE: [minute(0, volume="7", final=True)]}
    async with stage(tmp_path, minutes) as one:
        assert (await one.ask(KLINES)).code == 404
    settings = KlinesSettings(enabled=True, prefix="/binance", exchange="bitget-futures")
    async with stage(tmp_path, minutes, klines=settings) as one:
        ((*_, volume, _, _, _, _, _, _),) = await one.get(f"/binance{KLINES}")
        assert volume == "7"
        assert (await one.ask(KLINES)).code == 404
        assert (await one.get("/binance/api/v3/time")) == {"serverTime": Decimal(one.clock.now_ms())}
        assert (await one.get("/binance/api/v3/ping")) == {}
