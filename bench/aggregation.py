"""Folding minutes into longer bars: one update in memory, a year from nothing, and what a bar in memory takes.

    python -m bench.aggregation [--updates 20000] [--runs 5] [--days 365]

`Aggregator.apply_minute` updates the forming bars of six longer intervals, exactly, as a minute grows. The first
alternative folds each forming bar from its minutes again, with the same exact decimals; the second asks polars'
`group_by_dynamic`, in binary floats, which are not exact. Polars is measured where it is installed
(`pip install polars`). A bar in memory is compared with the candle object that it comes from and goes to.
"""

import argparse
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from bench.memory import of_its_own
from bench.process import MONDAY_MS, seconds, spread
from bench.store_sqlite import candle
from candled.aggregate.aggregator import Aggregator
from candled.aggregate.series import Series
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Candle, Interval, fold, sources

KEPT_BARS = 1001  # as candled.aggregate.live_bars keeps them
LONGER = tuple(interval for interval in DEFAULT_INTERVALS if interval > MINUTE)
SUNDAY_EVENING = 7 * 1440 - 240  # minutes of the week: the running 1D and 1W are nearly full
MOST_FED = 30 * 1440  # minutes one by one
MOST_MEASURED = 10_000  # bars whose memory is counted
UPDATES_A_MINUTE = 60
_POLARS_NAMES = {"1D": "1d", "1W": "1w"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.aggregation", description=__doc__)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--days", type=int, default=365)
    options = parser.parse_args(arguments)
    measure_updates(options.updates, options.runs)
    measure_rebuild(options.days * 1440, options.runs)
    measure_memory(min(options.days * 1440, MOST_MEASURED))


def minute(at: int) -> Candle:
    """Minute `at` of the market, final."""
    return candle(at)._replace(open_ms=MONDAY_MS + at * MINUTE_MS, as_of_ms=MONDAY_MS + (at + 1) * MINUTE_MS)


def growing(first: int, updates: int) -> Iterator[Candle]:
    """Minutes from `first` on, each in so many versions as it has seconds; every version changes every longer bar."""
    for number in range(updates):
        at, second = divmod(number, UPDATES_A_MINUTE)
        whole = minute(first + at)
        share = (whole.volume + 1) * (second + 1) / UPDATES_A_MINUTE
        yield whole._replace(volume=share.quantize(whole.volume), as_of_ms=whole.open_ms + 1000 * second, final=False)


# ---------------------------------------------------------------- one update


def measure_updates(updates: int, runs: int) -> None:
    """Microseconds per update of a running minute, late in a week."""
    versions = list(growing(SUNDAY_EVENING, updates))
    few = versions[: max(1, updates // 1000)]
    candled_took, again, polars = [], [], []
    for _ in range(runs):
        aggregator, week = seeded_aggregator(), [minute(at) for at in range(SUNDAY_EVENING)]
        changed = 0

        def feed(aggregator: Aggregator = aggregator) -> None:
            nonlocal changed
            for version in versions:
                changed += len(aggregator.apply_minute(version) or ())

        candled_took.append(seconds(feed) / updates * 1e6)
        assert changed == updates * len(DEFAULT_INTERVALS), changed
        again.append(seconds(lambda week=week: recompute(week, few)) / len(few) * 1e6)
        if find_spec("polars"):
            polars.append(polars_update_s(week) * 1e6)
    print(f"one update, {len(LONGER)} longer intervals, microseconds: Aggregator.apply_minute {spread(candled_took)}")
    print(f"  folding the running bars from their minutes again: {spread(again, ',.0f')}, {ratio(again, candled_took)}")
    if polars:
        print(
            f"  polars group_by_dynamic over the running week: {spread(polars, ',.0f')}, {ratio(polars, candled_took)}"
        )


def seeded_aggregator() -> Aggregator:
    """A aggregator on a Sunday evening, as after a restart: the newest bars of every level came from the store."""
    aggregator = Aggregator(DEFAULT_INTERVALS, KEPT_BARS)
    for interval, bars in rebuilt([minute(at) for at in range(SUNDAY_EVENING)]).items():
        count = aggregator.parts_needed(interval, 120)
        newest = bars[-count:]
        aggregator.seed_bars(interval, newest, newest[0].open_ms if len(newest) == count else 0)
    return aggregator


def recompute(week: list[Candle], versions: Sequence[Candle]) -> None:
    """Fold every running bar from all of its minutes, for each version."""
    for version in versions:
        now_ms = version.open_ms
        for interval in LONGER:
            start_ms = interval.floor(now_ms)
            first = max(0, len(week) - (now_ms - start_ms) // MINUTE_MS)
            fold([*week[first:], version], start_ms)


def polars_update_s(week: Sequence[Candle]) -> float:
    """Seconds for the running bars of all longer intervals from a frame of the week's minutes."""
    frame = polars_frame(week)
    return seconds(lambda: [polars_bars(frame, interval).tail(1) for interval in LONGER])


# ---------------------------------------------------------------- a year


def measure_rebuild(minutes: int, runs: int) -> None:
    """From 1-minute candles to all bars of the longer intervals."""
    year = [minute(at) for at in range(minutes)]
    part = year[:MOST_FED]
    candled_took, fed, plain, polars = [], [], [], []
    for _ in range(runs):
        candled_took.append(seconds(lambda: rebuilt(year)))
        aggregator = Aggregator(DEFAULT_INTERVALS, KEPT_BARS)
        took = seconds(lambda aggregator=aggregator: [aggregator.apply_minute(one) for one in part])
        fed.append(took * len(year) / len(part))
        plain.append(seconds(lambda: [bucketed(year, MINUTE, interval) for interval in LONGER]))
        if find_spec("polars"):
            frame = polars_frame(year)
            polars.append(seconds(lambda frame=frame: [polars_bars(frame, interval) for interval in LONGER]))
    print(f"{minutes:,} minutes into {len(LONGER)} longer intervals, ms: each from the next shorter {ms(candled_took)}")
    print(f"  minute by minute through Aggregator.apply_minute: {ms(fed)}, {ratio(fed, candled_took)}")
    print(f"  each from the minutes: {ms(plain)}, {ratio(plain, candled_took)}")
    if polars:
        print(f"  polars group_by_dynamic, binary floats: {ms(polars)}, {ratio(polars, candled_took)}")


def rebuilt(minutes: list[Candle]) -> dict[Interval, list[Candle]]:
    """All bars of all intervals, each folded from the next shorter one."""
    bars = {MINUTE: minutes}
    for interval, source in sources(DEFAULT_INTERVALS).items():
        bars[interval] = bucketed(bars[source], source, interval)
    return bars


def bucketed(parts: Sequence[Candle], source: Interval, interval: Interval) -> list[Candle]:
    """Parts without a gap into the bars of an interval."""
    buckets: dict[int, list[Candle]] = {}
    for part in parts:
        buckets.setdefault(interval.floor(part.open_ms), []).append(part)
    whole = interval.ms // source.ms
    return [fold(some, open_ms, final=len(some) == whole) for open_ms, some in buckets.items()]


# ---------------------------------------------------------------- memory


def measure_memory(bars: int) -> None:
    """Bytes of a bar in a series beside those of the candle object, and what it costs to go in and to come out."""
    candles = [of_its_own(minute(at)) for at in range(bars)]
    objects = traced(lambda: [of_its_own(one) for one in candles])
    packed = traced(lambda: series_of(candles))
    series = series_of(candles)
    put = seconds(lambda: series_of(candles)) / bars * 1e6
    tail = seconds(lambda: series.newest_bars(bars, 0)) / bars * 1e6
    print(
        f"a bar in memory, of {bars:,}: {packed / bars:.0f} bytes; as a candle with its decimals {objects / bars:.0f}, "
        f"{objects / packed:.1f} times as much; in {put:.1f}, out {tail:.1f} microseconds"
    )


def series_of(candles: Sequence[Candle]) -> Series:
    """A series of all the candles."""
    series = Series(MINUTE, None, len(candles))
    for one in candles:
        series.put_bar(one)
    return series


def traced(make: Callable[[], object]) -> int:
    """Bytes that Python allocated for what is made."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    made = make()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return after - before


# ---------------------------------------------------------------- polars


def polars_frame(candles: Sequence[Candle]) -> Any:
    """The candles as a frame of binary floats."""
    import polars as pl

    columns = ("open", "high", "low", "close", "volume", "quote_volume")
    rows = {name: [float(getattr(one, name)) for one in candles] for name in columns}
    times = [datetime.fromtimestamp(one.open_ms / 1000, UTC).replace(tzinfo=None) for one in candles]
    return pl.DataFrame({"time": times, **rows}).set_sorted("time")


def polars_bars(frame: Any, interval: Interval) -> Any:
    """All bars of an interval."""
    import polars as pl

    return frame.group_by_dynamic("time", every=_POLARS_NAMES.get(str(interval), str(interval))).agg(
        pl.col("open").first(),
        pl.col("high").max(),
        pl.col("low").min(),
        pl.col("close").last(),
        pl.col("volume").sum(),
        pl.col("quote_volume").sum(),
    )


# ---------------------------------------------------------------- printing


def ms(values: Sequence[float]) -> str:
    """Seconds as milliseconds."""
    return spread([1000 * value for value in values], ",.0f")


def ratio(other_took: Sequence[float], candled_took: Sequence[float]) -> str:
    """How many times as long the alternative takes, of the medians."""
    return (
        f"{sorted(other_took)[len(other_took) // 2] / sorted(candled_took)[len(candled_took) // 2]:.2f} times as long"
    )


if __name__ == "__main__":
    main()
