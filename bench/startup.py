"""The time that commands need to start, as a ratio to an interpreter that does nothing.

    python -m bench.startup [--runs 20]

Each round starts `python -c pass` and then every command once. Processor time counts, which depends little on other
work on the machine. `check-config` reads the settings, the plugins and the store's address, and constructs the
exchanges, as the daemon does before it connects. The daemon creates a SQLite store; its exchange is unreachable. Its
processor time counts until it answers `/health/live`.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import yaml

from bench.process import ROOT, Process, spread
from tests.system.daemon import free_port

COMMANDS = ("--version", "--help", "check-config")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args(arguments)
    nothing: list[float] = []
    ratios: dict[str, list[float]] = {command: [] for command in (*COMMANDS, "daemon")}
    with tempfile.TemporaryDirectory() as empty:
        for command in COMMANDS:
            start("-m", "candled", command, folder=empty)  # compiles what has changed
        for _ in range(options.runs):
            nothing.append(start("-c", "pass", folder=empty))
            for command in COMMANDS:
                ratios[command].append(start("-m", "candled", command, folder=empty) / nothing[-1])
            ratios["daemon"].append(start_daemon() / nothing[-1])
    print(f"python -c pass: {spread([1000 * seconds for seconds in nothing], '.0f')} ms")
    for command, found in ratios.items():
        print(f"candled {command}: {spread(found)} times that")


def start(*arguments: str, folder: str) -> float:
    """Run a process to its end in an empty folder; return its processor time in seconds."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_daemon(within_s: float = 60.0) -> float:
    """Start a daemon in an empty folder, and end it; return its processor time until it answers, in seconds.

    Raises:
        RuntimeError: it ended, or did not answer within `within_s` seconds.
    """
    port, closed = free_port(), free_port()
    exchange = {
        "symbols": ["BTC/USDT"],
        "ws_url": f"ws://127.0.0.1:{closed}/ws",
        "rest_url": f"http://127.0.0.1:{closed}",
    }
    settings = {"server": {"host": "127.0.0.1", "port": port}, "exchanges": {"bitget": exchange}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "candled.yaml").write_text(yaml.safe_dump(settings), "utf-8")
        with Process("candled", "--config", "candled.yaml", directory=folder) as daemon:
            deadline = time.monotonic() + within_s
            while time.monotonic() < deadline:
                daemon.check()
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=5):
                        return daemon.cpu_s()
                except OSError:
                    time.sleep(0.005)
    raise RuntimeError(f"no answer within {within_s:.0f} s")


if __name__ == "__main__":
    main()
