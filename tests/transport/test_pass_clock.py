"""The clock of the passes never lags behind the processor time, is little ahead of it, and rarely reads it."""

import time

from hypothesis import example, given
from hypothesis import strategies as st

from candled.transport.pass_clock import AHEAD_S, PassClock

steps = st.lists(st.tuples(st.floats(0, 0.001), st.floats(0, 1)), max_size=50)


@given(steps)
@example([(AHEAD_S * 0.9, 0.0), (AHEAD_S * 0.9, 1.0)])
def test_it_is_the_processor_time_or_little_more(taken):
    """Each step is the time that passed, and the part of it in which the thread ran."""
    wall = processor = 0.0
    clock = PassClock(lambda: wall, lambda: processor)
    clock()
    for passed, share in taken:
        wall += passed
        processor += passed * share
        assert -1e-9 < clock() - processor < AHEAD_S + 1e-9


def test_a_pass_of_many_steps_reads_the_processor_time_few_times():
    wall, readings = 0.0, 0

    def processor() -> float:
        nonlocal readings
        readings += 1
        return wall

    clock = PassClock(lambda: wall, processor)
    for _ in range(1000):  # 1 ms
        wall += 1e-6
        clock()
    assert readings <= 5


def test_it_follows_the_clocks_of_the_system():
    clock = PassClock(time.perf_counter, time.thread_time)
    began, processor = clock(), time.thread_time()
    time.sleep(0.02)
    while time.thread_time() - processor < 0.003:
        continue
    assert 0.003 - AHEAD_S <= clock() - began < 0.02
