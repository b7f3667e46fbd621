"""Requests a second of `candled --workers`: one serve process compared with two on the same port.

    python -m bench.workers [--workers 1 2] [--seconds 5] [--rounds 3] [--connections 64] [--limit 500]

Each number of workers is a daemon with a PostgreSQL and a Redis of its own, on the replay exchange. The load is `wrk`,
which takes a share of the cores too. The rounds of all daemons alternate.
"""

import argparse
import contextlib
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.http import wrk
from bench.process import UNLIMITED, print_table, scratch, spread
from tests.redis_servers import own_redis
from tests.servers import own_postgres
from tests.system.daemon import Daemon, free_port


class Workers(Daemon):
    """`candled --workers N`."""

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(directory, is_forked=False)  # the supervisor starts its own command line again
        free_port()  # takes the next port for the ingest process
        self.arguments = ("--workers", str(count))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--limit", type=int, default=500)
    options = parser.parse_args(arguments)
    if not shutil.which("wrk"):
        print("wrk is not installed: nothing to measure with")
        return
    with contextlib.ExitStack() as stack:
        daemons = {}
        for count in options.workers:
            directory = stack.enter_context(scratch())
            postgres = own_postgres()
            stack.callback(postgres.remove)
            redis = stack.enter_context(own_redis())
            daemons[count] = stack.enter_context(Workers(directory, count))
            daemons[count].start(
                {
                    "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
                    "ingest": {"backfill": "1d"},
                    "limits": UNLIMITED,
                    "klines": {"enabled": True},
                    "store": {"url": f"postgresql://candled@127.0.0.1:{postgres.port}/postgres", "journal": ""},
                    "bus": {"url": redis.url},
                },
                within_s=60,
            )
        time.sleep(options.seconds)  # the past is being read
        path = f"/api/v3/klines?symbol=BTCUSDT&interval=1m&limit={options.limit}"
        rates: dict[int, list[float]] = {}
        for _ in range(options.rounds):
            for count, daemon in daemons.items():
                rates.setdefault(count, []).append(wrk(options.connections, options.seconds, daemon.port, path))
        base = statistics.median(rates[options.workers[0]])
        print_table(
            [
                f"{options.connections} connections, {options.limit} bars",
                "requests a second",
                "compared with the first",
            ],
            [
                [f"serve processes: {count}", spread(found, ",.0f"), f"{statistics.median(found) / base:.2f}"]
                for count, found in rates.items()
            ],
        )


if __name__ == "__main__":
    sys.exit(main())
