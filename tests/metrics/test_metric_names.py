"""The names of metrics keep the rules of `promtool check metrics`, which a second test runs if it is installed.

The rules are those of promlint in client_golang (prometheus/testutil/promlint/validations).
"""

import re
import shutil
import subprocess

import pytest

from candled.metrics.families import ALL, PER_SYMBOL, PREFIX
from tests.metrics.scrape import running

BASE_UNITS = {
    "amperes",
    "bytes",
    "celsius",
    "grams",
    "joules",
    "kelvin",
    "meters",
    "metres",
    "moles",
    "seconds",
    "volts",
}
OTHER_UNITS = {
    "bits", "days", "degrees", "fahrenheit", "feet", "hours", "inches", "miles", "minutes", "months", "ounces",
    "percent", "pounds", "weeks", "years",
}  # fmt: skip
ABBREVIATIONS = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
SCALES = (
    "pico", "nano", "micro", "milli", "centi", "deci", "deca", "hecto", "kilo", "kibi", "mega", "mebi", "mibi", "giga",
    "gibi", "tera", "tebi", "peta", "pebi",
)  # fmt: skip
TYPES = {"counter", "gauge", "histogram", "summary", "untyped"}
OF_HISTOGRAMS = ("_bucket", "_count", "_sum")


def problems_of(name: str, kind: str, meaning: str, labels: tuple[str, ...] = ()) -> list[str]:
    """Return the rules that a metric breaks."""
    words = name.split("_")
    found = []
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        found.append("snake case")
    if not meaning.strip():
        found.append("help")
    if (kind == "counter") is not name.endswith("_total"):
        found.append("_total")
    if kind != "histogram" and name.endswith(OF_HISTOGRAMS):
        found.append("a suffix of histograms")
    if TYPES & {*words}:
        found.append("the type in the name")
    if ABBREVIATIONS & {*words[1:]}:
        found.append("an abbreviated unit")
    scaled = {word for word in words for scale in SCALES if word.startswith(scale) and word[len(scale) :] in BASE_UNITS}
    if OTHER_UNITS & {*words} or scaled:
        found.append("base units")
    unit = [at for at, word in enumerate(words) if word in BASE_UNITS or word == "ratio"]
    if unit and words[unit[-1] + 1 :] not in ([], ["total"]):
        found.append("the unit last")
    for label in labels:
        if label in ("le", "quantile") or not re.fullmatch(r"[a-z][a-z_]*", label):
            found.append(f"the label {label}")
    if kind == "gauge" and name.endswith("_info") and not labels:
        found.append("information in labels")
    return found


def test_names_keep_the_rules():
    problems = {one.name: problems_of(PREFIX + one.name, one.kind, one.meaning, one.labels) for one in ALL}
    assert {name: found for name, found in problems.items() if found} == {}
    known = {one.name: LABELS | ({"symbol"} if one in PER_SYMBOL else set()) for one in ALL}
    assert {one.name for one in ALL if not known[one.name].issuperset(one.labels)} == set()


# A label multiplies series: of each, the values are few, and none is chosen by a client.
LABELS = {
    "budget", "bus", "cache", "code", "exchange", "file", "host", "plugin", "python", "reason", "result", "roles",
    "route", "state", "status", "store", "token", "type", "use", "version",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "meaning", "problem"),
    [
        ("candled_clients_total", "gauge", "x", "_total"),
        ("candled_clients", "counter", "x", "_total"),
        ("candled_lagSeconds", "gauge", "x", "snake case"),
        ("candled_lag_milliseconds", "gauge", "x", "base units"),
        ("candled_gap_minutes", "gauge", "x", "base units"),
        ("candled_lag_ms", "gauge", "x", "an abbreviated unit"),
        ("candled_lag_seconds", "gauge", " ", "help"),
        ("candled_rows_count", "gauge", "x", "a suffix of histograms"),
        ("candled_lag_histogram", "histogram", "x", "the type in the name"),
        ("candled_seconds_lag", "gauge", "x", "the unit last"),
        ("candled_build_info", "gauge", "x", "information in labels"),
    ],
)
def test_a_breach_is_noticed(name, kind, meaning, problem):
    assert problem in problems_of(name, kind, meaning)


@pytest.mark.usefixtures("daemon")
@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, which comes with Prometheus")
async def test_promtool_has_nothing_to_say(tmp_path):
    async with running(tmp_path, metrics_per_symbol=True) as deployment:
        text = await deployment.scrape()
    own = "\n".join(line for line in text.splitlines() if PREFIX in line) + "\n"
    checked = subprocess.run(["promtool", "check", "metrics"], input=own, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_names_of_symbols_are_labels_only_with_the_setting():
    assert [family.name for family in ALL if "symbol" in family.labels] == [family.name for family in PER_SYMBOL]
