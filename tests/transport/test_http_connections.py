"""The connections from accept to their end: the limits hold, nothing leaks, and the heaviest address makes room."""

import asyncio
import contextlib
from collections import Counter
from unittest.mock import Mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from candled.config import ServerSettings
from candled.transport import http_connections
from candled.transport.http_connections import SPARE, SPARE_PER_ADDRESS, HttpConnections
from candled.transport.work_budget import WorkBudgets
from tests import deadlines
from tests.api.stage import open_stage
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS

HEADER_S, IDLE_S, STALLED_S = 10.0, 75.0, 30.0


class Clients:
    """The lasting connections of customers."""

    def __init__(self, **counts):
        self.counts = Counter(counts)

    @property
    def count(self):
        return self.counts.total()

    def count_of(self, customer):
        return self.counts[customer]


class One:
    """A connection that notes its end."""

    def __init__(self, all_of_them, customer, now):
        self.all, self.customer, self.deadline, self.progressed_at, self.unsent = all_of_them, customer, 0.0, 0.0, 0
        self.is_open, self.address = True, customer
        all_of_them.add_connection(self, now)

    def close(self):
        self.is_open = False
        self.all.remove_connection(self)

    close_for_room = close


def make(clients=None, most=0, per=0, **more):
    return HttpConnections(
        clients or Clients(), most=most, most_per_address=per, header_s=HEADER_S, idle_s=IDLE_S, stalled_s=STALLED_S,
        **more,
    )  # fmt: skip


def test_a_full_server_closes_the_oldest_waiting_one_of_the_heaviest_address():
    connections = make(Clients(x=10), most=10)
    busy = [One(connections, "honest", 0.0) for _ in range(40)]
    for one in busy:
        connections.on_request(one, 0.0)
    idle = [One(connections, "heavy", 0.0) for _ in range(SPARE - 41)]
    light = One(connections, "light", 0.0)
    connections.await_request(idle[0], 1.0)  # used since, but still the first of its address
    assert connections.make_room("new", "new")
    assert [one.is_open for one in idle].count(False) == 1
    assert light.is_open
    assert all(one.is_open for one in busy)
    for one in [*idle, light]:
        one.close()
    for _ in range(SPARE - 40):
        connections.on_request(One(connections, "unread", 0.0), 0.0)
    assert connections.make_room("new", "new")  # among those that are answered, if none waits
    assert all(one.is_open for one in busy)


@pytest.mark.parametrize("is_proxy", [True, False])
def test_an_address_at_its_limit_makes_room_itself(is_proxy):
    connections = make(Clients(a=5), per=5, is_proxy=lambda _: is_proxy)
    ones = [One(connections, "a", 0.0) for _ in range(SPARE_PER_ADDRESS)]
    other = One(connections, "b", 0.0)
    assert connections.make_room("a", "a")
    assert [one.is_open for one in ones].count(False) == (0 if is_proxy else 1)
    assert other.is_open


def test_clients_alone_leave_no_room_beyond_the_spare_ones():
    assert not make(Clients(a=10 + SPARE), most=10).make_room("b", "b")


@pytest.mark.parametrize(
    ("steps", "ends_at"),
    [
        ([], HEADER_S),  # half-open
        (["first@9"], HEADER_S),  # slow header: its bytes do not extend the time
        (["request@1", "answered@2"], 2 + IDLE_S),
        (["request@1", "answered@2", "first@50"], 60.0),  # a later header has the header timeout
        (["request@1", "answered@2", "first@76"], 2 + IDLE_S),
        (["request@1", "written@2"], 1 + STALLED_S),
        (["request@1", "written@2", "sent@20"], 20 + STALLED_S),
        (["request@1"], None),  # an answer that is being made is not late
    ],
)
def test_when_a_connection_is_late(steps, ends_at):
    connections = make()
    one = One(connections, "a", 0.0)
    for step in steps:
        name, _, text = step.partition("@")
        at = float(text)
        {
            "first": lambda at=at: connections.on_first_bytes(one, at),
            "request": lambda at=at: connections.on_request(one, at),
            "answered": lambda at=at: connections.await_request(one, at),
            "written": lambda: connections.on_written(one, 100),
            "sent": lambda at=at: connections.on_sent(one, 50, at),
        }[name]()
    last = 1000.0 if ends_at is None else ends_at
    assert connections.sweep(last - 0.1) == []
    assert connections.sweep(last + 0.1) == ([] if ends_at is None else [one])
    assert connections.sweep(last + 1.1) == [], "each is closed once"


@pytest.mark.parametrize(
    ("waited_s", "is_idle", "is_closed"), [(0.5, False, False), (1.5, False, True), (0.5, True, True)]
)
def test_a_new_connection_keeps_its_descriptor_for_a_second(waited_s, is_idle, is_closed):
    """Many that connect together get an answer each: those without a descriptor 503."""
    connections = make()
    one = One(connections, "a", 0.0)
    if is_idle:
        connections.await_request(one, 0.0)
    assert connections.close_stale(waited_s) == is_closed
    assert one.is_open != is_closed


def test_unread_answers_are_bounded_together(monkeypatch):
    monkeypatch.setattr(http_connections, "MOST_UNSENT", 1000)
    connections = make()
    honest = One(connections, "honest", 0.0)
    connections.on_written(honest, 400)
    flood = [One(connections, "flood", 0.0) for _ in range(6)]
    for one in flood:
        connections.on_written(one, 150)
    connections.close_unread()
    assert honest.is_open
    assert connections.unsent <= 1000
    assert sum(one.is_open for one in flood) == 4


@pytest.mark.parametrize(
    ("refusals", "pause_s", "is_proxy", "is_refused"),
    [
        (50, 0.0, False, False),  # a burst, such as that of a page with many panes
        (51, 0.0, False, True),
        (51, 0.0, True, False),  # others stand behind the same address
        (500, 0.1, False, False),  # slow enough
        (51, 0.01, False, False),
        (500, 0.01, False, True),
    ],
)
def test_an_address_that_ignores_refusals_is_refused_unread_for_a_while(refusals, pause_s, is_proxy, is_refused):
    connections = make(is_proxy=lambda _: is_proxy)
    one, other, now = One(connections, "a", 0.0), One(connections, "b", 0.0), 0.0
    for _ in range(refusals):
        now += pause_s
        connections.count_refusal(one, "a", "/udf", now)
    get = b"GET /udf/history?x=/y HTTP/1.1\r\n"
    assert connections.is_refused(one, get, now) == is_refused
    assert not connections.is_refused(one, b"GET /api/udf/history HTTP/1.1\r\n", now)
    assert not connections.is_refused(other, get, now)
    assert not connections.is_refused(one, get, now + http_connections.REFUSED_S)
    connections.sweep(now + 100.0)
    assert not connections._refusals
    assert not connections._refused_until


class StatefulConnections(RuleBasedStateMachine):
    """Any sequence of accepts, requests, answers and abrupt ends."""

    def __init__(self):
        super().__init__()
        self.clients = Clients()
        self.budgets = WorkBudgets(0.1, 0.25)
        self.connections = make(self.clients, most=3, per=2, budgets=self.budgets)
        self.ones, self.now = [], 0.0

    @rule(customer=st.sampled_from("abc"))
    def accept(self, customer):
        if self.connections.make_room(customer, customer):
            self.ones.append(One(self.connections, customer, self.now))

    @precondition(lambda self: any(one.is_open for one in self.ones))
    @rule(data=st.data(), step=st.sampled_from(["first", "request", "answered", "written", "sent", "close", "client"]))
    def step(self, data, step):
        one = data.draw(st.sampled_from([one for one in self.ones if one.is_open]))
        match step:
            case "first":
                self.connections.on_first_bytes(one, self.now)
            case "request":
                self.connections.on_request(one, self.now)
            case "answered":
                self.connections.await_request(one, self.now)
            case "written":
                self.connections.on_written(one, 100)
            case "sent":
                self.connections.on_sent(one, one.unsent, self.now)
            case "close":
                one.close()
            case "client":
                self.connections.remove_connection(one)
                one.is_open = False

    @rule(seconds=st.sampled_from([1.0, 11.0, 80.0]))
    def wait(self, seconds):
        self.now += seconds
        for late in self.connections.sweep(self.now):
            late.close()
        self.budgets.sweep(self.now)

    @invariant()
    def counts_are_those_of_the_open_ones(self):
        left = [one for one in self.ones if one.is_open]
        assert len(self.connections) == len(left) <= 3 + SPARE
        assert self.connections.unsent == sum(one.unsent for one in left)
        assert self.connections._customers == Counter(one.customer for one in left)
        counted = {key: one.members for key, one in self.budgets._addresses.items() if one.members}
        assert counted == Counter(one.address for one in left)
        for crowd in (self.connections._awaiting, self.connections._answered):
            sizes = Counter(one.customer for one in crowd.everyone())
            assert crowd.largest == max(sizes.values(), default=0)
            oldest = crowd.oldest_of_heaviest()
            assert (oldest is None) == (not sizes)
            assert oldest is None or sizes[oldest.customer] == crowd.largest


StatefulConnections.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestConnections = pytest.mark.slow(StatefulConnections.TestCase)  # many sequences


@pytest.mark.slow  # a server with sockets, and 90 seconds of its clock
async def test_health_is_answered_while_half_open_connections_fill_the_server(tmp_path, monkeypatch):
    monkeypatch.setattr(http_connections, "SPARE", 4)
    clock = ManualClock(MONDAY_MS)
    async with open_stage(
        tmp_path, clock=clock, server=ServerSettings(host="127.0.0.1", port=0, max_connections=1)
    ) as one:
        port = one.server.listen()
        found = Mock(wraps=one.server.application.find_handler)
        monkeypatch.setattr(one.server.application, "find_handler", found)
        half_open = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
        for _, writer in half_open:
            writer.write(b"GET / HTTP/1.1\r\nHost")
        async with deadlines.timeout(5):
            while sum(stream._head.waiting > 0 for stream in one.server._connections._is_counted) < 5:
                await asyncio.sleep(0.001)
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            async with deadlines.timeout(5):
                assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
            half_open.append((reader, writer))
        assert not found.called, "probes are answered before Tornado parses them"
        await clock.advance(HEADER_S + 1.5)
        await clock.advance(IDLE_S)
        read = []
        for reader, writer in half_open:
            async with deadlines.timeout(5):
                with contextlib.suppress(ConnectionResetError):
                    read.append(await reader.read())  # at its end: closed
            writer.close()
        assert not any(b"HTTP/1.1 4" in data for data in read)
        assert sum(data.startswith(b"HTTP/1.1 503 ") for data in read) >= 3, "a request was begun"
        assert len(one.server._connections) == 0
