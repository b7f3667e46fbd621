"""The REST API over a real socket and a real store."""

import asyncio
import csv
import io
import json
import socket
import sys
from decimal import Decimal

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from candled.api.parameters import read_moment
from candled.errors import StoreRejected, StoreUnavailable
from candled.model import MINUTE_MS, Candle, Gap, Market, iso_ms, parse_iso_ms
from candled.store.sqlite import statements as sqlite_statements
from candled.store.sqlite.file import DatabaseFile
from candled.tools.files import read_candles
from tests.api.raw import ask_all
from tests.api.stage import BTC, ETH, FUTURE, following
from tests.rows import MONDAY_MS, minute
from tests.tiers import LONG

DAY_MS = 86_400_000
CANDLES = "/api/candles?symbol=BTC/USDT&interval=1m"
pytestmark = pytest.mark.gen_test


def numbers(bars) -> list[int]:
    """Which minutes after the beginning some bars of an answer are."""
    return [(parse_iso_ms(bar["time"]) - MONDAY_MS) // MINUTE_MS for bar in bars]


# ---------------------------------------------------------------- /api/candles


FIRST = Candle.parse(
    MONDAY_MS, "0.00000001", "67340.00", "0.00000001", "67310.2500", "145.23", "9772345.670", as_of_ms=1, final=True
)


@pytest.mark.stage(minutes={BTC: [FIRST]})
async def test_an_answer_has_exact_bars_with_their_finality(stage, fetch):
    stage.push(minute(1, volume="0.10"))
    answer = await fetch(CANDLES)
    assert answer.body.decode() == (
        '{"exchange":"replay","symbol":"BTC/USDT","interval":"1m","bars":['
        '{"time":"2025-05-19T00:00:00.000Z","open":0.00000001,"high":67340,"low":0.00000001,"close":67310.25,'
        '"volume":145.23,"quoteVolume":9772345.67,"final":true},'
        '{"time":"2025-05-19T00:01:00.000Z","open":10,"high":10,"low":10,"close":10,"volume":0.1,"final":false}],'
        '"hasMore":false,"oldest":"2025-05-19T00:00:00.000Z","next":null,"epoch":"one","seq":1}'
    )
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"


async def test_without_from_the_newest_come_first_and_next_leads_to_the_first_candle(get):
    path, found = f"{CANDLES}&limit=7", []
    while path is not None:
        page = await get(path)
        assert page["hasMore"] is (page["next"] is not None)
        assert page["oldest"] == page["bars"][0]["time"]
        found = [*numbers(page["bars"]), *found]
        path = following(path, page)
    assert found == list(range(60))


async def test_with_from_the_oldest_come_first_and_next_leads_to_the_end_of_the_range(get):
    path = f"{CANDLES}&limit=7&from={iso_ms(MONDAY_MS + 5 * MINUTE_MS)}&to={MONDAY_MS + 40 * MINUTE_MS}"
    found = []
    while path is not None:
        page = await get(path)
        found += numbers(page["bars"])
        path = following(path, page)
    assert found == list(range(5, 40))


async def test_link_names_the_following_page_too(fetch):
    answer = await fetch(f"{CANDLES}&limit=7")
    assert answer.headers["Link"] == f'<{json.loads(answer.body)["next"]}>; rel="next"'


@pytest.mark.parametrize("span", ["from=2025-05-20&to=2025-05-19", "to=0", "from=99999999999999", "to=1969-01-01"])
async def test_a_range_without_bars_is_empty_and_ends(get, span):
    page = await get(f"{CANDLES}&{span}")
    assert (page["bars"], page["hasMore"], page["oldest"], page["next"]) == ([], False, None, None)


@pytest.mark.stage(minutes={BTC: [minute(0, final=True)], FUTURE: [minute(0, volume="7", final=True)]})
async def test_an_exchange_can_be_named_and_the_first_one_is_meant_without(get):
    default = await get(CANDLES)
    named = await get(f"{CANDLES}&exchange=bitget-futures")
    assert (default["exchange"], default["bars"][0]["volume"]) == ("replay", 1)
    assert (named["exchange"], named["bars"][0]["volume"]) == ("bitget-futures", 7)


A_TIME = "an ISO 8601 time such as 2024-10-24T10:00:00Z, or UTC epoch milliseconds"
INTERVALS = "one of 1m, 5m, 15m, 1h, 4h, 1D, 1W"
A_LIMIT = "a whole number from 1 to 1000"
PARAMETERS = "symbol, exchange, interval, limit, from, to, format, numbers"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "status", "code", "message"),
    [
        ("", 400, "missing_parameter", "symbol: expected a symbol such as BTC/USDT, got nothing"),
        ("symbol=BTC/USDT", 400, "missing_parameter", f"interval: expected {INTERVALS}, got nothing"),
        ("symbol=BTC/USDT&interval=10m", 400, "invalid_parameter", f"interval: expected {INTERVALS}, got '10m'"),
        ("symbol=ETH/USDT&interval=1m", 404, "unknown_symbol", "Invalid symbol: ETH/USDT. Only BTC/USDT is supported."),
        ("symbol=&interval=1m", 404, "unknown_symbol", "Invalid symbol: . Only BTC/USDT is supported."),
        ("symbol=BTC/USDT&interval=1m&exchange=x", 404, "unknown_exchange", "Invalid exchange: x. Valid: replay"),
        ("limit=0", 400, "invalid_parameter", f"limit: expected {A_LIMIT}, got '0'"),
        ("limit=1001", 400, "invalid_parameter", f"limit: expected {A_LIMIT}, got '1001'"),
        ("limit=-5", 400, "invalid_parameter", f"limit: expected {A_LIMIT}, got '-5'"),
        ("limit=5.0", 400, "invalid_parameter", f"limit: expected {A_LIMIT}, got '5.0'"),
        ("limit=1e2", 400, "invalid_parameter", f"limit: expected {A_LIMIT}, got '1e2'"),
        ("limit=NaN", 400, "invalid_parameter", f"limit: expected {A_LIMIT}, got 'NaN'"),
        ("limit=", 400, "invalid_parameter", f"limit: expected {A_LIMIT}, got ''"),
        ("limit=%D9%A1%D9%A2", 400, "invalid_parameter", f"limit: expected {A_LIMIT}, got '١٢'"),
        (f"limit={'9' * 90}", 400, "invalid_parameter", f"limit: expected {A_LIMIT}, got '{'9' * 64}…'"),
        ("limit=5&limit=6", 400, "duplicate_parameter", "limit: expected once, got 2 of them"),
        ("from=-1", 400, "invalid_parameter", f"from: expected {A_TIME}, got '-1'"),
        ("from=inf", 400, "invalid_parameter", f"from: expected {A_TIME}, got 'inf'"),
        ("to=2025-02-30T00:00:00Z", 400, "invalid_parameter", f"to: expected {A_TIME}, got '2025-02-30T00:00:00Z'"),
        ("to=100000000000001", 400, "invalid_parameter", f"to: expected {A_TIME}, got '100000000000001'"),
        ("to=20250519", 200, "", ""),  # epoch milliseconds, though it looks like a date
        (
            "to=%27;DROP TABLE candles--",
            400,
            "invalid_parameter",
            f'to: expected {A_TIME}, got "\';DROP TABLE candles--"',
        ),
        ("format=xml", 400, "invalid_parameter", "format: expected one of json, csv, ndjson, arrow, got 'xml'"),
        ("limit=%ff", 400, "invalid_parameter", "limit: expected UTF-8 text, got other bytes"),
        ("numbers=text", 400, "invalid_parameter", "numbers: expected one of number, string, got 'text'"),
        ("limt=5", 400, "unknown_parameter", f"limt: unknown parameter, expected {PARAMETERS}"),
        ("Limit=5", 400, "unknown_parameter", f"Limit: unknown parameter, expected {PARAMETERS}"),
        (f"{'x' * 90}=5", 400, "unknown_parameter", f"{'x' * 64}…: unknown parameter, expected {PARAMETERS}"),
    ],
)
async def test_a_mistake_is_reported_with_the_expected_and_the_given_value(fetch, query, status, code, message):
    whole = query if not query or query.startswith("symbol") else f"symbol=BTC/USDT&interval=1m&{query}"
    answer = await fetch(f"/api/candles?{whole.replace(' ', '%20')}")
    assert answer.code == status
    if status != 200:
        assert json.loads(answer.body) == {"error": {"code": code, "message": message}}


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("0", 0),
        ("1747612800000", MONDAY_MS),
        ("2025-05-19", MONDAY_MS),
        ("2025-05-19T00:00", MONDAY_MS),
        ("2025-05-19T00:00:00.000Z", MONDAY_MS),
        ("2025-05-19t02:00:00.25+02:00", MONDAY_MS + 250),
        ("2025-05-19T02:00:00 02:00", MONDAY_MS),  # a + that nobody escaped
        ("2025-05-19T00:00:00.123456789Z", MONDAY_MS + 123),
        ("1969-12-31T23:59:59Z", 0),
        ("0000-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+23:00", 0),
        ("9999-12-31T23:59:59-23:00", 10**14),
    ],
)
def test_times_are_read(text, at_ms):
    assert read_moment(text) == at_ms


async def test_other_methods_are_refused_and_other_paths_are_not_found(fetch):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = await fetch("/api/candles", method)
        assert (answer.code, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        assert json.loads(answer.body)["error"]["code"] == "method_not_allowed"
    for path in ("/api", "/api/", "/api/candle", "/api/candles/1"):
        answer = await fetch(path)
        assert (answer.code, json.loads(answer.body)["error"]["code"]) == (404, "not_found")


async def test_a_head_is_the_answer_without_its_body(fetch):
    whole, head = await fetch(CANDLES), await fetch(CANDLES, "HEAD")
    assert (head.code, head.body) == (200, b"")
    for name in ("Content-Length", "Etag", "Content-Type", "Cache-Control"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "ndjson", "arrow"])
@pytest.mark.stage(minutes=2500)
async def test_a_head_of_a_streamed_answer_has_neither_length_nor_version(stage, fetch, http_port, monkeypatch, kind):
    path = f"{CANDLES}&format={kind}"
    whole, head = await fetch(path), await fetch(path, "HEAD")
    assert (head.code, head.body) == (200, b"")
    assert not {"Content-Length", "Etag", "Transfer-Encoding"} & set(head.headers)
    assert {name for name in whole.headers if name not in head.headers} == {"Transfer-Encoding"}
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    # the connection goes on with the next request
    heads = await ask_all(http_port, [(path, {}), (path, {}), (CANDLES, {})], "HEAD")
    assert [answer.status for answer in heads] == [200] * 3

    def away(*_):
        raise StoreUnavailable("gone")

    monkeypatch.setattr(stage.store, "served_from", away)
    assert [(await fetch(path, method)).code for method in ("GET", "HEAD")] == [503, 503]


@pytest.mark.parametrize(
    ("path", "known"),
    [("symbols", "expected exchange"), ("intervals", "this path has no parameters"),
     ("exchanges", "this path has no parameters"), ("openapi.json", "this path has no parameters"),
     ("coverage?symbol=BTC/USDT", "expected symbol, exchange, from, to"),
     ("gaps", "expected symbol, exchange, from, to, limit")],
)  # fmt: skip
async def test_no_path_ignores_a_parameter_that_it_does_not_know(fetch, path, known):
    assert (await fetch(f"/api/{path}")).code == 200
    answer = await fetch(f"/api/{path}{'&' if '?' in path else '?'}symbl=BTC/USDT")
    assert answer.code == 400
    assert json.loads(answer.body)["error"] == {
        "code": "unknown_parameter",
        "message": f"symbl: unknown parameter, {known}",
    }


async def test_an_answer_that_did_not_change_is_304_and_only_a_final_one_may_be_kept(stage, fetch):
    stage.push(minute(60))
    final_path = f"{CANDLES}&to={MONDAY_MS + 60 * MINUTE_MS}"
    for path, kept in ((final_path, "public, max-age=60"), (CANDLES, "no-cache")):
        answer = await fetch(path)
        assert answer.headers["Cache-Control"] == kept
        again = await fetch(path, headers={"If-None-Match": answer.headers["Etag"]})
        assert (again.code, again.body) == (304, b"")
    tag = answer.headers["Etag"]
    stage.push(minute(60, volume="2"))
    assert (await fetch(CANDLES, headers={"If-None-Match": tag})).code == 200


@pytest.mark.parametrize("error", [StoreUnavailable("gone for lunch"), StoreRejected("the store is not open")])
async def test_a_store_that_cannot_be_read_is_503_with_the_time_to_retry(stage, fetch, monkeypatch, caplog, error):
    def away(*_):
        raise error

    monkeypatch.setattr(stage.store, "served_from", away)
    for path in (CANDLES, f"{CANDLES}&format=csv", "/api/coverage?symbol=BTC/USDT", "/api/gaps"):
        answer = await fetch(path)
        assert (answer.code, answer.headers["Retry-After"]) == (503, "2")
        assert json.loads(answer.body)["error"] == {
            "code": "unavailable",
            "message": "The store cannot be read now",
        }


# ---------------------------------------------------------------- numbers as strings

# digits that a float does not have, and those that JSON printers like to change
EXACT = Candle.parse(
    MONDAY_MS, "67160.25559653090524111836", "67160.25559653090524111837", "0.00000000000000000001",
    "67160.25559653090524111835", "100000000000000000000001", "0.10", as_of_ms=1, final=True,
)  # fmt: skip
PRINTED = {
    "open": "67160.25559653090524111836", "high": "67160.25559653090524111837", "low": "0.00000000000000000001",
    "close": "67160.25559653090524111835", "volume": "100000000000000000000001", "quoteVolume": "0.1",
}  # fmt: skip
HISTORY = f"/udf/history?symbol=REPLAY:BTCUSDT&resolution=1&from=0&to={MONDAY_MS // 1000 + 60}"
PAGE = f"/api/pages?symbol=BTC/USDT&interval=1m&page={MONDAY_MS // (1000 * 60_000)}"
QUOTES = "/udf/quotes?symbols=REPLAY:BTCUSDT"


def of_history(answer) -> dict[str, object]:
    return {name: answer[name[0]][0] for name in ("open", "high", "low", "close", "volume")}


def of_quotes(answer) -> dict[str, object]:
    names = {"open": "open_price", "high": "high_price", "low": "low_price", "close": "lp", "volume": "volume"}
    return {name: answer["d"][0]["v"][key] for name, key in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "read"),
    [
        (CANDLES, lambda answer: answer["bars"][0]),
        (f"{CANDLES}&limit=5", lambda answer: answer["bars"][0]),
        (PAGE, lambda answer: answer["bars"][0]),
        (f"{CANDLES}&format=ndjson", lambda answer: answer),
        (f"{CANDLES}&format=ndjson&limit=5", lambda answer: answer),
        (HISTORY, of_history),
        (QUOTES, of_quotes),
    ],
)
@pytest.mark.stage(minutes={BTC: [EXACT]})
async def test_numbers_are_strings_with_every_digit_for_those_who_ask(fetch, get, path, read):
    asked, plain, explicit = [
        json.loads((await fetch(path + more)).body)
        for more in ("&numbers=string", "", "&numbers=number")
    ]  # fmt: skip
    exact = await get(path)
    found = {name: read(asked)[name] for name in PRINTED if name in read(asked)}
    assert found == {name: PRINTED[name] for name in found}
    assert len(found) >= 5
    assert plain == explicit
    assert {name: read(exact)[name] for name in found} == {name: Decimal(text) for name, text in found.items()}
    assert str(read(plain)["open"]) == "67160.2555965309"  # the digits were there; a float loses them


async def test_the_next_page_has_strings_too(get):
    page = await get(f"{CANDLES}&limit=2&numbers=string")
    older = await get(following(CANDLES, page))
    plain = await get(f"{CANDLES}&limit=2")
    assert isinstance(older["bars"][0]["open"], str)
    assert "numbers" not in plain["next"]


# ---------------------------------------------------------------- other formats


def rows_of(kind: str, body: bytes) -> list[tuple]:
    """The rows of an answer: time in ms, six numbers as exact decimals, final."""
    if kind == "ndjson":
        bars = [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in body.splitlines()]
        names = ("open", "high", "low", "close", "volume", "quoteVolume")
        return [(parse_iso_ms(bar["time"]), *map(bar.get, names), bar["final"]) for bar in bars]
    if kind == "csv":
        cells = list(csv.reader(io.StringIO(body.decode())))[1:]
        return [
            (int(row[0]), *(Decimal(cell) if cell else None for cell in row[1:7]), row[7] == "true") for row in cells
        ]
    table = pyarrow.ipc.open_stream(body).read_all().to_pylist()
    return [(row["time_ms"], *(_decimal(row[name]) for name in list(row)[1:7]), row["final"]) for row in table]


def _decimal(text):
    return None if text is None else Decimal(text)


VARIED = [
    minute(number, close=f"{10 + number % 3}.{number:05}", volume=f"0.{number:08}", final=True)
    for number in range(2500)
]  # fmt: skip
VARIED[7] = VARIED[7]._replace(quote_volume=Decimal("123.4500"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "ndjson", "arrow"])
@pytest.mark.stage(minutes={BTC: VARIED})
async def test_bulk_formats_have_the_whole_range_and_the_same_numbers(stage, fetch, kind):
    stage.push(minute(2500))
    answer = await fetch(f"{CANDLES}&format={kind}")
    some = await fetch(f"{CANDLES}&format={kind}&limit=2")
    nothing = await fetch(f"{CANDLES}&format={kind}&from=2099-01-01")
    wanted = [(bar.open_ms, *bar.values, bar.final) for bar in [*VARIED, minute(2500)]]
    assert rows_of(kind, answer.body) == wanted
    assert rows_of(kind, some.body) == wanted[-2:]
    assert (nothing.code, rows_of(kind, nothing.body)) == (200, [])


@pytest.mark.stage(minutes={BTC: VARIED[:5]})
async def test_csv_can_be_imported(fetch, tmp_path):
    (tmp_path / "bars.csv").write_bytes((await fetch(f"{CANDLES}&format=csv")).body)
    read = list(read_candles(tmp_path / "bars.csv", MONDAY_MS + DAY_MS))
    assert [candle.values for candle in read] == [candle.values for candle in VARIED[:5]]


async def test_arrow_without_pyarrow_names_what_is_missing(fetch, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = await fetch(f"{CANDLES}&format=arrow")
    assert answer.code == 501
    assert json.loads(answer.body)["error"] == {
        "code": "format_unavailable",
        "message": "format=arrow needs pyarrow on the server: pip install 'candled[parquet]'",
    }


async def read_slowly(port: int, path: str):
    taker = socket.socket()
    taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)  # before connecting: the kernel then offers no more
    taker.connect(("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=taker, limit=4096)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return reader, writer, head


@pytest.mark.slow
@pytest.mark.usefixtures("http_server")
@pytest.mark.stage(minutes={BTC: []})
async def test_a_bulk_answer_is_read_from_the_store_as_fast_as_the_client_takes_it(stage, http_port, monkeypatch):
    minutes = [minute(number, final=True) for number in range(60_000)]
    stage.store.write_minutes([(BTC, candle) for candle in minutes])
    reads = []
    real = stage.store.read_bars_between
    monkeypatch.setattr(stage.store, "read_bars_between", lambda *args: reads.append(args) or real(*args))
    reader, writer, head = await read_slowly(http_port, f"{CANDLES}&format=ndjson")
    assert "Transfer-Encoding: chunked" in head
    await asyncio.sleep(0.5)
    assert len(reads) < 50  # what the kernel holds of it, of 61 pages
    rest = b""
    while not rest.endswith(b"\r\n0\r\n\r\n"):
        rest += await reader.read(1 << 16)
    assert rest.count(b'"time"') == 60_000
    assert len(reads) >= 60
    writer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("http_server")
@pytest.mark.stage(minutes=5000)
async def test_a_bulk_answer_that_cannot_go_on_is_broken_off_and_never_looks_whole(stage, http_port, monkeypatch):
    real, reads = stage.store.read_bars_between, []

    def fail_later(*args):
        reads.append(args)
        if len(reads) > 2:
            raise StoreUnavailable("gone")
        return real(*args)

    monkeypatch.setattr(stage.store, "read_bars_between", fail_later)
    reader, writer, head = await read_slowly(http_port, f"{CANDLES}&format=csv")
    assert " 200 " in head
    body = await reader.read(-1)
    assert body.count(b"true") == 2000
    assert not body.endswith(b"0\r\n\r\n")
    writer.close()


# ---------------------------------------------------------------- what is served


@pytest.mark.stage(
    minutes={BTC: [], ETH: [], FUTURE: []},
    described={BTC: Market(symbol=BTC.symbol, price_decimals=2, volume_decimals=6)},
)
async def test_what_is_served(fetch, get):
    symbols = (await get("/api/symbols"))["symbols"]
    only = (await get("/api/symbols?exchange=bitget-futures"))["symbols"]
    exchanges = await get("/api/exchanges")
    intervals = (await get("/api/intervals"))["intervals"]
    wrong = await fetch("/api/symbols?exchange=x")
    assert symbols[0] == {
        "exchange": "replay", "symbol": "BTC/USDT", "ticker": "REPLAY:BTCUSDT", "priceDecimals": 2, "volumeDecimals": 6,
        "status": None, "tickSize": None, "listed": None, "quoteVolume24h": None, "former": None,
    }  # fmt: skip
    assert [(one["exchange"], one["symbol"]) for one in symbols] == [
        (key[0], str(key[1])) for key in (BTC, ETH, FUTURE)
    ]
    assert [(one["symbol"], one["priceDecimals"]) for one in only] == [("BTC/USDT", None)]
    assert exchanges == {
        "exchanges": [
            {"name": "replay", "default": True, "symbols": 2, "simulated": True},
            {"name": "bitget-futures", "default": False, "symbols": 1, "simulated": False},
        ]
    }
    assert [(one["interval"], one["ms"]) for one in intervals][::6] == [("1m", 60_000), ("1W", 604_800_000)]
    assert wrong.code == 404


def with_gaps(one) -> None:
    one.store.save_known_gaps(
        BTC,
        [
            Gap(start_ms=MONDAY_MS + 10 * MINUTE_MS, end_ms=MONDAY_MS + 20 * MINUTE_MS, reason="exchange_outage",
                 attempts=5, retry_ms=None),
            Gap(start_ms=MONDAY_MS + 1438 * MINUTE_MS, end_ms=MONDAY_MS + 1445 * MINUTE_MS, reason="no_trades",
                 attempts=1, retry_ms=MONDAY_MS + 3 * DAY_MS),
        ],
    )  # fmt: skip


GAPPY = [
    minute(number, final=True)
    for number in range(3000)
    if not (10 <= number < 20 or 1438 <= number < 1445 or 2000 <= number < 2005)
]
LATER = MONDAY_MS + 3001 * MINUTE_MS


@pytest.mark.slow
@pytest.mark.stage(minutes={BTC: GAPPY}, now_ms=LATER)
async def test_coverage_is_given_by_day_with_gaps_and_their_reasons(stage, get):
    with_gaps(stage)
    answer = await get("/api/coverage?symbol=BTC/USDT")
    second = await get("/api/coverage?symbol=BTC/USDT&from=2025-05-20&to=2025-05-21")
    assert answer["completeFrom"] == "2025-05-19T00:00:00.000Z"
    days = answer["days"]
    assert [(day["day"], day["minutes"], day["expected"], day["holeCount"]) for day in days] == [
        ("2025-05-19", 1428, 1440, 2),
        ("2025-05-20", 1430, 1440, 2),
        ("2025-05-21", 120, 120, 0),
    ]
    assert days[0]["holes"][0] == {
        "from": "2025-05-19T00:10:00.000Z",
        "to": "2025-05-19T00:20:00.000Z",
        "minutes": 10,
        "reason": "exchange_outage",
    }
    assert [(known_gap["minutes"], known_gap["reason"]) for day in days for known_gap in day["holes"]] == [
        (10, "exchange_outage"),
        (2, "no_trades"),
        (5, "no_trades"),
        (5, "missing"),
    ]
    assert second["days"] == [days[1]]


@pytest.mark.slow
@pytest.mark.stage(minutes={BTC: GAPPY, ETH: [minute(0, final=True), minute(2, final=True)]}, now_ms=LATER)
async def test_gaps_are_listed_newest_first(stage, get):
    with_gaps(stage)
    mine = await get("/api/gaps?symbol=BTC/USDT")
    few = await get("/api/gaps?symbol=BTC/USDT&limit=1")
    every = await get("/api/gaps")
    old = await get("/api/gaps?to=2025-05-19T00:12:00Z")
    assert [(gap["minutes"], gap["reason"], gap["attempts"], gap["nextTry"]) for gap in mine["gaps"]] == [
        (5, "missing", 0, None),
        (7, "no_trades", 1, "2025-05-22T00:00:00.000Z"),
        (10, "exchange_outage", 5, None),
    ]
    assert mine["hasMore"] is False
    assert (few["gaps"], few["hasMore"]) == (mine["gaps"][:1], True)
    assert [(gap["symbol"], gap["minutes"]) for gap in every["gaps"]] == [
        ("BTC/USDT", 5), ("BTC/USDT", 7), ("BTC/USDT", 10), ("ETH/USDT", 2997), ("ETH/USDT", 1),
    ]  # fmt: skip
    assert [(gap["symbol"], gap["minutes"]) for gap in old["gaps"]] == [
        ("BTC/USDT", 2),
        ("ETH/USDT", 9),
        ("ETH/USDT", 1),
    ]


LAST = 40 * 1440


@pytest.mark.stage(
    minutes={BTC: [minute(0, final=True), minute(LAST, final=True)]}, now_ms=MONDAY_MS + (LAST + 2) * MINUTE_MS
)
async def test_a_gap_of_many_weeks_is_one_gap(get):
    answer = await get(f"/api/gaps?symbol=BTC/USDT&from={MONDAY_MS}")
    assert [(gap["minutes"], gap["reason"]) for gap in answer["gaps"]] == [(LAST - 1, "missing")]


@pytest.mark.slow
@pytest.mark.stage(
    minutes={BTC: [minute(number, final=True) for number in range(0, 1441, 2)]}, now_ms=MONDAY_MS + 1442 * MINUTE_MS
)
async def test_a_thin_market_lists_some_gaps_of_a_day_and_counts_all(get):
    day = (await get("/api/coverage?symbol=BTC/USDT"))["days"][0]
    assert (day["minutes"], day["holeCount"], len(day["holes"])) == (720, 720, 50)


# ---------------------------------------------------------------- anything at all

TEXTS = st.text(max_size=40) | st.sampled_from(
    ["BTC/USDT", "1m", "5m", "1W", "0", "1", "500", "-1", "1e9", "NaN", "2025-05-19", "2025-05-19T00:00:00Z", "json",
     "csv", "ndjson", "replay", "' OR 1=1 --", "%", "\x00", "9" * 30, "1747612800000"]
)  # fmt: skip
PATHS = {
    "/api/candles": ("symbol", "interval", "exchange", "limit", "from", "to", "format", "numbers"),
    "/api/symbols": ("exchange",),
    "/api/coverage": ("symbol", "exchange", "from", "to"),
    "/api/gaps": ("symbol", "exchange", "from", "to", "limit"),
    "/udf/history": ("symbol", "resolution", "from", "to", "countback", "numbers"),
    "/udf/symbols": ("symbol",),
    "/udf/search": ("query", "type", "exchange", "limit"),
    "/udf/quotes": ("symbols", "numbers"),
    "/udf/marks": ("symbol", "resolution", "from", "to"),
}
NAMES = st.sampled_from(sorted({name for names in PATHS.values() for name in names}))
QUERIES = st.lists(st.tuples(NAMES | st.text(max_size=8), TEXTS), max_size=8)


def escaped(query: list[tuple[str, str]]) -> str:
    return "&".join("=".join("".join(f"%{byte:02x}" for byte in part.encode()) for part in pair) for pair in query)


@pytest.mark.slow
@pytest.mark.stage(minutes=2500)
async def test_a_fuzz_of_queries_gets_no_5xx_and_reaches_sql_only_as_values(fetch, monkeypatch, caplog):
    drawn: list[list[tuple[str, str]]] = []

    @given(st.lists(QUERIES, min_size=60, max_size=60))
    @settings(max_examples=20 if LONG else 5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def draw(queries):
        drawn.extend(queries)

    draw()
    statements: set[str] = set()
    values: set[type] = set()
    connection = DatabaseFile.thread_connection

    def watched(store):
        real = connection(store)
        return Watched(real, statements, values)

    monkeypatch.setattr(DatabaseFile, "thread_connection", watched)
    asked = [
        f"{CANDLES}&from=0",
        f"{CANDLES.replace('1m', '5m')}&from=0",
        "/api/gaps",
        "/api/coverage?symbol=BTC/USDT",
    ]
    for number, query in enumerate(drawn):
        path, names = list(PATHS.items())[number % len(PATHS)]
        ways = (query, likely(names, query), known(names, query), strange(names, query))
        asked.append(f"{path}?{escaped(ways[number // len(PATHS) % len(ways)])}")
    statuses: dict[int, int] = {}
    for path in asked:
        answer = await fetch(path)
        statuses[answer.code] = statuses.get(answer.code, 0) + 1
        assert answer.code in (200, 400, 404), path
    monkeypatch.undo()
    assert len(asked) >= (1200 if LONG else 300)
    assert min(statuses.get(status, 0) for status in (200, 400, 404)) > 8, statuses
    written = {text for text in vars(sqlite_statements).values() if isinstance(text, str)}
    assert len(statements) >= 5
    assert statements <= written  # every statement is one of the store's own, to the letter
    assert values <= {int, str}
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def known(names, query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What was drawn of the parameters that a path has, each once, and the rest of those that it cannot do without."""
    return list({**needed(names), **{name: text for name, text in query if name in names}}.items())


def likely(names, query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same, but for those that it cannot do without: they are right."""
    return list({**dict(known(names, query)), **needed(names)}.items())


def strange(names, query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The parameters that a path cannot do without, about whatever was drawn: mostly nothing that is served."""
    drawn = query[0][1] if query else ""
    return [(name, drawn if name in ("symbol", "exchange") else text) for name, text in needed(names).items()]


def needed(names) -> dict[str, str]:
    right = {"symbol": "BTC/USDT", "symbols": "BTC/USDT", "interval": "1m", "resolution": "1"}
    return {name: right[name] for name in names if name in right}


class Watched:
    """A connection that notes every statement and the types of its values."""

    def __init__(self, real, statements: set[str], values: set[type]) -> None:
        self._real = real
        self._statements = statements
        self._values = values

    def execute(self, statement, parameters=()):
        self._statements.add(statement)
        self._values.update(map(type, parameters))
        return self._real.execute(statement, parameters)

    def __getattr__(self, name):
        return getattr(self._real, name)
