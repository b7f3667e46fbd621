"""The broadcast loop on links that need no socket."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.protocol.frames import Frame
from candled.rooms.recipients import Recipients, RecipientSlot
from candled.transport.broadcaster import CLIENTS_S, PASS_S, READ_S, REST_S, SLICE, STARTS, WRITE_S, Broadcaster
from tests.tiers import few_examples

COST_S = 0.00001  # of a send


class Loop:
    """Passes that are run by hand, and a clock that a send moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: list[Callable[[], None]] = []
        self.rests: list[tuple[float, Callable[[], None]]] = []
        self.longest = 0.0
        self.number = 0
        self.broadcaster = Broadcaster(self.soon.append, self._call_later, lambda: self.now)

    def _call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.rests.append((self.now + seconds, call))

    def run_once(self) -> None:
        """One pass of the loop."""
        if not self.soon and self.rests:
            self.now = max(self.now, self.rests[0][0])
        for rest in [rest for rest in self.rests if rest[0] <= self.now]:
            self.rests.remove(rest)
            rest[1]()
        due, self.soon[:] = list(self.soon), []
        began = self.now
        for call in due:
            call()
        self.longest = max(self.longest, self.now - began)

    def run(self) -> int:
        """All passes; how many they were."""
        passes = 0
        while self.soon or self.rests:
            self.run_once()
            passes += 1
        return passes


class Wire:
    """What a link has that the broadcaster uses."""

    address = "here"
    is_light = True
    recipient_slots: tuple[RecipientSlot, ...] = ()

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.got: list[bytes] = []
        self.stalled: list[tuple[bytes, int]] = []
        self.problem: Exception | int | None = None
        self.is_lost = False
        self.code = 0
        self.on_grant: Callable[[], None] = lambda: None

    def take_frame(self, frame: bytes) -> int:
        self.loop.now += COST_S
        if isinstance(self.problem, Exception):
            raise self.problem
        if self.problem is not None:
            return self.problem
        self.got.append(frame)
        return len(frame)

    def on_short_write(self, frame: bytes, taken: int) -> None:
        self.stalled.append((frame, taken))

    def connection_lost(self) -> None:
        self.is_lost = True

    def disconnect(self, code: int, reason: str) -> None:
        self.code, self.is_lost = code, True

    def on_turn(self, topic: object) -> None:
        self.loop.now += COST_S * 100
        self.on_grant()
        self.got.append(f"initial {topic}".encode())

    def uncork(self) -> None:
        self.got.append(b"flushed")

    def finalize(self) -> None:
        self.got.append(b"settled")


def room(loop: Loop, count: int) -> Recipients:
    recipients = Recipients()
    for _ in range(count):
        recipients.add_slot(RecipientSlot(Wire(loop)))
    return recipients


def frame(text: str) -> Frame:
    return Frame.from_text(text)


ONE, TWO = frame("one"), frame("two")
FEW = 32  # sends that need no pass


def test_a_small_room_is_sent_to_immediately():
    loop = Loop()
    recipients = room(loop, SLICE)
    loop.broadcaster.broadcast(recipients, ONE)
    assert all(connection.got == [ONE] for connection in recipients)
    assert recipients.sending == 0


def test_updates_of_small_rooms_one_by_one_need_no_pass_and_many_together_are_bounded():
    loop = Loop()
    rooms = [room(loop, 1) for _ in range(10 * SLICE)]
    began = loop.now
    for one in rooms[:FEW]:
        loop.broadcaster.broadcast(one, ONE)
    assert not loop.soon
    for one in rooms[FEW:]:
        loop.broadcaster.broadcast(one, ONE)
    assert loop.now - began <= PASS_S + (FEW + 1) * COST_S
    assert not rooms[-1][0].got
    loop.run()
    assert loop.longest <= PASS_S + COST_S
    assert all(one[0].got == [ONE] for one in rooms)
    for one in rooms[:FEW]:  # the next ones need none again
        loop.broadcaster.broadcast(one, TWO)
    assert not loop.soon


@pytest.mark.slow
def test_a_large_room_is_sent_to_in_slices_and_no_pass_is_long():
    loop = Loop()
    recipients = room(loop, 10_000)
    loop.broadcaster.broadcast(recipients, ONE)
    assert loop.now <= PASS_S + SLICE * COST_S
    assert recipients.sending == 1
    assert loop.run() > 5
    assert loop.longest <= PASS_S + (SLICE + 1) * COST_S
    assert all(connection.got == [ONE] for connection in recipients)
    assert recipients.sending == 0


@pytest.mark.slow
def test_a_small_room_need_not_wait_for_a_large_one():
    loop = Loop()
    large, small = room(loop, 10_000), room(loop, 10)
    loop.broadcaster.broadcast(large, ONE)
    loop.broadcaster.broadcast(small, TWO)
    loop.run_once()
    assert all(connection.got == [TWO] for connection in small)
    assert large[-1].got == []


def test_the_second_frame_of_a_room_waits_for_the_first():
    loop = Loop()
    recipients = room(loop, 3000)
    loop.broadcaster.broadcast(recipients, ONE)
    loop.broadcaster.broadcast(recipients, TWO)
    loop.run()
    assert all(connection.got == [ONE, TWO] for connection in recipients)


@pytest.mark.slow
def test_of_a_bar_that_waits_for_its_turn_only_the_newest_state_is_sent():
    """However long a list takes, what waits for it does not grow."""
    loop = Loop()
    recipients = room(loop, 3000)
    states = [Frame.from_text(str(number), "topic", 60_000) for number in range(100)]
    for state in states:
        loop.broadcaster.broadcast(recipients, state)
    loop.broadcaster.broadcast(recipients, ONE)
    loop.broadcaster.broadcast(recipients, Frame.from_text("next", "topic", 120_000))
    late = Wire(loop)
    recipients.add_slot(RecipientSlot(late))
    assert recipients.sending == 4
    loop.run()
    assert all(
        connection.got == [states[0], states[-1], ONE, Frame.from_text("next")] for connection in recipients[:-1]
    )
    assert (late.got, recipients.sending) == ([], 0)


def test_who_left_or_joined_meanwhile_does_not_get_the_frame():
    loop = Loop()
    recipients = room(loop, 3000)
    loop.broadcaster.broadcast(recipients, ONE)
    gone, late = recipients[-1], Wire(loop)
    recipients.remove_slot(recipients.slots[-1])
    recipients.add_slot(RecipientSlot(late))
    loop.run()
    assert (gone.got, late.got, recipients[0].got) == ([], [], [ONE])


PLACES = pytest.mark.parametrize("which", [(1,), (0, 1), (SLICE - 1, SLICE), (SLICE * 2 - 1, SLICE * 2 + 9)])


@PLACES
@pytest.mark.parametrize(("problem", "taken"), [(BlockingIOError(), 0), (3, 3)])
def test_bytes_that_the_kernel_does_not_take_are_left_to_the_connection(problem, taken, which):
    loop = Loop()
    recipients = room(loop, SLICE * 2 + 10)
    for position in which:
        recipients[position].problem = problem
    loop.broadcaster.broadcast(recipients, ONE)
    loop.run()
    assert [connection.stalled for connection in recipients] == [
        [(ONE, taken)] * (at in which) for at in range(len(recipients))
    ]
    assert all(connection.got == [ONE] for at, connection in enumerate(recipients) if at not in which)


@PLACES
@pytest.mark.parametrize("problem", [ConnectionResetError(), RuntimeError("a mistake of ours")])
def test_a_broken_connection_does_not_stop_the_others(problem, which):
    loop = Loop()
    recipients = room(loop, SLICE * 2 + 10)
    for position in which:
        recipients[position].problem = problem
    loop.broadcaster.broadcast(recipients, ONE)
    loop.run()
    assert [at for at, connection in enumerate(recipients) if connection.is_lost] == list(which)
    assert all(connection.got == [ONE] for at, connection in enumerate(recipients) if at not in which)
    assert recipients.sending == 0


def test_a_connection_whose_way_changes_is_found_in_every_list():
    loop = Loop()
    lists = [room(loop, 3) for _ in range(2)]
    connection = Wire(loop)
    for recipients in lists:
        recipients.add_slot(RecipientSlot(connection))
    lists[0].remove_slot(lists[0].slots[0])  # so that it changes place
    kept: list[bytes] = []
    connection.take_frame = lambda taken: kept.append(taken) or len(taken)
    for slot in connection.recipient_slots:
        slot.refresh_taker()
    for recipients in lists:
        loop.broadcaster.broadcast(recipients, ONE)
    assert (connection.got, kept) == ([], [ONE, ONE])


@pytest.mark.slow
def test_a_mistake_behind_one_connection_does_not_stop_the_others_nor_send_to_them_twice(caplog):
    loop = Loop()
    recipients = room(loop, 3000)
    for broken in (recipients[1], recipients[2500]):
        broken.problem = RuntimeError("no bars")
    loop.broadcaster.broadcast(recipients, ONE)
    loop.broadcaster.broadcast(recipients, TWO)
    loop.run()
    assert [(number, connection.code) for number, connection in enumerate(recipients) if connection.code] == [
        (1, 1011),
        (2500, 1011),
    ]
    assert all(connection.got == [ONE, TWO] for connection in recipients if not connection.code)
    assert recipients.sending == 0
    assert "a frame cannot be sent" in caplog.text


def test_initials_share_the_time_and_one_that_fails_harms_no_other(caplog):
    loop = Loop()
    recipients = room(loop, 1000)

    def fail() -> None:
        raise RuntimeError("no bars")

    recipients[500].on_grant = fail
    for connection in recipients:
        loop.broadcaster.request_turn(connection, "topic")
    assert loop.now <= WRITE_S + COST_S * 100
    loop.run()
    assert loop.longest <= WRITE_S + COST_S * 100
    assert [len(connection.got) for connection in recipients] == [1] * 500 + [0] + [1] * 499
    assert "cannot render the initial message" in caplog.text


def test_an_initial_is_requested_once_and_can_be_cancelled():
    loop = Loop()
    recipients = room(loop, 100)
    for _ in range(2):
        for connection in recipients:
            loop.broadcaster.request_turn(connection, "topic")
    loop.broadcaster.cancel_turn(recipients[-1], "topic")
    loop.run()
    assert len(recipients[-1].got) == 0
    assert len(recipients[-2].got) == 1


def test_buffered_frames_are_flushed_and_ended_connections_finalized_in_the_next_pass():
    loop = Loop()
    one, two = room(loop, 2)
    loop.broadcaster.uncork_later(one)
    loop.broadcaster.end_later(two.finalize)
    assert one.got + two.got == []
    assert loop.run() == 1
    assert (one.got, two.got) == ([b"flushed"], [b"settled"])


@pytest.mark.slow
@few_examples
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_every_connection_gets_every_frame_of_its_room_once_and_in_order(steps):
    loop = Loop()
    rooms = [room(loop, size) for size in (1, 300, 1500, 4000)]
    sent: list[list[bytes]] = [[] for _ in rooms]
    for number, (which, goes_on) in enumerate(steps):
        text = frame(str(number))
        sent[which].append(text)
        loop.broadcaster.broadcast(rooms[which], text)
        if goes_on and loop.soon:
            loop.run_once()
    loop.run()
    for recipients, frames in zip(rooms, sent, strict=True):
        assert all(connection.got == frames for connection in recipients)
        assert recipients.sending == 0


# ---------------------------------------------------------------- reads and requests in turns


class Reader:
    """A client that always has something to read, which takes `cost_s`."""

    def __init__(self, loop: Loop, cost_s: float) -> None:
        self.loop = loop
        self.cost_s = cost_s
        self.passes: list[int] = []  # in which it was read

    def on_readable(self) -> None:
        self.loop.broadcaster.schedule_read(self.read, is_light=True)

    def read(self) -> None:
        self.loop.now += self.cost_s
        self.passes.append(self.loop.number)


def run_passes(loop: Loop, count: int, events: Callable[[], None]) -> None:
    """Passes with the same events in the same order, as epoll reports sockets that stay readable."""
    for number in range(count):
        loop.number = number
        loop.run_once()
        events()


@pytest.mark.parametrize("flooders", [1, 3, 50])
@pytest.mark.parametrize("slowness", [1, 10, 100], ids="{}x".format)
def test_a_client_is_read_in_its_turn_whatever_the_others_send_and_however_slow_the_machine_is(flooders, slowness):
    """The bound is in turns: between two reads of a client every other one is read once at most."""
    loop = Loop()
    readers = [Reader(loop, 0.004 * slowness) for _ in range(flooders)] + [Reader(loop, 0.0001 * slowness)]
    order: list[Reader] = []
    for reader in readers:
        usual = reader.read
        reader.read = lambda reader=reader, usual=usual: (order.append(reader), usual())
    run_passes(loop, 400, lambda: [reader.on_readable() for reader in readers])
    places = [at for at, reader in enumerate(order) if reader is readers[-1]]
    assert len(places) > 5
    assert max(after - before for before, after in zip(places, places[1:], strict=False)) <= 2 * flooders + 1


@pytest.mark.parametrize("slowness", [1, 10, 100], ids="{}x".format)
def test_a_storm_of_requests_starts_a_few_in_each_pass_in_order_and_a_client_is_read_between_them(slowness):
    loop = Loop()
    client = Reader(loop, 0.0001 * slowness)
    started: list[int] = []
    starts_per_pass: list[int] = []
    due: list[int] = []
    ready: list[int] = []

    def start(number: int) -> None:
        due.append(number)

    def events() -> None:
        before = len(started)
        started.extend(ready)
        loop.now += 0.0003 * slowness * len(ready)  # the handshakes that the last pass let start
        ready[:] = due
        due.clear()
        for number in arriving[loop.number]:
            if loop.broadcaster.has_time_to_start():
                started.append(number)
                loop.now += 0.0003 * slowness
            else:
                loop.broadcaster.start_later(lambda number=number: start(number))
        client.on_readable()
        starts_per_pass.append(len(started) - before)

    arriving = [range(40), *(range(at, at + 10) for at in range(40, 500, 10)), *[range(0)] * 999]
    run_passes(loop, 600, events)
    assert started == list(range(500))
    assert max(starts_per_pass) <= max(READ_S / 0.0003 + 1, STARTS + 1)
    assert all(after - before <= 2 for before, after in zip(client.passes, client.passes[1:], strict=False))


def test_frames_are_sent_before_waiting_clients_are_read():
    loop = Loop()
    reader = Reader(loop, 0.02)
    run_passes(loop, 3, lambda: [reader.on_readable(), reader.on_readable()])
    recipients = room(loop, 10)
    loop.broadcaster.broadcast(recipients, ONE)
    assert recipients[0].got == [], "the pass is used up"
    read_before = len(reader.passes)
    got_when_read: list[bytes] = []
    loop.broadcaster.schedule_read(lambda: got_when_read.extend(recipients[0].got), is_light=True)
    loop.run()
    assert got_when_read == [ONE]
    assert len(reader.passes) >= read_before


# ---------------------------------------------------------------- initials, rests of frames and ends in turns


class Work:
    """Pieces of work of one kind, which take `cost_s` each."""

    def __init__(self, loop: Loop, cost_s: float, kind: str = "read") -> None:
        self.loop = loop
        self.kind = kind
        self.cost_s = cost_s
        self.done: list[int] = []

    def add(self, number: int, *, is_light: bool = True) -> None:
        piece, broadcaster = self.piece(number), self.loop.broadcaster
        if self.kind == "end_later":
            broadcaster.end_later(piece)
        else:
            getattr(broadcaster, self.kind)(piece, is_light=is_light)

    def piece(self, number: int) -> Callable[[], None]:
        def do() -> None:
            self.loop.now += self.cost_s
            self.done.append(number)

        return do


KINDS = ("schedule_write", "end_later", "schedule_read")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cost_s", [0.0001, 0.0014, 0.1])
def test_four_hundred_that_come_together_are_served_in_order_with_a_bounded_share_of_each_pass(kind, cost_s):
    loop = Loop()
    work = Work(loop, cost_s, kind)
    for number in range(400):
        work.add(number)
    share_s = READ_S if kind == "schedule_read" else WRITE_S
    assert loop.now <= share_s + cost_s
    passes = loop.run()
    assert loop.longest <= share_s + cost_s
    assert passes >= 400 * cost_s / (share_s + cost_s) - 1
    assert work.done == list(range(400))


def test_a_broadcast_goes_before_the_initials_rests_ends_and_reads_that_wait():
    loop = Loop()
    initials, others = room(loop, 400), [Work(loop, 0.0002, kind) for kind in KINDS]
    for number, connection in enumerate(initials):
        loop.broadcaster.request_turn(connection, "topic")
        for work in others:
            work.add(number)
    loop.run_once()
    loop.now += 1.0  # of another callback: the pass is used up
    recipients = room(loop, SLICE)
    loop.broadcaster.broadcast(recipients, ONE)
    assert recipients[0].got == []
    began = loop.now
    loop.run_once()
    assert recipients[-1].got == [ONE]
    assert loop.now - began <= SLICE * COST_S + WRITE_S + READ_S + 2 * 100 * COST_S


def test_each_kind_goes_on_in_each_pass_however_long_passes_are():
    loop = Loop()
    initials, works = room(loop, 20), {kind: Work(loop, 0.001, kind) for kind in KINDS}
    loop.broadcaster.has_time_to_read()
    loop.now += 1.0
    for number, connection in enumerate(initials):
        loop.broadcaster.request_turn(connection, "topic")
        for work in works.values():
            work.add(number)
        loop.broadcaster.start_later(works["schedule_read"].piece(-1))
    before = {kind: len(work.done) for kind, work in works.items()}
    had = sum(len(connection.got) for connection in initials)
    for number in range(1, 6):
        loop.run_once()
        loop.now += 1.0
        assert all(len(work.done) - before[kind] >= number for kind, work in works.items())
        assert sum(len(connection.got) for connection in initials) - had >= number
        assert works["schedule_read"].done.count(-1) >= number, "a request was started"


@pytest.mark.parametrize("kind", ["schedule_write", "schedule_read"])
def test_a_light_client_goes_before_those_that_have_used_much_of_their_budget(kind):
    loop = Loop()
    work = Work(loop, 0.001, kind)
    for number in range(100):
        work.add(number, is_light=False)
    loop.run_once()
    at = len(work.done)
    work.add(-1)
    work.add(-2)
    loop.run()
    assert work.done[at : at + 2] == [-1, -2]
    assert [number for number in work.done if number >= 0] == list(range(100))


@pytest.mark.parametrize("kind", ["schedule_write", "schedule_read"])
def test_light_clients_leave_one_turn_after_each_rest_to_the_others(kind):
    loop = Loop()
    light, heavy = Work(loop, 0.001, kind), Work(loop, 0.001, kind)
    for number in range(100):
        light.add(number)
        heavy.add(number, is_light=False)
    for _ in range(20):
        served, until = len(heavy.done), loop.now + REST_S
        while loop.now <= until:
            loop.run_once()
        loop.run_once()
        assert len(heavy.done) > served
        assert len(light.done) >= len(heavy.done)


@pytest.mark.parametrize("kind", ["schedule_write", "schedule_read"])
@given(cost_s=st.floats(0.00001, 0.005), count=st.integers(1, 300))
@few_examples
def test_a_flood_leaves_passes_to_others_and_none_of_it_waits_forever(kind, cost_s, count):
    loop = Loop()
    work = Work(loop, cost_s, kind)
    for number in range(count):
        work.add(number, is_light=False)
    assert not work.done, "not in the pass of another"
    while len(work.done) < count:
        served = len(work.done)
        loop.run_once()
        assert len(work.done) > served or not loop.soon
        if loop.rests:
            assert not loop.soon, "nothing is due, so the loop sleeps"
    assert work.done == list(range(count))


def test_an_initial_of_a_light_client_goes_first_too_and_can_be_cancelled():
    loop = Loop()
    heavy, light = room(loop, 50), room(loop, 3)
    for connection in heavy:
        connection.is_light = False
        loop.broadcaster.request_turn(connection, "topic")
    for connection in light:
        loop.broadcaster.request_turn(connection, "topic")
    assert [len(connection.got) for connection in light] == [1, 1, 0], "the time of this pass is used up"
    assert not any(connection.got for connection in heavy)
    loop.broadcaster.cancel_turn(light[2], "topic")
    loop.broadcaster.cancel_turn(heavy[-1], "topic")
    loop.run()
    assert [len(connection.got) for connection in light] == [1, 1, 0]
    assert [len(connection.got) for connection in heavy] == [1] * 49 + [0]


def test_requests_whose_time_is_spent_after_their_start_are_fewer_in_the_next_pass():
    """The time of a handshake is that of the tasks it wakes."""
    loop, cost_s = Loop(), 0.001
    started: list[int] = []
    for number in range(100):
        loop.broadcaster.start_later(lambda number=number: started.append(number))
    longest = 0.0
    for number in range(100):
        before = len(started)
        loop.run_once()
        spent_s = (len(started) - before) * cost_s
        loop.now += spent_s
        if number > 2:
            longest = max(longest, spent_s)
    assert started == list(range(100))
    assert longest <= CLIENTS_S + cost_s


def test_a_pass_that_begins_after_a_pause_has_all_its_time():
    loop = Loop()
    work = Work(loop, 0.0001)
    loop.broadcaster.schedule_read(work.piece(0), is_light=True)
    loop.now += 1.0
    loop.run()
    loop.now += 1.0  # nothing happened
    for number in range(1, 10):
        loop.broadcaster.schedule_read(work.piece(number), is_light=True)
    assert work.done == list(range(10))
