"""The last hour keeps its samples in time, and adds nothing to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.status.last_hour import EVERY_S, SAMPLES, LastHour

steps = st.lists(
    st.tuples(st.floats(0.5, 30 * EVERY_S), st.integers(0, 10_000), st.integers(0, 100)), min_size=1, max_size=60
)


def test_counters_become_rates_and_gauges_stay():
    hour = LastHour()
    for number, count in enumerate((100, 150, 150, 400)):
        hour.add_sample(number * EVERY_S, {"clients": number}, {"messages": count})
    assert hour.list_rates("messages") == [5.0, 0.0, 25.0]
    assert hour.list_gauge("clients") == [1, 2, 3]
    assert hour.find_increase("messages", 25.0) == 250
    assert hour.find_increase("messages", 3600.0) == 300
    assert hour.find_increase("unknown", 3600.0) == 0


def test_a_time_without_samples_is_shown_as_such_and_a_reset_counter_is_no_decrease():
    hour = LastHour()
    hour.add_sample(0.0, {"clients": 1}, {"messages": 50})
    hour.add_sample(4 * EVERY_S, {"clients": 2}, {"messages": 90})
    hour.add_sample(5 * EVERY_S, {"clients": 3}, {"messages": 7})
    assert hour.list_gauge("clients") == [None, None, None, 2, 3]
    assert hour.list_rates("messages") == [None, None, None, 1.0, 0.0]


def test_a_counter_that_appears_has_grown_from_nothing():
    hour = LastHour()
    hour.add_sample(0.0, {}, {})
    hour.add_sample(EVERY_S, {}, {"blocks": 1})
    assert hour.find_increase("blocks", 60.0) == 1


def test_only_an_hour_is_kept():
    hour = LastHour()
    for number in range(2 * SAMPLES):
        hour.add_sample(number * EVERY_S, {"clients": number}, {"messages": number})
    assert hour.list_gauge("clients") == list(range(SAMPLES, 2 * SAMPLES))
    assert hour.find_increase("messages", 1e9) == SAMPLES


@given(steps)
def test_all_lists_are_equally_long_and_the_rates_sum_up_to_the_counter(steps):
    hour, now, total = LastHour(), 0.0, 0
    hour.add_sample(now, {"clients": 0}, {"messages": 0})
    times = [now]
    for pause_s, count, clients in steps:
        now, total = now + pause_s, total + count
        times.append(now)
        hour.add_sample(now, {"clients": clients}, {"messages": total})
    gauges, rates = hour.list_gauge("clients"), hour.list_rates("messages")
    assert len(gauges) == len(rates) <= SAMPLES
    assert gauges[-1] == steps[-1][2]
    known = [rate for rate in rates if rate is not None]
    spans = [after - before for before, after in zip(times, times[1:], strict=False)]
    if len(known) == len(steps):  # nothing has left the hour
        assert sum(rate * span for rate, span in zip(known, spans, strict=True)) == pytest.approx(total)
        assert hour.find_increase("messages", now + 1) == total
    assert all(rate >= 0 for rate in known)
