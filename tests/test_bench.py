"""The benchmarks run: each in a tiny form, without a look at the clock."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import NAMES
from tests.serve.peers import echo_harness

pytestmark = pytest.mark.usefixtures("daemon")

ROOT = Path(__file__).parents[1]
TINY = {
    "fanout": ["--clients", "20", "--rounds", "1", "--servers", "candled", "write_message"],
    "tls": ["--clients", "5", "--rounds", "1"],
    "connections": ["memory", "loop", "--clients", "50", "--seconds", "0.3", "--markets", "3"],
    "aggregation": ["--updates", "60", "--runs", "1", "--days", "1"],
    "rooms": ["--runs", "1", "--times", "20"],
    "latency": [
        "--markets", "2", "--pushes", "1", "--rounds", "1", "--settle", "0", "--ways", "through Redis", "relay",
    ],
    "bus": ["--messages", "100", "--markets", "5", "--seconds", "0.2", "--subscribers", "2", "--takeovers", "1"],
    "frames": ["--markets", "3", "--rounds", "1", "--times", "1"],
    "ingest": ["--symbols", "2", "--sources", "replay", "fake", "--seconds", "1", "--settle", "0.5", "--clients", "2"],
    "memory": [
        "--minutes", "0.03", "--speed", "240", "--symbols", "1", "--clients", "1", "--backfill", "1h", "--ladders", "1",
    ],
    "outage": ["--markets", "2", "--pushes", "2", "--rounds", "1", "--away", "3", "--settle", "1"],
    "startup": ["--runs", "1"],
    "http": [
        "--seconds", "0.1", "--rounds", "1", "--limits", "2", "--connections", "2", "--servers", "tornado",
        "--markets", "2", "--clients", "2", "--singles", "20", "--stores", "sqlite", "--pages", "2", "--cached", "2",
    ],
    "fairness": ["--symbols", "2", "--clients", "4", "--connections", "2", "--flooders", "1", "--seconds", "0.3"],
    "abuse": ["--rows", "empty pongs", "a long price", "--clients", "20", "--seconds", "0.5", "--symbols", "2"],
    "sizes": ["tests/data/bitget-usdt-futures-ewzusdt.csv.gz"],
    "scrape": ["--symbols", "2", "--clients", "2", "--scrapes", "2"],
    "refusals": ["--requests", "20", "--rounds", "1"],
    "markets": ["--markets", "10", "--minutes", "130", "--starts", "1", "--settle", "1"],
    "restarts": ["--serving", "2", "--clients", "8", "--markets", "1", "--drain", "0.5", "--settle", "1"],
    "scale": ["--symbols", "2", "--clients", "14", "--stored", "20", "--seconds", "2", "--settle", "0.5"],
}  # fmt: skip
OUTPUT = {
    "sizes": "| PostgreSQL |",
    "fanout": "20 clients, candled",
    "tls": "5 clients, plain",
    "connections": "50 clients, 21 rooms",
    "aggregation": "Aggregator.apply_minute",
    "rooms": "initial of 1000 bars: warm",
    "latency": "2 markets together, through Redis: p50",
    "bus": "takeover from one that stopped in order",
    "frames": "| mexc-usdt | ",
    "ingest": "fake, 2 symbols, 2 clients",
    "memory": "1 symbols, 1 clients",
    "outage": "the database away: p50",
    "startup": "candled check-config: ",
    "http": "| sqlite, a page of 1,000 bars | cold p50",
    "fairness": "| 1 connections of empty pongs | ",
    "abuse": "minutes missing or other than the exchange's: 0",
    "scrape": "| `/metrics` with series of every symbol | ",
    "refusals": "| 404, an unknown path | ",
    "markets": "on demand, from the subscription",
    "restarts": "final bars that differ from a fresh `initial` | ",
    "scale": "14 clients in 14 rooms",
}

# Those that take longest start what the others start too.
RARE = {
    "abuse", "bus", "connections", "fairness", "http", "ingest", "latency", "markets", "memory", "outage", "refusals",
    "restarts", "scale", "scrape", "tls",
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in RARE)) for name in TINY])
def test_a_benchmark_runs_and_says_what_it_measured(name):
    ran = bench(name, *TINY[name])
    assert ran.returncode == 0, ran.stderr
    assert OUTPUT[name] in ran.stdout


async def test_without_a_compiler_there_is_a_load_client_in_python():
    async with echo_harness() as harness:
        command = [
            sys.executable,
            "-m",
            "bench.load",
            "--port",
            str(harness.port),
            "--n",
            "20",
            "--sub",
            "hello",
        ]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        while not (len(harness.clients) == 20 and all(client.messages for client in harness.clients)):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        process.terminate()
        output, _ = await process.communicate()
    counted = json.loads(output)
    assert (counted["opened"], counted["failed"], counted["text"], counted["answers"]) == (20, 0, 20, 20)


def test_every_benchmark_can_be_imported():
    names = ", ".join(f"bench.{name}" for name in NAMES)
    ran = subprocess.run([sys.executable, "-c", f"import {names}"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_an_unknown_benchmark_is_refused_with_the_known_ones():
    ran = bench("speed")
    assert ran.returncode == 2
    assert all(name in ran.stderr for name in NAMES)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
