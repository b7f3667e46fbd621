"""The evaluator of the alerts: each part of PromQL that they use. The drill compares it with Prometheus's own."""

import math

import pytest

from tests.metrics.promql import NAME, Scrape, Vector, evaluate


def vector(name: str, *series: tuple[str, float]) -> Vector:
    """Return series with the labels `a` and `b`, as in `1/x`."""
    made = {}
    for labels, value in series:
        values = [*zip("ab", labels.split("/"), strict=False), *([(NAME, name)] if name else [])]
        made[frozenset(values)] = value
    return made


SAMPLES = {
    "m": vector("m", ("1/x", 1.0), ("1/y", 2.0), ("2/x", -5.0)),
    "n": vector("n", ("1/x", 4.0), ("2/x", 4.0)),
    "by": vector("by", ("1", 10.0)),
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("m", SAMPLES["m"]),
        ('m{b="x", a!="2"}', vector("m", ("1/x", 1.0))),
        ('m{b=~"x|z", a!~"1.*"}', vector("m", ("2/x", -5.0))),
        ("m > 1", vector("m", ("1/y", 2.0))),
        ("1 >= m", vector("m", ("1/x", 1.0), ("2/x", -5.0))),
        ("abs(m) > 2", vector("", ("2/x", 5.0))),
        ("m * 2 - 1", vector("", ("1/x", 1.0), ("1/y", 3.0), ("2/x", -11.0))),
        ("m / n", vector("", ("1/x", 0.25), ("2/x", -1.25))),
        ("m < n", vector("m", ("1/x", 1.0), ("2/x", -5.0))),
        ("m and n", vector("m", ("1/x", 1.0), ("2/x", -5.0))),
        ("m unless n", vector("m", ("1/y", 2.0))),
        ("m unless on (a) by", vector("m", ("2/x", -5.0))),
        ("m and ignoring (b) by", vector("m", ("1/x", 1.0), ("1/y", 2.0))),
        ("n or m", {**SAMPLES["n"], **vector("m", ("1/y", 2.0))}),
        ("sum by (a) (m)", vector("", ("1", 3.0), ("2", -5.0))),
        ("max without (a) (m)", {frozenset({("b", "x")}): 1.0, frozenset({("b", "y")}): 2.0}),
        ("time() - by", vector("", ("1", 990.0))),
        ("missing == 0", {}),
    ],
)
def test_an_expression_has_the_value_of_prometheus(expression, expected):
    assert evaluate(expression, [Scrape(1000.0, SAMPLES)]) == expected


@pytest.mark.parametrize(
    ("values", "expression", "expected"),
    [
        ([0, 10, 20, 30, 40], "increase(c[1m])", 40.0),
        ([0, 10, 20, 30, 40], "rate(c[30s])", 10 / 15),
        ([5, 5, 5, 5, 5], "increase(c[1m])", 0.0),
        ([90, 100, 0, 10, 20], "increase(c[1m])", 30.0),  # restarted
        ([None, None, None, 7, 9], "increase(c[1m])", 2 / 15 * 22.5),  # it is extended by half a step
        ([4, 9, 1, 2, 3], "max_over_time(c[45s])", 9.0),
        ([4, 9, 1, 2, None], "max_over_time(c[45s])", 9.0),
    ],
)
def test_a_range_of_scrapes_is_read_as_prometheus_does(values, expression, expected):
    scrapes = [
        Scrape(15.0 * number, {} if value is None else {"c": {frozenset({(NAME, "c")}): float(value)}})
        for number, value in enumerate(values)
    ]
    assert evaluate(expression, scrapes) == {frozenset(): pytest.approx(expected)}


@pytest.mark.parametrize(("quantile", "expected"), [(0.5, 1.5), (0.125, 0.5), (0.9, 2.0), (1.0, 2.0)])
def test_a_quantile_is_linear_within_a_bucket(quantile, expected):
    counts = [("1", 1.0), ("2", 3.0), ("+Inf", 4.0)]
    buckets = {frozenset({(NAME, "h_bucket"), ("le", le), ("a", "x")}): count for le, count in counts}
    found = evaluate(f"histogram_quantile({quantile}, h_bucket)", [Scrape(0.0, {"h_bucket": buckets})])
    assert found == {frozenset({("a", "x")}): pytest.approx(expected)}
    (empty,) = evaluate("histogram_quantile(0.5, h_bucket * 0)", [Scrape(0.0, {"h_bucket": buckets})]).values()
    assert math.isnan(empty)


def test_other_parts_of_promql_are_refused():
    for expression in ("-m", "m * on (a) group_left by", "predict_linear(m[1h], 60)"):
        with pytest.raises(NotImplementedError):
            evaluate(expression, [Scrape(0.0, SAMPLES)])
