"""A market in virtual time, with clients that come, stall, lose their sockets and resume: every chart ends right."""

import os
import random

import pytest

from candled.model import MINUTE, MINUTE_MS, Range
from tests.rooms.stage import BTC, MONDAY_MS, Chart, Socket, Stage, stage
from tests.rows import minute

LONG = bool(os.environ.get("CANDLED_TEST_LONG"))
INTERVALS = ("1m", "5m", "15m", "1h", "1D")
KINDS = (
    {},
    {"fields": ["seq"]},
    {"fields": ["final", "seq"]},
    {"fields": ["final", "seq", "rev"], "corrections": True},
    {"fields": ["seq", "rev"], "corrections": True},
    {"mode": "closed", "fields": ["seq"]},
    {"mode": "closed", "fields": ["final", "seq"], "corrections": True},
)


class Market:
    """A feed with everything that feeds do: late last versions, revisions, gaps that are found and repaired."""

    def __init__(self, one: Stage, draw: random.Random) -> None:
        self.one = one
        self.draw = draw
        self.number = 60
        self.volume = 1
        self.unsettled: dict[int, float] = {}  # minutes that are over, and when they become final
        self.missing: list[int] = []  # minutes that the stream did not bring

    def step(self) -> None:
        one, draw = self.one, self.draw
        now = one.clock.monotonic()
        if draw.random() < 0.6:
            self.grow()
        if (one.clock.now_ms() - MONDAY_MS) // MINUTE_MS > self.number:
            self.unsettled[self.number] = now + draw.choice((1.0, 3.0, 5.0, 8.0, 45.0))
            self.number += 1
            if draw.random() < 0.03:
                self.missing.append(self.number - 1)
                del self.unsettled[self.number - 1]
            self.volume = 1
            self.grow()
        if self.unsettled and draw.random() < 0.1:  # a version that comes late
            number = draw.choice(list(self.unsettled))
            one.push(self.minute(number, draw.randrange(100, 999)))
        self.settle(now)
        if draw.random() < 0.01:  # the exchange changes its mind about the past
            number = self.number - draw.randrange(5, 40)
            if number not in self.missing and number >= 0 and number not in self.unsettled:
                one.push(self.minute(number, draw.randrange(1000, 9999), rev=1, as_of=10**7 + round(now * 1000)))
        if draw.random() < 0.01:  # the audit found that the store, or REST, has it otherwise; or just the same
            first = max(0, self.number - draw.randrange(5, 60))
            numbers = [number for number in range(first, first + draw.choice((1, 3))) if number not in self.missing]
            kept = [self.one.bars.get_bar(BTC, MINUTE, minute(number).open_ms) for number in numbers]
            changed = draw.random() < 0.7
            self.one.heal(
                [
                    self.minute(number, draw.randrange(100, 999), bar.rev + 1, 10**8 + round(now * 1000))
                    if changed
                    else bar
                    for number, bar in zip(numbers, kept, strict=True)
                    if bar is not None and number not in self.unsettled and number < self.number
                ]
            )
        if self.missing and draw.random() < 0.02:
            self.repair()
        if draw.random() < 0.005:
            one.state(draw.choice(("live", "quiet", "stale")))

    def grow(self) -> None:
        self.volume += self.draw.randrange(3)
        if self.number not in self.missing:
            second = self.one.clock.now_ms() % MINUTE_MS
            self.one.push(minute(self.number, str(10 + self.draw.randrange(3)), str(self.volume), as_of=second))

    def minute(self, number: int, volume: int, rev: int = 0, as_of: int | None = None):
        stamp = 61_000 + volume if as_of is None else as_of
        return minute(number, str(10 + volume % 5), str(volume), as_of=stamp, final=rev > 0)._replace(rev=rev)

    def settle(self, now: float) -> None:
        """Minutes become final in order, whatever is missing before them."""
        done = 60
        while done < self.number and (done in self.missing or self.unsettled.get(done, 0.0) <= now):
            done += 1
        for number in [number for number in self.unsettled if number < done]:
            del self.unsettled[number]
        gap = None
        if self.missing:
            gap = Range(minute(min(self.missing)).open_ms, minute(max(self.missing) + 1).open_ms)
        before = self.one.facts
        self.one.settle(done, gap)
        if before != self.one.facts:
            self.grow()

    def repair(self) -> None:
        numbers, self.missing = [number for number in self.missing if number < self.number], []
        self.settle(self.one.clock.monotonic())
        if numbers:
            self.one.heal([minute(number, "12", "55", final=True) for number in numbers])

    def come_to_rest(self) -> None:
        self.unsettled.clear()
        self.repair()
        self.one.settle(self.number, None)
        self.grow()


class Person:
    """A client with one chart, on one socket after the other."""

    def __init__(self, one: Stage, draw: random.Random, kind: dict) -> None:
        self.one = one
        self.draw = draw
        self.kind = kind
        self.interval = draw.choice(INTERVALS)
        self.bars = draw.choice((1, 3, 20, 100))
        self.chart = Chart()
        self.socket: Socket | None = None

    def step(self) -> None:
        draw = self.draw
        if self.socket is None:
            if draw.random() < 0.2:
                self.connect()
        elif draw.random() < 0.02:
            self.socket.client.on_close()
            self.socket = None
        elif self.socket.blocked:
            if draw.random() < 0.05:
                self.socket.let_go()
        elif draw.random() < 0.02:
            self.socket.blocked = True
        elif draw.random() < 0.01:
            self.subscribe()

    def connect(self) -> None:
        self.socket = self.one.connect()
        self.socket.charts["BTC/USDT", self.interval] = self.chart
        self.subscribe(resumes=bool(self.chart.bars))

    def subscribe(self, *, resumes: bool = False) -> None:
        options = dict(self.kind)
        if resumes and self.chart.position is not None:
            epoch, seq = self.chart.position
            options["resume"] = {"epoch": epoch, "seq": seq, "time": self.chart.bars[-1]["time"]}
        self.socket.subscribe(self.interval, self.bars, **options)

    def check(self) -> None:
        other = self.one.connect()
        other.subscribe(self.interval, self.bars, **self.kind)
        shown = other.chart(self.interval).bars
        other.client.on_close()
        assert self.chart.bars[-len(shown) :] == shown, (self.kind, self.interval, self.bars)
        assert shown or (self.kind.get("mode"), self.interval) == ("closed", "1D")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300 if LONG else 2))
async def test_whatever_happens_every_chart_ends_as_a_fresh_load(seed):
    draw = random.Random(seed)
    one = await stage(draw=draw)
    one.stored.clock = one.clock
    market = Market(one, draw)
    people = [Person(one, draw, kind) for kind in KINDS for _ in range(3)]
    for _ in range(1200 if LONG else 700):
        market.step()
        for person in people:
            person.step()
        await one.wait(0.3)
    market.come_to_rest()
    for person in people:
        if person.socket is None:
            person.connect()
        elif person.socket.blocked:
            person.socket.let_go()
    for _ in range(20):
        await one.wait(2)
    for person in people:
        person.check()
    recovered = [recovered for person in people for recovered in person.chart.recovered]
    assert recovered.count(True) > 0.8 * len(recovered)  # the others came back in the middle of a repair
    assert len(recovered) > len(people)
