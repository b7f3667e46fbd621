from hypothesis import given
from hypothesis import strategies as st

from candled.model import MINUTE_MS, Range, RangeSet

EDGE = st.integers(0, 40)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove"]), EDGE, EDGE))


@given(STEPS, EDGE, EDGE, EDGE)
def test_a_range_set_behaves_as_a_set_of_times(steps, start, end, at):
    ranges, model = RangeSet(), set()
    for step, left, right in steps:
        getattr(ranges, step)(left, right)
        times = set(range(left, right))
        model = model | times if step == "add" else model - times
    assert {time for left, right in ranges for time in range(left, right)} == model
    assert ranges.total_ms == len(model)
    assert (at in ranges) == (at in model)
    missing = {time for left, right in ranges.missing(start, end) for time in range(left, right)}
    assert missing == set(range(start, end)) - model
    assert ranges.total_within(start, end) == len(model & set(range(start, end)))
    first = at
    while first - 1 in model:
        first -= 1
    assert ranges.start_of(at) == first
    pairs = list(ranges)
    assert all(left.end_ms < right.start_ms for left, right in zip(pairs, pairs[1:], strict=False))
    assert ranges.last == (pairs[-1] if pairs else None)
    assert ranges.extent == (Range(min(model), max(model) + 1) if model else None)


@given(st.sets(EDGE), st.sets(EDGE))
def test_the_difference_of_two_sets_is_that_of_their_times(one, other):
    assert RangeSet.of_parts(one, 1).without(RangeSet.of_parts(other, 1)) == RangeSet.of_parts(one - other, 1)


@given(st.lists(st.integers(0, 12) | st.sampled_from([10**7]), max_size=12))
def test_the_minutes_of_some_times_are_joined_in_any_order(numbers):
    ranges = RangeSet()
    for number in numbers:
        ranges.add(number * MINUTE_MS, (number + 1) * MINUTE_MS)
    assert RangeSet.of_parts((number * MINUTE_MS for number in numbers), MINUTE_MS) == ranges
    assert RangeSet.of_parts(sorted(number * MINUTE_MS for number in numbers), MINUTE_MS) == ranges


def test_the_hull_includes_both():
    assert Range(5, 7).hull(Range(1, 2)) == Range(1, 7)
    assert Range(5, 7).hull(None) == Range(5, 7)
