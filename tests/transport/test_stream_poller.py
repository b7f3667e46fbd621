"""The sockets of HTTP connections take turns, and hundreds that are ready together don't fill a pass of the loop."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from candled.transport.broadcaster import ANSWER_S, Broadcaster
from candled.transport.stream_poller import StreamPoller


class Harness:
    """A poller, sockets that are all ready, and a clock that each handled event moves."""

    def __init__(self, count: int, cost_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.now = 0.0
        self.cost_s = cost_s
        self.poller = StreamPoller(
            loop, Broadcaster(loop.call_soon, loop.call_later, lambda: self.now).has_time_to_answer
        )
        self.pairs = [socket.socketpair() for _ in range(count)]
        self.handled: list[int] = []
        for one, other in self.pairs:
            one.send(b"x")
            self.poller.add_handler(other.fileno(), self.on_event, StreamPoller.READ | StreamPoller.ERROR)

    def on_event(self, descriptor: int, events: int) -> None:
        assert self.poller.is_handling
        assert events == StreamPoller.READ
        self.handled.append(descriptor)
        self.now += self.cost_s

    async def run_once(self) -> list[int]:
        """One pass of the loop; return the sockets that were handled in it."""
        self.handled = []
        await asyncio.sleep(0)
        return self.handled

    def close(self) -> None:
        self.poller.close()
        for pair in self.pairs:
            for one in pair:
                one.close()


@pytest.fixture
def opened() -> Iterator[list[Harness]]:
    harnesses: list[Harness] = []
    yield harnesses
    for harness in harnesses:
        harness.close()


@pytest.mark.parametrize("cost_s", [0.00005, 0.0003, 0.05])
async def test_two_hundred_ready_sockets_take_turns_and_a_bounded_time_of_each_pass(opened, cost_s):
    opened.append(harness := Harness(200, cost_s))
    counts: Counter[int] = Counter()
    passes = [await harness.run_once() for _ in range(500)]
    for handled in passes:
        counts.update(handled)
    most = ANSWER_S / cost_s + 1
    assert min(map(len, passes[2:])) >= 1
    assert max(map(len, passes)) <= most
    assert len(counts) == 200
    assert max(counts.values()) - min(counts.values()) <= 1


async def test_a_socket_that_is_not_watched_any_more_is_not_handled(opened):
    opened.append(harness := Harness(10, 1.0))
    while len(handled := await harness.run_once()) != 1:
        pass
    first = handled[0]
    waiting = [other.fileno() for _, other in harness.pairs if other.fileno() != first]
    harness.poller.remove_handler(waiting[0])
    harness.poller.update_handler(waiting[1], StreamPoller.ERROR)
    seen = {descriptor for _ in range(20) for descriptor in await harness.run_once()}
    assert seen == {first, *waiting[2:]}
    harness.poller.update_handler(waiting[1], StreamPoller.READ)
    seen = {descriptor for _ in range(20) for descriptor in await harness.run_once()}
    assert seen == {first, *waiting[1:]}


async def test_a_handler_that_fails_does_not_stop_the_others(opened):
    opened.append(harness := Harness(5, 0.0))
    failing = harness.pairs[0][1].fileno()

    def fail(*_: int) -> None:
        raise RuntimeError("closed by Tornado")

    harness.poller.remove_handler(failing)
    harness.poller.add_handler(failing, fail, StreamPoller.READ)
    seen = {descriptor for _ in range(5) for descriptor in await harness.run_once()}
    assert len(seen) == 4
    assert not harness.poller.is_handling


async def test_a_stream_that_answers_is_asked_first_and_the_handler_gets_the_rest(opened):
    opened.append(harness := Harness(1, 0.0))
    (_, other) = harness.pairs[0]
    asked: list[bytes] = []

    class Stream:
        def answer_readable(self) -> bool:
            asked.append(other.recv(1))
            return asked[-1] != b"y"

        def on_event(self, descriptor: int, events: int) -> None:
            harness.on_event(descriptor, events)

    harness.poller.remove_handler(other.fileno())
    harness.poller.add_handler(other.fileno(), Stream().on_event, StreamPoller.READ)
    handled = await harness.run_once()
    harness.pairs[0][0].send(b"y")
    while len(asked) < 2:
        handled += await harness.run_once()
    assert asked == [b"x", b"y"]
    assert handled == [other.fileno()], "only of the bytes that were not answered"
