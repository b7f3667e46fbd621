"""The faults of the replay exchange: drawn from a seed or a script, and repaired by the daemon."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from candled import MINUTE_MS, Symbol
from candled.bus import HistoryChanged, MinuteChanged
from candled.errors import ConfigError
from candled.model import MINUTE, Candle, Gap, MarketKey
from candled.settings import read_section
from candled.store import make_store
from candled_plugins.replay.exchange import Replay, ReplaySettings
from candled_plugins.replay.faults import KINDS, Faults, FaultSettings, FaultyStream, revised
from tests.ingest.virtual import BTC, START_MS, Harness, Machine

ETH = Symbol.parse("ETH/USDT")
MINUTES = [START_MS + n * MINUTE_MS for n in range(1000)]


def candle(open_ms: int, volume: str = "3") -> Candle:
    return Candle.parse(open_ms, "10", "12", "9", "11", volume, "33", as_of_ms=open_ms + MINUTE_MS)


def drawn(seed: int, **shares: float) -> list[frozenset[str]]:
    faults = Faults(FaultSettings(seed=seed, **shares))
    return [faults.faults_of(BTC, open_ms) for open_ms in MINUTES]


# ---------------------------------------------------------------- decisions


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_a_function_of_the_seed_and_about_as_frequent_as_their_share(kind):
    one = drawn(7, **{kind: 0.2})
    assert one == drawn(7, **{kind: 0.2})
    assert one != drawn(8, **{kind: 0.2})
    assert 140 < sum(kind in found for found in one) < 260
    assert set().union(*one) == {kind}


def test_minutes_have_the_same_faults_whenever_the_market_clock_starts():
    early, late = (Faults(FaultSettings(skip=0.3)) for _ in range(2))
    late.start_script(MINUTES[500])
    assert [early.faults_of(BTC, at) for at in MINUTES] == [late.faults_of(BTC, at) for at in MINUTES]
    assert [early.faults_of(BTC, at) for at in MINUTES] != [early.faults_of(ETH, at) for at in MINUTES]


def test_a_script_names_the_minutes_and_the_symbols():
    faults = Faults(FaultSettings(script=("+5m skip 3m BTC/USDT", "+6m drop", "+7m disconnect")))
    faults.start_script(START_MS + 30_000)
    assert [n for n in range(12) if "skip" in faults.faults_of(BTC, MINUTES[n])] == [5, 6, 7]
    assert [n for n in range(12) if "skip" in faults.faults_of(ETH, MINUTES[n])] == []
    assert [n for n in range(12) if "drop" in faults.faults_of(ETH, MINUTES[n])] == [6]
    assert [n for n in range(12) if faults.disconnect_at(MINUTES[n]) is not None] == [7]


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({"script": ["5m skip"]}, "faults.script[0]: expected a step such as +5m drop, or +5m skip 3m BTC/USDT"),
        ({"script": ["+5m drop", "+1m lose"]}, f"faults.script[1]: expected one of {', '.join(KINDS)}, got lose"),
        ({"skip": 2}, "faults.skip: at most 1.0, was 2"),
    ],
)
def test_a_mistake_in_the_settings_is_named(written, problem):
    problems: list[str] = []
    read_section(ReplaySettings, {"faults": written}, "", problems)
    assert problems == [problem]


def test_a_revised_minute_is_a_valid_other_one():
    for minute in (candle(START_MS), candle(START_MS, "0"), Candle.parse(START_MS, "5", "5", "5", "5", "0")):
        assert revised(minute).checked().values != minute.values


def test_a_faulty_stream_drops_repeats_delays_and_lies():
    script = ("+0m drop", "+1m duplicate", "+2m delay", "+3m wrong_time", "+4m skip")
    faults = Faults(FaultSettings(script=script))
    faults.start_script(START_MS)
    stream = FaultyStream(faults, BTC)
    first = [candle(at) for at in MINUTES[:6]]
    frames = stream.pass_on(first, MINUTES[6])
    wrong = first[3]._replace(as_of_ms=first[3].as_of_ms + faults.lie_ms(BTC, MINUTES[3]))
    assert frames == [(first[1], wrong, first[5]), (first[1],)]
    assert wrong.as_of_ms != first[3].as_of_ms
    assert stream.pass_on([], MINUTES[6] + 19_999) == []
    assert stream.pass_on([], MINUTES[6] + 20_000) == [(first[2],)]


# ---------------------------------------------------------------- repairs


def recording(folder: Path) -> Path:
    path = folder / "hour.csv"
    rows = [f"{n * MINUTE_MS},10,{12 + n % 7}.5,9,{10 + n % 2}.25,{n + 1}.125" for n in range(60)]
    path.write_text("\n".join(["time_ms,open,high,low,close,volume", *rows]) + "\n", "utf-8")
    return path


class ReplayHarness(Harness):
    """The ingest of a replay exchange. The times of its stream are those of the market clock."""

    async def truth(self) -> dict[int, Candle]:
        """What the exchange has in its history now, but for the last two minutes."""
        end_ms = MINUTE.floor(self.clock.true_ms) - 2 * MINUTE_MS
        minutes = await self.exchange.fetch_history(None, BTC, START_MS - 10 * MINUTE_MS, end_ms)
        return {minute.open_ms: minute for minute in minutes}

    def last_published(self) -> dict[int, Candle]:
        """The last version of each minute that a client has or is asked to read."""
        found: dict[int, Candle] = {}
        for message in self.received:
            if isinstance(message, MinuteChanged):
                found[message.candle.open_ms] = message.candle
            elif isinstance(message, HistoryChanged):
                for open_ms in range(message.start_ms, message.end_ms, MINUTE_MS):
                    if open_ms in self.store.rows:
                        found[open_ms] = self.store.rows[open_ms]
        return found


@asynccontextmanager
async def played(folder: Path, **faults: Any) -> AsyncIterator[ReplayHarness]:
    clock = Machine(START_MS)
    settings = Replay.Settings(files={"BTC/USDT": str(recording(folder))}, faults=FaultSettings(**faults))
    exchange: Any = Replay(settings, clock)
    exchange.true = clock
    harness = ReplayHarness(exchange)
    await harness.start()
    try:
        yield harness
    finally:
        await harness.stop()


async def check_repaired(harness: ReplayHarness) -> dict[int, Candle]:
    """No minute is missing or wrong, and none changed without a message; return the truth."""
    truth = await harness.truth()
    stored = {open_ms: row for open_ms, row in harness.store.rows.items() if START_MS <= open_ms <= max(truth)}
    assert {at: row.values for at, row in stored.items()} == {
        at: row.values for at, row in truth.items() if at >= START_MS
    }
    published = harness.last_published()
    assert {at: published[at].values for at in stored} == {at: row.values for at, row in stored.items()}
    assert harness.false_finals == []
    return truth


def gap_range(gap: Gap) -> tuple[int, int]:
    return gap.start_ms, gap.end_ms


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_the_daemon_repairs_each_fault(tmp_path, kind):
    async with played(tmp_path, script=(f"+3m {kind} 2m",)) as harness:
        await harness.run(15 * 60)
        truth = await check_repaired(harness)
        faulty = [START_MS + n * MINUTE_MS for n in (3, 4)]
        if kind == "skip":
            assert not truth.keys() & set(faulty)
            gaps = {at: gap.reason for gap in harness.store.saved_gaps for at in range(*gap_range(gap), MINUTE_MS)}
            assert {at: gaps.get(at) for at in faulty} == dict.fromkeys(faulty, "no_trades")
        else:
            assert truth.keys() >= set(faulty)
            assert harness.market["missingMinutes"] == 0
        if kind == "revise":
            finals = [one for one in harness.minutes if one.open_ms == faulty[0] and one.final]
            assert len({one.values for one in finals}) == 2, "the change of a final minute was published"
            assert harness.store.rows[faulty[0]].rev > 0
        if kind == "disconnect":
            assert harness.ingest._counts.interruptions.total() == 2
        if kind == "wrong_time":
            assert harness.market["unbelievedStamps"] > 0


@pytest.mark.slow
async def test_all_random_faults_together_are_repaired_and_the_same_for_a_seed(tmp_path):
    shares = dict.fromkeys(KINDS, 0.15)
    published = []
    for seed in (1, 1, 2):
        random.seed(seed)  # the pauses before reconnects are random too
        async with played(tmp_path, seed=seed, **shares) as harness:
            await harness.run(15 * 60)
            truth = await check_repaired(harness)
            published.append({at: (row.values, row.rev) for at, row in harness.last_published().items() if at in truth})
    assert published[0] == published[1] != published[2]


# ---------------------------------------------------------------- from a store


@pytest.fixture
def store_url(tmp_path) -> str:
    """A store with two days of BTC/USDT at an exchange, without the tenth minute."""
    url = f"sqlite:///{tmp_path / 'candled.db'}"
    store = make_store(url, [])
    store.open()
    opens = [DAY + n * MINUTE_MS for n in range(2880) if n != 10]
    key = MarketKey("bitget", BTC)
    store.write_minutes([(key, candle(at, str(1 + at // MINUTE_MS % 9))._replace(final=True)) for at in opens])
    store.close()
    return url


DAY = 1_759_881_600_000  # 2025-10-08T00:00Z


def stored(url: str, **more: str) -> Replay:
    problems: list[str] = []
    written = {"files": {"BTC/USDT": "store:bitget"}, "store": url, **more}
    settings = read_section(ReplaySettings, written, "", problems)
    assert problems == []
    return Replay(settings, Machine(START_MS))


@pytest.mark.parametrize(
    ("bounds", "first", "minutes"),
    [
        ({}, 0, 2880),
        ({"from": "2025-10-08T12:00Z"}, 720, 1440),
        ({"from": "2025-10-08T02:00+01:00", "to": "2025-10-08T03:00Z"}, 60, 120),
    ],
)
async def test_a_range_of_a_store_is_played(store_url, bounds, first, minutes):
    recording = stored(store_url, **bounds).recording_of(BTC)
    assert (recording.base_ms, recording.period_ms) == (DAY + first * MINUTE_MS, minutes * MINUTE_MS)
    later_ms = recording.base_ms + recording.period_ms
    played = recording.minutes_between(later_ms, later_ms + recording.period_ms, 2 * later_ms)
    opens = [at for at in range(first, first + minutes) if at != 10]
    assert [(one.open_ms - recording.period_ms - DAY) // MINUTE_MS for one in played] == opens
    assert [one.volume for one in played] == [1 + (DAY // MINUTE_MS + at) % 9 for at in opens]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"files": {"BTC/USDT": "store:okx"}}, "store:okx: no minutes of BTC/USDT are stored"),
        ({"files": {"*": "store:bitget"}}, "store:bitget: name each symbol; the store has minutes of some only"),
        ({"from": "2026-01-01"}, "store:bitget: no minutes in this range"),
        ({"from": "2025-10-09T23:30Z"}, "store:bitget: expected an hour or more to loop over, got 30 minutes"),
        ({"store": "mysql://x"}, "store:bitget: cannot be read: store.url: expected an address of one of these stores"),
        ({"store": "sqlite:///nowhere/x.db"}, "store:bitget: cannot be read: "),
    ],
)
def test_a_range_that_cannot_be_played_is_a_mistake_in_the_settings(store_url, more, problem):
    with pytest.raises(ConfigError) as caught:
        stored(more.pop("store", store_url), **more)
    assert caught.value.problems[0].startswith(problem)


def test_a_wrong_time_is_named():
    problems: list[str] = []
    read_section(ReplaySettings, {"from": "monday"}, "", problems)
    assert problems == ["from: expected a time such as 2025-03-10 or 2025-03-10T14:00Z"]
