"""Prometheus for tests: it scrapes daemons, and evaluates the rules of deploy/prometheus on a timeline of its own.

Each round of scrapes counts as 30 seconds, however long it takes: an alert that needs half an hour fires after 60
rounds. With `promtool` installed, Prometheus evaluates the same samples, and has to find the same alerts.
"""

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from tests import deadlines
from tests.metrics.promql import NAME, Labels, Scrape, Vector, evaluate, selectors, without
from tests.metrics.scrape import read_series
from tests.sources import ROOT, read_yaml

RULES_FILE = ROOT / "deploy" / "prometheus" / "candled.rules.yaml"
RULES: list[dict[str, Any]] = [rule for group in read_yaml(RULES_FILE)[0]["groups"] for rule in group["rules"]]
INTERVAL_S = 30
_LONGEST_RANGE_S = 3600
_TIMEOUT_S = 1.0
_NAMES = {one.name for rule in RULES for one in selectors(promql_parser.parse(rule["expr"]))}
_LINE = re.compile(rf"^(?:{'|'.join(sorted(_NAMES))})[ {{].*$", re.MULTILINE)

Firing = frozenset[tuple[str, str]]
"""The names of alerts, each with the instance."""


class Target:
    """The internal port of a daemon. One that does not answer is not waited for again until it does."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._asking: asyncio.Future[Any] | None = None
        self._is_away = False

    async def scrape(self) -> str | None:
        """Return `/metrics`; None without an answer."""
        if self._asking is None:
            client = AsyncHTTPClient()
            self._asking = asyncio.ensure_future(
                client.fetch(f"{self._url}/metrics", request_timeout=600, connect_timeout=600)
            )
        until = deadlines.now() + (0.0 if self._is_away else _TIMEOUT_S)
        while not self._asking.done() and deadlines.now() < until:
            await asyncio.wait([self._asking], timeout=0.05)
        self._is_away = not self._asking.done()
        if self._is_away:
            return None
        asked, self._asking = self._asking, None
        try:
            return str(asked.result().body.decode())
        except (OSError, HTTPClientError):
            return None

    async def get(self, path: str) -> str:
        """Return the body of another path of the port, whatever the status."""
        answer = await AsyncHTTPClient().fetch(f"{self._url}{path}", raise_error=False)
        return str(answer.body.decode())

    def close(self) -> None:
        """Wait for no answer."""
        if self._asking is not None:
            self._asking.cancel()


class Prometheus:
    """The targets, by their `instance`, and the alerts."""

    def __init__(self, targets: Mapping[str, Target], *, ignored: frozenset[str] = frozenset()) -> None:
        self.targets = targets
        self._rules = [rule for rule in RULES if rule["alert"] not in ignored]
        self._started_s = time.time()
        self._scrapes: list[Scrape] = []
        self._history: list[Firing] = []
        #: of each rule's elements since when they have been active
        self._active: dict[str, dict[Labels, float]] = {rule["alert"]: {} for rule in self._rules}

    @property
    def firing(self) -> Firing:
        """The alerts that fire after the last round."""
        return self._history[-1]

    @property
    def pending(self) -> Firing:
        """The alerts that fire, or will if nothing changes."""
        return frozenset(map(_identify, (labels for active in self._active.values() for labels in active)))

    async def round(self) -> Firing:
        """Scrape all targets, evaluate all rules, and return the alerts that fire now."""
        texts = await asyncio.gather(*(target.scrape() for target in self.targets.values()))
        samples: dict[str, Vector] = {"up": {}}
        for instance, text in zip(self.targets, texts, strict=True):
            target = {("instance", instance), ("job", "candled")}
            samples["up"][frozenset({(NAME, "up"), *target})] = float(text is not None)
            for (name, labels), value in read_series("\n".join(_LINE.findall(text or "")) + "\n").items():
                samples.setdefault(name, {})[frozenset({(NAME, name), *labels, *target})] = value
        at_s = self._started_s + INTERVAL_S * len(self._scrapes)
        self._scrapes.append(Scrape(at_s, samples))
        recent = self._scrapes[-_LONGEST_RANGE_S // INTERVAL_S - 1 :]
        for rule in self._rules:
            recent[-1] = Scrape(at_s, {**samples, "ALERTS": self._alerts(at_s)})
            self._evaluate(rule, recent)
        firing = (labels for labels in self._alerts(at_s) if ("alertstate", "firing") in labels)
        self._history.append(frozenset(map(_identify, firing)))
        return self.firing

    def _evaluate(self, rule: Mapping[str, Any], scrapes: list[Scrape]) -> None:
        found = evaluate(rule["expr"], scrapes)
        assert isinstance(found, dict), rule["alert"]
        active, at_s = self._active[rule["alert"]], scrapes[-1].at_s
        names = {("alertname", rule["alert"]), *rule["labels"].items()}
        elements = {frozenset({*without(labels, NAME), *names}) for labels in found}
        self._active[rule["alert"]] = {labels: active.get(labels, at_s) for labels in elements}

    def _alerts(self, at_s: float) -> Vector:
        """Return the series `ALERTS`, which Prometheus makes of the alerts."""
        series: Vector = {}
        for rule in self._rules:
            needed_s = promql_parser.parse_duration(rule["for"]).total_seconds() if "for" in rule else 0.0
            for labels, since_s in self._active[rule["alert"]].items():
                state = "firing" if at_s - since_s >= needed_s else "pending"
                series[frozenset({(NAME, "ALERTS"), ("alertstate", state), *labels})] = 1.0
        return series

    def check_with_promtool(self, directory: Path) -> None:
        """Have Prometheus evaluate all rounds too, if it is installed.

        Raises:
            AssertionError: it finds other alerts.
        """
        promtool = shutil.which("promtool")
        if promtool is None:
            return
        rules, test = directory / "rules.yaml", directory / "rules_test.yaml"
        rules.write_text(yaml.safe_dump({"groups": [{"name": "candled", "rules": self._rules}]}), "utf-8")
        document = {
            "rule_files": [str(rules)],
            "evaluation_interval": f"{INTERVAL_S}s",
            "tests": [
                {
                    "interval": f"{INTERVAL_S}s",
                    "input_series": self._input_series(),
                    "promql_expr_test": self._expectations(),
                }
            ],
        }
        test.write_text(yaml.safe_dump(document), "utf-8")
        done = subprocess.run([promtool, "test", "rules", test], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (done.stdout + done.stderr)[:4000]

    def _input_series(self) -> list[dict[str, str]]:
        """Return all samples. promtool's time begins at 0, and so do the times in samples."""
        series = {(name, one) for scrape in self._scrapes for name, vector in scrape.samples.items() for one in vector}
        result = []
        for name, labels in series:
            since_s = self._started_s if name.endswith("_timestamp_seconds") else 0.0
            found = [scrape.samples.get(name, {}).get(labels) for scrape in self._scrapes]
            words = ["stale" if one is None else repr(one - since_s) for one in found]
            result.append({"series": _text(labels), "values": " ".join(words).replace("inf", "Inf")})
        return result

    def _expectations(self) -> list[dict[str, Any]]:
        """Return the alerts of the last round, and around each change."""
        last = len(self._history) - 1
        changes = [number for number in range(1, last + 1) if self._history[number] != self._history[number - 1]]
        rounds = {last, *changes, *(number - 1 for number in changes)}
        return [
            {
                "expr": 'count by (alertname, instance) (ALERTS{alertstate="firing"})',
                "eval_time": f"{INTERVAL_S * number}s",
                "exp_samples": [
                    {"labels": _text(frozenset({("alertname", alert), ("instance", instance)})), "value": 1}
                    for alert, instance in self._history[number]
                ],
            }
            for number in sorted(rounds)
        ]


def _identify(labels: Labels) -> tuple[str, str]:
    values = dict(labels)
    return values["alertname"], values["instance"]


def _text(labels: Labels) -> str:
    """Return a series as PromQL writes it."""
    values = dict(labels)
    name = values.pop(NAME, "")
    return name + "{" + ", ".join(f'{key}="{value}"' for key, value in sorted(values.items())) + "}"
