"""The pacing of a room: fault 7, fault 8, fault 11 and promise 14."""

import random

import pytest

from candled.model import MINUTE_MS
from candled.rooms.room import MOST_BEHIND, RESYNC_GAP_S, Pace
from tests.rows import MONDAY_MS, minute


def pace() -> Pace:
    one = Pace()
    one.start(minute(0, volume="1"), 0.0)
    return one


def test_the_first_change_goes_out_at_once_and_the_newest_at_the_end_of_the_second():
    one = pace()
    one.offer(minute(0, volume="2"))
    assert one.take(5.0).volume == 2
    for volume in ("3", "4", "5"):
        one.offer(minute(0, volume=volume))
        assert one.take(5.5) is None
    assert one.due_at == 6.0
    assert one.take(6.0).volume == 5
    assert one.take(7.5) is None


def test_an_unchanged_candle_is_not_sent_again():
    """Fault 7: the same unchanged candle sent again every second."""
    one = pace()
    one.offer(minute(0, volume="2"))
    assert one.take(1.0) is not None
    for second in range(2, 10):
        one.offer(minute(0, volume="2", as_of=second * 1000))
        assert one.take(float(second)) is None


def test_a_change_that_is_taken_back_within_the_second_is_not_sent():
    one = pace()
    one.offer(minute(0, volume="2"))
    one.take(1.0)
    one.offer(minute(0, volume="3"))
    one.offer(minute(0, volume="2"))
    assert one.due_at is None


def test_the_old_bars_last_state_goes_before_the_new_bars_first():
    one = pace()
    one.offer(minute(0, volume="2"))
    one.take(1.0)
    one.offer(minute(0, volume="9"))
    one.offer(minute(1, volume="1"))
    one.offer(minute(1, volume="2"))
    old, new = one.take(2.0), one.take(3.0)
    assert (old.open_ms, old.volume) == (MONDAY_MS, 9)
    assert (new.open_ms, new.volume) == (MONDAY_MS + MINUTE_MS, 2)


def test_an_older_bar_never_moves_the_chart_back():
    """Fault 11: an out-of-order minute moving the chart back in time."""
    one = pace()
    one.offer(minute(1))
    one.take(1.0)
    assert not one.offer(minute(0, volume="9"))
    assert one.take(5.0) is None


@pytest.mark.parametrize("jitter_s", [0.0, 0.005, 0.019])
def test_a_timer_that_comes_late_does_not_halve_the_cadence(jitter_s):
    """Fault 8: a pacing timer whose jitter halves the cadence."""
    one, draw, sent, now = pace(), random.Random(2), 0, 0.0
    volume = 1
    while now < 60.0:
        volume += 1
        one.offer(minute(0, volume=str(volume)))
        sent += one.take(now) is not None
        now += 0.02 + draw.random() * jitter_s
    assert sent >= 57


def test_resyncs_are_five_seconds_apart():
    one = pace()
    times = []
    for tenth in range(200):
        one.ask_resync()
        if one.take_resync(tenth / 10):
            times.append(tenth / 10)
    assert len(times) == 4
    assert all(later - earlier >= RESYNC_GAP_S for earlier, later in zip(times, times[1:], strict=False))


def test_a_room_that_falls_far_behind_asks_for_a_resync():
    one = pace()
    for number in range(1, MOST_BEHIND + 2):
        one.offer(minute(number))
    assert one.overrun
    assert one.take_resync(0.0)


def test_an_hour_of_twenty_changes_a_second_never_exceeds_one_update_a_second_and_loses_no_final_state():
    """Promise 14: max updates in any sliding second is 1, final bar states seen are 100 %."""
    rooms = {span: Pace() for span in (1, 5, 15, 60, 240, 1440, 10080)}
    sent = {span: [] for span in rooms}
    finals = {span: {} for span in rooms}
    for span, one in rooms.items():
        one.start(None, 0.0)
    draw, now, volume = random.Random(14), 0.0, 0
    while now < 3600.0:
        now += draw.uniform(0.02, 0.08)
        volume += 1
        for span, one in rooms.items():
            number = int(now // 60) // span * span
            bar = minute(number, volume=str(volume))
            one.offer(bar)
            finals[span][bar.open_ms] = bar.volume
            taken = one.take(now)
            if taken is not None:
                sent[span].append((now, taken))
    for span, one in rooms.items():
        while (due := one.due_at) is not None:
            sent[span].append((due, one.take(due)))
        times = [moment for moment, _ in sent[span]]
        assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[1:], strict=False))
        assert {bar.open_ms: bar.volume for _, bar in sent[span]} == finals[span]
        assert [bar.open_ms for _, bar in sent[span]] == sorted(bar.open_ms for _, bar in sent[span])
