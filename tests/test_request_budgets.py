"""One host, one request budget: whatever in a process, or on a machine, asks it."""

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.web import RequestHandler

from candled import config
from candled.app import Daemon
from candled.budget import Budget, LocalBudgets, part_of
from candled.budget_file import BudgetFile
from candled.exchange import Clock
from candled.ingest.http import HttpClient
from candled.ingest_side import ShardedIngest
from candled.plugins import discover
from candled.token_bucket import MOST_CLOSED_S, BucketState, TokenBucket
from candled.tools.budgets import SHARE
from tests.clocks import START_MS, ManualClock
from tests.web import serving

RATE = 10.0
ROOT = Path(__file__).parents[1]


async def taken(clock: ManualClock, ways: Sequence[Budget], seconds: int) -> list[int]:
    """How many requests each way is granted within a time, when it asks as fast as it can."""
    counts = [0] * len(ways)

    async def ask(index: int) -> None:
        while True:
            await ways[index].acquire()
            counts[index] += 1

    tasks = [asyncio.ensure_future(ask(index)) for index in range(len(ways))]
    for _ in range(seconds * 20):
        await clock.advance(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return counts


# ---------------------------------------------------------------- who shares

Make = Callable[[Path, ManualClock], list[Budget]]


def sections(path: Path, clock: ManualClock) -> list[Budget]:
    """Two exchanges of the settings in one process."""
    budgets = LocalBudgets(clock)
    return [budgets.budget("host", RATE), budgets.budget("host", RATE)]


def sections_with_a_file(path: Path, clock: ManualClock) -> list[Budget]:
    file = BudgetFile(path, clock)
    return [file.budget("host", RATE), file.budget("host", RATE)]


def daemon_and_command(path: Path, clock: ManualClock) -> list[Budget]:
    command = part_of(clock, SHARE, BudgetFile(path, clock).budget)
    return [BudgetFile(path, clock).budget("host", RATE), command("host", RATE)]


def daemon_and_commands(path: Path, clock: ManualClock) -> list[Budget]:
    commands = [part_of(clock, SHARE, BudgetFile(path, clock).budget) for _ in range(3)]
    return [BudgetFile(path, clock).budget("host", RATE), *(command("host", RATE) for command in commands)]


def two_sections_beside_a_command(path: Path, clock: ManualClock) -> list[Budget]:
    file = BudgetFile(path, clock)
    command = part_of(clock, SHARE, BudgetFile(path, clock).budget)
    return [file.budget("host", RATE), file.budget("host", RATE), command("host", RATE), command("host", RATE)]


def two_exchanges_of_different_pace(path: Path, clock: ManualClock) -> list[Budget]:
    """Of plugins that disagree about one host, the more careful one is right."""
    budgets = LocalBudgets(clock)
    return [budgets.budget("host", 10 * RATE), budgets.budget("host", RATE)]


def two_exchanges_of_different_pace_with_a_file(path: Path, clock: ManualClock) -> list[Budget]:
    file = BudgetFile(path, clock)
    return [file.budget("host", 10 * RATE), file.budget("host", RATE)]


SITES = [
    sections,
    sections_with_a_file,
    daemon_and_command,
    daemon_and_commands,
    two_sections_beside_a_command,
    two_exchanges_of_different_pace,
    two_exchanges_of_different_pace_with_a_file,
]


@pytest.mark.parametrize("make", SITES)
async def test_clients_of_one_host_share_one_budget(make, tmp_path):
    clock, seconds = ManualClock(), 20
    counts = await taken(clock, make(tmp_path / "budget", clock), seconds)
    assert RATE * seconds * 0.9 <= sum(counts) <= RATE * (seconds + 1) + 1  # ten at once, then ten a second
    assert min(counts) > 0


@pytest.mark.slow
async def test_a_command_takes_at_most_half_and_a_daemon_beside_it_the_rest(tmp_path):
    clock = ManualClock()
    daemon, command = daemon_and_command(tmp_path / "budget", clock)
    assert (await taken(clock, [command], 10))[0] <= RATE / 2 * 11 + 1
    alone, beside = await taken(clock, [daemon, command], 20)
    assert beside <= RATE / 2 * 21 + 1
    assert alone >= RATE / 2 * 20 * 0.9


async def test_hosts_do_not_share(tmp_path):
    clock = ManualClock()
    for budgets in (LocalBudgets(clock), BudgetFile(tmp_path / "budget", clock)):
        counts = await taken(clock, [budgets.budget("a", RATE), budgets.budget("b", RATE)], 5)
        assert min(counts) >= RATE * 5


async def test_silence_that_a_host_asks_of_one_process_binds_the_others(tmp_path):
    clock, path = ManualClock(), tmp_path / "budget"
    daemon, command = daemon_and_command(path, clock)
    await daemon.acquire()
    command.close_for(8.0)
    assert (command.closed_for(), command.remaining_share()) == (8.0, 0.0)
    assert await taken(clock, [daemon], 7) == [0]
    assert daemon.closed_for() == pytest.approx(1.0, abs=0.1)
    assert 0 < (await taken(clock, [daemon], 3))[0] <= 2 * RATE + 2


async def test_no_host_closes_itself_for_longer_than_an_hour(tmp_path):
    clock = ManualClock()
    for budget in (LocalBudgets(clock).budget("host", RATE), BudgetFile(tmp_path / "b", clock).budget("host", RATE)):
        budget.close_for(1e308)
        assert budget.closed_for() == pytest.approx(MOST_CLOSED_S)


async def test_what_is_left_is_known_without_asking(tmp_path):
    clock = ManualClock()
    daemon, command = daemon_and_command(tmp_path / "budget", clock)
    assert (daemon.remaining_share(), command.remaining_share()) == (1.0, 1.0)
    for _ in range(8):
        await daemon.acquire()
    assert daemon.remaining_share() == pytest.approx(0.2)
    await clock.advance(0.5)
    assert daemon.remaining_share() == pytest.approx(0.7)


# ---------------------------------------------------------------- the file

NOW_S = START_MS / 1000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"null",
        b"[" * 60_000,
        b'{"host": 7}',
        b'{"host": []}',
        b'{"host": [1, 2]}',
        b'{"host": [1, 2, 3, 4]}',
        b'{"host": ["a", "b", "c"]}',
        b'{"host": [true, true, true]}',
        b'{"host": [NaN, NaN, NaN]}',
        b'{"host": [Infinity, 0, 0]}',
        b'{"host": [0, 1e300, 0]}',
        b'{"host": [0, 0, 1e300]}',
        b'{"host": [-1e9, 0, 0]}',
        json.dumps({"host": [-1e9, NOW_S, 0.0]}).encode(),
        json.dumps({"host": [0.0, NOW_S + 10**6, 0.0]}).encode(),  # a clock that was a week ahead
        json.dumps({"host": [0.0, NOW_S + 7200, NOW_S + 7200]}).encode(),  # closed for longer than anything is
        json.dumps({f"host-{number}": [1.0, NOW_S, 0.0] for number in range(5000)}).encode(),
    ],
)
async def test_whatever_is_in_the_file_a_host_is_asked_and_not_too_often(content, tmp_path):
    path, clock = tmp_path / "budget", ManualClock()
    path.write_bytes(content)
    (count,) = await taken(clock, [BudgetFile(path, clock).budget("host", RATE)], 10)
    assert RATE * 9 <= count <= RATE * 11 + 1
    assert set(json.loads(path.read_bytes())) == {"host"}


@pytest.mark.parametrize("kind", ["a folder", "no folder", "a link", "nothing may be written"])
async def test_a_file_that_cannot_be_used_leaves_each_process_half_and_is_named_once(
    kind, tmp_path, caplog, monkeypatch
):
    path, clock = tmp_path / "budget", ManualClock()
    if kind == "a folder":
        path.mkdir()
    elif kind == "no folder":
        path = tmp_path / "nothing" / "budget"
    elif kind == "a link":  # somebody else's file is not overwritten
        (tmp_path / "victim").write_text("mine")
        path.symlink_to(tmp_path / "victim")
    else:
        monkeypatch.setattr(os, "pwrite", _no_space)
    daemon, command = daemon_and_command(path, clock)
    counts = await taken(clock, [daemon, command], 20)
    assert max(counts) <= RATE / 2 * 21 + 1
    assert min(counts) >= RATE / 2 * 20 * 0.8
    assert sum("not shared" in record.message for record in caplog.records) == 2  # one line in each process
    if kind == "a link":
        assert (tmp_path / "victim").read_text() == "mine"


def _no_space(*_: object) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
async def test_a_process_that_was_stopped_with_the_file_locked_delays_no_other(tmp_path, caplog):
    path, clock = tmp_path / "budget", ManualClock()
    caplog.set_level("INFO")
    budget = BudgetFile(path, clock).budget("host", RATE)
    await budget.acquire()
    with path.open("rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        (count,) = await taken(clock, [budget], 20)
        assert count >= 20
        assert "another process keeps it locked" in caplog.text
    (count,) = await taken(clock, [budget], 10)
    assert count >= RATE * 9
    assert "shared again" in caplog.text


class SteppingClock(ManualClock):
    """A wall clock that somebody sets; `monotonic` and `sleep` know nothing of that."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


@pytest.mark.slow
@pytest.mark.parametrize("step_s", [-86_400, -7200, -60, 60, 7200, 86_400])
@pytest.mark.parametrize("is_closed", [False, True])
async def test_a_clock_that_is_set_stops_no_requests(step_s, is_closed, tmp_path):
    clock = SteppingClock()
    budget = BudgetFile(tmp_path / "budget", clock).budget("host", RATE)
    for _ in range(10):
        await budget.acquire()
    if is_closed:
        budget.close_for(5.0)
    clock.ahead_ms = step_s * 1000
    (count,) = await taken(clock, [budget], 80)
    assert count >= RATE * 10  # what was asked for in silence is obeyed for some more seconds at most
    assert count <= RATE * 81 + RATE


async def test_a_file_that_is_deleted_is_made_again(tmp_path):
    path, clock = tmp_path / "budget", ManualClock()
    budget = BudgetFile(path, clock).budget("host", RATE)
    await budget.acquire()
    path.unlink()
    await budget.acquire()
    assert path.exists()


def test_a_file_that_root_made_is_left_to_the_owner_of_the_folder(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("run as root, so that the command has another user than the daemon")
    os.chown(tmp_path, 1234, 1234)
    with BudgetFile(tmp_path / "budget", ManualClock()).bucket("host", RATE) as bucket:
        bucket.try_take(NOW_S)
    assert (tmp_path / "budget").stat().st_uid == 1234


_ASKING = """
import asyncio, sys, time
from pathlib import Path
from candled.budget_file import BudgetFile
from candled.clock import SystemClock

async def main(path, until):
    budget, count = BudgetFile(Path(path), SystemClock()).budget("host", 50.0), 0
    while True:
        await budget.acquire()
        if time.time() > until:
            return print(count)
        count += 1

asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


@pytest.mark.usefixtures("daemon")
def test_real_processes_share_it(tmp_path):
    begun = time.time()
    until = begun + 8.0  # importing takes a while on a busy machine
    words = [sys.executable, "-c", _ASKING, str(tmp_path / "budget"), str(until)]
    processes = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert 50 <= sum(counts) <= 50 * (until - begun + 1) + 3


# ---------------------------------------------------------------- the bucket that is put aside

FLOATS = st.floats(allow_nan=False, min_value=-1e14, max_value=1e14)


@given(FLOATS, FLOATS, FLOATS, st.floats(0, 1e10), st.floats(0.1, 100))
def test_a_bucket_that_goes_on_from_anything_gives_out_something_within_an_hour_and_no_more_than_its_burst(
    tokens, at, closed_until, now, rate
):
    bucket = TokenBucket.restored(rate, BucketState(tokens, at, closed_until), now)
    granted = 0
    while granted < 1000 and not bucket.try_take(now):
        granted += 1
    assert granted <= bucket.burst + 1e-6
    wait_s = bucket.try_take(now)
    assert 0 < wait_s <= MOST_CLOSED_S + 1 / rate + 1
    assert bucket.try_take(now + MOST_CLOSED_S + 1 / rate + 1) == 0.0


# ---------------------------------------------------------------- the daemon


class _Counting(RequestHandler):
    asked = 0

    def get(self) -> None:
        _Counting.asked += 1
        self.write({})


@asynccontextmanager
async def counting() -> AsyncIterator[str]:
    """The address of a server that counts requests."""
    _Counting.asked = 0
    async with serving(_Counting) as url:
        yield url


TWO_SECTIONS = {
    "spot": {"plugin": "bitget", "symbols": ["BTC/USDT"]},
    "futures": {"plugin": "bitget", "symbols": ["BTC/USDT:USDT"], "markets": ["usdt-futures"]},
}


def settings(directory: Path, **more: object) -> config.Config:
    document = {
        "server": {"host": "127.0.0.1", "port": 0},
        "exchanges": TWO_SECTIONS,
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
        **more,
    }
    (directory / "candled.yaml").write_text(json.dumps(document), "utf-8")
    return config.load(directory / "candled.yaml", {}, discover())


def clients_of(side: ShardedIngest) -> list[HttpClient]:
    return list(side._http.values())


@pytest.mark.slow
@pytest.mark.parametrize("shares", ["in the process", "in a file"])
async def test_two_sections_of_one_exchange_ask_its_host_as_often_as_one_may(shares, tmp_path):
    clock: Clock = ManualClock()
    file = BudgetFile(tmp_path / "budget", clock).budget if shares == "in a file" else None
    side = ShardedIngest(settings(tmp_path), clock, None, None, None, budget=file)  # type: ignore[arg-type]
    async with counting() as url:
        asking = [asyncio.ensure_future(http.get_json(url)) for http in clients_of(side) for _ in range(20)]
        for expected in (10, 20, 30, 40):
            for _ in range(300):
                await asyncio.sleep(0.01)
                if _Counting.asked >= expected:
                    break
            await asyncio.sleep(0.1)
            assert _Counting.asked == expected
            await clock.advance(1.001)  # type: ignore[attr-defined]
        await asyncio.gather(*asking)
        for http in clients_of(side):
            (facts,) = http.describe().values()
            assert facts["requests"] == 20
            http.close()


@pytest.mark.parametrize(
    "urls",
    [
        ("https://api.example.org/a", "https://api.example.org/b?x=1"),
        ("https://api.example.org/", "https://API.Example.ORG:443/"),
        ("http://api.example.org/", "http://user:password@api.example.org:80/"),
    ],
)
async def test_a_host_is_the_same_however_it_is_written(urls):
    asked: list[str] = []

    def budget(host: str, rate: float) -> Budget:
        asked.append(host)
        raise RuntimeError("known by now")

    http = HttpClient(ManualClock(), 1.0, budget)
    for url in urls:
        with pytest.raises(RuntimeError):
            await http.get_json(url)
    http.close()
    assert len(set(asked)) == 1
    assert "password" not in asked[0]


@pytest.mark.parametrize(
    ("store", "name"),
    [
        ({"url": "sqlite:///data/candles.db"}, "data/candles.db-budget"),
        ({"url": "postgresql://localhost/x"}, "candled.journal-budget"),
        ({"url": "postgresql://localhost/x", "journal": "/var/lib/j"}, "/var/lib/j-budget"),
        ({"url": "postgresql://localhost/x", "journal": ""}, None),
    ],
)
def test_the_file_lies_beside_the_store_or_the_journal(store, name, tmp_path):
    found = config.budget_path(settings(tmp_path, store=store))
    assert (None if found is None else str(found)) == name


@pytest.mark.slow
async def test_a_daemon_keeps_its_budgets_where_commands_find_them(tmp_path):
    loaded = settings(tmp_path)
    daemon = Daemon(loaded, discover(), ManualClock())
    assert daemon._ingest is not None
    for http in clients_of(daemon._ingest):
        await http._budget("host", RATE).acquire()
    states = json.loads((tmp_path / "candled.db-budget").read_text())
    assert states["host"][0] == pytest.approx(RATE - 2)
    await daemon.stop()
