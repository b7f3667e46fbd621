"""The benchmarks run: each in a tiny form, without a look at the clock."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import NAMES

ROOT = Path(__file__).parents[1]
TINY = {
    "aggregation": ["--updates", "60", "--runs", "1", "--days", "1"],
    "rooms": ["--runs", "1", "--times", "20"],
    "latency": ["--markets", "2", "--pushes", "1"],
    "bus": ["--messages", "100", "--markets", "5", "--seconds", "1", "--subscribers", "2", "--takeovers", "1"],
    "ingest": ["--symbols", "2", "--sources", "replay", "fake", "--seconds", "2", "--settle", "1", "--clients", "2"],
    "memory": ["--minutes", "0.1", "--symbols", "1", "--clients", "1", "--backfill", "1h"],
    "outage": ["--markets", "2", "--pushes", "2", "--rounds", "1"],
    "scale": ["--symbols", "2", "--clients", "14", "--held", "20", "--seconds", "2", "--settle", "1"],
}
SAYS = {
    "aggregation": "Ladder.feed",
    "rooms": "initial of 1000 bars: warm",
    "latency": "2 markets at once, daemon: p50",
    "bus": "takeover from one that stopped in order",
    "ingest": "fake, 2 symbols, 2 clients",
    "memory": "1 symbols, 1 clients",
    "outage": "the database away: p50",
    "scale": "14 clients in 14 rooms",
}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_and_says_what_it_measured(name):
    ran = bench(name, *TINY[name])
    assert ran.returncode == 0, ran.stderr
    assert SAYS[name] in ran.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_imported(name):
    ran = subprocess.run([sys.executable, "-c", f"import bench.{name}"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_an_unknown_benchmark_is_refused_with_the_known_ones():
    ran = bench("speed")
    assert ran.returncode == 2
    assert all(name in ran.stderr for name in NAMES)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
