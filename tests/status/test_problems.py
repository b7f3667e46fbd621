"""The problems of the status page have the names, severities and conditions of the alerts."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.ingest.measures import IngestMeasures
from candled.status.problems import PROBLEMS, ExchangeReadings, Readings, find_problems
from tests.sources import ROOT, read_yaml

[RULES] = read_yaml(ROOT / "deploy" / "prometheus" / "candled.rules.yaml")
# A process that cannot be asked has no page.
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if rule["alert"] != "CandledDown"}


def exchange(measures: dict[str, Any] | None = None, **more: Any) -> dict[str, ExchangeReadings]:
    made = IngestMeasures(feeds=2, connected_feeds=2, compared=100_000)
    for name, value in (measures or {}).items():
        setattr(made, name, value)
    return {"bitget": ExchangeReadings(measures=made, symbols=5, **more)}


# Readings of each problem, and the text that is shown.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "CandledStoreUnavailable": ({"store_state": "rejecting"}, "The database takes no candles"),
    "CandledStoreUnreadable": ({"is_readable": False}, "The database cannot be read"),
    "CandledStoreConflict": ({"conflicts": 1}, "Another daemon uses the same database"),
    "CandledRowsRejected": ({"rejected": 1200}, "refused 1,200 rows"),
    "CandledStoreLosesMinutes": ({"exchanges": exchange(lost=7)}, "lost 7 minutes"),
    "CandledJournalFilling": ({"journal": 0.755}, "The journal is filling: 75.5 %"),
    "CandledBusDown": ({"is_bus_connected": False}, "Redis does not answer"),
    "CandledLeaderSilent": ({"heartbeat_s": 16}, "has sent a heartbeat for 16 s"),
    "CandledFeedDown": ({"exchanges": exchange({"connected_feeds": 1})}, "stream does not answer: 1 of 2 connections"),
    "CandledExchangePaused": ({"exchanges": exchange(pause_s=180)}, "asked for a pause of 3 minutes"),
    "CandledRestDown": ({"exchanges": exchange({"is_rest_available": False})}, "REST API does not answer"),
    "CandledClockWrong": ({"exchanges": exchange({"skew_ms": -2500})}, "differ by 2.5 s"),
    "CandledMinutesMissing": ({"exchanges": exchange({"gap_minutes": {"missing": 6}})}, "6 minutes are missing"),
    "CandledParityLow": ({"exchanges": exchange({"differing": 11})}, "Only 99.98 % of the minutes"),
    "CandledSymbolsUnhealthy": ({"exchanges": exchange(unhealthy=2)}, "Markets with a problem: 2 of 5."),
    "CandledLoopBlocked": ({"late_share": 0.011}, "The event loop is late"),
    "CandledPluginBlocks": ({"blocks": {"bitget": 1}}, "The plugin blocked the event loop"),
    "CandledCertificateExpires": ({"certificate_s": 13 * 86_400}, "expires in 13 days"),
    "CandledCertificateExpired": ({"certificate_s": 0}, "The certificate has expired"),
    "CandledFewDescriptors": ({"descriptors": 0.91}, "91 % of the file descriptors"),
    "CandledClientsFull": ({"connections": 95, "most_connections": 100}, "95 of 100 connections"),
    "CandledWorkRefused": ({"refusals_per_s": 10.5}, "requests a second are refused"),
    "CandledUnhealthy": ({"is_healthy": False}, "/health?verbose"),
}
HARMLESS: list[dict[str, Any]] = [
    {},
    {"journal": 0.5, "heartbeat_s": 15, "late_share": 0.01, "descriptors": 0.9, "refusals_per_s": 10},
    {"connections": 90, "most_connections": 100, "certificate_s": 14 * 86_400, "blocks": {"bitget": 0}},
    {"connections": 10_000},
    {"exchanges": exchange({"skew_ms": 2000, "differing": 10, "gap_minutes": {"missing": 5}}, pause_s=60)},
    {"exchanges": {"bitget": ExchangeReadings(symbols=2)}},
]


def test_each_alert_has_its_problem_with_the_same_severity():
    assert {name: rule["labels"]["severity"] for name, rule in ALERTS.items()} == {
        name: severity for name, (severity, _) in PROBLEMS.items()
    }
    assert CASES.keys() == PROBLEMS.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_problem_is_described_in_a_sentence(name):
    readings, text = CASES[name]
    (problem,) = find_problems(Readings(**readings))
    assert (problem.id, problem.severity) == (name, PROBLEMS[name][0])
    assert text in problem.text
    assert problem.text.endswith(".")
    assert "{" not in problem.text
    assert bool(problem.subject) is ("exchanges" in readings or "blocks" in readings)


@pytest.mark.parametrize("readings", HARMLESS)
def test_at_its_limit_nothing_is_a_problem(readings):
    assert find_problems(Readings(exchanges=exchange()) if not readings else Readings(**readings)) == []


@given(st.sets(st.sampled_from(sorted(CASES.keys() - {"CandledUnhealthy"})), min_size=1))
def test_problems_do_not_hide_one_another_and_critical_ones_come_first(names):
    readings = Readings(is_healthy=False)
    exchanges: dict[str, ExchangeReadings] = {}
    names -= {"CandledCertificateExpires"} if "CandledCertificateExpired" in names else set()
    for name in names:
        given = dict(CASES[name][0])
        if "exchanges" in given:
            exchanges[name] = given.pop("exchanges")["bitget"]
        readings = replace(readings, **given)
    found = find_problems(replace(readings, exchanges=exchanges))
    assert sorted(one.id for one in found) == sorted(names)
    severities = [one.severity for one in found]
    assert severities == sorted(severities)
