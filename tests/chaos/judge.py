"""Check the store, the charts and the processes. Each fault is reported as a sentence."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import psycopg2
import websockets

from candled.model import MINUTE, MINUTE_MS, Candle, Interval, Symbol, fold, iso_ms
from tests import deadlines
from tests.chaos.charts import closed_before, time_ms, values_of, without_source
from tests.chaos.deployment import Deployment, Values
from tests.chaos.viewers import Viewer, fresh

_FINAL_AFTER_MS = 2 * MINUTE_MS  # minutes that ended so long ago should be final and stored
_CLOSED_MS = 30_000  # so long after its end a minute has settled, and is stored
_LEAD_MS = 12 * 60 * MINUTE_MS  # the stream's snapshots reach back before the week in which a run begins
_CALM_S = 1.0  # the exchange holds its tongue for so long while charts are compared
_WRITERS_AND_READERS = {"freeWriters", "freeReaders"}


@dataclass
class Score:
    """What a run adds up to."""

    minutes: int = 0
    missing: int = 0
    wrong: int = 0
    extra: int = 0
    charts: int = 0
    heals_s: list[float] = field(default_factory=list)


class Judge:
    """Compares a site and its viewers with the exchange's truth."""

    def __init__(self, deployment: Deployment, viewers: Sequence[Viewer]) -> None:
        self.score = Score()
        self._deployment = deployment
        self._viewers = viewers
        self._slots: dict[str, dict[str, int]] = {}

    async def until_right(self, within_s: float) -> float:
        """Wait until everything is right; return the seconds that took.

        Raises:
            AssertionError: it did not come to be; the text says what was wrong last.
        """
        return await self._until(self.differences, within_s)

    async def until_stored(self, within_s: float) -> float:
        """The same of what is stored alone."""
        until_ms = MINUTE.floor(self._deployment.clock.now_ms()) - _FINAL_AFTER_MS
        return await self._until(lambda: self._store(until_ms), within_s)

    async def watch_closed(self, seconds: float) -> float:
        """Look for so long whether every closed bar that clients show is the stored one; return when last it was not.

        Minutes that end meanwhile count as well.
        """
        begun, last_s, wrong = deadlines.now(), 0.0, ""
        while (passed_s := deadlines.now() - begun) < seconds:
            now_wrong = await self._closed()
            if now_wrong:
                last_s, wrong = passed_s, now_wrong
            await asyncio.sleep(0.2)
        self.score.heals_s.append(last_s)
        if last_s:
            print(f"last wrong after {last_s:.1f} s: {wrong}")
        return last_s

    async def _until(self, differences: Callable[[], Awaitable[str]], within_s: float) -> float:
        begun = deadlines.now()
        while True:
            wrong = await differences()
            took_s = deadlines.now() - begun
            if not wrong:
                self.score.heals_s.append(took_s)
                return took_s
            assert took_s < within_s, f"not recovered after {took_s:.1f} s: {wrong}"
            await asyncio.sleep(0.25)  # every look costs all processes something

    async def differences(self) -> str:
        """What is wrong now, in order of what depends on what; empty if nothing is."""
        wrong = await self._processes()
        if wrong:
            return wrong
        until_ms = MINUTE.floor(self._deployment.clock.now_ms()) - _FINAL_AFTER_MS
        wrong = await self._store(until_ms)
        if wrong:
            return wrong
        self._deployment.fake.holds_back = True
        try:
            calm_until = deadlines.now() + _CALM_S
            while wrong := await self._charts(until_ms):
                if deadlines.now() > calm_until:
                    break
                await asyncio.sleep(0.1)
        finally:
            self._deployment.fake.holds_back = False
        return wrong

    # ------------------------------------------------------------ processes

    async def _processes(self) -> str:
        """Every process says that it is well, and has all slots of its pools."""
        nodes = self._deployment.nodes
        for node, health in zip(nodes, await asyncio.gather(*(node.health() for node in nodes)), strict=True):
            if health is None:
                return f"{node.name} does not answer: {node.tail(1500)}"
            if health["status"] != "pass":
                facts = {key: health[key] for key in ("exchanges", "store", "bus", "bars")}
                return f"{node.name} is not well: {facts}"
            if health["bars"]["catchingUp"] or not health["bus"]["connected"]:
                return f"{node.name} is behind: {health['bus']} {health['bars']}: {node.tail(1500)}"
            slots = {key: health["store"][key] for key in _WRITERS_AND_READERS}
            most = self._slots.setdefault(node.name, slots)
            for key, free in slots.items():
                most[key] = max(free, most[key])
            if slots != most:
                return f"{node.name} lacks slots: {slots} of {most}"
        return ""

    # ------------------------------------------------------------ the store

    async def _store(self, until_ms: int) -> str:
        """Every final minute is there exactly once, as the exchange had it."""
        minutes = missing = wrong = extra = 0
        example = ""
        for symbol in self._deployment.symbols:
            truth = {candle.open_ms: candle.values for candle in self._deployment.truth(symbol, until_ms)}
            try:
                rows = await asyncio.to_thread(self._deployment.stored, symbol, until_ms)
            except psycopg2.Error as error:
                return f"the database cannot be read: {error}"
            stored = dict(rows)
            lost = [open_ms for open_ms in truth if open_ms not in stored]
            bad = [open_ms for open_ms in truth if open_ms in stored and stored[open_ms] != truth[open_ms]]
            minutes, missing, wrong = minutes + len(truth), missing + len(lost), wrong + len(bad)
            extra += len(rows) - len(stored) + len(stored.keys() - truth.keys())
            for open_ms in [*lost, *bad][:1]:
                example = f"{symbol} {iso_ms(open_ms)}: {stored.get(open_ms)}, not {truth[open_ms]}"
        self.score.minutes, self.score.missing, self.score.wrong, self.score.extra = minutes, missing, wrong, extra
        return f"store: {missing} missing, {wrong} wrong, {extra} extra: {example}" if missing + wrong + extra else ""

    # ------------------------------------------------------------ the charts

    async def _closed(self) -> str:
        """Every closed bar is stored as the exchange had it, and shown so by every client."""
        until_ms = MINUTE.floor(self._deployment.clock.now_ms() - _CLOSED_MS)
        wrong = await self._store(until_ms)
        for chart in () if wrong else (viewer.chart for viewer in self._viewers):
            wrong = self._untrue(
                Symbol.parse(chart.subscription.symbol), chart.subscription.interval, chart.bars, until_ms
            )
            newest = closed_before(chart.bars, chart.subscription.length_ms, until_ms)[-1:]
            if not newest or time_ms(newest[0]) + 2 * chart.subscription.length_ms <= until_ms:
                wrong = f"the newest closed bar is missing: {newest}"
            if wrong:
                return f"{chart.subscription}: {wrong}"
        return wrong

    async def _charts(self, until_ms: int) -> str:
        """Every chart is a fresh `initial` of every process, letter by letter but for `src`; closed bars are true."""
        subscriptions = list(dict.fromkeys(viewer.chart.subscription for viewer in self._viewers))
        nodes = self._deployment.serving
        try:
            shown = await asyncio.gather(
                *(fresh(node, subscription) for subscription in subscriptions for node in nodes)
            )
        except (OSError, TimeoutError, websockets.WebSocketException) as error:
            return f"a fresh client is not served: {error!r}"
        shown = [without_source(bars) for bars in shown]
        by_subscription = {
            subscription: shown[at * len(nodes) : (at + 1) * len(nodes)]
            for at, subscription in enumerate(subscriptions)
        }
        for subscription, several in by_subscription.items():
            for node, bars in zip(nodes, several, strict=True):
                if bars != several[0]:
                    return f"{subscription}: {node.name} shows {_unlike(bars, several[0])} of {nodes[0].name}"
            if not several[0]:
                return f"{subscription}: nothing is shown"
            wrong = self._untrue(Symbol.parse(subscription.symbol), subscription.interval, several[0], until_ms)
            if wrong:
                return f"{subscription}: {wrong}"
        for viewer in self._viewers:
            bars = by_subscription[viewer.chart.subscription][0]
            if not viewer.is_connected:
                return f"{viewer.chart.subscription}: the client is not connected"
            drawn = without_source(viewer.chart.window(bars))
            if drawn != bars:
                return f"{viewer.chart.subscription}: the chart shows {_unlike(drawn, bars)} of a reload"
        self.score.charts = len(self._viewers)
        return ""

    def _untrue(self, symbol: Symbol, interval: str, bars: Sequence[tuple[str, str]], until_ms: int) -> str:
        truth = self.folded(symbol, Interval.parse(interval), until_ms)
        length_ms = Interval.parse(interval).ms
        for bar in closed_before(bars, length_ms, until_ms):
            if values_of(bar[1]) != truth.get(time_ms(bar)):
                return f"{bar[1]} is shown, the truth is {truth.get(time_ms(bar))}"
        return ""

    def folded(self, symbol: Symbol, interval: Interval, until_ms: int) -> dict[int, Values]:
        """The closed bars of an interval as plain folds of the truth."""
        buckets: dict[int, list[Candle]] = {}
        for candle in self._deployment.truth(symbol, until_ms, lead_ms=_LEAD_MS):
            buckets.setdefault(interval.floor(candle.open_ms), []).append(candle)
        return {open_ms: fold(parts, open_ms).values for open_ms, parts in buckets.items()}

    # ------------------------------------------------------------ afterwards

    def misbehaved(self) -> list[str]:
        """Return the complaints of charts, and the bars that were sent as final and have other values."""
        found = [wrong for viewer in self._viewers for wrong in viewer.chart.wrong]
        now_ms = self._deployment.clock.now_ms()
        for chart in (viewer.chart for viewer in self._viewers):
            truth = self.folded(
                Symbol.parse(chart.subscription.symbol), Interval.parse(chart.subscription.interval), now_ms
            )
            for begins, (bar, _) in chart.finals.items():
                real = truth.get(time_ms((begins, bar)))
                if values_of(bar) != real:
                    found.append(f"{chart.subscription}: sent as final: {bar}, the truth is {real}")
        return found


def _unlike(shown: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]]) -> str:
    """Where two lists of bars differ first."""
    left, right = dict(shown), dict(other)
    differing = sorted(time for time in left.keys() | right.keys() if left.get(time) != right.get(time))
    if not differing:
        return "the same bars in another order than those"
    return f"{left.get(differing[0])}, not {right.get(differing[0])} ({len(differing)} bars unlike those)"
