"""The budget of work: honest clients never notice it, and whatever an attacker does, the work admitted is bounded."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from candled.addresses import client_of, network_of
from candled.config import LimitSettings, ServerSettings
from candled.serve.connection_limiter import ConnectionLimiter
from candled.transport import work_budget
from candled.transport.http_connections import HttpConnections
from candled.transport.work_budget import (
    BYTE,
    CONNECT,
    FRAME,
    HOT_REQUEST,
    PENALTY,
    REFUSED,
    REQUEST,
    UNLIMITED,
    WorkBudgets,
    initial_cost,
    page_cost,
)

LIMITS = LimitSettings()
CONNECTION, ADDRESS = LIMITS.connection_work.total_seconds(), LIMITS.address_work.total_seconds()
BURST_S, WAIT_S = LIMITS.work_burst.total_seconds(), LIMITS.work_wait.total_seconds()
V4, HOME, OFFICE, V6 = "192.0.2.1", "198.51.100.7", "203.0.113.9", "2001:db8:0:1::9"


def make(connection=CONNECTION, address=ADDRESS, **more):
    return WorkBudgets(connection, address, BURST_S, WAIT_S, **more)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (initial_cost(10, is_loaded=True), initial_cost(1000, is_loaded=True)),
        (initial_cost(1000, is_loaded=True), initial_cost(1000, is_loaded=False)),
        (initial_cost(1000, is_loaded=True), page_cost(1000)),
        (initial_cost(10, is_loaded=True), initial_cost(10, is_loaded=True, resumes=True)),
        (page_cost(10), page_cost(1000)),
        (FRAME, initial_cost(0, is_loaded=True)),
        (HOT_REQUEST, REQUEST),
        (REQUEST, REQUEST + 92_000 * BYTE),
    ],
)
def test_what_costs_more_is_charged_more(less, more):
    assert 0 < less * 1.5 < more


@pytest.mark.parametrize(
    ("charged_s", "result"),
    [  # of a connection with 0.1 s a second: 2 s are saved up, and 0.5 s may be owed
        (0.0, 0.0),
        (1.99, 0.0),
        (2.1, 1.0),
        (2.5, 5.0),
        (2.51, REFUSED),
        (9.0, REFUSED),
    ],
)
def test_an_answer_waits_before_it_is_refused(charged_s, result):
    bucket = make(address=0).open_connection(V4)
    bucket.charge(charged_s, 1000.0)
    assert bucket.wait_of(1000.0) == pytest.approx(result)
    assert bucket.admit(0.001, 1000.0) == pytest.approx(result)
    later_s = 25.0 if charged_s < 9 else 31.0
    assert bucket.wait_of(1000.0 + later_s) == 0.0, "refilled steadily, and what can be owed is bounded"


@pytest.mark.parametrize(("each_s", "seconds"), [(0.0, 0), (1.0, 600), (0.1, 20)])
def test_a_connection_ends_if_it_goes_on_after_refusals(each_s, seconds):
    """One that retries once a second, because others use its address, never does."""
    budgets, now, refusals = make(), 0.0, 0
    bucket, other = budgets.open_connection(V4), budgets.open_connection(V4)
    while now <= 600 and refusals < 6000:
        for _ in range(3):
            other.charge(5.0, now)
        if bucket.admit(0.001, now) == REFUSED:
            refusals += 1
            if bucket.penalize(now):
                assert each_s < PENALTY / CONNECTION
                break
        now += each_s
    else:
        assert each_s == 1.0
    assert budgets.refused == refusals
    assert budgets.ended == (each_s < PENALTY / CONNECTION)
    assert now >= seconds / 2


@pytest.mark.parametrize(
    ("one", "other", "shares"),
    [
        (V4, V4, True),
        (V4, f"::ffff:{V4}", True),
        (V4, "192.0.2.2", False),
        (V6, "2001:db8:0:1:ffff::1", True),
        (V6, "2001:db8:0:2::1", False),
        (V6, "2001:db8:1:2::1", False),
    ],
)
def test_an_address_has_one_budget_for_all_its_connections(one, other, shares):
    budgets = make(connection=0)
    budgets.open_connection(one).charge(20.0, 0.0)
    assert (budgets.open_connection(other).wait_of(0.0) == REFUSED) == shares
    assert (budgets.address_bucket(other).wait_of(0.0) == REFUSED) == shares


def test_the_networks_of_a_customer_share_four_budgets():
    budgets = make()
    for number in range(1, 6):
        budgets.address_bucket(f"2001:db8:0:{number}::1").charge(5.0, 0.0)
    assert budgets.address_bucket("2001:db8:0:ff::1").wait_of(0.0) == 5.0
    assert budgets.address_bucket("2001:db8:0:100::1").wait_of(0.0) == 0.0


def test_beyond_the_most_addresses_all_others_share_one_budget():
    budgets = make(most=2)
    for number in range(100):
        budgets.address_bucket(f"192.0.2.{number}").charge(0.1, 0.0)
    assert len(budgets) == 2
    assert budgets.address_bucket("192.0.2.1").wait_of(0.0) == 0.0
    assert budgets.address_bucket("192.0.2.200").wait_of(0.0) == REFUSED
    budgets.sweep(1000.0)
    assert len(budgets) == 0


@pytest.mark.parametrize("now", [0.0, 1e9, 5.0])
def test_no_limit_is_none(now):
    budgets = WorkBudgets()
    for bucket in (UNLIMITED, budgets.open_connection(V4), budgets.open_connection(V6)):
        assert [bucket.charge(1e6, now), bucket.admit(1e6, now), bucket.penalize(now)] == [0.0, 0.0, False]


OPERATIONS = st.lists(
    st.tuples(
        st.floats(0, 30),
        st.sampled_from([FRAME, CONNECT + REQUEST, initial_cost(1000, is_loaded=True), page_cost(1000), 0.5]),
        st.integers(1, 400),
        st.integers(0, 3),
    ),
    max_size=40,
)


@pytest.mark.slow
@given(OPERATIONS)
def test_the_work_admitted_is_bounded_whatever_the_order(operations):
    budgets, now = make(), 0.0
    connections = [budgets.open_connection(V4) for _ in range(4)]
    admitted, each = 0.0, [0.0] * 4
    for pause_s, cost, count, which in operations:
        now += pause_s
        for _ in range(count):
            if connections[which].admit(cost, now) != REFUSED:
                admitted += cost
                each[which] += cost
        assert admitted <= ADDRESS * (BURST_S + WAIT_S + now) + 0.5 + 1e-6
        assert max(each) <= CONNECTION * (BURST_S + WAIT_S + now) + 0.5 + 1e-6


class One:
    """A connection until it is a client."""

    def __init__(self, address):
        self.address, self.customer = address, client_of(address)
        self.budget, self.deadline, self.unsent, self.progressed_at = UNLIMITED, 0.0, 0, 0.0


class Strangers(RuleBasedStateMachine):
    """An honest chart, an office with 200 clients and 33 panes at home, while strangers do whatever they like.

    All limits on connections, handshakes and work are those of the default settings.
    """

    def __init__(self):
        super().__init__()
        self.budgets, self.now = make(), 0.0
        server = ServerSettings()
        self.limiter = ConnectionLimiter(
            server.max_connections, server.max_connections_per_ip, server.max_handshakes_per_second
        )
        self.connections = HttpConnections(
            self.limiter,
            most=server.max_connections,
            most_per_address=server.max_connections_per_ip,
            header_s=server.header_timeout.total_seconds(),
            idle_s=server.idle_timeout.total_seconds(),
            stalled_s=server.slow_client_timeout.total_seconds(),
            budgets=self.budgets,
        )
        self.attackers = []  # open connections with their addresses, and the work that each was admitted
        self.admitted = Counter()  # by address
        self.began = {}
        self.office = [self.come_in_patiently(OFFICE) for _ in range(200)]
        self.chart = self.come_in_patiently(HOME)
        self.stormed_at = -100.0
        self.longest_s = 0.0

    def come_in(self, address):
        """Connect and shake hands; return the budget of the client, or None if it is refused."""
        if self.connections.is_address_refused(address, b"GET /ws HTTP/1.1", self.now):
            return None
        if not self.connections.make_room(client_of(address), address):
            return None
        one = One(address)
        self.connections.add_connection(one, self.now)
        self.connections.on_request(one, self.now)
        is_admitted = one.budget.admit(REQUEST, self.now) != REFUSED
        is_admitted = is_admitted and self.limiter.refusal_for(address) is None
        is_admitted = is_admitted and not self.limiter.admit_handshake(self.now, address)
        self.connections.remove_connection(one)
        if not is_admitted:
            return None
        self.limiter.add_connection(address)
        return self.budgets.open_connection(address)

    def come_in_patiently(self, address):
        """Do the same again and again, as an honest client does."""
        for _ in range(5):
            bucket = self.come_in(address)
            if bucket is not None:
                return bucket
            self.now += 1.0
        raise AssertionError("an honest client was kept out")

    def hang_up(self, address, bucket):
        self.limiter.remove_connection(address)
        self.budgets.close_connection(bucket)

    # ---------------------------------------------------------------- honest clients

    def never_refused(self, bucket, cost):
        wait_s = bucket.admit(cost, self.now)
        assert wait_s != REFUSED
        self.longest_s = max(self.longest_s, wait_s)

    @precondition(lambda self: self.now >= self.stormed_at + 10)
    @rule(is_loaded=st.booleans())
    def office_reconnects(self, is_loaded):
        """All behind one address come back in the same moment, each with 64 rooms; the first one has them loaded."""
        self.stormed_at = self.now
        for bucket in self.office:
            self.hang_up(OFFICE, bucket)
        self.office = [self.come_in_patiently(OFFICE) for _ in range(200)]
        for number, bucket in enumerate(self.office):
            for _ in range(8):  # messages with eight subscriptions each
                self.never_refused(bucket, 8 * initial_cost(100, is_loaded=is_loaded or number > 0))

    @rule(bars=st.sampled_from([10, 100, 1000]), seconds=st.sampled_from([3.0, 10.0]))
    def chart_is_reloaded(self, bars, seconds):
        self.now += seconds
        self.hang_up(HOME, self.chart)
        self.chart = self.come_in_patiently(HOME)
        for _ in range(64):
            self.never_refused(self.chart, initial_cost(bars, is_loaded=bars < 1000))

    @rule()
    def panes_poll_for_a_minute(self):
        """As TradingView's library: each of 33 panes asks six times a minute."""
        for _ in range(6):
            self.now += 10.0
            for _ in range(33):
                self.never_refused(self.chart, REQUEST + 55_000 * BYTE)

    # ---------------------------------------------------------------- strangers

    @rule(address=st.sampled_from([V4, V6, "2001:db8:0:2::1", "2001:db8:1::1"]), count=st.sampled_from([1, 30]))
    def connect(self, address, count):
        self.began.setdefault(network_of(address), self.now)
        for _ in range(count):
            bucket = self.come_in(address)
            if bucket is not None:
                self.attackers.append([address, bucket, 0.0, self.now])

    @rule(address=st.sampled_from([V4, V6, "2001:db8:0:2::1"]), count=st.sampled_from([100, 1000]))
    def shake_hands_again_and_again(self, address, count):
        """Many connections in the same moment, each with a handshake, and closed after it."""
        self.began.setdefault(network_of(address), self.now)
        self.now += 0.5 * (count == 1000)
        for _ in range(count):
            bucket = self.come_in(address)
            if bucket is not None:
                self.hang_up(address, bucket)

    @precondition(lambda self: self.attackers)
    @rule(
        data=st.data(),
        cost=st.sampled_from([initial_cost(1000, is_loaded=True), page_cost(1000), REQUEST]),
        count=st.sampled_from([1, 50, 1000]),
    )
    def ask(self, data, cost, count):
        address, bucket, _, _ = data.draw(st.sampled_from(self.attackers))
        for _ in range(count):
            if bucket.admit(cost, self.now) != REFUSED:
                self.admitted[network_of(address)] += cost
                self.admitted[client_of(address)] += cost * (":" in address)

    @precondition(lambda self: self.attackers)
    @rule(data=st.data(), frames=st.sampled_from([1, 1365]), count=st.sampled_from([1, 20, 500]))
    def flood(self, data, frames, count):
        """Control frames are read in any case, until the connection ends."""
        one = data.draw(st.sampled_from(self.attackers))
        _, bucket, _, since = one
        for _ in range(count):
            one[2] += frames * FRAME
            if bucket.charge(frames * FRAME, self.now) == REFUSED and bucket.penalize(self.now):
                self.end(one)
                break
        most = CONNECTION * (BURST_S + 2 * WAIT_S + self.now - since) + 1365 * FRAME
        assert one[2] <= most + 1e-6, "a flood ends"

    @precondition(lambda self: self.attackers)
    @rule(data=st.data())
    def end_abruptly(self, data):
        self.end(data.draw(st.sampled_from(self.attackers)))

    def end(self, one):
        self.attackers.remove(one)
        self.hang_up(one[0], one[1])
        one[1].charge(1.0, self.now)  # an answer that was being made

    @rule(seconds=st.sampled_from([0.02, 1.0, 7.0, 60.0]))
    def wait(self, seconds):
        self.now += seconds
        self.budgets.sweep(self.now)
        self.connections.sweep(self.now)

    # ---------------------------------------------------------------- always

    @invariant()
    def admitted_work_is_bounded(self):
        for key, cost in self.admitted.items():
            rate = ADDRESS * (4 if key.endswith("/56") else 1)
            since = min(self.began.values())
            assert cost <= rate * (BURST_S + WAIT_S + self.now - since) + page_cost(1000) + 1e-6

    @invariant()
    def addresses_are_counted(self):
        opened = Counter(network_of(address) for address, *_ in self.attackers)
        opened |= Counter({HOME: 1, OFFICE: 200})
        found = self.budgets._addresses
        assert {key: one.members for key, one in found.items() if one.members and "/56" not in key} == opened
        networks = Counter(one.parent.key for one in found.values() if one.parent is not None)
        assert {
            key: one.members for key, one in found.items() if one.members and key.endswith("/56")
        } == networks | Counter()

    def teardown(self):
        assert self.longest_s <= WAIT_S
        for address, bucket, _, _ in self.attackers:
            self.hang_up(address, bucket)
        for bucket in self.office:
            self.hang_up(OFFICE, bucket)
        self.hang_up(HOME, self.chart)
        assert (self.limiter.count, self.limiter._networks, self.limiter._customers, len(self.connections)) == (
            0,
            {},
            {},
            0,
        )
        self.now += BURST_S + self.budgets.most_debt_s + 1
        for _ in range(2):  # a customer after its networks
            self.budgets.sweep(self.now)
        assert len(self.budgets) == 0


Strangers.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestStrangers = pytest.mark.slow(Strangers.TestCase)  # 200 clients in many sequences


@pytest.mark.parametrize(
    ("own_s", "of_the_address_s", "is_light"),
    [(0.0, 0.0, True), (0.019, 0.0, True), (0.021, 0.0, False), (0.0, 0.029, True), (0.0, 0.051, False)],
)
def test_a_client_is_light_while_it_and_its_address_have_used_little(own_s, of_the_address_s, is_light):
    budgets = WorkBudgets(0.1, 0.25, burst_s=20.0)
    one, other = (budgets.open_connection("192.0.2.1") for _ in range(2))
    now = 1000.0
    one.charge(own_s, now)
    other.charge(of_the_address_s, now)
    assert one.is_light(now) == is_light
    assert one.is_light(now + 1.0), "it is paid"
    assert budgets.open_connection("192.0.2.2").is_light(now)


def test_without_limits_all_are_light():
    one = WorkBudgets().open_connection("192.0.2.1")
    one.charge(1e9, 0.0)
    assert one.is_light(0.0)


def test_costs_are_positive_and_finite():
    costs = [value for name, value in vars(work_budget).items() if name.isupper() and isinstance(value, float)]
    assert sorted(costs)[-1] == REFUSED
    assert all(0 < cost <= PENALTY for cost in costs if cost != REFUSED)


def test_new_limits_apply_to_connections_that_are_open():
    budgets = make(connection=0.1, address=0)
    bucket = budgets.open_connection(V4)
    bucket.charge(2.5, 0.0)
    assert bucket.wait_of(0.0) == pytest.approx(5.0)
    budgets.set_limits(1.0, 0.0, BURST_S, WAIT_S)
    bucket.charge(2.0, 10.0)
    assert bucket.wait_of(10.0) == 0.0
    budgets.set_limits(0.0, 0.0, BURST_S, WAIT_S)
    bucket.charge(1000.0, 10.0)
    assert bucket.wait_of(10.0) == 0.0
    budgets.set_limits(0.0, 0.1, BURST_S, 1.0)
    bucket.charge(2.05, 10.0)
    assert bucket.wait_of(10.0) == pytest.approx(0.5)
    assert budgets.address_bucket(V4).admit(1.0, 10.0) == pytest.approx(0.5)
    assert bucket.admit(0.1, 10.0) == REFUSED
