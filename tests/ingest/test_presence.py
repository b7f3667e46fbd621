"""No market is called quiet without REST's word for these minutes, and none stands still while REST has its candles."""

from decimal import Decimal

import pytest

from candled.bus import StateChanged
from candled.ingest.presence import Presence
from candled.model import MINUTE_MS, Candle
from tests.ingest.virtual import THURSDAY_MS, running

NOW_MS = THURSDAY_MS + 600 * MINUTE_MS
PUSHED_MS = NOW_MS - 55_000  # in the minute before the present one


def row(minutes_ago: int, volume: int) -> Candle:
    return Candle(NOW_MS - minutes_ago * MINUTE_MS, *[Decimal(9)] * 4, Decimal(volume), None, NOW_MS)


# What REST answers 55 s after the last push of a minute that then had volume 5, on an exchange with or without empty
# candles: what follows from it, and how the market stands 10 s later, also where it was asked for older minutes too.
ANSWERS = [
    pytest.param(True, [row(1, 5), row(0, 0)], "silent", "quiet", id="flat candles up to the present"),
    pytest.param(True, [row(1, 5)], "silent", "quiet", id="up to the minute that ended just now"),
    pytest.param(True, [row(3, 5), row(2, 5)], "nothing", "unknown", id="an old page"),
    pytest.param(True, [], "nothing", "unknown", id="an empty page where every minute has a candle"),
    pytest.param(False, [row(1, 5)], "silent", "quiet", id="the known minute and nothing newer"),
    pytest.param(False, [], "nothing", "unknown", id="an empty page that lacks a known minute"),
    pytest.param(False, [row(2, 5)], "nothing", "unknown", id="an old page where quiet minutes have no candle"),
    pytest.param(False, [row(1, 4)], "nothing", "unknown", id="the known minute before its last trades"),
    pytest.param(True, [row(1, 4), row(0, 0)], "nothing", "unknown", id="flat candles and less than was traded"),
    pytest.param(True, [row(2, 5), row(0, 0)], "nothing", "unknown", id="flat candles without the traded minute"),
    pytest.param(True, [row(1, 6), row(0, 0)], "traded", "polled", id="the minute of the last push has grown"),
    pytest.param(True, [row(1, 5), row(0, 3)], "traded", "polled", id="a newer minute has trades"),
    pytest.param(False, [row(0, 3)], "traded", "polled", id="only a newer minute"),
]


@pytest.mark.parametrize("minutes_ago", [1, 2, 30], ids="from_{}".format)
@pytest.mark.parametrize(("empty_candles", "rows", "result", "standing"), ANSWERS)
def test_only_an_answer_for_these_minutes_makes_a_market_quiet(empty_candles, rows, result, standing, minutes_ago):
    one = Presence(60_000, publishes_empty_candles=empty_candles)
    one.connected = True
    one.record_push(PUSHED_MS)
    known = {candle.open_ms: candle for candle in [row(1, 5)]}
    assert one.classify_answer(rows, NOW_MS - minutes_ago * MINUTE_MS, known.get, NOW_MS) == result
    assert one.standing(NOW_MS + 10_000) == standing
    assert one.standing(NOW_MS + 120_000) == "unknown"  # it said nothing of now
    one.record_push(NOW_MS + 130_000)
    assert one.standing(NOW_MS + 130_000) == "moving"
    assert one.standing(NOW_MS + 191_000) == "unknown"  # what it said before the push is no evidence


@pytest.mark.parametrize(("rows", "quiet_for_s"), [([row(1, 5), row(0, 0)], 75), ([row(1, 5)], 35)])
def test_an_answer_proves_nothing_about_the_time_after_its_last_row(rows, quiet_for_s):
    """A page that was cut short in the 40th second ends with the minute before."""
    one, now_ms = Presence(60_000, publishes_empty_candles=True), NOW_MS + 40_000
    one.connected = True
    one.record_push(PUSHED_MS)
    assert one.classify_answer(rows, NOW_MS - MINUTE_MS, lambda open_ms: row(1, 5), now_ms) == "silent"
    assert one.standing(now_ms + quiet_for_s * 1000) == "quiet"
    assert one.standing(now_ms + quiet_for_s * 1000 + 1) == "unknown"


@pytest.mark.parametrize("event", ["on_failure", "on_interruption"])
def test_evidence_ends_with_what_it_rests_on(event):
    one = Presence(60_000, publishes_empty_candles=True)
    one.connected = True
    one.record_push(PUSHED_MS)
    one.classify_answer([row(1, 5), row(0, 0)], NOW_MS - MINUTE_MS, lambda open_ms: row(1, 5), NOW_MS)
    getattr(one, event)()
    assert one.standing(NOW_MS + 10_000) != "quiet"


@pytest.mark.slow
async def test_with_the_stream_cut_candles_come_from_rest_and_charts_move():
    async with running() as harness:
        await harness.run(120)
        assert harness.state == ("live", None)
        harness.exchange.stream = "down"
        await harness.run(20)
        assert harness.state == ("polling", "stream_down")
        before = len(harness.minutes)
        await harness.run(300)
        assert len(harness.minutes) - before >= 60
        assert {candle.src for candle in harness.minutes[before:]} == {"rest"}
        assert any(not candle.final for candle in harness.minutes[before:])
        assert {state for state, _ in harness.states[-3:]} <= {"live", "stale", "polling"}
        harness.exchange.stream = "up"
        await harness.run(60)
        assert harness.state == ("live", None)
        await harness.run(60)
        end_ms = harness.clock.true_ms // MINUTE_MS * MINUTE_MS - MINUTE_MS
        assert harness.wrong(end_ms - 8 * MINUTE_MS, end_ms) == []
        assert all(candle.rev == 0 for candle in harness.minutes)


SILENCES = [
    pytest.param("silent", "up", "polling", "stream_silent", id="a dead subscription"),
    pytest.param("down", "up", "polling", "stream_down", id="a stream that is cut"),
    pytest.param("silent", "down", "stale", "rest_unavailable", id="a dead subscription, and REST is down"),
    pytest.param("silent", "empty", "stale", "rest_unavailable", id="a dead subscription, and REST has nothing"),
    pytest.param("down", "down", "stale", "stream_down", id="neither can be reached"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "rest", "state", "reason"), SILENCES)
async def test_while_the_market_trades_no_silence_is_ever_called_quiet(stream, rest, state, reason):
    async with running() as harness:
        await harness.run(120)
        harness.exchange.stream, harness.exchange.rest = stream, rest
        received_before = len(harness.received)
        await harness.run(300)
        assert harness.state == (state, reason)
        assert "quiet" not in {before for before, _ in harness.states}
        if rest == "empty":
            assert len(harness.exchange.asked) < 200
        del harness.received[:received_before]
        harness.exchange.stream = harness.exchange.rest = "up"
        await harness.run(200)
        assert harness.state == ("live", None)


@pytest.mark.slow
async def test_rows_of_another_market_are_refused_named_and_asked_for_again():
    async with running() as harness:
        await harness.run(180)
        history = harness.exchange.fetch_history

        async def of_another(http, symbol, start_ms, end_ms):
            rows = await history(http, symbol, start_ms, end_ms)
            return [row._replace(open=row.open * 40, high=row.high * 40, low=row.low * 40, close=row.close * 40)
                    for row in rows]  # fmt: skip

        harness.exchange.fetch_history = of_another
        await harness.run(300)
        assert "another market" in harness.market["trouble"]
        assert harness.market["invalidCandles"] >= 2
        harness.exchange.fetch_history = history
        await harness.run(700)
        assert harness.market["trouble"] is None
        end_ms = harness.clock.true_ms // MINUTE_MS * MINUTE_MS - MINUTE_MS
        assert harness.wrong(end_ms - 15 * MINUTE_MS, end_ms) == []
        assert max(candle.high for candle in harness.minutes) < 3000


@pytest.mark.slow
async def test_nothing_after_a_minute_without_trades_is_not_called_quiet():
    def thin(exchange):
        exchange.publishes_empty_candles = False
        exchange.quiet = lambda open_ms: open_ms == THURSDAY_MS + (6 * 60 + 4) * MINUTE_MS

    async with running(prepare=thin) as harness:
        await harness.run(300 + 7)
        harness.exchange.stream, harness.exchange.rest = "silent", "empty"
        received_before = len(harness.received)
        await harness.run(1200)
        assert harness.state[0] in ("stale", "recovering")
        assert "quiet" not in {one.state for one in harness.received[received_before:] if isinstance(one, StateChanged)}
        assert harness.market["missingMinutes"] >= 15


@pytest.mark.slow
@pytest.mark.parametrize("empty_candles", [True, False], ids=["with empty candles", "only minutes with trades"])
async def test_a_market_without_trades_is_quiet_by_rests_word_and_costs_about_a_request_a_minute(empty_candles):
    def thin(exchange):
        exchange.publishes_empty_candles = empty_candles
        exchange.quiet = lambda open_ms: open_ms >= run_from_ms + 3 * MINUTE_MS

    run_from_ms = THURSDAY_MS + 6 * 3_600_000
    async with running(prepare=thin) as harness:
        await harness.run(180)
        harness.exchange.stream = "silent" if empty_candles else "up"
        await harness.run(240)
        assert harness.state == ("quiet", "no_trades")
        asked = len(harness.exchange.asked)
        await harness.run(600)
        assert len(harness.exchange.asked) - asked <= 40
        assert harness.state == ("quiet", "no_trades")
        harness.exchange.quiet = lambda open_ms: False
        harness.exchange.stream = "up"
        await harness.run(90)
        assert harness.state == ("live", None)


@pytest.mark.slow
async def test_the_pace_of_polling_leaves_most_of_the_budget():
    async with running() as harness:
        await harness.run(120)
        harness.exchange.stream = "down"
        await harness.run(30)
        asked = len(harness.exchange.asked)
        await harness.run(60)
        assert len(harness.exchange.asked) - asked <= 60 / 3 + 5
