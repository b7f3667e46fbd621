"""The pacing of a room: fault 7, fault 8, fault 11 and promise 14."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.model import MINUTE_MS
from candled.protocol.messages import FINAL_WAIT_S
from candled.rooms.throttle import MOST_BEHIND, RESYNC_GAP_S, UpdateThrottle
from tests import tiers
from tests.rows import MONDAY_MS, minute


def pace() -> UpdateThrottle:
    one = UpdateThrottle()
    one.start_after(minute(0, volume="1"), 0.0)
    return one


def test_the_first_change_goes_out_immediately_and_the_newest_at_the_end_of_the_second():
    one = pace()
    one.queue_bar(minute(0, volume="2"), 5.0)
    assert one.take_due(5.0).volume == 2
    for volume in ("3", "4", "5"):
        one.queue_bar(minute(0, volume=volume), 5.5)
        assert one.take_due(5.5) is None
    assert one.due_at == 6.0
    assert one.take_due(6.0).volume == 5
    assert one.take_due(7.5) is None


def test_an_unchanged_candle_is_not_sent_again():
    """Fault 7: the same unchanged candle sent again every second."""
    one = pace()
    one.queue_bar(minute(0, volume="2"), 1.0)
    assert one.take_due(1.0) is not None
    for second in range(2, 10):
        one.queue_bar(minute(0, volume="2", as_of=second * 1000), float(second))
        assert one.take_due(float(second)) is None


def test_a_change_that_is_taken_back_within_the_second_is_not_sent():
    one = pace()
    one.queue_bar(minute(0, volume="2"), 1.0)
    one.take_due(1.0)
    one.queue_bar(minute(0, volume="3"), 1.1)
    one.queue_bar(minute(0, volume="2"), 1.2)
    assert one.due_at is None


def test_the_old_bars_last_state_goes_before_the_new_bars_first():
    one = pace()
    one.queue_bar(minute(0, volume="2"), 1.0)
    one.take_due(1.0)
    one.queue_bar(minute(0, volume="9"), 1.1)
    one.queue_bar(minute(1, volume="1"), 1.2)
    one.queue_bar(minute(1, volume="2"), 1.3)
    old, new = one.take_due(2.0), one.take_due(3.0)
    assert (old.open_ms, old.volume) == (MONDAY_MS, 9)
    assert (new.open_ms, new.volume) == (MONDAY_MS + MINUTE_MS, 2)


def test_an_older_bar_never_moves_the_chart_back():
    """Fault 11: an out-of-order minute moving the chart back in time."""
    one = pace()
    one.queue_bar(minute(1), 1.0)
    one.take_due(1.0)
    assert not one.queue_bar(minute(0, volume="9"), 1.1)
    assert one.take_due(5.0) is None


@pytest.mark.parametrize("jitter_s", [0.0, 0.005, 0.019])
def test_a_timer_that_comes_late_does_not_halve_the_cadence(jitter_s):
    """Fault 8: a pacing timer whose jitter halves the cadence."""
    one, draw, sent, now = pace(), random.Random(2), 0, 0.0
    volume = 1
    while now < 60.0:
        volume += 1
        one.queue_bar(minute(0, volume=str(volume)), now, spread_s=0.15)
        sent += one.take_due(now) is not None
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
        one.queue_bar(minute(number), 0.0)
    assert one.is_overrun
    assert one.take_resync(0.0)


@pytest.mark.slow
def test_twenty_changes_a_second_for_long_never_exceeds_one_update_a_second_and_loses_no_final_state():
    """Promise 14: max updates in any sliding second is 1, final bar states seen are 100 %."""
    rooms = {span: UpdateThrottle() for span in (1, 5, 15, 60, 240, 1440, 10080)}
    sent = {span: [] for span in rooms}
    finals = {span: {} for span in rooms}
    for span, one in rooms.items():
        one.start_after(None, 0.0)
    draw, now, volume = random.Random(14), 0.0, 0
    while now < (3600.0 if tiers.LONG else 1200.0):
        now += draw.uniform(0.02, 0.08)
        volume += 1
        newest = minute(0, volume=str(volume))
        for span, one in rooms.items():
            number = int(now // 60) // span * span
            bar = newest._replace(open_ms=MONDAY_MS + number * MINUTE_MS)
            one.queue_bar(bar, now)
            finals[span][bar.open_ms] = bar.volume
            taken = one.take_due(now)
            if taken is not None:
                sent[span].append((now, taken))
    for span, one in rooms.items():
        while (due := one.due_at) is not None:
            sent[span].append((due, one.take_due(due)))
        times = [moment for moment, _ in sent[span]]
        assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[1:], strict=False))
        assert {bar.open_ms: bar.volume for _, bar in sent[span]} == finals[span]
        assert [bar.open_ms for _, bar in sent[span]] == sorted(bar.open_ms for _, bar in sent[span])


@pytest.mark.slow
def test_rooms_that_change_together_have_their_turns_apart_and_none_is_slower_for_it():
    spreads = [number / 1000 for number in range(100)]
    rooms = [pace() for _ in spreads]
    sent = [[] for _ in spreads]
    for tick in range(1, 3000):
        now = tick / 100
        for one, spread_s, times in zip(rooms, spreads, sent, strict=True):
            if tick % 10 == 1:
                one.queue_bar(minute(0, volume=str(tick + 1)), now, spread_s=spread_s)
            if one.take_due(now) is not None:
                times.append(now)
    assert {times[0] for times in sent} == {0.01}  # the first change goes out at once
    assert len({times[1] for times in sent}) >= 10
    for times in sent:
        assert len(times) >= 29
        assert all(later - earlier >= 1.0 - 1e-9 for earlier, later in zip(times, times[1:], strict=False))


# ---------------------------------------------------------------- final


def holding() -> UpdateThrottle:
    one = UpdateThrottle(final_wait_s=FINAL_WAIT_S)
    one.start_after(minute(0, volume="1"), 0.0)
    return one


def test_the_new_bar_waits_for_the_final_old_one_which_is_sent_even_if_nothing_else_changed():
    one = holding()
    one.queue_bar(minute(1), 2.0)
    assert one.take_due(2.0) is None
    assert one.due_at == 2.0 + FINAL_WAIT_S
    one.queue_bar(minute(0, volume="1"), 7.0, final=True)
    assert (one.take_due(7.0), one.sent_final) == (minute(0, volume="1"), True)
    assert one.due_at == 8.0
    assert (one.take_due(8.0), one.sent_final) == (minute(1), False)


def test_after_the_longest_wait_the_old_bar_is_skipped_and_reported_as_skipped():
    one = holding()
    one.queue_bar(minute(1), 2.0)
    assert one.take_due(2.0 + FINAL_WAIT_S - 0.01) is None
    assert one.take_due(2.0 + FINAL_WAIT_S) == minute(1)
    assert one.skipped_open_ms == MONDAY_MS
    assert not one.queue_bar(minute(0, volume="1"), 40.0, final=True)


def test_a_bar_that_was_sent_as_final_is_revised_by_no_update():
    one = holding()
    one.queue_bar(minute(0, volume="1"), 1.0, final=True)
    assert one.take_due(1.0) is not None
    assert one.queue_bar(minute(0, volume="1"), 2.0, final=True)
    assert not one.queue_bar(minute(0, volume="2"), 3.0, final=True)
    assert not one.queue_bar(minute(0, volume="1"), 4.0, final=True)  # back again: that is a change as well
    assert one.due_at is None


def test_a_revision_that_changes_no_value_counts_only_where_revisions_are_sent():
    revised = minute(0, volume="1")._replace(rev=1)
    plain, with_revisions = UpdateThrottle(), UpdateThrottle(revisions=True)
    for one in (plain, with_revisions):
        one.start_after(minute(0, volume="1"), 0.0)
        one.queue_bar(revised, 1.0)
    assert (plain.take_due(1.0), with_revisions.take_due(1.0)) == (None, revised)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["grow", "grow", "grow", "next", "settle", "late", "revise", "wait", "pause"]),
        st.floats(0.0, 3.0),
    ),
    max_size=80,
)


class Feed:
    """A market as rooms see it: bars that grow, end, and become final in order, the running one never."""

    def __init__(self, one: UpdateThrottle, closed: bool) -> None:
        self.one = one
        self.on_close = closed
        self.now = 0.0
        self.volumes = {0: 1}
        self.final_until = 0  # bars before it are final
        self.sent: list[tuple[float, object, bool]] = []
        self.past: list[int] = []  # what only a correction can tell
        self.turned_at = 0.0

    def bar(self, number: int):
        return minute(number, volume=str(self.volumes[number]))

    def offer(self, number: int) -> None:
        final = number < self.final_until
        if self.on_close and not final:
            return
        if not self.one.queue_bar(self.bar(number), self.now, final=final):
            self.past.append(number)
        self.turn()

    def turn(self) -> None:
        while (bar := self.one.take_due(self.now)) is not None:
            self.sent.append((self.now, bar, self.one.sent_final))
            if self.one.skipped_open_ms is not None:
                self.past.append((self.one.skipped_open_ms - MONDAY_MS) // MINUTE_MS)

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.one.due_at) is not None and due <= end:
            self.now = max(self.now, due)
            if self.one.take_resync(self.now):
                continue
            self.turn()
        self.now = end

    def happen(self, what: str, seconds: float) -> None:
        newest = max(self.volumes)
        if what == "grow":
            self.volumes[newest] += 1
            self.offer(newest)
        elif what == "next":
            self.volumes[newest + 1] = 1
            self.offer(newest + 1)
        elif what == "settle" and self.final_until < newest:
            self.final_until += 1
            self.offer(self.final_until - 1)
        elif what in ("late", "revise"):  # of a bar that is over, and not final yet, or final already
            number = self.final_until if what == "late" else self.final_until - 1
            if 0 <= number < newest:
                self.volumes[number] += 1
                self.offer(number)
        else:
            self.pass_time(seconds if what == "wait" else 40.0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "final", "closed"])
@given(events=EVENTS)
def test_whatever_happens_the_order_the_pace_and_the_last_states_are_kept(mode, events):
    one = UpdateThrottle(final_wait_s=FINAL_WAIT_S if mode == "final" else 0.0)
    one.start_after(None if mode == "closed" else minute(0, volume="1"), 0.0)
    feed = Feed(one, closed=mode == "closed")
    for what, seconds in events:
        feed.happen(what, seconds)
    feed.pass_time(100.0)
    times = [at for at, _, _ in feed.sent]
    assert all(later - earlier >= 1.0 - 1e-9 for earlier, later in zip(times, times[1:], strict=False))
    assert [bar.open_ms for _, bar, _ in feed.sent] == sorted(bar.open_ms for _, bar, _ in feed.sent)
    last = {bar.open_ms: bar for _, bar, _ in feed.sent}
    for number in range(len(feed.volumes)):  # the last state was told, or is known to need a correction
        bar = feed.bar(number)
        is_sent = bar.open_ms in last and last[bar.open_ms].values == bar.values
        untouched = number == 0 and feed.volumes[0] == 1
        assert is_sent or untouched or number in feed.past or (mode == "closed" and number >= feed.final_until)
    final_times = [bar.open_ms for _, bar, final in feed.sent if final]
    assert len(final_times) == len(set(final_times))  # a bar is sent as final once
    if mode == "final":
        assert set(range(feed.final_until)) <= {(at - MONDAY_MS) // MINUTE_MS for at in final_times} | set(feed.past)
    for (_, earlier, was_final), (_, later, _) in zip(feed.sent, feed.sent[1:], strict=False):
        assert not was_final or later.open_ms > earlier.open_ms  # in the last update of a bar
        if mode == "final" and later.open_ms > earlier.open_ms and not was_final:
            assert (earlier.open_ms - MONDAY_MS) // MINUTE_MS in feed.past


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(1, 3), st.sampled_from([0.0, 0.1, 0.4, 1.0, 1.3]), st.booleans()),
        max_size=60,
    )
)
def test_the_short_ways_come_to_what_the_long_one_comes_to(events):
    long, short, now = pace(), pace(), 0.0
    for number, volume, later_s, is_late in events:
        now += later_s
        bar = minute(max(0, number - 2 * is_late), volume=str(volume))
        with_revisions = []
        long.queue_bar(bar, now, spread_s=0.15)
        with_revisions.append(long.take_due(now))
        if short.try_send_now(bar, now):
            with_revisions.append(bar)
        elif short.queue_pending(bar, now, 0.15):
            with_revisions.append(None)
        else:
            short.queue_bar(bar, now, spread_s=0.15)
            with_revisions.append(short.take_due(now))
        assert with_revisions[0] == with_revisions[1]
        assert (long.sent, long.queued_bars, long.due_at, long.is_overrun) == (
            short.sent,
            short.queued_bars,
            short.due_at,
            short.is_overrun,
        )
        assert [long.take_due(now + 0.05), long.take_resync(now)] == [
            short.take_due(now + 0.05),
            short.take_resync(now),
        ]
