"""Whether memory stops growing: the daemon on replay in compressed time, and the bound that it comes to.

    python -m bench.memory [--minutes 5] [--speed 2400] [--symbols 5] [--clients 10]

First the soak: the whole daemon on recorded candles that run `--speed` times as fast as the wall, with clients in its
rooms. Resident memory is read every second. The windows of bars fill in the first half of the run; the growth is the
slope of a straight line through the second half, for each symbol and hour of the market. Then the bound: what the bars
of one market take when every window of every interval is as full as it gets, without clients, and with one that asked
for 1000 bars of each interval.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from decimal import Decimal

from bench.process import MONDAY_MS, Daemon, Process, rss_mib, scratch, symbols
from bench.store_sqlite import candle
from candled.aggregate.aggregator import Aggregator
from candled.aggregate.market_bars import new_aggregator
from candled.model import DEFAULT_INTERVALS, Candle
from candled.protocol.requests import MOST_BARS

RECORDING = "bundled:binance-spot-btcusdt"
ROOMS_PER_CLIENT = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of the wall clock")
    parser.add_argument("--speed", type=float, default=2400.0)
    parser.add_argument("--symbols", type=int, default=5)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--backfill", default="2d")
    parser.add_argument("--ladders", type=int, default=20, help="markets for the mean of the bound")
    options = parser.parse_args(arguments)
    print(bound(options.ladders), flush=True)
    print(soak(options))


# ---------------------------------------------------------------- the soak


def soak(options: argparse.Namespace) -> str:
    """Run the daemon for `--minutes`; return what came of its memory."""
    names = symbols(options.symbols)
    replay = {"symbols": names, "files": {"*": RECORDING}, "speed": options.speed}
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch())
        daemon = Daemon(directory, {"replay": replay}, MONDAY_MS, ingest={"backfill": options.backfill})
        stack.enter_context(daemon).wait_until_answering(30.0)
        crowd = [str(daemon.port), str(options.clients), str(ROOMS_PER_CLIENT), *names]
        clients = stack.enter_context(Process("bench.clients", *crowd, directory=directory))
        samples = sampled(daemon, options.minutes * 60, options.speed)
        clients.check()
        bars = daemon.get("/health/ws-stats")["aggregator"]["oneMinuteCandlesCount"]
    return report(samples, options, bars)


def sampled(daemon: Daemon, seconds: float, speed: float) -> list[tuple[float, float]]:
    """Hours of the market that passed, and resident MiB, every second; eight times in a shorter run."""
    samples = []
    started = time.monotonic()
    while (passed_s := time.monotonic() - started) < seconds:
        daemon.check()
        samples.append((passed_s * speed / 3600, daemon.rss_mib()))
        time.sleep(min(1.0, seconds / 8))
    return samples


def report(samples: Sequence[tuple[float, float]], options: argparse.Namespace, bars: int) -> str:
    """The figures in words."""
    second_half = samples[len(samples) // 2 :]
    hours, memory = zip(*second_half, strict=True)
    slope_mib, _ = statistics.linear_regression(hours, memory)
    marks = " → ".join(f"{samples[round(part * (len(samples) - 1) / 4)][1]:.0f}" for part in range(5))
    return (
        f"{options.symbols} symbols, {options.clients} clients, {samples[-1][0]:.0f} hours of the market in "
        f"{options.minutes:g} minutes: {marks} MiB at each quarter, at most {max(mib for _, mib in samples):.0f}; "
        f"second half: {1024 * slope_mib / options.symbols:+.2f} KiB a symbol and hour; "
        f"{bars} 1-minute candles in memory at the end"
    )


# ---------------------------------------------------------------- the bound


def bound(count: int) -> str:
    """MiB of one market's bars when all windows are full."""
    few = full_mib(count, lambda: new_aggregator(DEFAULT_INTERVALS))
    many = full_mib(count, asked_for_all)
    return f"the bars of one market, all windows full: {few:.1f} MiB, with all of them asked for {many:.1f} MiB"


def asked_for_all() -> Aggregator:
    """An aggregator whose clients requested the most bars of every interval."""
    aggregator = new_aggregator(DEFAULT_INTERVALS)
    for interval in aggregator.levels:
        aggregator.series_of(interval).grow_capacity(MOST_BARS)
    return aggregator


def full_mib(count: int, make: Callable[[], Aggregator]) -> float:
    """Resident MiB that a full ladder adds to this process."""
    before = rss_mib(os.getpid())
    ladders = [filled(make()) for _ in range(count)]
    return (rss_mib(os.getpid()) - before) / len(ladders)


def filled(aggregator: Aggregator) -> Aggregator:
    """Put bars into every window until it would drop some."""
    for interval in aggregator.levels:
        series = aggregator.series_of(interval)
        start_ms = interval.floor(MONDAY_MS)
        for at in range(series.capacity + series.capacity // 4):
            series.put_bar(of_its_own(candle(at)._replace(open_ms=start_ms + at * interval.ms)))
    return aggregator


def of_its_own(bar: Candle) -> Candle:
    """A copy that shares no number with others, as candles from an exchange do not."""
    return bar._replace(**{name: Decimal(str(getattr(bar, name))) for name in Candle._fields[1:7]})


if __name__ == "__main__":
    main(sys.argv[1:])
