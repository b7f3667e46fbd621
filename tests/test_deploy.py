"""The files of deploy/: read by their own tools where those are installed, and compared with candled."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from candled.config import load
from candled.metrics.families import ALL, PREFIX
from candled.plugins import discover
from candled.transport.library_internals import certificate_end
from tests.metrics.promql import selectors
from tests.sources import ROOT, read, read_yaml
from tests.system.daemon import Daemon

DEPLOY = ROOT / "deploy"
ALERTS_PAGE = ROOT / "docs" / "how-to" / "alerts.md"
MANIFESTS = [one for one in read_yaml(DEPLOY / "kubernetes" / "candled.yaml") if one]
[COMPOSE] = read_yaml(DEPLOY / "docker" / "compose.yaml")
RULES = [
    rule for group in read_yaml(DEPLOY / "prometheus" / "candled.rules.yaml")[0]["groups"] for rule in group["rules"]
]
PANELS = [one for one in json.loads(read(DEPLOY / "grafana" / "candled.json"))["panels"] if one["type"] != "row"]
OTHER_METRICS = {  # of Prometheus, and of prometheus-client
    "up": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate"},
    "process_open_fds": set(),
    "process_max_fds": set(),
    "process_cpu_seconds_total": set(),
    "process_resident_memory_bytes": set(),
}
TARGET_LABELS = {"job", "instance"}


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip(f"needs {name}")


# ---------------------------------------------------------------- Prometheus and Grafana


def wrong_selectors(expression: str) -> list[str]:
    """The metrics and labels of an expression that candled does not have."""
    known = {f"{PREFIX}{one.name}": set(one.labels) for one in ALL} | OTHER_METRICS
    for one in ALL:
        if one.kind == "histogram":
            known[f"{PREFIX}{one.name}_bucket"] = {*one.labels, "le"}
    found = selectors(promql_parser.parse(expression))
    assert found, expression
    wrong = [one.name for one in found if one.name not in known]
    for one in found:
        labels = {matcher.name for matcher in one.matchers.matchers}
        wrong += sorted(labels - known.get(one.name, set()) - TARGET_LABELS)
    return wrong


def test_a_wrong_metric_or_label_is_noticed():
    assert wrong_selectors('sum(rate(candled_nothing{job="x"}[5m])) > abs(up)') == ["candled_nothing"]
    assert wrong_selectors('candled_db_state{status="ok"} == 0') == ["status"]


def test_each_alert_reads_metrics_that_exist_and_has_all_that_an_operator_needs():
    for rule in RULES:
        assert wrong_selectors(rule["expr"]) == [], rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/how-to/alerts.md#{rule['alert'].lower()}"
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        family = next(one for one in ALL if PREFIX + one.name in rule["expr"]) if PREFIX in rule["expr"] else None
        assert labels <= {*(family.labels if family else ()), *TARGET_LABELS}, rule["alert"]


def test_the_page_of_alerts_has_a_paragraph_for_each_and_no_other():
    headings = re.findall(r"^### (\w+)$", read(ALERTS_PAGE), re.MULTILINE)
    assert headings == [rule["alert"] for rule in sorted(RULES, key=lambda rule: headings.index(rule["alert"]))]
    assert len(set(headings)) == len(RULES)


def test_each_panel_of_the_dashboard_reads_metrics_that_exist():
    for panel in PANELS:
        for target in panel["targets"]:
            assert wrong_selectors(target["expr"].replace("$instance", ".*")) == [], panel["title"]
            assert target["datasource"]["uid"] == "${datasource}"
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.usefixtures("daemon")
def test_prometheus_reads_the_rules_and_the_settings():
    [settings] = read_yaml(DEPLOY / "prometheus" / "prometheus.yaml")
    assert settings["rule_files"] == ["candled.rules.yaml"]
    assert [job["job_name"] for job in settings["scrape_configs"]] == ["candled"]  # the alerts select it
    done = subprocess.run(
        [tool("promtool"), "check", "rules", DEPLOY / "prometheus" / "candled.rules.yaml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- the failures to practise


def drills() -> list[str]:
    """Return the commands of the page's table of failures."""
    table = read(ROOT / "docs" / "how-to" / "operations.md").partition("## Practise failures")[2]
    return re.findall(r"^\| [^|]+ \| `([^`]+)`", table, re.MULTILINE)


@pytest.mark.usefixtures("daemon")
def test_the_shell_reads_the_commands_of_the_drills(tmp_path):
    commands = drills()
    assert len(commands) == 9
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    (certificate,) = (command for command in commands if command.startswith("openssl"))
    tool("openssl")
    subprocess.run(["bash", "-c", certificate], cwd=tmp_path, check=True, capture_output=True)
    expires_s = certificate_end(str(tmp_path / "fullchain.pem")) - time.time()
    assert 9 * 86_400 < expires_s < 14 * 86_400  # soon enough for the alert


# ---------------------------------------------------------------- systemd


@pytest.mark.usefixtures("daemon")
def test_systemd_reads_the_unit_and_finds_it_safe():
    unit = DEPLOY / "systemd" / "candled.service"
    analyze = tool("systemd-analyze")
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True)
    others = [
        line for line in done.stderr.splitlines() if "is not executable" not in line and "candled.service" in line
    ]
    assert others == []
    done = subprocess.run([analyze, "security", "--offline=true", unit], capture_output=True, text=True)
    level = re.search(r"Overall exposure level for candled.service: ([0-9.]+)", done.stdout)
    assert level, done.stderr
    assert float(level[1]) <= 1.5  # of 10


# ---------------------------------------------------------------- Docker


@pytest.mark.usefixtures("daemon")
def test_hadolint_finds_nothing_in_the_dockerfile():
    done = subprocess.run([tool("hadolint"), DEPLOY / "docker" / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_gets_all_that_its_build_reads_and_nothing_else():
    kept = {line[1:] for line in read(DEPLOY / "docker" / "Dockerfile.dockerignore").splitlines() if line[:1] == "!"}
    packages = {"candled", "plugins", "clients"}  # of setup.py
    files = set(re.findall(r'HERE / "(\w+\.\w+)"', read(ROOT / "setup.py")))
    assert files
    assert kept == packages | files | {"setup.py", "pyproject.toml", "LICENSE", "constraints.txt"}
    assert all((ROOT / name).exists() for name in kept)


def healthcheck() -> list[str]:
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*\])", read(DEPLOY / "docker" / "Dockerfile"))
    assert found
    return [sys.executable, *json.loads(found[1])[1:]]


@pytest.mark.usefixtures("daemon")
def test_the_health_check_of_the_image_follows_the_daemon(tmp_path):
    store = {"url": f"sqlite:///{tmp_path}/candled.db"}
    with Daemon(tmp_path) as daemon:
        daemon.start({"exchanges": {"replay": {"symbols": ["BTC/USDT"]}}, "store": store})
        environment = {**os.environ, "CANDLED_SERVER__PORT": str(daemon.port)}
        assert subprocess.run(healthcheck(), env=environment, timeout=60).returncode == 0
        daemon.stop()
        assert subprocess.run(healthcheck(), env=environment, timeout=60, stderr=subprocess.DEVNULL).returncode != 0


def test_the_services_of_compose_are_bounded_and_candled_takes_its_settings(tmp_path):
    assert {"candled", "database", "redis"} == set(COMPOSE["services"])
    candled = COMPOSE["services"]["candled"]
    assert candled["depends_on"].keys() == {"database", "redis"}
    assert all("healthcheck" in COMPOSE["services"][name] for name in candled["depends_on"])
    assert (candled["read_only"], candled["cap_drop"]) == (True, ["ALL"])
    mounted = {one.split(":")[0] for one in candled["volumes"]} - {"./candled.yaml"}
    assert mounted <= COMPOSE["volumes"].keys()
    assert (DEPLOY / "docker" / candled["build"]["context"]).resolve() == ROOT
    environment = {name: re.sub(r"\$\{.*?\}", "secret", value) for name, value in candled["environment"].items()}
    config = load(DEPLOY / "docker" / "candled.yaml", environment, discover())
    assert config.store.journal.startswith("/var/lib/candled/")  # a volume, which outlives the container


# ---------------------------------------------------------------- Kubernetes


def of_kind(kind: str) -> list[Any]:
    return [one for one in MANIFESTS if one["kind"] == kind]


def test_the_manifests_match_the_schemas_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate")
    for manifest in MANIFESTS:
        validate.validate(manifest, validate.latest_version(), strict=True)


@pytest.mark.parametrize("workload", ["candled-ingest", "candled-serve"])
def test_a_pod_gets_settings_that_candled_takes_and_probes_that_it_answers(workload, tmp_path):
    (one,) = (one for one in MANIFESTS if one["metadata"]["name"] == workload and "template" in one.get("spec", {}))
    pod = one["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    path = tmp_path / "candled.yaml"
    path.write_text(of_kind("ConfigMap")[0]["data"]["candled.yaml"], "utf-8")
    environment = {each["name"]: each["value"] for each in container["env"]} | of_kind("Secret")[0]["stringData"]
    config = load(path, environment, discover())
    assert config.roles == (workload.removeprefix("candled-"),)
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": config.server.port, "internal": config.server.internal_port}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"internal"}
    assert [probe["path"] for probe in probes.values()] == ["/livez", "/livez", "/readyz"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        *(volume["name"] for volume in pod["volumes"]),
        *(claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", ())),
    }
    labels = one["spec"]["template"]["metadata"]["labels"]
    assert one["spec"]["selector"]["matchLabels"] == labels
    assert labels in [budget["spec"]["selector"]["matchLabels"] for budget in of_kind("PodDisruptionBudget")]
    assert labels in [service["spec"]["selector"] for service in of_kind("Service")]


def test_an_update_never_stops_the_last_process_that_serves():
    (deployment,) = of_kind("Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
