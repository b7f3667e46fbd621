"""Each check of a recording can fail: for each there is an exchange that breaks just this property."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from candled import Candle, Candles, InvalidRow, Market, Symbol
from candled.model import MINUTE_MS
from candled.testing.findings import CHECKS, Finding, judge
from candled.testing.recording import Call, Header, Received, Recording, Request
from candled.testing.replayed import PlayedFrame, Replay
from tests.clocks import START_MS
from tests.sources import ROOT

BTC = Symbol("BTC", "USDT")
COUNT = 10  # minutes
END_MS = START_MS + COUNT * MINUTE_MS


def minute(number: int, *, at_ms: int = 0, final: bool = True, **changes: Any) -> Candle:
    """A minute that opens at the previous close, at whole prices."""
    opened = Decimal(100 + number)
    quote = 2 * (opened + Decimal("0.5"))
    open_ms = START_MS + number * MINUTE_MS
    values = (opened, opened + 2, opened - 1, opened + 1, Decimal(2), quote)
    return Candle(open_ms, *values, at_ms, final)._replace(**changes)


class Promises:
    """The class attributes of an exchange."""

    closed_flag = "final"
    publishes_empty_candles = True
    opens_at_previous_close = True


class Case:
    """A recording and its replay, in which everything is right. Tests change a part."""

    def __init__(self) -> None:
        self.promises = Promises()
        self.problems: list[str] = []
        self.invalid: list[InvalidRow] = []
        self.market = Market(symbol=BTC, tick_size=Decimal(1))
        #: The times of arrival and the candles of the stream: a forming version and the final one of each minute.
        self.stream = [
            (START_MS + number * MINUTE_MS + delay_ms, minute(number, final=delay_ms > MINUTE_MS))
            for number in range(COUNT)
            for delay_ms in (30_000, 60_100)
        ]
        every = [minute(number) for number in range(COUNT)]
        #: The pages of history by phase, first minute and end.
        self.pages = {
            ("before", 0, COUNT): every,
            ("before", 0, 3): every[:3],
            ("before", 7, 9): every[7:9],
            ("after", 2, 5): every[2:5],
            ("later", 2, 5): every[2:5],
        }

    def judge(self) -> dict[str, Finding]:
        calls = {
            key: Call(
                number=number,
                method="fetch_history",
                phase=key[0],
                start_ms=START_MS + key[1] * MINUTE_MS,
                end_ms=START_MS + key[2] * MINUTE_MS,
                at_ms=END_MS,
            )
            for number, key in enumerate(self.pages, 2)
        }
        listing = Call(number=1, method="fetch_markets"), Request(call=1, url="/", status=200, answer="[]")
        frames = [
            PlayedFrame(
                Received(at_ms=at_ms, connection=1, text=""),
                (Candles(BTC, (candle._replace(as_of_ms=candle.as_of_ms or at_ms),)),),
            )
            for at_ms, candle in self.stream
        ]
        replay = Replay(problems=self.problems, invalid=self.invalid, frames=frames, markets=[self.market])
        for key, rows in self.pages.items():
            call = calls[key]
            replay.pages.append((call, rows))
            replay.ranges.setdefault(call.phase, []).append((call.start_ms, call.end_ms))
            replay.minutes.setdefault(call.phase, {}).update({row.open_ms: row for row in rows})
        events = (*listing, *calls.values(), *(frame.received for frame in frames))
        recording = Recording(Header(version=1, exchange="x", symbol="BTC/USDT"), events)
        return {name: judge(name, recording, self.promises, replay) for name in CHECKS}

    def change_stream(self, change: Callable[[int, Candle], Candle]) -> None:
        self.stream = [(at_ms, change(at_ms, candle)) for at_ms, candle in self.stream]

    def change_pages(self, change: Callable[[Candle], Candle]) -> None:
        self.pages = {key: [change(row) for row in rows] for key, rows in self.pages.items()}


def shifted(candle: Candle, minutes: int) -> Candle:
    return candle._replace(open_ms=candle.open_ms + minutes * MINUTE_MS)


def break_reading(case: Case) -> None:
    case.problems.append("a frame cannot be read")


def break_rows(case: Case) -> None:
    case.invalid.append(InvalidRow(None, "no price"))


def break_list(case: Case) -> None:
    case.market = Market(symbol=Symbol("ETH", "USDT"))


def break_steps(case: Case) -> None:
    case.market = Market(symbol=BTC, tick_size=Decimal(3))


def break_opening_times(case: Case) -> None:  # the closing time, also in history
    case.change_stream(lambda at_ms, one: shifted(one, 1))


def break_opening_times_again(case: Case) -> None:  # a minute too early, as if they were closing times
    case.change_stream(lambda at_ms, one: shifted(one, -1))


def break_units_of_time(case: Case) -> None:
    case.change_stream(lambda at_ms, one: shifted(one, -60))


def break_stamps(case: Case) -> None:
    case.change_stream(lambda at_ms, one: one._replace(as_of_ms=at_ms - 3_600_000))


def break_volumes(case: Case) -> None:
    case.change_stream(lambda at_ms, one: one._replace(volume=one.quote_volume, quote_volume=one.volume))
    case.change_pages(lambda one: one._replace(volume=one.quote_volume, quote_volume=one.volume))


def break_ends(case: Case) -> None:
    case.change_stream(lambda at_ms, one: one._replace(final=True, volume=Decimal(2)))


def break_finality(case: Case) -> None:
    late = [(at_ms + 1000, one._replace(high=one.high + 1)) for at_ms, one in case.stream if one.final][5:6]
    case.stream = sorted(case.stream + late)


def break_last_minute(case: Case) -> None:
    del case.pages["after", 2, 5][-1]


def break_columns(case: Case) -> None:
    case.pages["after", 2, 5] = [one._replace(low=one.low - 1) for one in case.pages["after", 2, 5]]


def break_range(case: Case) -> None:
    case.pages["before", 7, 9] = [minute(6), minute(7), minute(8)]


def break_uniqueness(case: Case) -> None:
    case.pages["before", 7, 9].append(minute(8))


def break_pages(case: Case) -> None:
    case.promises.publishes_empty_candles = False
    del case.pages["before", 0, COUNT][:5]  # a page has only the five newest


def break_completeness(case: Case) -> None:
    for rows in case.pages.values():
        rows[:] = [one for one in rows if one.open_ms != START_MS + MINUTE_MS]


def break_opens(case: Case) -> None:
    case.pages["before", 0, 3] = [one._replace(open=one.open + 1) for one in case.pages["before", 0, 3]]


BROKEN = [
    (break_reading, "every frame and answer is read"),
    (break_rows, "every row is a candle"),
    (break_list, "the list of markets has the symbol"),
    (break_steps, "prices are multiples of the tick size"),
    (break_opening_times, "candles arrive in their minute"),
    (break_opening_times_again, "candles arrive in their minute"),
    (break_units_of_time, "candles arrive in their minute"),
    (break_stamps, "the time of a frame is that of the clock"),
    (break_volumes, "volumes fit the prices"),
    (break_ends, "no minute is final before its end"),
    (break_finality, "no version follows the final one"),
    (break_last_minute, "REST has each minute of the stream"),
    (break_columns, "the minutes of the stream are those of REST"),
    (break_range, "a page has only the minutes of its range"),
    (break_uniqueness, "a page has only the minutes of its range"),
    (break_pages, "a long page has the minutes of short ones"),
    (break_completeness, "each minute has a candle"),
    (break_opens, "each minute opens at the previous close"),
]


def test_an_exchange_without_a_mistake_passes_every_check():
    findings = Case().judge()
    assert {name: finding.name for name, finding in findings.items()} == {name: name for name in CHECKS}
    assert {name: one.detail for name, one in findings.items() if one.is_right is not True} == {}


@pytest.mark.parametrize(("breaks", "name"), BROKEN)
def test_a_broken_property_fails_its_check(breaks, name):
    case = Case()
    breaks(case)
    finding = case.judge()[name]
    assert finding.is_right is False
    assert finding.detail


def test_every_check_is_broken_by_a_test():
    only_noted = {"REST has the same minutes an hour later"}
    by_frames = {"the stream has candles of the symbol"}  # test_a_stream_without_candles
    assert {name for _, name in BROKEN} | only_noted | by_frames == set(CHECKS)


def test_a_stream_without_candles_fails():
    header = Header(version=1, exchange="x", symbol="BTC/USDT")
    recording = Recording(header, (Received(connection=1, text="{}"),))
    findings = {name: judge(name, recording, Promises(), Replay()) for name in CHECKS}
    assert findings["the stream has candles of the symbol"] == Finding(
        "the stream has candles of the symbol", False, "0 in 1 frames"
    )
    assert {one.is_right for one in findings.values()} == {None, True, False}


def test_minutes_that_the_exchange_corrects_are_a_note():
    case = Case()
    case.pages["later", 2, 5] = [one._replace(low=one.low - 1) for one in case.pages["later", 2, 5]]
    finding = case.judge()["REST has the same minutes an hour later"]
    assert finding.is_right is None
    assert finding.detail.startswith("the exchange changed 3 of 3: 2025-")


def test_promises_that_are_not_made_are_notes():
    case = Case()
    case.promises.closed_flag = "advisory"
    case.promises.opens_at_previous_close = case.promises.publishes_empty_candles = False
    break_finality(case)
    break_opens(case)
    case.pages["before", 0, 3][1] = case.pages["before", 0, 3][1]._replace(volume=Decimal(0))
    findings = case.judge()
    for name in ("no version follows the final one", "each minute opens at the previous close"):
        assert findings[name].is_right is None
    assert findings["each minute has a candle"].detail.startswith("publishes_empty_candles may be True: 1 minutes")


def test_every_check_and_its_consequence_is_on_the_page():
    page = " ".join((ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8").split())
    assert [name for name, (_, why) in CHECKS.items() if f"| {name} | {why} |" not in page] == []
