"""Runs the benchmarks: `python -m bench` all of them, `python -m bench NAME …` one, with its arguments."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "fanout", "connections", "rooms", "aggregation", "latency", "bus", "frames", "ingest", "memory", "scale",
    "store_sqlite", "store_postgres", "journal", "outage", "startup", "http", "fairness", "scrape", "abuse",
    "refusals", "tls", "workers", "restarts", "markets", "sizes",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """List what there is, or run; return the worst exit status. Each benchmark has a process of its own."""
    if arguments and arguments[0] not in NAMES:
        print(f"no benchmark {arguments[0]}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if arguments:
        return run(*arguments)
    print("\n".join(f"{name}: {first_sentence(name)}" for name in NAMES))
    return max(run(name) for name in NAMES)


def first_sentence(name: str) -> str:
    """What a benchmark says of itself."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text("utf-8"))) or ""
    return text.splitlines()[0]


def run(name: str, *arguments: str) -> int:
    """Run one; return its exit status."""
    print(f"\n== {name}", flush=True)
    return subprocess.run([sys.executable, "-m", f"bench.{name}", *arguments], cwd=HERE.parent, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
