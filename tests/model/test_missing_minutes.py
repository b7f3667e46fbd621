"""Gaps are computed at one place, from the stored minutes and the known gaps."""

import ast
from pathlib import Path

import pytest

import candled
from candled.model import DAY_MS, MINUTE_MS, REASONS, Gap, Range
from candled.model.gaps import find_gaps, join_gaps, join_neighbours, replace_gaps, split_by_day


def gap(first: int, last: int, reason: str = "no_trades", attempts: int = 1) -> Gap:
    return Gap(start_ms=first * MINUTE_MS, end_ms=last * MINUTE_MS, reason=reason, attempts=attempts, retry_ms=None)


def missing(first: int, last: int) -> Gap:
    return gap(first, last, "missing", 0)


def span(first: int, last: int) -> Range:
    return Range(first * MINUTE_MS, last * MINUTE_MS)


FOUND = [
    pytest.param([(0, 10)], [], [], id="all is stored"),
    pytest.param([], [], [missing(0, 10)], id="nothing is stored or known"),
    pytest.param([(0, 4), (6, 10)], [gap(4, 6)], [gap(4, 6)], id="known"),
    pytest.param([(0, 2), (8, 10)], [gap(4, 6)], [missing(2, 4), gap(4, 6), missing(6, 8)], id="known in the middle"),
    pytest.param([(0, 4)], [gap(2, 7)], [gap(4, 7), missing(7, 10)], id="stored after all in part"),
    pytest.param([(0, 10)], [gap(2, 7)], [], id="stored after all"),
    pytest.param([(3, 5)], [gap(-9, 99)], [gap(0, 3), gap(5, 10)], id="cut at the ends and split by a stored minute"),
    pytest.param([], [gap(0, 5, attempts=2), gap(5, 9)], [gap(0, 5, attempts=2), gap(5, 9), missing(9, 10)], id="two"),
    pytest.param([(-5, 1), (9, 20)], [gap(-7, -6), gap(30, 31)], [missing(1, 9)], id="others lie outside"),
]


@pytest.mark.parametrize(("stored", "known", "expected"), FOUND)
def test_gaps_are_found_from_stored_minutes_and_known_gaps(stored, known, expected):
    assert find_gaps([span(*one) for one in stored], known, span(0, 10)) == expected


JOINED = [
    pytest.param([gap(0, 2), gap(2, 5)], [gap(0, 5)], id="neighbours"),
    pytest.param([gap(2, 5), gap(0, 2)], [gap(0, 5)], id="not sorted"),
    pytest.param([gap(0, 2), gap(3, 5)], [gap(0, 2), gap(3, 5)], id="apart"),
    pytest.param([gap(0, 2), gap(2, 5, "invalid")], [gap(0, 2), gap(2, 5, "invalid")], id="another reason"),
    pytest.param([gap(0, 2), gap(2, 5, attempts=2)], [gap(0, 2), gap(2, 5, attempts=2)], id="other attempts"),
    pytest.param([], [], id="none"),
]


@pytest.mark.parametrize(("gaps", "expected"), JOINED)
def test_neighbours_of_the_same_reason_are_one_gap(gaps, expected):
    assert join_gaps(gaps) == list(join_neighbours(sorted(gaps, key=lambda one: one.start_ms))) == expected


def test_gaps_are_replaced_within_a_range_only():
    assert replace_gaps([gap(0, 9)], [gap(4, 20, "invalid")], span(3, 6)) == [
        gap(0, 3),
        gap(4, 6, "invalid"),
        gap(6, 9),
    ]


DAY = DAY_MS // MINUTE_MS
DAYS = [
    pytest.param((5, 9), [gap(5, 6)], [((5, 9), [gap(5, 6)])], id="part of a day"),
    pytest.param((0, 2 * DAY), [], [((0, DAY), []), ((DAY, 2 * DAY), [])], id="no gaps"),
    pytest.param(
        (DAY - 3, 3 * DAY),
        [gap(DAY - 1, 2 * DAY + 1), gap(2 * DAY + 5, 2 * DAY + 6)],
        [
            ((DAY - 3, DAY), [gap(DAY - 1, DAY)]),
            ((DAY, 2 * DAY), [gap(DAY, 2 * DAY)]),
            ((2 * DAY, 3 * DAY), [gap(2 * DAY, 2 * DAY + 1), gap(2 * DAY + 5, 2 * DAY + 6)]),
        ],
        id="a gap of three days",
    ),
    pytest.param((0, 2 * DAY), [gap(3, DAY)], [((0, DAY), [gap(3, DAY)]), ((DAY, 2 * DAY), [])], id="ends at midnight"),
]


@pytest.mark.parametrize(("whole", "gaps", "expected"), DAYS)
def test_gaps_are_split_at_midnight(whole, gaps, expected):
    assert list(split_by_day(gaps, span(*whole))) == [(span(*day), some) for day, some in expected]


@pytest.mark.slow
def test_no_other_module_computes_gaps_or_lists_reasons():
    root = Path(candled.__file__).parent
    making = {}
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        if named >= set(REASONS) or ("Gap" in classes and path.name != "operations.py"):
            making[path.relative_to(root).as_posix()] = True
    assert list(making) == ["model/gaps.py"]
