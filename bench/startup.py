"""How long commands take to start, as a ratio to an interpreter that does nothing.

    python -m bench.startup [--runs 20]

Each round starts `python -c pass` and then every command once, so that other work on the machine slows all of them
alike. `check-config` reads the settings, plugins, the exchanges and the store's address, as the daemon does before
it connects.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
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
    """Run a process to its end in an empty folder; return the seconds."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
