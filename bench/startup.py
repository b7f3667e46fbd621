"""The time that commands need to start, as a ratio to an interpreter that does nothing.

    python -m bench.startup [--runs 20]

Each round starts `python -c pass` and then every command once. Processor time counts, which depends little on other
work on the machine. `check-config` reads the settings, the plugins and the store's address, and constructs the
exchanges, as the daemon does before it connects.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from bench.process import ROOT, spread

COMMANDS = ("--version", "--help", "check-config")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args(arguments)
    nothing: list[float] = []
    ratios: dict[str, list[float]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as empty:
        for command in COMMANDS:
            start("-m", "candled", command, folder=empty)  # compiles what has changed
        for _ in range(options.runs):
            nothing.append(start("-c", "pass", folder=empty))
            for command in COMMANDS:
                ratios[command].append(start("-m", "candled", command, folder=empty) / nothing[-1])
    print(f"python -c pass: {spread([1000 * seconds for seconds in nothing], '.0f')} ms")
    for command in COMMANDS:
        print(f"candled {command}: {spread(ratios[command])} times that")


def start(*arguments: str, folder: str) -> float:
    """Run a process to its end in an empty folder; return its processor time in seconds."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
