"""Answers from kept texts are, to the byte, what encoding every bar anew gives: warm, cold, revised, evicted."""

import asyncio
import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from candled.aggregate.packed import PackedBars
from candled.api.pages import BarReader
from candled.api.printers import CSV, json_printer, klines_printer, ndjson_printer, udf_printer
from candled.api.queries import MOST_BARS, BarQuery, HistoryRequest, join_parts, print_bars
from candled.bus import FeedMetadata, HistoryChanged, MinuteChanged
from candled.config.sections import KlinesSettings
from candled.errors import StoreUnavailable
from candled.model import END_OF_TIME_MS, MINUTE, MINUTE_MS, Candle, Interval, iso_ms
from candled.protocol.messages import STRINGS
from candled.rooms.encoded_bars import EncodedBarCache, EncodedBars, Printer
from candled.serve.content_coding import ContentCoding
from tests.api.stage import BTC, Stage, open_stage
from tests.rows import MONDAY_MS, minute
from tests.store.rows import recorded
from tests.tiers import LONG

ON = KlinesSettings(enabled=True)
GZIP = ContentCoding("gzip", 1)
pytestmark = [pytest.mark.gen_test, pytest.mark.stage(klines=ON)]
COUNT = 2600
AT = [MONDAY_MS + number * MINUTE_MS for number in range(COUNT + 100)]


def plain(number: Decimal) -> str:
    text = format(number.normalize(), "f")
    return "0" if text == "-0" else text


# ---------------------------------------------------------------- slow encoders, written from the pages in docs/


def as_json(bars: Sequence[Candle], interval: Interval, quote: str = "") -> list[bytes]:
    rows = []
    for bar in bars:
        names = ("open", "high", "low", "close", "volume", "quoteVolume")
        numbers = [
            f'"{name}":{quote}{plain(value)}{quote}'
            for name, value in zip(names, bar.values, strict=True)
            if value is not None
        ]
        rows.append(f'{{"time":"{iso_ms(bar.open_ms)}",{",".join(numbers)},"final":{json.dumps(bar.final)}}}')
    return [",".join(rows).encode()]


def as_klines(bars: Sequence[Candle], interval: Interval) -> list[bytes]:
    rows = [
        [bar.open_ms, *map(plain, bar.values[:5]), bar.open_ms + interval.ms - 1, plain(bar.quote_volume or Decimal(0)),
         0, "0", "0", "0"]
        for bar in bars
    ]  # fmt: skip
    return [json.dumps(rows, separators=(",", ":"))[1:-1].encode()]


def as_udf(bars: Sequence[Candle], interval: Interval) -> list[bytes]:
    columns = [[str(bar.open_ms // 1000), *map(plain, bar.values[:5])] for bar in bars]
    return [",".join(column).encode() for column in zip(*columns, strict=True)] or [b""] * 6


def as_ndjson(bars: Sequence[Candle], interval: Interval) -> list[bytes]:
    return [b"\n".join(as_json([bar], interval)[0] for bar in bars)]


def as_csv(bars: Sequence[Candle], interval: Interval) -> list[bytes]:
    rows = [
        [str(bar.open_ms), *("" if one is None else plain(one) for one in bar.values), str(bar.final).lower()]
        for bar in bars
    ]
    return ["\n".join(map(",".join, rows)).encode()]


DIALECTS: list[tuple[Callable[[Interval], Printer], Callable[..., list[bytes]]]] = [
    (lambda _: json_printer(), as_json),
    (lambda _: json_printer(STRINGS), lambda bars, interval: as_json(bars, interval, '"')),
    (klines_printer, as_klines),
    (lambda _: udf_printer(), as_udf),
    (lambda _: ndjson_printer(), as_ndjson),
    (lambda _: CSV, as_csv),
]
INTERVALS = [Interval.parse(text) for text in ("1m", "5m", "1h", "1D", "1W")]


QUERIES: dict[object, BarQuery] = {}  # that are asked again and again
FAVOURITES = [
    HistoryRequest(2),
    HistoryRequest(500),
    HistoryRequest(100, 0, AT[COUNT - 100]),
    HistoryRequest(3, AT[COUNT]),
]
TAGGED: dict[object, object] = {}  # what was answered under a tag


async def check(one: Stage, pages: BarReader, rng: random.Random, rounds: int = 12) -> int:
    """Compare some pages of all kinds; return how many of them needed nothing but memory."""
    at_once = 0
    reference = BarReader(one.bars, pages._stored, EncodedBarCache(), one.clock)
    reference._in_memory = lambda *_: None  # type: ignore[method-assign]  # all from the store, joined bar by bar
    for _ in range(rounds):
        interval = rng.choice(INTERVALS)
        start_ms, end_ms = rng.choice([0, 0, *AT]), rng.choice([END_OF_TIME_MS, END_OF_TIME_MS, END_OF_TIME_MS, *AT])
        limit, newest_first = rng.choice([1, 2, 3, 100, 119, 500, MOST_BARS, 2500]), rng.random() < 0.7
        asked = HistoryRequest(limit, start_ms, end_ms, newest_first)
        if rng.random() < 0.5:
            asked = rng.choice(FAVOURITES)
        state = state_of(one)
        wanted = await reference.read_page(BTC, interval, asked)
        for make, encode in DIALECTS:
            printer = make(interval)
            at_once += pages.printed_now(BTC, interval, printer, asked) is not None
            page = await pages.printed(BTC, interval, printer, asked)
            if state != state_of(one):  # what was being read again has come meanwhile
                break
            assert list(page.columns) == encode(wanted.bars, interval), (str(interval), asked, printer.name)
            assert (page.has_more, page.is_final, page.position) == (wanted.has_more, wanted.is_final, wanted.position)
            assert page.first_ms == (wanted.bars[0].open_ms if wanted.bars else None)
            last = wanted.bars[-1] if wanted.bars else None
            assert (page.last_ms, page.last_final) == ((last.open_ms, last.final) if last else (None, False))
            assert page.is_past or page.last_as_of_ms == (last.as_of_ms if last else 0)
            key = (id(pages), interval, printer, asked)
            query = QUERIES.setdefault(
                key, BarQuery(BTC, interval, printer, asked, lambda page: b"|".join(page.columns), lambda *_: ())
            )
            for _ in range(2):
                written = pages.written_now(query)
                if written is not None:
                    assert written.page == replace(page, columns=written.page.columns)
                    assert (written.body, written.tag, written.coding) == (b"|".join(page.columns), page.tag, "")
                coded = pages.written_now(query, "", GZIP)
                if coded is not None:
                    assert gzip.decompress(coded.body) == b"|".join(page.columns)
                    assert coded.tag == GZIP.tag_of(page.tag)
            if page.tag is not None:
                printed_page = (page.columns, page.has_more, page.position if printer.positioned else None)
                assert TAGGED.setdefault((page.tag, asked, printer, interval), printed_page) == printed_page
                again = pages.printed_now(BTC, interval, printer, asked, f'"x", {page.tag}')
                if again is None:  # read from the store, and dropped because memory is tiny here
                    assert ".past." in page.tag
                    assert pages._texts.most_bytes < 10**8
                    continue
                assert (again.tag, again.columns) == (page.tag, ())
            slow = join_parts(wanted, printer, [print_bars(wanted.bars, printer)])
            assert (list(slow.columns), slow.first_ms, slow.last_ms) == (
                list(page.columns),
                page.first_ms,
                page.last_ms,
            )
    return at_once


def state_of(one: Stage) -> tuple[object, ...]:
    return one.bars.feed_position(BTC), one.bars.is_behind(BTC), one.bars.finality_count(BTC)


def odd_minute(number: int, rng: random.Random, **more) -> Candle:
    """A minute with digits of all kinds."""
    close = Decimal(rng.randrange(1, 10 ** rng.randrange(1, 24))).scaleb(-rng.randrange(0, 20))
    quote = None if rng.random() < 0.2 else Decimal(rng.randrange(0, 10**12)).scaleb(-rng.randrange(0, 9))
    volume = Decimal(rng.randrange(0, 10**9)).scaleb(-rng.randrange(0, 9))
    bar = minute(number, **more)
    values = {"open": close, "high": close, "low": close, "close": close, "volume": volume, "quote_volume": quote}
    return bar._replace(**values)


def replayed(name: str) -> Callable[..., Candle | None]:
    """Return a function like `odd_minute` for the minutes of a recording; it returns None for missing ones."""
    bars = recorded(name)
    by_number = {(bar.open_ms - bars[0].open_ms) // MINUTE_MS: bar for bar in bars}

    def take(number: int, rng: random.Random, **more) -> Candle | None:
        if "as_of" not in more and number not in by_number:
            return None
        bar = by_number.get(number + rng.randrange(2) * ("as_of" in more)) or bars[number % len(bars)]
        names = ("open", "high", "low", "close", "volume", "quote_volume")
        return minute(number, **more)._replace(**dict(zip(names, bar.values, strict=True)))

    return take


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        *range(9 if LONG else 1),
        pytest.param("btcusdt-week.csv.gz", marks=pytest.mark.long),
        "bitget-usdt-futures-ethusdt.csv.gz",
        pytest.param("ethusd-thin-week.csv.gz", marks=pytest.mark.long),
    ],
)
async def test_kept_texts_are_those_of_a_fresh_encoding(tmp_path, source):
    rng = random.Random(str(source))
    odd = replayed(source) if isinstance(source, str) else odd_minute
    gaps = {number for start in (40, 1300, COUNT - 60) for number in range(start, start + rng.randrange(1, 30))}
    stored = [bar for number in range(COUNT) if number not in gaps and (bar := odd(number, rng, final=True))]
    async with open_stage(tmp_path, {BTC: stored}, now_ms=AT[COUNT]) as one:
        texts = one.pages._texts
        at_once = await check(one, one.pages, rng)  # cold
        at_once += await check(one, one.pages, rng)  # warm
        for number in range(COUNT, COUNT + (14 if LONG else 8)):
            opened = odd(number, rng, as_of=1_000)
            one.push(opened, watermark_ms=AT[number - 1])  # the boundary: the next bar opens, the last is not final yet
            at_once += await check(one, one.pages, rng, 2)
            late = odd(number - 1, rng, as_of=60_500)  # a late version
            one.push(late)
            at_once += await check(one, one.pages, rng, 2)
            one.push(late._replace(final=True))
            one.store.write_minutes([(BTC, late._replace(final=True))])
            at_once += await check(one, one.pages, rng, 2)
            if number % 4 == 0:  # the past is revised, in memory and before it
                old = odd(rng.choice([500, COUNT - 20]), rng, as_of=900_000, final=True)._replace(rev=1)
                one.store.write_minutes([(BTC, old)])
                one.bus.publish(
                    HistoryChanged(BTC, old.open_ms, old.open_ms + MINUTE_MS, MONDAY_MS, FeedMetadata(AT[number]))
                )
                at_once += await check(one, one.pages, rng, 1)  # while it is being read again
                while one.bars.is_behind(BTC):
                    await one.clock.advance(0.1)
                at_once += await check(one, one.pages, rng, 2)
            if number % 5 == 0:  # eviction
                texts.most_bytes = rng.choice([1_000, 100_000, 10**8])
        assert texts.bytes <= max(texts.most_bytes, 10**6)
    assert at_once > 100


@pytest.mark.slow
@pytest.mark.stage(minutes=COUNT)
async def test_bars_in_memory_are_answered_without_the_store(stage, fetch, monkeypatch):
    paths = [
        "/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=500",
        "/api/candles?symbol=BTC/USDT&interval=1m&limit=999",
        f"/udf/history?symbol=REPLAY:BTCUSDT&resolution=5&from=0&to={AT[-1]}&countback=100",
        "/api/v3/klines?symbol=BTCUSDT&interval=1w&limit=500",  # fewer bars than that exist
    ]
    before = [(await fetch(path)).body for path in paths]

    def away(*_, **__):
        raise StoreUnavailable("gone")

    for name in ("served_from", "read_bars", "read_bars_between", "read_texts_between"):
        monkeypatch.setattr(stage.store, name, away)
    assert [(await fetch(path)).body for path in paths] == before
    await stage.clock.advance(60)
    answers = [await fetch(path) for path in paths]
    assert [answer.code for answer in answers] == [200, 200, 200, 503]  # whether older bars exist is asked again
    stage.bus.publish(MinuteChanged(BTC, minute(COUNT), FeedMetadata(AT[COUNT])))
    assert json.loads((await fetch(paths[0])).body)[-1][0] == AT[COUNT]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 100, 900])
@pytest.mark.stage(minutes=COUNT)
async def test_an_answer_makes_the_bars_that_it_shows_and_none_the_next_time(stage, monkeypatch, limit):
    made = []
    real = PackedBars._make_bar
    monkeypatch.setattr(PackedBars, "_make_bar", lambda self, *args: made.append(args[0]) or real(self, *args))
    await stage.bars.load_bars(BTC, MINUTE, limit + 1, 0)
    counts = []
    for printer in (klines_printer(MINUTE), klines_printer(MINUTE), json_printer(), json_printer()):
        made.clear()
        await stage.pages.printed(BTC, MINUTE, printer, HistoryRequest(limit))
        counts.append(len(made))
    made.clear()
    await stage.pages.read_page(BTC, MINUTE, HistoryRequest(limit))
    counts.append(len(made))
    assert counts[0] <= limit + 2
    assert counts[2] <= limit + 2
    assert counts[1] == counts[3] == 0
    assert counts[4] <= limit


@pytest.mark.slow
@pytest.mark.parametrize("path", [
    "/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=100",
    "/api/candles?symbol=BTC/USDT&interval=1m&limit=100",
    f"/udf/history?symbol=REPLAY:BTCUSDT&resolution=1&from=0&to={AT[-1]}&countback=100",
])  # fmt: skip
@pytest.mark.stage(minutes=COUNT)
async def test_an_etag_is_the_version_of_what_was_read_and_304_prints_nothing(
    stage, fetch, http_client, tmp_path, monkeypatch, path
):
    stage.push(minute(COUNT))
    tags = []
    for change in (None, minute(COUNT, volume="2"), minute(COUNT + 1), minute(COUNT, volume="3", as_of=90_000)):
        if change is not None:
            stage.push(change)
        answer = await fetch(path, decompress_response=False)
        tags.append(answer.headers["Etag"])
        with monkeypatch.context() as patch:
            patch.setattr(EncodedBars, "columns", None)
            again = await fetch(path, headers={"If-None-Match": f'"other", {tags[-1]}'}, decompress_response=False)
        assert (again.code, again.body, again.headers["Etag"]) == (304, b"", tags[-1])
        assert "Content-Type" not in again.headers
        head = await fetch(path, "HEAD", decompress_response=False)
        assert (head.headers["Etag"], head.headers["Content-Length"]) == (tags[-1], str(len(answer.body)))
    assert len(set(tags)) == 4  # the running bar, the next one, a late version
    (tmp_path / "other").mkdir()
    async with open_stage(tmp_path / "other", klines=ON) as other:
        answer = await http_client.fetch(f"http://127.0.0.1:{other.server.listen()}{path}")
        assert answer.headers["Etag"] not in tags


@pytest.mark.slow
@pytest.mark.stage(minutes=COUNT)
async def test_a_closed_range_keeps_its_etag_while_the_running_bar_moves(stage, fetch):
    path = f"/api/v3/klines?symbol=BTCUSDT&interval=1m&startTime={AT[COUNT - 50]}&endTime={AT[COUNT - 10]}"
    tag = (await fetch(path)).headers["Etag"]
    for number in range(COUNT, COUNT + 3):
        stage.push(minute(number, final=True))
        assert (await fetch(path, headers={"If-None-Match": tag})).code == 304
    stage.push(minute(COUNT - 20, volume="9", as_of=90_000, final=True))
    assert (await fetch(path, headers={"If-None-Match": tag})).code == 200


@pytest.mark.slow
@pytest.mark.stage(minutes=COUNT)
async def test_fewer_bars_are_no_reason_to_print_more_again_later(stage, monkeypatch):
    printed = []
    real = klines_printer(MINUTE)
    printer = Printer("counted", lambda *bar: printed.append(bar[0].open_ms) or real.print(*bar))

    async def ask(limit: int) -> int:
        printed.clear()
        await stage.pages.printed(BTC, MINUTE, printer, HistoryRequest(limit))
        return len(printed)

    await stage.bars.load_bars(BTC, MINUTE, 901, 0)
    assert [await ask(900), await ask(900)] == [900, 0]
    for number in range(COUNT, COUNT + 5):
        stage.push(minute(number, final=True))
        assert await ask(2) <= 3  # the new bar, and the one before it, whose last version this is
        assert await ask(900) == 0
    stage.push(minute(COUNT - 3, volume="7", as_of=90_000, final=True))
    assert await ask(2) + await ask(900) <= 9


async def test_pages_that_cannot_be_shared_are_printed_in_slices_two_at_a_time(stage, monkeypatch):
    pages, asked, running, most, passes = stage.pages, HistoryRequest(5000), 0, 0, []
    real, real_print = pages.read_page, print_bars

    async def read(*args):
        nonlocal running, most
        running += 1
        most = max(most, running)
        return await real(*args)

    def print_some(bars, printer):
        passes.append(len(bars))
        return real_print(bars, printer)

    async def made():
        nonlocal running
        page = await pages.printed(BTC, MINUTE, CSV, asked)
        running -= 1
        return page

    async def none(*_):
        return None

    monkeypatch.setattr(pages, "read_page", read)
    monkeypatch.setattr(pages._past, "read", none)
    monkeypatch.setattr(pages, "printed_now", lambda *_: None)
    monkeypatch.setattr(pages, "_is_in_memory", lambda *_: False)
    monkeypatch.setattr(pages, "_split", lambda *_: None)
    monkeypatch.setattr("candled.api.pages.print_bars", print_some)
    monkeypatch.setattr("candled.api.encoding_turns.BARS_PER_TURN", 25)
    found = await asyncio.gather(*(made() for _ in range(6)))
    wanted = await real(BTC, MINUTE, asked)
    assert [page.columns for page in found] == [real_print(wanted.bars, CSV)] * 6
    assert (most, passes) == (2, [25, 25, 25, 25, 10, 10] * 3)


@pytest.mark.slow
@pytest.mark.stage(minutes=COUNT)
async def test_bars_of_memory_are_not_encoded_again_for_older_ones_that_are_not_cached(stage, monkeypatch):
    async def none(*_):
        return None

    monkeypatch.setattr(stage.pages._past, "find", lambda *_: None)
    monkeypatch.setattr(stage.pages._past, "read", none)
    await stage.bars.load_bars(BTC, MINUTE, 200, 0.0)
    reference = BarReader(stage.bars, stage.pages._stored, EncodedBarCache(), stage.clock)
    reference._in_memory = lambda *_: None
    printed = []
    monkeypatch.setattr(
        "candled.api.pages.print_bars", lambda bars, printer: printed.append(len(bars)) or print_bars(bars, printer)
    )
    count = len(stage.bars.newest_times(BTC, MINUTE, COUNT))
    full = HistoryRequest(count - 2, 0, AT[COUNT - 2])  # memory has all of it, but not if there are older bars
    for asked in (HistoryRequest(5000), full, HistoryRequest(1000, AT[COUNT - count - 80], AT[COUNT - 2])):
        wanted = await reference.read_page(BTC, MINUTE, asked)
        for make, encode in DIALECTS:
            for _ in range(2):
                printed.clear()
                page = await stage.pages.printed(BTC, MINUTE, make(MINUTE), asked)
                assert list(page.columns) == encode(wanted.bars, MINUTE)
                assert (page.has_more, page.is_final, page.first_ms) == (
                    wanted.has_more,
                    wanted.is_final,
                    wanted.bars[0].open_ms,
                )
                assert sum(printed) == (
                    1 if asked is full else len(wanted.bars) - count + 2 * (asked.end_ms < AT[COUNT])
                )
