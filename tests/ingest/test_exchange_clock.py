"""The exchange's clock by several witnesses: no single one of them moves it, and it is right again after a sleep."""

import random
from collections.abc import Callable

import pytest

from candled.ingest.exchange_clock import TOLERANCE_MS, ExchangeClock
from candled.model import MINUTE, MINUTE_MS

NOW_MS = 1_760_000_000_000
SECOND, HOUR, YEAR = 1_000, 3_600_000, 365 * 86_400_000
#: the error of an estimate that follows the truth: how long a frame travels, and the whole seconds of a date
CLOSE_MS = 1_500


class World:
    """An exchange whose clock is right, and a machine whose clock is `machine_ms` off it."""

    def __init__(self, machine_ms: int = 0) -> None:
        self.clock = ExchangeClock()
        self.true_ms = NOW_MS
        self.steady_ms = 5_000_000
        self.machine_ms = machine_ms
        self.draw = random.Random(1)
        self.steps = 0
        self.look()

    def look(self) -> None:
        self.steps += self.clock.update_estimate(self.steady_ms, self.true_ms + self.machine_ms)

    def passes(self, ms: int, *, asleep: bool = False) -> None:
        self.true_ms += ms
        if not asleep:
            self.steady_ms += ms
        self.look()

    def frame(self, stamp: Callable[[int], int] = lambda at_ms: at_ms, late_ms: int = 50) -> None:
        sent_ms = self.true_ms - late_ms
        self.clock.observe_frame(stamp(sent_ms), MINUTE.floor(sent_ms), self.steady_ms)
        self.look()

    def frames(self, count: int, stamp: Callable[[int], int] = lambda at_ms: at_ms) -> None:
        for _ in range(count):
            self.passes(SECOND)
            self.frame(stamp, self.draw.randrange(20, 400))

    def answer(self, date: Callable[[int], int] = lambda at_ms: at_ms, *, body: bool = False) -> None:
        asked_ms = self.steady_ms
        made_ms = self.true_ms + 100
        self.passes(200)
        made_ms = date(made_ms)
        if body:
            self.clock.observe_answer(made_ms, asked_ms, self.steady_ms)
        self.clock.observe_date(made_ms // 1000 * 1000, asked_ms, self.steady_ms)
        self.passes(SECOND)

    @property
    def off_ms(self) -> int:
        return self.clock.now_ms(self.steady_ms, self.true_ms + self.machine_ms) - self.true_ms

    @property
    def is_right(self) -> bool:
        return abs(self.off_ms) <= CLOSE_MS


LIES = {
    "60 s ahead": lambda ms: ms + 60 * SECOND,
    "90 s ahead": lambda ms: ms + 90 * SECOND,
    "1 h ahead": lambda ms: ms + HOUR,
    "a year ahead": lambda ms: ms + YEAR,
    "9 s ahead": lambda ms: ms + 9 * SECOND,
    "30 s back": lambda ms: ms - 30 * SECOND,
    "1 h back": lambda ms: ms - HOUR,
    "in seconds": lambda ms: ms // 1000,
    "in microseconds": lambda ms: ms * 1000,
    "zero": lambda ms: 0,
    "negative": lambda ms: -ms,
    "constant": lambda ms: NOW_MS,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@pytest.mark.parametrize("machine_ms", [0, 3 * HOUR, -3 * HOUR])
def test_one_frame_never_moves_the_clock(lie, machine_ms):
    world = World(machine_ms)
    world.answer()
    world.frames(30)
    before_ms = world.off_ms
    world.frame(lie)
    world.passes(SECOND)
    assert abs(world.off_ms - before_ms) <= 100
    assert world.is_right


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_the_first_frame_ever_does_not_either(lie):
    world = World()
    world.frame(lie)
    assert abs(world.off_ms) <= 100
    world.frames(3)
    world.answer()
    assert world.is_right
    assert world.clock.is_reliable


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_stream_that_lies_for_good_is_outvoted_and_named(lie):
    world = World()
    for _ in range(10):
        world.frames(20, lie)
        world.answer()
    assert abs(world.off_ms) <= TOLERANCE_MS
    if abs(lie(world.true_ms) - world.true_ms) > TOLERANCE_MS:
        assert world.is_right
        assert set(world.clock.ignored) <= {"stream"}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_dates_that_lie_for_good_are_outvoted_too(lie):
    world = World()
    for _ in range(10):
        world.frames(20)
        world.answer(lie)
    assert world.is_right


@pytest.mark.parametrize("machine_ms", [90 * SECOND, 3 * HOUR, -3 * HOUR, YEAR])
@pytest.mark.parametrize("rest", [True, False])
def test_a_machine_with_a_wrong_clock_follows_the_exchange(machine_ms, rest):
    world = World(machine_ms)
    world.frame()
    if rest:
        world.answer()
        assert world.clock.is_reliable
        assert world.is_right
    world.frames(10)
    assert world.is_right
    assert set(world.clock.ignored) == {"machine"}


def test_nothing_depends_on_the_time_before_two_agree_or_were_waited_for():
    world = World(3 * HOUR)
    world.frame()
    assert not world.clock.is_reliable
    world.passes(10 * SECOND)
    assert not world.clock.is_reliable
    world.passes(10 * SECOND)
    assert world.clock.is_reliable


def test_where_there_is_only_this_machine_it_is_believed_soon():
    world = World()
    world.passes(2 * SECOND)
    assert not world.clock.is_reliable
    world.passes(2 * SECOND)
    assert world.clock.is_reliable


@pytest.mark.parametrize("by_ms", [2 * HOUR, -2 * HOUR, 60 * SECOND, YEAR])
def test_setting_this_machines_clock_changes_nothing(by_ms):
    world = World()
    world.answer()
    world.frames(100)
    world.machine_ms += by_ms
    for _ in range(10):
        world.passes(SECOND)
        assert world.is_right
    world.frames(1)
    assert world.is_right
    world.frames(100)
    assert world.is_right
    assert world.steps == 1


@pytest.mark.parametrize("wrong_ms", [0, 3 * HOUR])
@pytest.mark.parametrize(
    "received", [lambda world: world.frames(10), lambda world: world.answer(body=True)], ids=["stream", "only REST"]
)
def test_a_machine_that_slept_is_right_again_with_the_first_evidence(wrong_ms, received):
    world = World(wrong_ms)
    world.answer(body=True)
    world.frames(100)
    world.passes(8 * HOUR, asleep=True)
    world.passes(SECOND)
    assert world.steps == 1
    received(world)
    assert world.is_right


def test_after_a_sleep_one_date_and_this_machine_are_enough():
    world = World()
    world.frames(100)
    world.passes(8 * HOUR, asleep=True)
    world.passes(SECOND)
    assert world.off_ms < -7 * HOUR
    world.answer()
    assert world.is_right


def test_frames_that_come_late_do_not_set_it_back():
    world = World()
    world.answer()
    world.frames(64)
    for _ in range(64):
        world.passes(100)
        world.frame(late_ms=45 * SECOND)
    assert world.is_right


def test_a_slow_answer_proves_nothing():
    world = World()
    world.frames(10)
    world.clock.observe_date(world.true_ms - 30 * SECOND, world.steady_ms, world.steady_ms + 30 * SECOND)
    world.passes(SECOND)
    assert "dates" not in world.clock.describe()["sources"]


def test_a_stamp_far_from_the_newest_row_is_no_time():
    clock = ExchangeClock()
    clock.observe_frame(NOW_MS + YEAR, MINUTE.floor(NOW_MS), 0)
    clock.observe_frame(NOW_MS, MINUTE.floor(NOW_MS) + 2 * MINUTE_MS, 0)
    clock.update_estimate(0, NOW_MS)
    assert clock.describe() == {"sources": {"machine": 0}, "notBelieved": []}
