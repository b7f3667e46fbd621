"""The part of PromQL that the alerts use, evaluated over scrapes as prometheus.io/docs/prometheus/latest/querying says.

Prometheus's own `promtool` compares its results with these where it is installed (tests/metrics/prometheus.py).
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import promql_parser
from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    BinModifier,
    Call,
    LabelModifierType,
    Matcher,
    MatchOp,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    VectorMatchCardinality,
    VectorSelector,
)

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
NAME = "__name__"

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul,
    "/": lambda one, other: one / other if other else math.nan if not one else math.copysign(math.inf, one),
}  # fmt: skip
_AGGREGATES: dict[str, Callable[[Iterable[float]], float]] = {"sum": math.fsum, "max": max, "min": min}


@dataclass(frozen=True)
class Scrape:
    """All samples of one moment; a series that is missing here has ended."""

    #: Unix seconds
    at_s: float
    #: by the name of the metric
    samples: Mapping[str, Vector]


_parse = cache(promql_parser.parse)


def evaluate(expression: str, scrapes: Sequence[Scrape]) -> Vector | float:
    """Return the value of an expression at the moment of the last scrape.

    Raises:
        NotImplementedError: the expression uses another part of PromQL.
    """
    return _Evaluation(scrapes).value_of(_parse(expression))


def selectors(node: Any) -> list[VectorSelector]:
    """Return the vector selectors in a parsed expression."""
    if isinstance(node, VectorSelector):
        return [node]
    inner = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "vector_selector")]
    parts = [*inner, *(getattr(node, "args", None) or [])]
    return [one for part in parts if part is not None for one in selectors(part)]


def without(labels: Labels, *names: str) -> Labels:
    """Return labels without those that have these names."""
    return frozenset(one for one in labels if one[0] not in names)


class _Evaluation:
    """The value of each kind of node at the moment of the last scrape."""

    def __init__(self, scrapes: Sequence[Scrape]) -> None:
        self._scrapes = scrapes
        self._now = scrapes[-1]

    def value_of(self, node: Any) -> Any:
        match node:
            case NumberLiteral():
                return node.val
            case ParenExpr():
                return self.value_of(node.expr)
            case VectorSelector():
                return _select(node, self._now)
            case AggregateExpr():
                return self._aggregate(node)
            case Call():
                return self._call(node)
            case BinaryExpr():
                return self._combine(str(node.op), self.value_of(node.lhs), self.value_of(node.rhs), node.modifier)
        raise NotImplementedError(f"{type(node).__name__}: {node.prettify()}")

    def _aggregate(self, node: AggregateExpr) -> Vector:
        groups: dict[Labels, list[float]] = {}
        for labels, value in self.value_of(node.expr).items():
            groups.setdefault(_by(node.modifier, labels), []).append(value)
        return {labels: _AGGREGATES[str(node.op)](values) for labels, values in groups.items()}

    def _call(self, node: Call) -> Any:
        name, args = node.func.name, node.args
        if name == "time":
            return self._now.at_s
        if name == "abs":
            return {without(labels, NAME): abs(value) for labels, value in self.value_of(args[0]).items()}
        if name == "histogram_quantile":
            return _quantiles(self.value_of(args[0]), self.value_of(args[1]))
        if name == "max_over_time":
            points = self._points(args[0])
            return {without(labels, NAME): max(value for _, value in found) for labels, found in points}
        if name in ("rate", "increase"):
            range_s = args[0].range.total_seconds()
            found = {labels: _increase(points, range_s, self._now.at_s) for labels, points in self._points(args[0])}
            by = range_s if name == "rate" else 1.0
            return {without(labels, NAME): value / by for labels, value in found.items() if value is not None}
        raise NotImplementedError(name)

    def _points(self, node: MatrixSelector) -> Iterable[tuple[Labels, list[tuple[float, float]]]]:
        """Return the times and values of each series in a range."""
        from_s = self._now.at_s - node.range.total_seconds()
        points: dict[Labels, list[tuple[float, float]]] = {}
        for scrape in reversed(self._scrapes):
            if scrape.at_s < from_s:
                break
            for labels, value in _select(node.vector_selector, scrape).items():
                points.setdefault(labels, []).insert(0, (scrape.at_s, value))
        return points.items()

    def _combine(self, op: str, one: Any, other: Any, modifier: BinModifier | None) -> Any:
        if isinstance(one, dict) and isinstance(other, dict):
            return _combine_vectors(op, one, other, modifier)
        if op in _ARITHMETIC:
            return _each(one, other, _ARITHMETIC[op])
        compare = _COMPARISONS[op]
        if isinstance(one, dict):
            return {labels: value for labels, value in one.items() if compare(value, other)}
        return {labels: value for labels, value in other.items() if compare(one, value)}


def _select(selector: VectorSelector, scrape: Scrape) -> Vector:
    found, matchers = scrape.samples.get(selector.name or "", {}), selector.matchers.matchers
    return {labels: value for labels, value in found.items() if _are_matches(matchers, labels)} if matchers else found


def _are_matches(matchers: Iterable[Matcher], labels: Labels) -> bool:
    values = dict(labels)
    return all(_is_match(one, values.get(one.name, "")) for one in matchers)


def _is_match(matcher: Matcher, value: str) -> bool:
    is_pattern = matcher.op in (MatchOp.Re, MatchOp.NotRe)
    is_equal = re.fullmatch(matcher.value, value) is not None if is_pattern else matcher.value == value
    return is_equal == (matcher.op in (MatchOp.Equal, MatchOp.Re))


def _each(one: Any, other: Any, apply: Callable[[float, float], float]) -> Any:
    if isinstance(one, dict):
        return {without(labels, NAME): apply(value, other) for labels, value in one.items()}
    if isinstance(other, dict):
        return {without(labels, NAME): apply(one, value) for labels, value in other.items()}
    return apply(one, other)


def _by(modifier: Any, labels: Labels) -> Labels:
    """Return the labels by which a vector is grouped or matched, given `by`, `on` and so on; None: of none."""
    if modifier is None:
        return frozenset()
    if modifier.type in (AggModifierType.By, LabelModifierType.Include):
        return frozenset(one for one in labels if one[0] in modifier.labels)
    return without(labels, NAME, *modifier.labels)


def _combine_vectors(op: str, one: Vector, other: Vector, modifier: BinModifier | None) -> Vector:
    matching = None if modifier is None else modifier.matching

    def key_of(labels: Labels) -> Labels:
        return without(labels, NAME) if matching is None else _by(matching, labels)

    keys = {key_of(labels): value for labels, value in other.items()}
    if op in ("and", "unless"):
        return {labels: value for labels, value in one.items() if (key_of(labels) in keys) == (op == "and")}
    if op == "or":
        own = {key_of(labels) for labels in one}
        return {**one, **{labels: value for labels, value in other.items() if key_of(labels) not in own}}
    if (modifier is not None and modifier.card != VectorMatchCardinality.OneToOne) or len(keys) < len(other):
        raise NotImplementedError("several series match one")
    pairs = [(labels, value, keys[key_of(labels)]) for labels, value in one.items() if key_of(labels) in keys]
    if op in _ARITHMETIC:
        return {key_of(labels): _ARITHMETIC[op](value, match) for labels, value, match in pairs}
    kept = [(labels, value) for labels, value, match in pairs if _COMPARISONS[op](value, match)]
    return {labels if matching is None else key_of(labels): value for labels, value in kept}


def _increase(points: Sequence[tuple[float, float]], range_s: float, now_s: float) -> float | None:
    """Return a counter's increase, extrapolated to the range as Prometheus does; None with fewer than two points."""
    if len(points) < 2:
        return None
    (first_s, first), (last_s, last) = points[0], points[-1]
    values = [value for _, value in points]
    resets = sum(before for before, after in zip(values, values[1:], strict=False) if after < before)
    increase, sampled_s = last - first + resets, last_s - first_s
    step_s = sampled_s / (len(points) - 1)
    to_start_s, to_end_s = first_s - (now_s - range_s), now_s - last_s
    if increase > 0 and first >= 0:  # a counter was not negative before
        to_start_s = min(to_start_s, sampled_s * first / increase)
    extrapolated_s = sampled_s + sum(gap_s if gap_s < 1.1 * step_s else step_s / 2 for gap_s in (to_start_s, to_end_s))
    return increase * extrapolated_s / sampled_s


def _quantiles(quantile: float, buckets: Vector) -> Vector:
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in buckets.items():
        groups.setdefault(without(labels, NAME, "le"), []).append((float(dict(labels)["le"]), value))
    return {labels: _quantile(quantile, sorted(group)) for labels, group in groups.items()}


def _quantile(quantile: float, buckets: Sequence[tuple[float, float]]) -> float:
    """Return a quantile of a histogram of upper bounds with the counts below them, linear within a bucket."""
    total = buckets[-1][1]
    if len(buckets) < 2 or buckets[-1][0] != math.inf or not total:
        return math.nan
    rank = quantile * total
    place = next(number for number, (_, count) in enumerate(buckets) if count >= rank)
    if place == len(buckets) - 1:
        return buckets[-2][0]
    (upper, count), (lower, below) = buckets[place], buckets[place - 1] if place else (0.0, 0.0)
    return lower + (upper - lower) * (rank - below) / (count - below)
