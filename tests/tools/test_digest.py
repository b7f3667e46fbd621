"""The digest of a day: its documented text, and what it depends on."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from candled.model import DAY_MS, MINUTE_MS, Candle
from candled.tools.digest import day_digests
from tests.store.rows import MONDAY_MS, recorded


def minute(at, *numbers, as_of_ms=0):
    return Candle.parse(MONDAY_MS + at * MINUTE_MS, *numbers, as_of_ms=as_of_ms, final=True)


def test_it_is_the_sha256_of_the_documented_text():
    day = [
        minute(0, "67234.50", "67340.00", "67200.0", "67310.25", "1E+3", "0.00000001"),
        minute(2, "1", "1", "1", "1", "0.000"),
    ]
    text = (
        b"1748822400000,67234.5,67340,67200,67310.25,1000,0.00000001\n"  # the digits and the order of the columns
        b"1748822520000,1,1,1,1,0,\n"
    )
    assert list(day_digests(day)) == [(MONDAY_MS, 2, hashlib.sha256(text).hexdigest())]


def test_each_utc_day_that_has_minutes_has_one():
    first, second, third = (minute(at, "1", "1", "1", "1", "1") for at in (1439, 1440, 3 * 1440))
    assert [(day.day_ms, day.minutes) for day in day_digests([first, second, third])] == [
        (MONDAY_MS, 1),
        (MONDAY_MS + DAY_MS, 1),
        (MONDAY_MS + 3 * DAY_MS, 1),
    ]


@given(st.data())
def test_it_changes_with_every_value_and_with_nothing_else(data):
    minutes = recorded("bitget-usdt-futures-ewzusdt.csv.gz")[:20]
    at = data.draw(st.integers(0, len(minutes) - 1))
    [before] = day_digests(minutes)
    stated = [candle._replace(as_of_ms=7, final=False) for candle in minutes]
    assert list(day_digests(stated)) == [before]
    column = data.draw(st.sampled_from(["open", "high", "low", "close", "volume"]))
    changed = [*minutes]
    changed[at] = changed[at]._replace(**{column: getattr(changed[at], column) + 1})
    [after] = day_digests(changed)
    assert after.sha256 != before.sha256
    [without] = day_digests(minutes[:at] + minutes[at + 1 :])
    assert without.sha256 != before.sha256
