"""The daemon on a clock that was set: a run on any day of the week begins with the same amount of history.

python -m bench.shifted_daemon FILE START_MS
"""

import os
import sys
from pathlib import Path

from candled import config
from candled.app import run
from candled.plugins import discover
from tests.clocks import ScaledClock


def main(path: Path, start_ms: int) -> int:
    """Run until SIGTERM; return the exit status."""
    plugins = discover()
    return run(config.load(path, os.environ, plugins), plugins, ScaledClock(start_ms=start_ms))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
