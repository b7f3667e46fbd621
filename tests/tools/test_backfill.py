"""`candled backfill` against the fake Bitget and a real SQLite file."""

import asyncio
import json
import os
import resource
import signal
import sys
import tracemalloc
from pathlib import Path

import pytest
import yaml

from candled.errors import ConfigError
from candled.model import DEFAULT_INTERVALS, MINUTE_MS, WEEK, Range
from candled.store.postgres.store import PostgresStore
from candled_plugins.bitget.exchange import Bitget
from tests.clocks import FairScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.tapes import Synthetic
from tests.servers import Database, shared_postgres
from tests.system.daemon import ROOT
from tests.system.rig import Rig
from tests.tools.command import prepare
from tests.tools.exchange import BTC, MARKET, NOON_MS, Bench, at, bench, iso, values


@pytest.mark.slow
async def test_every_minute_is_fetched_newest_first_and_nothing_is_asked_for_twice(tmp_path, capsys):
    async with bench(tmp_path) as one:
        assert await one.run("backfill", "BTC/USDT", "--from", iso(at(-6))) == 0
        stored = one.stored()
        assert values(stored) == values(one.truth(at(-6), at(1)))[: len(stored)]
        assert len(stored) >= 6 * 1440 - 3
        ends = [end_ms for _, end_ms in one.asked()][1:]  # the first question is whether the history begins later
        assert len(ends) > 8
        ordered = sorted(ends, reverse=True)
        assert all(abs(place - ordered.index(end_ms)) <= 4 for place, end_ms in enumerate(ends))  # four at a time
        assert one.complete_from() == at(-6)
        assert "minutes stored" in capsys.readouterr().out
        before = len(one.asked())
        assert await one.run("backfill", "--from", iso(at(-6))) == 0
        assert all(start_ms >= at(minutes=-5) for start_ms, _ in one.asked()[before:])


@pytest.mark.slow
async def test_without_from_the_listing_date_is_found_and_remembered(tmp_path, capsys):
    listed_ms = at(-2.3)
    async with bench(tmp_path, listed_ms=listed_ms) as one:
        assert await one.run("backfill", "--json") == 0
        (facts,) = json.loads(capsys.readouterr().out)["markets"]
        assert (facts["from"], facts["absent"], facts["trouble"]) == (iso(listed_ms), 0, None)
        assert facts["requests"] < 50
        assert one.stored()[0].open_ms == listed_ms
        assert one.known_gaps() == [(0, listed_ms, "beyond_history")]
        assert one.complete_from() == WEEK.floor(listed_ms)
        before = len(one.fake.requests)
        assert await one.run("backfill") == 0
        assert len(one.fake.requests) - before <= 2  # the minutes that passed meanwhile


@pytest.mark.slow
async def test_a_from_before_the_listing_date_does_not_ask_for_years_of_nothing(tmp_path):
    async with bench(tmp_path, listed_ms=at(-1)) as one:
        assert await one.run("backfill", "--from", "2019-01-01", "--to", iso(at(-0.5))) == 0
        assert len(one.fake.requests) < 60
        assert [candle.open_ms for candle in one.stored()] == list(range(at(-1), at(-0.5), MINUTE_MS))


@pytest.mark.slow
async def test_what_is_fetched_is_in_the_log_of_changes_and_known_to_be_so(tmp_path):
    async with bench(tmp_path) as one:
        one.put(*one.truth(at(-1, 5), at(-1, 9)))
        store = one.store()
        store.register_feed([MARKET], "a")
        assert await one.run("backfill", "--from", iso(at(-1)), "--to", iso(at(-1, 20))) == 0
        fetched = [Range(at(-1), at(-1, 5)), Range(at(-1, 9), at(-1, 20))]
        assert store.changes_since(MARKET, "a", 10**9) == fetched
        assert [candle.src for candle in one.stored()] == ["backfill"] * 5 + [""] * 4 + ["backfill"] * 11
        store.close()


@pytest.mark.slow
async def test_a_newer_revision_is_not_touched(tmp_path):
    async with bench(tmp_path) as one:
        (was,) = one.truth(at(-1), at(-1, 1))
        revision = was._replace(volume=was.volume + 1, as_of_ms=at(1))
        one.put(revision)
        assert await one.run("backfill", "--from", iso(at(-1.5)), "--to", iso(at(-0.5))) == 0
        assert one.stored(at(-1), at(-1, 1)) == [revision]
        assert len(one.stored()) == 1440


async def test_a_dry_run_with_from_asks_nothing_and_stores_nothing(tmp_path, capsys):
    async with bench(tmp_path) as one:
        arguments = ["--from", iso(at(-20)), "--to", iso(at(-10)), "--dry-run"]
        assert await one.run("backfill", *arguments, "--json") == 0
        (facts,) = json.loads(capsys.readouterr().out)["markets"]
        assert (facts["minutes"], facts["windows"], facts["secondsAtLeast"]) == (14_400, 15, 3)
        assert await one.run("backfill", *arguments) == 0
        assert "14,400 minutes to ask for, in 15 windows" in capsys.readouterr().out
        assert (one.fake.requests, one.stored(), one.known_gaps()) == ([], [], [])


@pytest.mark.slow
async def test_a_dry_run_without_from_only_looks_for_the_beginning(tmp_path, capsys):
    async with bench(tmp_path, listed_ms=at(-400)) as one:
        assert await one.run("backfill", "--dry-run", "--json") == 0
        (facts,) = json.loads(capsys.readouterr().out)["markets"]
        assert 400 * 1440 - 5 <= facts["minutes"] <= 400 * 1440 + 1440
        assert facts["requestsMade"] == len(one.fake.requests) < 50
        assert (one.stored(), one.known_gaps()) == ([], [])


@pytest.mark.slow
async def test_what_the_exchange_does_not_have_is_remembered_and_not_requested_again_immediately(tmp_path, capsys):
    async with bench(tmp_path) as one:
        missing = (at(-3, 100), at(-3, 160))
        one.fake.missing_minutes(BTC, missing)
        arguments = ["--from", iso(at(-3)), "--to", iso(at(-2)), "--json"]
        assert await one.run("backfill", *arguments) == 0
        (facts,) = json.loads(capsys.readouterr().out)["markets"]
        assert (facts["stored"], facts["absent"]) == (1440 - 60, 60)
        assert one.known_gaps() == [(*missing, "exchange_outage")]
        assert one.complete_from() is None  # what lies between and the present is not known


@pytest.mark.slow
async def test_too_many_requests_are_waited_out(tmp_path):
    async with bench(tmp_path) as one:
        one.fake.rest_429(retry_after=20, times=2)
        begun = one.clock.monotonic()
        assert await one.run("backfill", "--from", iso(at(-0.5)), "--to", iso(at(-0.25))) == 0
        assert len(one.stored()) == 360
        assert one.clock.monotonic() - begun > 20


@pytest.mark.slow
async def test_an_exchange_that_stays_away_ends_the_command_and_the_next_run_goes_on(tmp_path, capsys):
    async with bench(tmp_path, speed=1000.0) as one:
        one.fake.rest_down = True
        assert await one.run("backfill", "--from", iso(at(-1)), "--to", iso(at(-0.5))) == 1
        assert "given up: cannot reach" in capsys.readouterr().err
        one.fake.heal()
        assert await one.run("backfill", "--from", iso(at(-1)), "--to", iso(at(-0.5))) == 0
        assert len(one.stored()) == 720


async def test_answers_that_are_no_candles_are_named_and_end_it(tmp_path, capsys):
    async with bench(tmp_path, speed=1000.0) as one:
        one.fake.html_instead_of_json(200)
        assert await one.run("backfill", "--from", iso(at(-4)), "--to", iso(at(-1))) == 1
        assert "expected JSON" in capsys.readouterr().err
        assert (one.stored(), one.known_gaps()) == ([], [])


@pytest.mark.slow
async def test_at_most_half_of_the_request_budget_is_used(tmp_path):
    class Slow(Bitget):
        requests_per_s = 2.0

    async with bench(tmp_path, speed=20.0, plugin=Slow) as one:
        await one.run("backfill", "--from", iso(at(-50)), "--to", iso(at(-45)))
        times = [request.at_ms / 1000 for request in one.fake.requests]
        assert len(times) > 30
        assert len(times) - 1 <= (times[-1] - times[0]) * 1.0 + 2


async def test_a_time_range_that_is_none_is_refused(tmp_path):
    async with bench(tmp_path) as one:
        with pytest.raises(ConfigError, match="--from"):
            await one.run("backfill", "--from", iso(at(-1)), "--to", iso(at(-2)))


# ---------------------------------------------------------------- PostgreSQL


@pytest.mark.usefixtures("postgres")
async def test_a_postgresql_store_is_filled_as_well_and_its_retention_named(tmp_path, capsys):
    with Database(shared_postgres()) as database:
        async with bench(tmp_path) as one:
            one.config = one.config.model_copy(
                update={"store": one.config.store.model_copy(update={"url": database.url()})}
            )
            one.fake.missing_minutes(BTC, (at(-1, 5), at(-1, 9)))
            span = ["--from", iso(at(-1)), "--to", iso(at(-0.5)), "--json"]
            assert await one.run("backfill", *span) == 0
            (facts,) = json.loads(capsys.readouterr().out)["markets"]
            assert (facts["stored"], facts["absent"]) == (716, 4)
            store = PostgresStore(database.url(), DEFAULT_INTERVALS, retention_days=7)
            store.open()
            assert [(gap.start_ms, gap.end_ms) for gap in store.known_gaps(MARKET)] == [(at(-1, 5), at(-1, 9))]
            store.tidy_up(NOON_MS)
            store.close()
            assert await one.run("backfill", "--from", iso(at(-40)), "--to", iso(at(-39)), "--json") == 1
            (facts,) = json.loads(capsys.readouterr().out)["markets"]
            assert "see its retention" in facts["trouble"]


# ---------------------------------------------------------------- killed


async def _start(directory: Path, one, *arguments: str) -> asyncio.subprocess.Process:
    bitget = {"symbols": ["BTC/USDT"], "ws_url": one.fake.ws_url, "rest_url": one.fake.rest_url}
    document = {"exchanges": {"bitget": bitget}, "store": {"url": f"sqlite:///{one.path}"}}
    path = directory / "candled.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "candled", "backfill", "--config", str(path), *arguments),
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("pages", [3, 14])
async def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path, pages):
    """The process runs on the real clock, hence on the real budget of five requests a second."""
    async with bench(tmp_path) as one:
        span = ["--from", iso(at(-44)), "--to", iso(at(-40))]
        prepare(one.config)
        process = await _start(tmp_path, one, *span)
        while len(one.fake.requests) < pages:
            assert process.returncode is None, await process.stderr.read()
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.communicate()
        before = {candle.open_ms for candle in one.stored()}
        assert len(before) < 4 * 1440
        first = len(one.fake.requests)

        assert await one.run("backfill", *span) == 0
        assert values(one.stored()) == values(one.truth(at(-44), at(-40)))
        again = one.asked()[first:]
        # a page begins one minute before the oldest that it is asked for
        twice = sum(start_ms < open_ms < end_ms for start_ms, end_ms in again for open_ms in before)
        assert twice <= len(again)
        assert len(one.fake.requests) <= 4 * 1440 / 199 + 6 + 4 * 6  # what was on its way is asked for twice


# ---------------------------------------------------------------- beside the daemon


@pytest.mark.usefixtures("daemon")
async def test_beside_a_running_daemon_both_keep_what_they_know_and_the_daemon_learns(tmp_path):
    clock = FairScaledClock(60.0, NOON_MS)
    fake = FakeBitget(clock, [FakeMarket(symbol=BTC, tape=Synthetic(7), listed_ms=at(-12))], push_interval_s=2.0)
    async with fake:
        fake.enforce_limits = False
        fake.missing_minutes(BTC, (at(-10), at(-10, 5)))
        rig = Rig(tmp_path, fake, clock, [BTC])
        try:
            await rig.start()
            await rig.until(lambda: rig.health(BTC)["state"] == "live")
            beside = Bench(tmp_path, fake, clock, Bitget)
            days = rig.open_chart(BTC, "1D", 30)
            assert await beside.run("backfill") == 0
            assert values(beside.stored(0, at(-1))) == values(fake.truth(BTC, at(-12), at(-1)))
            await rig.until(lambda: rig.health(BTC)["completeFrom"] == iso(WEEK.floor(at(-12))))
            await rig.until(lambda: len(days.bars) >= 13)
            assert days.bars[0]["time"] == iso(at(-12.5))  # the day in which history begins, whole as it is
            # unconfirmed while the daemon has no proof that REST is credible; then it asks again
            await rig.until(
                lambda: (at(-10), at(-10, 5), "exchange_outage") in beside.known_gaps(), within_minutes=60.0
            )
            assert (0, at(-12), "beyond_history") in beside.known_gaps()
            assert await rig.check() > 700
        finally:
            await rig.stop()


# ---------------------------------------------------------------- memory


async def _peak(directory: Path, days: float) -> int:
    """The most memory in use while so many days are fetched, in bytes."""
    directory.mkdir()
    async with bench(directory, speed=2000.0) as one:
        one.fake.requests = _Forgetful()
        tracemalloc.reset_peak()
        assert await one.run("backfill", "--from", iso(at(-days - 1)), "--to", iso(at(-1))) == 0
        return tracemalloc.get_traced_memory()[1]


class _Forgetful(list):
    def append(self, _: object) -> None:
        """Keep nothing, as what the fake remembers is not what is measured."""


@pytest.mark.long
async def test_memory_does_not_grow_with_the_range(tmp_path):
    tracemalloc.start()
    try:
        await _peak(tmp_path / "first", 6)  # the fake remembers its rows
        short = await _peak(tmp_path / "short", 2)
        long = await _peak(tmp_path / "long", 6)
    finally:
        tracemalloc.stop()
    assert long < short * 1.6  # three times the range; how much is on its way at a time depends on the machine


@pytest.mark.long
async def test_a_year_of_minutes_is_fetched_in_flat_memory_as_fast_as_the_budget_allows(tmp_path):
    async with bench(tmp_path, speed=10.0) as one:
        one.fake.requests = _Forgetful()
        assert await one.run("backfill", "--from", iso(at(-40)), "--to", iso(at(-31))) == 0
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = one.clock.monotonic()
        assert await one.run("backfill", "--from", iso(at(-396)), "--to", iso(at(-31))) == 0
        seconds = one.clock.monotonic() - begun
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        requests = (365 - 9) * 1440 / 199
        assert seconds < 1.3 * requests / 5
        assert grown_kb < 20_000
        days = [one.stored(at(-day), at(-day + 1)) for day in range(32, 397)]
        assert {len(day) for day in days} == {1440}
