"""Binance's klines: rows, errors and names as Binance has them."""

import json
from decimal import Decimal
from typing import Literal

import msgspec
import pytest

from candled.config.sections import KlinesSettings, LimitSettings
from candled.errors import StoreUnavailable
from candled.model import MINUTE_MS, Candle, Market, MarketKey, Symbol
from tests.api.stage import BTC, ETH, FUTURE
from tests.rows import MONDAY_MS, minute

ON = KlinesSettings(enabled=True)
KLINES = "/api/v3/klines?symbol=BTCUSDT&interval=1m"
DAY_MS = 86_400_000
DESCRIBED = {BTC: Market(symbol=BTC.symbol, price_decimals=2, volume_decimals=6)}
pytestmark = [pytest.mark.gen_test, pytest.mark.stage(klines=ON)]


def numbers(rows) -> list[int]:
    return [(int(row[0]) - MONDAY_MS) // MINUTE_MS for row in rows]


FIRST = Candle.parse(
    MONDAY_MS, "0.00000001", "67340.00", "0.00000001", "67310.2500", "145.23", "9772345.670", as_of_ms=1, final=True
)


@pytest.mark.stage(minutes={BTC: [FIRST]})
async def test_a_row_is_binances_and_a_value_that_no_candle_has_is_zero(stage, fetch):
    stage.push(minute(1, volume="0.10"))
    answer = await fetch(KLINES)
    again = await fetch(KLINES.replace("klines", "uiKlines"))
    start, end = MONDAY_MS, MONDAY_MS + MINUTE_MS
    assert answer.body.decode() == (
        f'[[{start},"0.00000001","67340","0.00000001","67310.25","145.23",{end - 1},"9772345.67",0,"0","0","0"],'
        f'[{end},"10","10","10","10","0.1",{end + MINUTE_MS - 1},"0",0,"0","0","0"]]'
    )
    assert again.body == answer.body


@pytest.mark.slow
async def test_start_and_end_choose_by_opening_time_and_both_belong_to_it(get):
    async def rows(query: str) -> list[int]:
        return numbers(await get(f"{KLINES}&{query}"))

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


@pytest.mark.slow
@pytest.mark.stage(minutes=1300)
async def test_500_are_the_default_and_1000_the_most(get):
    assert len(await get(KLINES)) == 500
    assert len(await get(f"{KLINES}&limit=5000")) == 1000


@pytest.mark.slow
@pytest.mark.stage(minutes=1500)
async def test_longer_bars_have_binances_names_and_close_a_millisecond_before_the_next(get):
    day, *_ = await get(KLINES.replace("1m", "1d"))
    (week,) = await get(KLINES.replace("1m", "1w"))
    assert (day[0], day[5], day[6]) == (MONDAY_MS, "1440", MONDAY_MS + DAY_MS - 1)
    assert (week[0], week[5], week[6]) == (MONDAY_MS, "1500", MONDAY_MS + 7 * DAY_MS - 1)


async def test_the_answer_has_the_finality_of_its_last_row_and_its_age(stage, fetch):
    done = await fetch(KLINES)
    stage.push(minute(60, as_of=10_000))  # the clock stands at minute 61
    running = await fetch(KLINES)
    empty = await fetch(f"{KLINES}&endTime=0")
    assert (done.headers["X-Candled-Last-Final"], done.headers.get("Age")) == ("true", None)
    assert (running.headers["X-Candled-Last-Final"], running.headers["Age"]) == ("false", "50")
    assert "X-Candled-Last-Final" not in empty.headers


INVALID = "Data sent for parameter '{}' is not valid."
ILLEGAL = "Illegal characters found in parameter '{}'; legal range is '^[0-9]{{1,20}}$'."
MISSING = "Mandatory parameter '{}' was not sent, was empty/null, or malformed."


@pytest.mark.slow
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
async def test_mistakes_have_binances_bodies(fetch, query, code, message):
    answer = await fetch(f"/api/v3/klines?{query}")
    assert (answer.code, json.loads(answer.body)) == (400, {"code": code, "msg": message})


@pytest.mark.parametrize(
    ("zone", "interval", "accepted"),
    [("0", "1d", True), ("8", "4h", True), ("-1:00", "1h", True), ("05:45", "15m", True), ("05:45", "1h", False),
     ("8", "1w", False), ("x", "1m", False), ("99:99", "1m", False)],
)  # fmt: skip
async def test_another_zone_is_refused_only_where_bars_would_begin_at_other_times(fetch, zone, interval, accepted):
    answer = await fetch(f"/api/v3/klines?symbol=BTCUSDT&interval={interval}&timeZone={zone}")
    assert answer.code == (200 if accepted else 400)


@pytest.mark.parametrize("path", ["klines", "uiKlines", "exchangeInfo", "time", "ping"])
async def test_no_path_ignores_a_parameter_that_it_does_not_know(fetch, path):
    known = "symbol=BTCUSDT&interval=1m&" if "lines" in path else ""
    assert (await fetch(f"/api/v3/{path}?{known}")).code == 200
    answer = await fetch(f"/api/v3/{path}?{known}strartTime=5")
    assert (answer.code, json.loads(answer.body)["code"]) == (400, -1104)


def by_query(path: str, unit: str) -> tuple[str, dict[str, str]]:
    return f"{path}{'&' if '?' in path else '?'}timeUnit={unit}", {}


def by_header(path: str, unit: str) -> tuple[str, dict[str, str]]:
    return path, {"X-MBX-TIME-UNIT": unit}


@pytest.mark.parametrize("wanted", [by_query, by_header])
@pytest.mark.parametrize(("unit", "times"), [("MICROSECOND", 1000), ("microsecond", 1000), ("MILLISECOND", 1)])
async def test_times_are_in_the_unit_that_is_asked_for(stage, fetch, wanted, unit, times):
    async def ask(path: str):
        path, headers = wanted(path, unit)
        return json.loads((await fetch(path, headers=headers)).body)

    (row,) = await ask(f"{KLINES}&limit=1&startTime={MONDAY_MS}")
    assert (row[0], row[6]) == (MONDAY_MS * times, (MONDAY_MS + MINUTE_MS) * times - 1)
    assert await ask("/api/v3/time") == {"serverTime": stage.clock.now_ms() * times}
    assert (await ask("/api/v3/exchangeInfo"))["serverTime"] == stage.clock.now_ms() * times


async def test_asked_times_are_microseconds_where_they_are_too_late_for_milliseconds(get):
    async def rows(query: str) -> list[int]:
        return numbers(await get(f"{KLINES}&{query}"))

    at = [(MONDAY_MS + number * MINUTE_MS) * 1000 for number in range(60)]
    assert await rows(f"startTime={at[10]}&endTime={at[12]}") == [10, 11, 12]
    assert await rows(f"startTime={at[10] + 1}&endTime={at[12] - 1}") == [11]


@pytest.mark.stage(klines=ON, limits=LimitSettings(klines_requests=4))
async def test_errors_have_binances_bodies_too(stage, fetch, monkeypatch):
    def away(*_):
        raise StoreUnavailable("gone")

    first = await fetch("/api/v3/ping")
    nowhere, posted = await fetch("/api/v3/order"), await fetch("/api/v3/klines", "POST")
    monkeypatch.setattr(stage.store, "served_from", away)
    stopped, refused = await fetch(KLINES), await fetch(KLINES)
    api = await fetch("/api/intervals")
    answers = [first, nowhere, posted, stopped, refused]
    assert [answer.code for answer in answers] == [200, 404, 405, 503, 429]
    assert [json.loads(answer.body).get("code") for answer in answers] == [None, -1020, -1020, -1001, -1003]
    assert (first.headers["X-MBX-USED-WEIGHT-1M"], refused.headers["Retry-After"]) == ("1", "60")
    assert api.headers["X-RateLimit-Remaining"] == "99"  # a limit of its own


@pytest.mark.stage(minutes={BTC: [], ETH: [], FUTURE: []}, limits=LimitSettings(), described=DESCRIBED)
async def test_exchange_info_lists_the_symbols_of_one_exchange_with_their_steps(stage, fetch, get):
    info = await get("/api/v3/exchangeInfo")
    picked = await get("/api/v3/exchangeInfo?symbols=%5B%22ETHUSDT%22%5D")
    single = await get("/api/v3/exchangeInfo?symbol=BTCUSDT")
    wrong = [
        json.loads((await fetch(f"/api/v3/exchangeInfo?{query}")).body)["code"]
        for query in ("symbol=X", "symbols=X", "symbols=%5B1%5D", "symbols=%5B%22X%22%5D")
    ]
    assert (info["timezone"], info["serverTime"]) == ("UTC", stage.clock.now_ms())
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


@pytest.mark.stage(minutes={BTC: [minute(0, final=True)], ETH: []}, limits=LimitSettings(), described=DESCRIBED)
async def test_exchange_info_has_every_field_that_a_typed_decoder_wants(fetch):
    answer = await fetch("/api/v3/exchangeInfo")
    info = msgspec.json.decode(answer.body, type=_Info)
    assert [(one.symbol, one.baseAsset, one.quoteAsset) for one in info.symbols] == [
        ("BTCUSDT", "BTC", "USDT"), ("ETHUSDT", "ETH", "USDT"),
    ]  # fmt: skip


def described(price: int | None, volume: int | None, *closes: str) -> dict:
    """A market that its exchange describes with these decimals, and its candles."""
    stored = [minute(at, close=close, volume="1.125", final=True) for at, close in enumerate(closes * 200)]
    return {
        "minutes": {BTC: stored},
        "described": {BTC: Market(symbol=BTC.symbol, price_decimals=price, volume_decimals=volume)},
    }


@pytest.mark.parametrize(
    ("stage_options", "steps"),
    [
        (described(2, 6), ("0.01", "0.000001")),
        (described(2, 6, "10.0001"), ("0.01", "0.000001")),  # the exchange's word counts
        (described(0, 0, "10.5"), ("1", "1")),
        (described(None, None, "10.00125", "10.5"), ("0.00001", "0.001")),  # else what candles show
        (described(2, None, "10.00125"), ("0.01", "0.001")),
        (described(None, None), ("0", "0")),  # no rule at Binance
    ],
)
async def test_a_step_is_the_exchanges_or_what_candles_show_and_never_made_up(get, steps):
    (symbol,) = (await get("/api/v3/exchangeInfo"))["symbols"]
    price, lot = symbol["filters"]
    assert (price["tickSize"], lot["stepSize"]) == (price["minPrice"], lot["minQty"]) == steps


ALIKE = [MarketKey("replay", Symbol.parse(text)) for text in ("AB/USDT", "A/BUSDT", "a/BUSDT")]


@pytest.mark.stage(minutes={key: [minute(0, volume=str(at), final=True)] for at, key in enumerate(ALIKE)})
async def test_markets_whose_names_would_be_one_are_both_reachable_and_the_second_is_named(get, caplog):
    symbols = (await get("/api/v3/exchangeInfo"))["symbols"]
    rows = [await get(f"/api/v3/klines?symbol={one_['symbol']}&interval=1m") for one_ in symbols]
    assert [(one_["symbol"], one_["baseAsset"], one_["quoteAsset"]) for one_ in symbols] == [
        ("ABUSDT", "AB", "USDT"), ("A-BUSDT", "A", "BUSDT"), ("A_BUSDT", "a", "BUSDT"),
    ]  # fmt: skip
    assert [row[0][5] for row in rows] == ["0", "1", "2"]
    logged = [record.getMessage() for record in caplog.get_records("setup")]
    assert "klines: A/BUSDT is served as A-BUSDT: ABUSDT is AB/USDT" in logged


CONTRACTS = [
    MarketKey("replay", Symbol.parse(text))
    for text in ("BTC/USDT", "BTC/USDT:USDT", "BTC/USD:BTC", "BTC/USD:BTC-261225", "1000SHIB/USDT:USDT")
]


@pytest.mark.slow
@pytest.mark.stage(minutes={key: [minute(0, volume=str(at), final=True)] for at, key in enumerate(CONTRACTS)})
async def test_ccxt_gives_spot_pairs_and_contracts_the_symbols_they_have_here(fetch, get):
    ccxt = pytest.importorskip("ccxt", reason="needs ccxt: pip install -e '.[test]'")
    described = json.loads((await fetch("/api/v3/exchangeInfo")).body)["symbols"]
    pairs = {"crossMarginPairsData": [], "isolatedMarginPairsData": []}  # fetched with the markets, from elsewhere
    markets = ccxt.binance({"options": pairs}).parse_markets(described)
    assert [market["symbol"] for market in markets] == [str(key.symbol) for key in CONTRACTS]
    assert [market["type"] for market in markets] == ["spot", "swap", "swap", "future", "swap"]
    rows = [await get(f"/api/v3/klines?symbol={market['id']}&interval=1m") for market in markets]
    assert [row[0][5] for row in rows] == ["0", "1", "2", "3", "4"]


@pytest.mark.stage(klines=KlinesSettings())
async def test_the_facade_is_off_by_default(fetch):
    assert (await fetch(KLINES)).code == 404


@pytest.mark.stage(
    minutes={BTC: [minute(0, final=True)], FUTURE: [minute(0, volume="7", final=True)]},
    klines=KlinesSettings(enabled=True, prefix="/binance", exchange="bitget-futures"),
)
async def test_the_facade_can_stand_below_a_prefix_for_another_exchange(stage, fetch, get):
    ((*_, volume, _, _, _, _, _, _),) = await get(f"/binance{KLINES}")
    assert volume == "7"
    assert (await fetch(KLINES)).code == 404
    assert (await get("/binance/api/v3/time")) == {"serverTime": Decimal(stage.clock.now_ms())}
    assert (await get("/binance/api/v3/ping")) == {}
