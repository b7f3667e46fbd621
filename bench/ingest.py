"""What the whole daemon costs at one update a second for every symbol: processor and memory, with clients in the rooms.

    python -m bench.ingest [--symbols 200 1000] [--sources replay fake] [--seconds 60] [--clients 50]

The daemon, the exchange and the clients are processes of their own. The processor time is the daemon's, of all its
threads, in windows of 5 seconds after warm-up; 100 % is one core.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.process import MONDAY_MS, Daemon, Process, every, scratch, spread, symbols
from candled.model import MINUTE_MS
from tests.system.daemon import free_port

ROOMS_PER_CLIENT = 4
WINDOW_S = 5.0
STARTED_MS = MONDAY_MS + 120 * MINUTE_MS  # the backfill of an hour ends where the week begins
RECORDING = "bundled:binance-spot-btcusdt"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    for source in options.sources:
        for count in options.symbols:
            with contextlib.ExitStack() as stack:
                measure(source, count, options, stack)


def measure(source: str, count: int, options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    """One daemon with one exchange."""
    directory = stack.enter_context(scratch())
    exchanges = _exchange(source, count, directory, stack)
    daemon = stack.enter_context(Daemon(directory, exchanges, STARTED_MS, ingest={"backfill": "1h"}))
    warm_s = daemon.wait_until_complete(30.0 + count)
    time.sleep(options.settle)
    window_s = min(WINDOW_S, options.seconds)
    idle = every(window_s, 1, daemon.cpu_s)
    clients = [str(daemon.port), str(options.clients), str(ROOMS_PER_CLIENT), *symbols(count)]
    crowd = stack.enter_context(Process("bench.clients", *clients, directory=directory))
    time.sleep(options.settle)
    memory = daemon.rss_mib()
    shares = [100 * share for share in every(window_s, round(options.seconds / window_s), daemon.cpu_s)]
    while "\n" not in crowd.log.read_text():  # it writes a line a second
        crowd.check()
        time.sleep(0.1)
    updates = [int(line) for line in crowd.log.read_text().split()][-round(options.seconds) :]
    print(
        f"{source}, {count} symbols, {options.clients} clients: {spread(shares)} % of a core "
        f"({100 * idle[0]:.1f} % without clients), mean {statistics.fmean(shares):.1f} %; "
        f"{memory:.0f} → {daemon.rss_mib():.0f} MiB; "
        f"{statistics.fmean(updates):.0f} updates a second to the clients; complete {warm_s:.1f} s after the start",
        flush=True,
    )


def _exchange(source: str, count: int, directory: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    if source == "replay":
        return {"replay": {"symbols": symbols(count), "files": {"*": RECORDING}, "speed": 1}}
    port = free_port()
    stack.enter_context(Process("bench.fake_exchange", str(port), str(count), str(STARTED_MS), directory=directory))
    urls = {"ws_url": f"ws://127.0.0.1:{port}/v2/ws/public", "rest_url": f"http://127.0.0.1:{port}"}
    return {"bitget": {"symbols": symbols(count), **urls}}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__)
    parser.add_argument("--symbols", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--sources", nargs="+", choices=["replay", "fake"], default=["replay", "fake"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--settle", type=float, default=20.0, help="seconds to wait when gaps are filled, and clients in"
    )
    parser.add_argument("--clients", type=int, default=50)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
