"""The wheel, turned by hand."""

import pytest

from candled.transport.ping_wheel import PingWheel


class Mute:
    """Is pinged, and answers if asked to."""

    def __init__(self, answers: bool) -> None:
        self.slot = -1
        self.awaits_pong = False
        self.pings: list[int] = []
        self.codes: list[int] = []
        self.answers = answers
        self.step = 0

    def send_ping(self) -> None:
        self.pings.append(self.step)
        self.awaits_pong = not self.answers

    def disconnect(self, code: int, reason: str) -> None:
        self.codes.append(code)


def turn(wheel: PingWheel, connections: list[Mute], steps: int) -> None:
    for _ in range(steps):
        for connection in connections:
            connection.step += 1
        wheel.turn_once()


@pytest.mark.parametrize(("interval_s", "timeout_s"), [(30, 10), (30, 30), (1, 1), (0.1, 0.1), (3600, 5)])
def test_everybody_is_pinged_once_in_an_interval_and_closed_for_silence_after_the_timeout(interval_s, timeout_s):
    wheel = PingWheel(interval_s, timeout_s)
    steps = round(interval_s / wheel.step_s)
    good, bad = [Mute(True) for _ in range(50)], [Mute(False) for _ in range(50)]
    for pair in zip(good, bad, strict=True):
        for connection in pair:
            wheel.add_connection(connection)
    turn(wheel, good + bad, 2 * steps)
    assert all(len(connection.pings) == 2 and not connection.codes for connection in good)
    for connection in bad:
        assert connection.codes[0] == 3012
    closed_after = max(1, round(timeout_s / wheel.step_s))
    watched = Mute(False)
    wheel.add_connection(watched)
    while not watched.codes:
        turn(wheel, [watched], 1)
    assert watched.step - watched.pings[0] == pytest.approx(min(closed_after, steps - 1), abs=1)


@pytest.mark.slow
def test_the_steps_cost_the_same():
    wheel = PingWheel(30, 10)
    connections = [Mute(True) for _ in range(10_000)]
    for connection in connections:
        wheel.add_connection(connection)
    before = 0
    for _ in range(300):
        wheel.turn_once()
        pings = sum(len(connection.pings) for connection in connections)
        assert pings - before in (33, 34)
        before = pings


def test_who_left_is_not_pinged():
    wheel = PingWheel(1, 1)
    connection = Mute(False)
    wheel.add_connection(connection)
    wheel.remove_connection(connection)
    turn(wheel, [connection], 40)
    assert (connection.pings, connection.codes) == ([], [])
