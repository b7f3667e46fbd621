"""TradingView's UDF, by a client that does what the published adapter does."""

import json
import re
from decimal import Decimal

import pytest

from candled.config.sections import LimitSettings, UdfSettings
from candled.errors import StoreUnavailable
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, Gap, Interval, Market, MarketKey, Symbol, fold
from tests.api.stage import BTC, ETH, FUTURE
from tests.api.udf_adapter import SECONDS, Adapter, Pane, UdfError
from tests.rows import MONDAY_MS, minute

MONDAY_S = MONDAY_MS // 1000
TICKER = "REPLAY:BTCUSDT"
pytestmark = pytest.mark.gen_test


@pytest.fixture
def adapter(get) -> Adapter:
    return Adapter(get)


def as_udf(bar) -> dict:
    return {"time": bar.open_ms, **dict(zip(("open", "high", "low", "close", "volume"), bar.values[:5], strict=True))}


def folded(minutes, resolution: str) -> list[dict]:
    interval = Interval.parse({"60": "1h", "240": "4h"}.get(resolution, resolution.rstrip("m") + "m"))
    buckets: dict[int, list] = {}
    for candle in minutes:
        buckets.setdefault(interval.floor(candle.open_ms), []).append(candle)
    return [as_udf(fold(parts, open_ms)) for open_ms, parts in sorted(buckets.items())]


@pytest.mark.stage(minutes={BTC: [], FUTURE: []})
async def test_config_has_what_the_library_asks_for(adapter):
    config = await adapter.request("config")
    assert config == {
        "supported_resolutions": ["1", "5", "15", "60", "240", "1D", "1W"],
        "supports_search": True,
        "supports_group_request": False,
        "supports_marks": True,
        "supports_timescale_marks": True,
        "supports_time": True,
        "exchanges": [
            {"value": "REPLAY", "name": "Replay", "desc": "Replay"},
            {"value": "BITGET-FUTURES", "name": "Bitget-futures", "desc": "Bitget-futures"},
        ],
        "symbols_types": [{"name": "Crypto", "value": "crypto"}],
    }


@pytest.mark.slow
@pytest.mark.stage(
    minutes={BTC: [], FUTURE: []}, described={BTC: Market(symbol=BTC.symbol, price_decimals=2, volume_decimals=6)}
)
async def test_a_symbol_is_resolved_by_every_name_it_may_have_and_has_no_key_s(fetch, adapter):
    info = await adapter.resolve(TICKER)
    for name in ("BTCUSDT", "BTC/USDT", "replay:BTC/USDT", "btcusdt", "REPLAY:BTC/USDT"):
        assert await adapter.resolve(name) == info
    future = await adapter.resolve("BITGET-FUTURES:BTCUSDT")
    with pytest.raises(UdfError):
        await adapter.resolve("REPLAY:ETHUSDT")
    raw = await fetch("/udf/symbols?symbol=NOPE")
    assert info == {
        "name": "BTCUSDT", "ticker": TICKER, "full_name": TICKER, "description": "BTC/USDT", "type": "crypto",
        "session": "24x7", "timezone": "Etc/UTC", "exchange": "REPLAY", "listed_exchange": "REPLAY", "minmov": 1,
        "pricescale": 100, "has_intraday": True, "has_daily": True, "has_weekly_and_monthly": True,
        "intraday_multipliers": ["1", "5", "15", "60", "240"],
        "supported_resolutions": ["1", "5", "15", "60", "240", "1D", "1W"],
        "volume_precision": 6, "data_status": "streaming", "format": "price",
    }  # fmt: skip
    assert (future["exchange"], future["ticker"]) == ("BITGET-FUTURES", "BITGET-FUTURES:BTCUSDT")
    assert (raw.code, json.loads(raw.body)) == (200, {"s": "error", "errmsg": "unknown_symbol"})


@pytest.mark.stage(minutes={BTC: [minute(0, close="10.00125", final=True)]})
async def test_where_the_exchange_names_no_precision_the_candles_do(adapter):
    info = await adapter.resolve(TICKER)
    assert (info["pricescale"], info["volume_precision"]) == (100_000, 8)


ALIKE = [MarketKey("replay", Symbol.parse(text)) for text in ("A/BC", "AB/C")]


@pytest.mark.stage(minutes={key: [minute(0, volume=str(at), final=True)] for at, key in enumerate(ALIKE, 1)})
async def test_two_symbols_that_look_alike_have_different_tickers(adapter):
    found = await adapter.request("search", {"query": "ab", "type": "", "exchange": "", "limit": 30})
    assert [item["ticker"] for item in found] == ["REPLAY:ABC", "REPLAY:AB/C"]
    for number, item in enumerate(found):
        bars, _ = await adapter.bars(item["ticker"], "1", 0, MONDAY_S + 60, 5)
        assert bars[0]["volume"] == number + 1


CONTRACT, DATED = (MarketKey("replay", Symbol.parse(text)) for text in ("BTC/USDT:USDT", "BTC/USD:BTC-261225"))


@pytest.mark.stage(
    minutes={key: [minute(0, close=f"1{at}", final=True)] for at, key in enumerate((BTC, CONTRACT, DATED))}
)
async def test_a_contract_has_tradingviews_name_everywhere(adapter):
    tickers = [TICKER, f"{TICKER}.P", "REPLAY:BTCUSD_261225"]
    found = await adapter.request("search", {"query": "btcusd"})
    assert [(item["ticker"], item["description"]) for item in found] == [
        (ticker, str(key.symbol)) for ticker, key in zip(tickers, (BTC, CONTRACT, DATED), strict=True)
    ]
    assert [item["symbol"] for item in found] == ["BTCUSDT", "BTCUSDT.P", "BTCUSD_261225"]
    columns = await adapter.request("symbol_info", {"group": "REPLAY"})
    assert (columns["ticker"], columns["symbol"]) == (tickers, [item["symbol"] for item in found])
    quotes = (await adapter.request("quotes", {"symbols": ",".join(tickers)}))["d"]
    assert [(quote["v"]["short_name"], quote["v"]["lp"]) for quote in quotes] == [
        ("BTCUSDT", 10), ("BTCUSDT.P", 11), ("BTCUSD_261225", 12),
    ]  # fmt: skip
    for name in ("BTC/USDT:USDT", "replay:BTC/USDT:USDT", "btcusdt.p"):
        assert (await adapter.resolve(name))["ticker"] == f"{TICKER}.P"


@pytest.mark.stage(minutes=dict.fromkeys((MarketKey("replay", Symbol("WBTC", "USDT")), BTC, ETH, FUTURE), ()))
async def test_search_finds_parts_and_what_begins_with_them_comes_first(adapter):

    async def found(**query) -> list[str]:
        return [item["ticker"] for item in await adapter.request("search", query)]

    assert await found(query="btc", type="", exchange="", limit=30) == [
        TICKER, "BITGET-FUTURES:BTCUSDT", "REPLAY:WBTCUSDT",
    ]  # fmt: skip
    assert await found(query="btc", type="crypto", exchange="BITGET-FUTURES") == ["BITGET-FUTURES:BTCUSDT"]
    assert await found(query="ETH/US") == ["REPLAY:ETHUSDT"]
    assert len(await found(query="")) == 4
    assert await found(query="btc", limit=1) == [TICKER]
    assert await found(query="btc", type="stock") == []
    assert await found(query="<script>") == []


VARIED = [
    minute(number, close=f"10.{number:04}", volume=f"{number}.5", final=True)
    for number in range(1800)
    if not 700 <= number < 760
]


@pytest.mark.slow
@pytest.mark.stage(minutes={BTC: VARIED})
async def test_a_chart_scrolls_to_the_first_candle_by_countback_and_then_there_is_no_data(stage, adapter):
    running = minute(1800)
    now_s = MONDAY_S + 1800 * 60 + 30
    stage.push(running)
    for resolution in ("1", "5", "15", "60", "240"):
        for count_back in (10, 329):
            pane = Pane(adapter, TICKER, resolution)
            await pane.load(now_s, count_back)
            assert pane.bars == folded([*VARIED, running], resolution)


async def test_countback_beats_from_and_the_end_is_exclusive(adapter):
    bars, _ = await adapter.bars(TICKER, "1", MONDAY_S + 30 * 60, MONDAY_S + 40 * 60, 20)
    assert [bar["time"] for bar in bars] == [MONDAY_MS + number * MINUTE_MS for number in range(20, 40)]
    bars, _ = await adapter.bars(TICKER, "1", MONDAY_S + 30 * 60, MONDAY_S + 40 * 60, None)
    assert [bar["time"] for bar in bars] == [MONDAY_MS + number * MINUTE_MS for number in range(30, 40)]
    bars, _ = await adapter.bars(TICKER, "1", MONDAY_S + 5 * 60, MONDAY_S + 5 * 60 + 1, 0)
    assert len(bars) == 1


@pytest.mark.stage(minutes={BTC: [minute(number, final=True) for number in [*range(10), *range(50, 60)]]})
async def test_no_data_means_that_nothing_older_exists_and_else_names_what_is_next(adapter):
    in_gap = await adapter.bars(TICKER, "1", MONDAY_S + 20 * 60, MONDAY_S + 30 * 60, None)
    before = await adapter.bars(TICKER, "1", MONDAY_S - 600, MONDAY_S, None)
    counted = await adapter.bars(TICKER, "1", MONDAY_S + 20 * 60, MONDAY_S + 30 * 60, 5)
    counted_before = await adapter.bars(TICKER, "1", -600, MONDAY_S, 5)
    turned = await adapter.bars(TICKER, "1", MONDAY_S + 55 * 60, MONDAY_S + 5 * 60, None)
    assert turned == ([], {"noData": True, "nextTime": MONDAY_S + 4 * 60})  # `from` after `to`
    assert in_gap == ([], {"noData": True, "nextTime": MONDAY_S + 9 * 60})
    assert before == ([], {"noData": True, "nextTime": None})
    assert [bar["time"] for bar in counted[0]] == [MONDAY_MS + number * MINUTE_MS for number in range(5, 10)]
    assert counted_before == ([], {"noData": True, "nextTime": None})


@pytest.mark.stage(minutes=10, udf=UdfSettings(next_time="ms"))
async def test_the_unit_of_next_time_is_a_setting(adapter):
    _, more = await adapter.bars(TICKER, "1", MONDAY_S + 3600, MONDAY_S + 7200, None)
    assert more["nextTime"] == MONDAY_MS + 9 * MINUTE_MS


@pytest.mark.slow
async def test_polling_over_bar_boundaries_ends_with_what_a_reload_shows(stage, adapter):
    panes = [Pane(adapter, TICKER, resolution) for resolution in ("1", "5", "60")]
    for pane in panes:
        await pane.load(MONDAY_S + 3600, 300)
    for tenth in range(60):  # ten minutes, a poll every ten seconds
        number, second = 60 + tenth // 6, tenth % 6 * 10
        if second == 0 and number > 60:
            stage.push(minute(number - 1, volume="60", final=True))
        stage.push(minute(number, close=f"{10 + tenth % 7}", volume=str(second + 1), as_of=second * 1000))
        for pane in panes:
            await pane.poll(MONDAY_S + number * 60 + second + 1)
    for pane in panes:
        fresh = Pane(pane._adapter, TICKER, pane._resolution)
        await fresh.load(MONDAY_S + 70 * 60, 300)
        assert [bar["time"] for bar in pane.bars] == [bar["time"] for bar in fresh.bars]
        assert pane.bars[-1] == fresh.bars[-1]
        assert sum(bar != other for bar, other in zip(pane.bars, fresh.bars, strict=True)) == 0


async def test_a_header_of_an_answer_states_the_finality_of_its_last_bar(stage, fetch):
    path = f"/udf/history?symbol={TICKER}&resolution=1&from=0&countback=2&to="
    done = await fetch(f"{path}{MONDAY_S + 3600}")
    stage.push(minute(60))
    running = await fetch(f"{path}{MONDAY_S + 3601}")
    assert (done.headers["X-Candled-Last-Final"], running.headers["X-Candled-Last-Final"]) == ("true", "false")


@pytest.mark.slow
@pytest.mark.stage(minutes=5200)
async def test_a_page_has_at_most_5000_bars_the_latest_of_them(adapter):
    for count_back in (None, 100_000):
        bars, _ = await adapter.bars(TICKER, "1", 0, MONDAY_S + 6000 * 60, count_back)
        assert [bars[0]["time"], len(bars)] == [MONDAY_MS + 200 * MINUTE_MS, 5000]


@pytest.mark.stage(now_ms=1_445_324_591_987)
async def test_time_is_plain_text_in_seconds(fetch):
    answer = await fetch("/udf/time")
    assert (answer.body, answer.headers["Content-Type"]) == (b"1445324591", "text/plain; charset=utf-8")


YESTERDAY = [minute(number, close="20.5", final=True) for number in range(1430, 1440)]
TODAY = [minute(1440, close="25", volume="1", final=True), minute(1441, close="5", volume="2.00000001", final=True)]


@pytest.mark.parametrize(
    "stage_options",
    [
        {"intervals": intervals}
        for intervals in (DEFAULT_INTERVALS, tuple(map(Interval.parse, ("5m", "1h"))), (Interval.parse("1W"),))
    ],
)
@pytest.mark.stage(minutes={BTC: [*YESTERDAY, *TODAY], ETH: []})
async def test_quotes_are_the_day_so_far_exactly(stage, adapter):
    stage.push(minute(1442, close="24.6", volume="0.5"))
    answer = await adapter.request("quotes", {"symbols": f"{TICKER},NOPE,REPLAY:ETHUSDT"})
    assert answer["s"] == "ok"
    mine, unknown, empty = answer["d"]
    assert (mine["s"], mine["n"]) == ("ok", TICKER)
    assert mine["v"] == {
        "lp": Decimal("24.6"), "ch": Decimal("4.1"), "chp": Decimal("20"), "short_name": "BTCUSDT",
        "exchange": "REPLAY", "description": "BTC/USDT", "open_price": 10, "high_price": 25, "low_price": 5,
        "prev_close_price": Decimal("20.5"), "volume": Decimal("3.50000001"),
    }  # fmt: skip
    assert (unknown["s"], unknown["errmsg"], empty["s"], empty["errmsg"]) == (
        "error", "unknown_symbol", "error", "no_data",
    )  # fmt: skip


@pytest.mark.stage(
    minutes={BTC: [minute(number, final=True) for number in range(120) if number not in {7, 8, 9, 30, 31, 50, 51}]},
    now_ms=MONDAY_MS + 121 * MINUTE_MS,
)
async def test_marks_show_outages_and_minutes_not_fetched_but_not_quiet_ones(stage, adapter):
    known_gaps = [
        Gap(
            start_ms=MONDAY_MS + first * MINUTE_MS,
            end_ms=MONDAY_MS + last * MINUTE_MS,
            reason=reason,
            attempts=5,
            retry_ms=None,
        )
        for first, last, reason in ((7, 10, "exchange_outage"), (30, 32, "no_trades"))
    ]
    stage.store.save_known_gaps(BTC, known_gaps)
    asked = {"symbol": TICKER, "resolution": "5", "from": MONDAY_S, "to": MONDAY_S + 7200}
    marks = await adapter.request("marks", asked)
    listed = await adapter.request("timescale_marks", asked)
    later = await adapter.request("timescale_marks", {**asked, "from": MONDAY_S + 1800})
    assert marks["time"] == [MONDAY_S + 300, MONDAY_S + 45 * 60]  # the bars before
    assert marks["label"] == ["O", "G"]
    assert marks["text"] == [
        "3 minutes missing from 2025-05-19T00:07:00.000Z to 2025-05-19T00:10:00.000Z: the exchange does not have them",
        "2 minutes missing from 2025-05-19T00:50:00.000Z to 2025-05-19T00:52:00.000Z: not fetched yet",
    ]
    assert set(marks) == {"id", "time", "color", "text", "label", "labelFontColor", "minSize"}
    assert {len(column) for column in marks.values()} == {2}
    assert [mark["time"] for mark in listed] == marks["time"]
    assert set(listed[0]) == {"id", "color", "label", "time", "tooltip"}
    assert [mark["label"] for mark in later] == ["G"]


@pytest.mark.stage(minutes={BTC: [], ETH: [], FUTURE: []})
async def test_symbol_info_is_columns_of_one_exchange(adapter):
    info = await adapter.request("symbol_info", {"group": "REPLAY"})
    wrong = await adapter.request("symbol_info", {"group": "NYSE"})
    assert info["symbol"] == ["BTCUSDT", "ETHUSDT"]
    assert info["exchange-listed"] == info["exchange-traded"] == ["REPLAY", "REPLAY"]
    assert info["ticker"] == [TICKER, "REPLAY:ETHUSDT"]
    assert set(info) == {
        "symbol", "description", "exchange-listed", "exchange-traded", "minmovement", "pricescale", "type", "timezone",
        "session-regular", "has-intraday", "has-daily", "has-weekly-and-monthly", "supported-resolutions", "ticker",
        "volume-precision", "intraday-multipliers",
    }  # fmt: skip
    assert (info["volume-precision"], info["intraday-multipliers"]) == ([8, 8], [["1", "5", "15", "60", "240"]] * 2)
    assert wrong["s"] == "error"


MISTAKES = [
    "history",
    "history?symbol=NOPE&resolution=1&from=0&to=1",
    f"history?symbol={TICKER}&resolution=7&from=0&to=1",
    f"history?symbol={TICKER}&resolution=1&from=yesterday&to=1",
    f"history?symbol={TICKER}&resolution=1&from=0&to=1.5",
    f"history?symbol={TICKER}&resolution=1&from=0&to=1&countback=-1",
    f"history?symbol={TICKER}&symbol={TICKER}&resolution=1&from=0&to=1",
    "history?symbol=%ff&resolution=1",
    "symbols",
    "search?limit=many",
    "quotes",
    f"marks?symbol={TICKER}&resolution=nope&from=0&to=1",
    "symbol_info?group=x",
]


@pytest.mark.parametrize("path", MISTAKES)
async def test_every_mistake_is_json_with_s_and_status_200(fetch, path):
    answer = await fetch(f"/udf/{path}")
    body = json.loads(answer.body)
    assert (answer.code, body["s"], set(body)) == (200, "error", {"s", "errmsg"})
    assert body["errmsg"]


@pytest.mark.stage(limits=LimitSettings(udf_requests=6))
async def test_every_error_is_json_with_s_too(stage, fetch, monkeypatch):
    def fails(*_):
        raise RuntimeError("a mistake of ours")

    def away(*_):
        raise StoreUnavailable("gone")

    history = f"/udf/history?symbol={TICKER}&resolution=1&from=0&to=9999999999"
    nowhere, posted = await fetch("/udf/nowhere"), await fetch("/udf/history", "POST")
    monkeypatch.setattr(stage.store, "served_from", away)
    stopped = await fetch(history)
    monkeypatch.setattr(stage.store, "served_from", fails)
    broken = await fetch(history)
    monkeypatch.undo()
    await fetch("/udf/config")
    await fetch("/udf/config")
    refused = await fetch(history)
    answers = [nowhere, posted, stopped, broken, refused]
    assert [answer.code for answer in answers] == [404, 405, 503, 500, 429]
    for answer in answers:
        assert json.loads(answer.body)["s"] == "error"
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["X-RateLimit-Limit"] == "6"
    assert json.loads(refused.body)["errmsg"] == "Too many requests, please try again later."


@pytest.mark.stage(limits=LimitSettings())
async def test_a_page_of_panes_stays_within_the_limit_of_its_own(fetch):
    """One pane polls 90 times in 15 minutes: more than thirty of them fit, and REST is not touched by it."""
    assert LimitSettings().udf_requests >= 30 * 90
    (udf, api) = await fetch("/udf/time"), await fetch("/api/intervals")
    assert (udf.headers["X-RateLimit-Remaining"], api.headers["X-RateLimit-Remaining"]) == ("2999", "99")


def test_the_adapter_knows_every_default_resolution():
    assert len(SECONDS) == len(DEFAULT_INTERVALS)
    assert all(re.fullmatch(r"\d+|1D|1W", name) for name in SECONDS)
