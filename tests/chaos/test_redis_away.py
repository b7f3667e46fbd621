"""Redis is unavailable for minutes while candles arrive: all are stored, no part is delayed, and no flood follows."""

import asyncio
import contextlib
import json
import os
import random
from decimal import Decimal

import pytest
import websockets

from candled.model import MINUTE_MS, iso_ms
from tests import deadlines
from tests.bus.rig import until
from tests.chaos.charts import EXTENDED, Subscription
from tests.chaos.deployment import Deployment, Node
from tests.chaos.judge import Judge
from tests.chaos.tap import Tap
from tests.chaos.viewers import Viewer
from tests.loop_watch import LoopWatch
from tests.redis_servers import RedisServer

pytestmark = pytest.mark.usefixtures("postgres", "redis", "daemon")

LONG = "CANDLED_TEST_LONG" in os.environ
SPEED, AWAY_S, MARKETS = (6.0, 300.0, 4) if LONG else (20.0, 12.0, 2)
START_S = 60.0
WATCHED_S = 5.0  # so long publishing is counted, before and after
LATENCY_S = 0.05
STALE_WITHIN_S = 5.0
MOVING_WITHIN_S = 3.0  # it is a bar's beginning, or the machine is slow
STORED_WITHIN_S = 10.0
REPAIRED_S = 5.0
HEAL_S = 30.0
WAITING = 16  # messages of each market that may wait while Redis is unavailable


class Stopwatch:
    """How long every version of a running minute is on its way from the exchange to the clients of a process.

    It begins when a listener at the exchange beside the process has the version.
    """

    def __init__(self, deployment: Deployment, node: Node) -> None:
        self._deployment = deployment
        self._node = node
        self._sent: dict[tuple[str, Decimal], float] = {}
        self._shown: dict[tuple[str, Decimal], float] = {}

    async def __aenter__(self) -> "Stopwatch":
        self._tasks = [asyncio.ensure_future(one) for one in (self._listen(), self._ping(), self._watch())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def lap(self) -> list[float]:
        """The times in seconds since the last lap, ascending; most versions must have been shown.

        Those that a newer one replaces before their second is over are not, more of them on a busy machine.
        """
        took = sorted(at - self._sent[one] for one, at in self._shown.items() if one in self._sent)
        assert len(took) > 0.5 * len(self._sent) > 0, f"{len(took)} of {len(self._sent)} versions were shown"
        self._sent.clear()
        self._shown.clear()
        return took

    async def _listen(self) -> None:
        names = {f"{symbol.base}{symbol.quote}": str(symbol) for symbol in self._deployment.symbols}
        args = [{"instType": "SPOT", "channel": "candle1m", "instId": name} for name in names]
        async with websockets.connect(self._deployment.fake.ws_url, max_size=None) as self._exchange:
            await self._exchange.send(json.dumps({"op": "subscribe", "args": args}))
            async for text in self._exchange:
                now = deadlines.now()
                message = json.loads(text) if text != "pong" else {}
                if message.get("action") == "update":
                    open_ms, _, _, _, _, volume, *_ = message["data"][0]
                    symbol = names[message["arg"]["instId"]]
                    self._sent.setdefault((f"{symbol} {iso_ms(int(open_ms))}", Decimal(volume)), now)

    async def _ping(self) -> None:
        while True:
            await self._deployment.clock.sleep(25.0)
            await self._exchange.send("ping")

    async def _watch(self) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{self._node.port}/", max_size=None) as ws:
            for symbol in self._deployment.symbols:
                await ws.send(json.dumps(Subscription(str(symbol), "1m").request))
            async for text in ws:
                now = deadlines.now()
                message = json.loads(text, parse_float=Decimal)
                if message["type"] == "update":
                    bar = message["bar"]
                    self._shown.setdefault((f"{message['symbol']} {bar['time']}", Decimal(bar["volume"])), now)


def published(server: RedisServer) -> int:
    """How often anything was published since the server was started."""
    with server.client() as client:
        calls = client.info("commandstats").get("cmdstat_publish", {"calls": 0})["calls"]
    return int(calls)


def is_moving(deployment: Deployment, viewers: list[Viewer]) -> bool:
    """Whether every chart shows the running bar."""
    now_ms = deployment.clock.now_ms()
    ends = [(viewer.chart.bars[-1][0], viewer.chart.subscription.length_ms) for viewer in viewers]
    return all(begins > iso_ms(now_ms - length_ms - MINUTE_MS // 3) for begins, length_ms in ends)


@pytest.mark.timeout(1200 if LONG else 900)
async def test_while_redis_is_away_candles_are_stored_and_shown_and_afterwards_only_what_is_newest_is_sent(tmp_path):
    """First it hangs, then it is gone. One process ingests and serves, another only serves."""
    async with Deployment(tmp_path, ingest=0, serve=1, markets=MARKETS, speed=SPEED) as deployment:
        far, near = deployment.nodes
        tap = Tap(deployment.redis)
        for node in deployment.nodes:
            deployment.start(node)
        subscriptions = [
            Subscription(str(symbol), "1m", more=more)
            for symbol in deployment.symbols
            for more in ((), tuple(EXTENDED))
        ]
        at_near, at_far = (
            [Viewer(subscription, [node], random.Random(1)) for subscription in subscriptions] for node in (near, far)
        )
        extended = [viewer.chart for viewer in at_far if viewer.chart.subscription.more]
        judge = Judge(deployment, at_near + at_far)
        try:
            await judge.until_right(START_S)
            async with LoopWatch() as watch, Stopwatch(deployment, near) as stopwatch:
                await asyncio.sleep(1.0)
                before = await asyncio.to_thread(published, deployment.redis)
                await asyncio.sleep(WATCHED_S)
                usual = await asyncio.to_thread(published, deployment.redis) - before
                there = stopwatch.lap()

                begun = deadlines.now()
                deployment.redis.pause()
                stale_s = await until(lambda: all(chart.states[-1] == "stale" for chart in extended), STALE_WITHIN_S)
                await asyncio.sleep(AWAY_S / 2 - stale_s)
                await until(lambda: is_moving(deployment, at_near), MOVING_WITHIN_S)
                await asyncio.to_thread(deployment.redis.kill)
                await asyncio.sleep(begun + AWAY_S - deadlines.now())
                await until(lambda: is_moving(deployment, at_near), MOVING_WITHIN_S)
                assert not is_moving(deployment, at_far)
                away = stopwatch.lap()
                assert [lease["state"] for lease in (await near.health())["bus"]["leases"]] == ["unsure"]
                assert not (await far.health())["bus"]["connected"]
                await judge.until_stored(STORED_WITHIN_S)

                tap.restarted()
                await asyncio.to_thread(deployment.redis.start)
                back, sent = deadlines.now(), [chart.messages for chart in extended]
                await until(lambda: all(chart.states[-1] != "stale" for chart in extended), REPAIRED_S)
                await until(lambda: is_moving(deployment, at_far), REPAIRED_S)
                repaired_s = deadlines.now() - back
                await asyncio.sleep(back + WATCHED_S - deadlines.now())
                afterwards = await asyncio.to_thread(published, deployment.redis)
                most = max(chart.messages - had for chart, had in zip(extended, sent, strict=True))
            right_s = await judge.until_right(HEAL_S)
            wrong = tap.wrong + judge.misbehaved()
            assert not wrong, "\n".join(wrong)
        finally:
            for viewer in at_near + at_far:
                await viewer.stop()
            await tap.stop()
    p99_s, usual_p99_s = away[int(0.99 * len(away))], there[int(0.99 * len(there))]
    print(
        f"\nRedis away for {AWAY_S:.0f} s: {len(away)} versions, p50 {away[len(away) // 2] * 1000:.1f} ms, p99 "
        f"{p99_s * 1000:.1f} ms (before: {usual_p99_s * 1000:.1f} ms); {watch}; stale after {stale_s:.1f} s, healed "
        f"{repaired_s:.1f} s and all right {right_s:.1f} s after it was back; in {WATCHED_S:.0f} s {usual} published "
        f"before, {afterwards} afterwards, {most} to a client; {judge.score.minutes} minutes: {judge.score.missing} "
        f"missing, {judge.score.wrong} wrong, {judge.score.extra} extra"
    )
    assert p99_s - 2 * watch.idle_s < LATENCY_S
    assert repaired_s <= REPAIRED_S
    assert afterwards < 1.5 * usual + WAITING * MARKETS
