"""Many processes under random faults: afterwards every final minute is stored once, and every chart is a fresh one."""

import asyncio
import os
import random

import pytest

from tests import deadlines
from tests.chaos.charts import Subscription
from tests.chaos.deployment import SPEED, Deployment
from tests.chaos.faults import TAKEOVER_S, Faults
from tests.chaos.judge import Judge
from tests.chaos.tap import Tap
from tests.chaos.viewers import Viewer

pytestmark = pytest.mark.usefixtures("postgres", "redis", "daemon")

LONG = [
    pytest.mark.long,
    pytest.mark.timeout(7200),
]
SHORT: list[pytest.MarkDecorator] = []
START_S = 60.0
HEAL_S = 60.0
REDIS_RECOVERED_S = 5.0
WATCHED_S = 7.0  # within this the minute that ended with a fault has settled
CHECKED = 0.4  # of the rounds; after the others the next one comes on top
EXTENDED = ("fields", "corrections", "status")
# Every run has the first ones, a long run all of these, in a random order; Redis starts at the beginning of a minute.
ALWAYS = [
    "restart redis", "kill leader", "kill database", "freeze leader", "kill serve", "freeze serve", "freeze redis",
    "lose redis", "mute exchange", "reset front",
]  # fmt: skip
SURE = 3


def seed() -> int:
    """Another one at each run, unless `CANDLED_TEST_SEED` says which."""
    return int(os.environ.get("CANDLED_TEST_SEED") or random.SystemRandom().randrange(10**6))


def watch(deployment: Deployment, draw: random.Random) -> list[Viewer]:
    """Clients of every serving process in several rooms, plain and extended ones, and some that change between them."""
    viewers = []
    for node in deployment.serving:
        for number, interval in enumerate(("1m", "5m", "1h")):
            symbol = str(deployment.symbols[number % len(deployment.symbols)])
            viewers.append(Viewer(Subscription(symbol, interval), [node], random.Random(draw.random())))
            viewers.append(Viewer(Subscription(symbol, interval, more=EXTENDED), [node], random.Random(draw.random())))
    for interval in ("1m", "5m"):
        symbol = str(deployment.symbols[-1])
        viewers.append(Viewer(Subscription(symbol, interval), deployment.serving, random.Random(draw.random())))
        viewers.append(
            Viewer(Subscription(symbol, interval, more=EXTENDED), deployment.serving, random.Random(draw.random()))
        )
    return viewers


def plan(draw: random.Random, known: list[str], count: int) -> list[tuple[list[str], bool]]:
    """Rounds of one to three faults, `count` in all, each at the beginning of a minute or not."""
    more = draw.sample(ALWAYS[SURE:], min(count, len(ALWAYS)) - SURE)
    kinds = draw.sample([*ALWAYS[:SURE], *more], SURE + len(more))
    while len(kinds) < count:
        kinds.append(draw.choice(known))
    rounds = []
    while kinds:
        size = draw.choice([1, 1, 1, 2, 3])
        several, kinds = kinds[:size], kinds[size:]
        rounds.append((several, "restart redis" in several or draw.random() < 0.4))
    return rounds


@pytest.mark.parametrize(
    ("faults", "longest_s", "ingest", "serve", "shards", "speed", "takeover_s"),
    [
        pytest.param(6, 4.0, 1, 1, 1, 10.0, 1.5 * TAKEOVER_S, marks=SHORT),  # also where many tests run beside it
        pytest.param(200, 12.0, 3, 3, 2, SPEED, TAKEOVER_S, marks=LONG),
    ],
    ids=["short", "long"],
)
async def test_whatever_fails_every_minute_is_stored_once_and_every_chart_is_right(
    tmp_path, faults, longest_s, ingest, serve, shards, speed, takeover_s
):
    number = seed()
    print(f"\nchaos: seed {number}")
    draw = random.Random(number)
    async with Deployment(
        tmp_path, ingest=ingest, serve=serve, shards=shards, markets=2 * shards, speed=speed
    ) as deployment:
        tap = Tap(deployment.redis)
        for node in deployment.nodes:
            deployment.start(node)
        viewers = watch(deployment, draw)
        judge, breaking = Judge(deployment, viewers), Faults(deployment, tap, draw, longest_s=longest_s)
        try:
            print(f"right after the start: {await judge.until_right(START_S):.1f} s", flush=True)
            judge.score.heals_s.clear()
            for kinds, at_boundary in plan(draw, sorted(breaking.kinds), faults):
                begun = deadlines.now()
                await breaking.round(kinds, at_boundary=at_boundary)
                print(
                    f"{kinds}{' at a boundary' if at_boundary else ''}: {deadlines.now() - begun:.1f} s",
                    end="",
                    flush=True,
                )
                if draw.random() < CHECKED:
                    print(f", healed in {await judge.until_right(HEAL_S):.1f} s", flush=True)
                else:
                    print(flush=True)
                await asyncio.sleep(draw.uniform(0.0, 2.0))
            await deployment.minutes(1)
            await judge.until_right(HEAL_S)
            wrong = tap.wrong + judge.misbehaved()
            assert not wrong, "\n".join(wrong)
        finally:
            for viewer in viewers:
                await viewer.stop()
            await tap.stop()
            print(summary(breaking, judge, viewers, number), flush=True)
    assert breaking.counts.total() >= faults
    assert max(breaking.takeovers_s, default=0.0) <= takeover_s
    assert sum(viewer.chart.updates for viewer in viewers) > 100


@pytest.mark.parametrize(("faults", "clients"), [pytest.param(50, 100, marks=LONG)], ids=["long"])
async def test_after_trouble_with_redis_every_closed_bar_is_the_stored_one_within_5_s(tmp_path, faults, clients):
    """At each beginning of a minute; three processes serve."""
    number = seed()
    draw = random.Random(number)
    kinds = ["restart redis", "freeze redis", "lose redis", "mute redis", "reset redis"]
    async with Deployment(tmp_path, ingest=1, serve=2) as deployment:
        tap = Tap(deployment.redis)
        for node in deployment.nodes:
            deployment.start(node)
        subscriptions = [
            Subscription(str(symbol), interval) for symbol in deployment.symbols for interval in ("1m", "5m")
        ]
        subscriptions += [
            Subscription(subscription.symbol, subscription.interval, more=EXTENDED) for subscription in subscriptions
        ]
        viewers = [
            Viewer(subscriptions[at % len(subscriptions)], [deployment.serving[at % 3]], random.Random(draw.random()))
            for at in range(clients)
        ]
        judge, breaking = Judge(deployment, viewers), Faults(deployment, tap, draw, longest_s=5.0)
        try:
            await judge.until_right(START_S)
            judge.score.heals_s.clear()
            for at in range(faults):
                await breaking.round([kinds[at % len(kinds)]], at_boundary=True)
                assert await judge.watch_closed(WATCHED_S) <= REDIS_RECOVERED_S
            await judge.until_right(HEAL_S)
            wrong = tap.wrong + judge.misbehaved()
            assert not wrong, "\n".join(wrong)
        finally:
            for viewer in viewers:
                await viewer.stop()
            await tap.stop()
            print(summary(breaking, judge, viewers, number), flush=True)
    assert breaking.counts.total() >= faults


def summary(breaking: Faults, judge: Judge, viewers: list[Viewer], number: int) -> str:
    """The one line that a run ends with."""
    score = judge.score
    by_kind = ", ".join(f"{kind} {count}" for kind, count in sorted(breaking.counts.items()))
    resumed = sum(viewer.chart.resumed for viewer in viewers)
    back = sum(viewer.chart.went_back for viewer in viewers)
    finals = sum(len(viewer.chart.finals) for viewer in viewers)
    return (
        f"chaos: {breaking.counts.total()} faults ({by_kind}); {score.minutes} minutes checked: "
        f"{score.missing} missing, {score.wrong} wrong, {score.extra} extra; "
        f"{len(viewers)} charts, {resumed} resumed, {back} began older, "
        f"{finals} finals; largest heal {max(score.heals_s, default=0.0):.1f} s, takeover "
        f"{max(breaking.takeovers_s, default=0.0):.1f} s of {len(breaking.takeovers_s)}; seed {number}"
    )
