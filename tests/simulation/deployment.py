"""candled from the exchange to the clients' charts, in virtual time: ingest, store, bus and rooms are the real ones."""

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from candled.aggregate.live_bars import LiveBars
from candled.errors import StoreUnavailable
from candled.ingest.exchange_ingest import ExchangeIngest
from candled.ingest.market_loader import IngestOptions
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, Candle, Interval, MarketKey, fold
from candled.protocol.frames import Frame
from candled.protocol.requests import RequestCodec
from candled.rooms.hub import Hub
from candled.serve.client import ClientSession
from candled.serve.pager import SessionContext
from candled.store.history import HistoryReader
from candled.store.ingest_store import IngestStore
from candled.store.sqlite.store import SqliteStore
from candled.store.writer import JOURNAL_AFTER_S, JOURNAL_LOOK_S, Writer
from tests.chaos.charts import Chart, Subscription, closed_before, time_ms, values_of, without_source
from tests.rooms.stage import Socket
from tests.rows import MONDAY_MS
from tests.simulation.exchange import BTC, LyingExchange, Truth
from tests.simulation.faults import DATES, REST_STAMPS, STAMPS, Weather
from tests.simulation.virtual_time import Machine
from tests.simulation.wire import Wire

KEY = MarketKey("lying", BTC)
START_MS = MONDAY_MS + 5 * 3_600_000
INTERVALS = DEFAULT_INTERVALS
PROTOCOL = RequestCodec({KEY.exchange: [BTC]}, INTERVALS)
SUBSCRIPTIONS = (
    Subscription("BTC/USDT", "1m", 120, ("fields", "corrections", "status")),
    Subscription("BTC/USDT", "5m", 40, ("fields", "corrections", "status")),
    Subscription("BTC/USDT", "15m", 20),
)
SETTLE_MS, QUIET_AFTER_MS = 6_000, 60_000
# The newest bar a client sees may lag behind the exchange for so long in the states `live` and `quiet`: a stream that
# brings nothing is noticed after `ingest.quiet_after`, what REST said counts for 15 s more, and the word has to arrive.
BEHIND_S = QUIET_AFTER_MS / 1000 + 15 + 5
_ON_ITS_WAY_MS = 10_000
_GOOD = ("live", "quiet")


class Threads:
    """The store's threads, in the loop itself: calls take no time but what the weather adds."""

    def __init__(self, store: SqliteStore, weather: Weather) -> None:
        self._store = store
        self._weather = weather
        self.writes = 0

    async def run_write(self, call: Callable[..., Any], *args: Any) -> Any:
        await self._reach("store cannot be written")
        try:
            return call(*args)
        finally:
            self.writes += 1

    async def run_read(self, call: Callable[..., Any], *args: Any) -> Any:
        await self._reach("store cannot be read")
        return call(*args)

    async def _reach(self, kind: str) -> None:
        if self._weather.has("store stalls"):
            await asyncio.sleep(random.uniform(1, 20))
        if self._weather.has("store down") or self._weather.has(kind):
            await asyncio.sleep(0.1)
            raise StoreUnavailable(f"the weather: {kind}")


class Http:
    """What the exchange asks by; no request leaves."""

    on_date: Any = None

    def is_busy(self) -> bool:
        return False

    def describe(self) -> dict[str, Any]:
        return {}


class Limits:
    max_rooms_per_connection = 64
    max_messages_per_second = 0
    warmup_wait = timedelta(0)


class Line(Socket):
    """The connection of one chart."""

    def __init__(self, shown: Chart) -> None:
        super().__init__(None)
        self.shown = shown

    def disconnect(self, code: int, reason: str) -> None:
        raise AssertionError(f"a client was closed: {code} {reason}")

    def _deliver(self, frame: Frame) -> None:
        payload = frame.payload
        self.shown.take(payload if isinstance(payload, str) else bytes(payload).decode())


class Process:
    """One run of candled: made at a start, ended by a stop or a kill."""

    def __init__(
        self, store: SqliteStore, exchange: LyingExchange, clock: Machine, weather: Weather, token: int
    ) -> None:
        threads: Any = Threads(store, weather)
        self._store = store
        self._writer = Writer(store, threads, clock, flush_interval_s=5.0)
        history = HistoryReader(store, threads)
        self.bus = Wire(KEY, clock, weather, token)
        self.bars = LiveBars([KEY], INTERVALS, history, clock)
        self.hub = Hub(PROTOCOL, self.bars, clock, Sender())
        self.bars.add_listener(self.hub)
        self.bus.listen(self.bars)
        self._clock = clock
        self.ingest = ExchangeIngest(
            KEY.exchange,
            exchange,
            [BTC],
            clock=clock,
            bus=self.bus,
            store=IngestStore(store, threads, self._writer, history),
            http=Http(),  # type: ignore[arg-type]
            options=IngestOptions(
                backfill_ms=0,
                grace_period_ms=SETTLE_MS,
                quiet_after_ms=QUIET_AFTER_MS,
                checkpoint_ms=5_000,
                confirm=True,
            ),
        )
        steps = (self._writer.run_flushes, self.bus.run, self.bars.start, self.ingest.start, self._drive)
        self._tasks = [asyncio.ensure_future(step()) for step in steps]

    def connect(self, chart: Chart) -> Line:
        socket = Line(chart)
        context = SessionContext(self.hub, self.bars, PROTOCOL, self._clock, Limits(), None)  # type: ignore[arg-type]
        socket.client = ClientSession(socket, context)
        socket.client.on_client_message(json.dumps(chart.connected()))
        return socket

    async def end(self, *, is_killed: bool) -> None:
        """Stop as at SIGTERM, or without warning: then waiting rows are lost unless the journal has them."""
        journaled = self._writer._waiting.next_rows(10_000)
        if is_killed and self._clock.monotonic() - self._writer._waiting_since < JOURNAL_AFTER_S + JOURNAL_LOOK_S:
            journaled = []
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if is_killed:
            self.ingest._store.enqueue_row = lambda *_, **__: True
        await self.ingest.stop()
        if not is_killed:
            await self._writer.close(within_s=3.0)
            journaled = self._writer._waiting.next_rows(10_000)
        await self.bars.stop()
        self._store.write_minutes([(market, candle) for market, candle in journaled if candle.final])

    async def _drive(self) -> None:
        while True:
            self.hub.run_due()
            await asyncio.sleep(1.0)


class Sender:
    """Sends to a whole list immediately."""

    def broadcast(self, recipients: Any, frame: Frame) -> None:
        recipients.sending += 1
        for connection in list(recipients[: len(recipients)]):
            connection.send_frame(frame)
        recipients.sending -= 1


class Person:
    """A client that comes back whenever it loses its connection."""

    def __init__(self, subscription: Subscription) -> None:
        self.chart = Chart(subscription)
        self.socket: Line | None = None
        self.connects_at = 0.0

    def lose(self, connects_at: float) -> None:
        if self.socket is not None and self.socket.client is not None:
            self.socket.client.on_close()
        self.socket = None
        self.connects_at = connects_at


class Deployment:
    """Everything, and the eyes on it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.draw = Random(seed)
        self.weather = Weather()
        self.clock = Machine(START_MS)
        self.weather.now = self.clock.monotonic
        self.truth = Truth(seed, MONDAY_MS)
        self.exchange = LyingExchange(self.clock, self.truth, self.weather, self.draw)
        self.store = SqliteStore(folder / f"{seed}.db", INTERVALS)
        self.store.open()
        self.starts = 0
        self.process = self._start()
        self.people = [Person(subscription) for subscription in SUBSCRIPTIONS]
        self.violations: list[str] = []
        self._behind_since: float | None = None
        self._missing_since: float | None = None

    def _start(self) -> Process:
        self.starts += 1
        return Process(self.store, self.exchange, self.clock, self.weather, self.starts)

    # ------------------------------------------------------------ what happens

    async def restart(self, *, is_killed: bool, pause_s: float) -> None:
        for person in self.people:
            person.lose(0.0)
        await self.process.end(is_killed=is_killed)
        await asyncio.sleep(pause_s)
        self.process = self._start()
        self._behind_since = self._missing_since = None

    def sleep(self, seconds: float) -> None:
        """Let the machine sleep: its connections are dead when it wakes, and nothing ran meanwhile."""
        self.clock.asleep_ms += round(seconds * 1000)
        self.weather.begin("stream cut", self.clock.monotonic() + 5)
        for person in self.people:
            person.lose(self.clock.monotonic() + 2)
        self._behind_since = self._missing_since = None

    def lose_minutes(self) -> None:
        """Rows of the store are gone, bars and all, as if it had been restored from a copy."""
        until_ms = MINUTE.floor(self.clock.true_ms) - 20 * MINUTE_MS
        with self.store._file.begin_transaction() as connection:
            connection.execute(
                "DELETE FROM candles WHERE time_ms >= ? AND time_ms < ?", (until_ms - 7 * MINUTE_MS, until_ms)
            )

    # ------------------------------------------------------------ eyes

    async def pass_time(self, seconds: float) -> None:
        """Let time pass; clients come, and everything is looked at every few seconds."""
        until = self.clock.monotonic() + seconds
        while (left := until - self.clock.monotonic()) > 0:
            await asyncio.sleep(min(5.0, left))
            self._look_after_clients()
            self._look_at_state()

    def _look_after_clients(self) -> None:
        now = self.clock.monotonic()
        is_blocked = self.weather.has("client stops reading")
        for number, person in enumerate(self.people):
            if person.socket is None and now >= person.connects_at:
                person.socket = self.process.connect(person.chart)
            elif person.socket is not None and person.socket.blocked and not is_blocked:
                person.socket.let_go()
            elif person.socket is not None and is_blocked and number % 2:
                person.socket.blocked = True

    def _look_at_state(self) -> None:
        """See whether the first client is shown a state that is better than the truth, and since when."""
        person, now, true_ms = self.people[0], self.clock.monotonic(), self.clock.true_ms
        chart = person.chart
        state = chart.states[-1] if chart.states else ""
        if person.socket is None or not chart.is_initialized or state not in _GOOD or self._is_time_unknowable():
            self._behind_since = self._missing_since = None
            return
        if self._is_behind(chart, true_ms):
            self._behind_since = now if self._behind_since is None else self._behind_since
            if now - self._behind_since > BEHIND_S:
                self._complain(f"{state}, but the newest bar shown is {chart.bars[-1:]}")
        else:
            self._behind_since = None
        if self._lacks(true_ms):
            self._missing_since = now if self._missing_since is None else self._missing_since
            if now - self._missing_since > BEHIND_S:
                self._complain(f"{state}, but minutes of the last two hours are neither there nor named")
        else:
            self._missing_since = None

    def _is_time_unknowable(self) -> bool:
        """Whether several witnesses of the time lie: candled goes by what most of them agree on."""
        liars = sum(any(map(self.weather.goes_on, kinds)) for kinds in (STAMPS, REST_STAMPS, DATES))
        return liars + bool(self.clock.wrong_ms) > 1

    def _is_behind(self, chart: Chart, true_ms: int) -> bool:
        """Whether something was traded that the newest bar shown does not have yet, but for the last seconds."""
        if not chart.bars:
            return True
        at_ms, seen_ms = true_ms - _ON_ITS_WAY_MS, time_ms(chart.bars[-1])
        if MINUTE.floor(at_ms) > seen_ms:
            opens = range(max(seen_ms + MINUTE_MS, at_ms - 60 * MINUTE_MS), MINUTE.floor(at_ms) + 1, MINUTE_MS)
            if any(self.truth.version(open_ms, at_ms, 0).volume for open_ms in opens):
                return True
        return self.truth.version(seen_ms, at_ms, 0).volume > (values_of(chart.bars[-1][1])[4] or 0)

    def _lacks(self, true_ms: int) -> bool:
        """Whether the store lacks minutes of the last two hours that nothing speaks of."""
        until_ms = MINUTE.floor(true_ms) - 3 * MINUTE_MS
        first_ms = max(MONDAY_MS, until_ms - 110 * MINUTE_MS)
        market = self.process.ingest._markets.get(BTC)
        return market is not None and bool(market.coverage.missing_within(first_ms, until_ms))

    def _complain(self, what: str) -> None:
        if len(self.violations) < 5:
            self.violations.append(f"after {self.clock.monotonic():.0f} s: {what}")

    # ------------------------------------------------------------ the verdict

    def calm(self) -> None:
        """The weather is fine from now on, and clocks are right."""
        self.weather.clear()
        self.clock.wrong_ms = 0
        self.exchange.pace_s = (8.0, 12.0)

    @property
    def until_ms(self) -> int:
        """Minutes before this are final and stored by now."""
        return MINUTE.floor(self.clock.true_ms) - 2 * MINUTE_MS

    def differences(self) -> str:
        """What is not right; empty if everything is."""
        wrong = self._stored()
        if wrong:
            return wrong
        facts = dict(self.process.ingest.describe_symbols())[BTC]
        if facts["state"] not in _GOOD or facts["missingMinutes"] or facts["holes"]["count"]:
            return (
                f"health: { ({key: facts[key] for key in ('state', 'reason', 'missingMinutes', 'holes', 'trouble')}) }"
            )
        for person in self.people:
            wrong = self._chart(person)
            if wrong:
                return f"{person.chart.subscription}: {wrong}"
        return ""

    def _stored(self) -> str:
        end_ms = self.until_ms
        rows = self.store.read_bars_between(KEY, MINUTE, 0, 2**53)
        stored = {row.open_ms: row.values for row in rows}
        truth = {open_ms: tuple(self.truth.row(open_ms)) for open_ms in range(MONDAY_MS, end_ms, MINUTE_MS)}
        missing = [one for one in truth if one not in stored]
        bad = [one for one in truth if one in stored and stored[one] != truth[one]]
        extra = [one for one in stored if one < MONDAY_MS or one > self.clock.true_ms]
        if not missing and not bad and not extra:
            return ""
        at = [(one - MONDAY_MS) / MINUTE_MS for one in [*missing, *bad, *extra][:3]]
        return f"store: {len(missing)} missing, {len(bad)} wrong, {len(extra)} extra; minutes {at}"

    def _chart(self, person: Person) -> str:
        chart = person.chart
        if person.socket is None or person.socket.blocked or not chart.is_initialized:
            return "is not connected"
        fresh = self.process.connect(Chart(chart.subscription)).shown
        shown, drawn = without_source(fresh.bars), without_source(chart.window(fresh.bars))
        if shown != drawn:
            unlike = list({*shown} ^ {*drawn})[:2]
            return f"the chart is not as a reload: {unlike}"
        if not shown:
            return "nothing is shown"
        truth = self.folded(Interval.parse(chart.subscription.interval))
        for bar in closed_before(chart.window(fresh.bars), chart.subscription.length_ms, self.until_ms):
            if values_of(bar[1]) != truth.get(time_ms(bar)):
                return f"{bar[1]} is shown, the truth is {truth.get(time_ms(bar))}"
        return ""

    def folded(self, interval: Interval) -> dict[int, tuple[Any, ...]]:
        buckets: dict[int, list[Candle]] = {}
        for open_ms in range(MONDAY_MS, self.until_ms, MINUTE_MS):
            buckets.setdefault(interval.floor(open_ms), []).append(self.truth.row(open_ms).candle(open_ms))
        return {open_ms: fold(parts, open_ms).values for open_ms, parts in buckets.items()}

    def misbehaved(self) -> list[str]:
        """Return the messages that a client must not get, and wrong final bars without a correction."""
        found = list(self.violations)
        for chart in (person.chart for person in self.people):
            found += [wrong for wrong in chart.wrong if "the volume goes back" not in wrong]  # after a lie it has to
            truth, fresh = (
                self.folded(Interval.parse(chart.subscription.interval)),
                self.process.connect(Chart(chart.subscription)).shown,
            )
            first = fresh.bars[0][0] if fresh.bars else ""
            for begins, (bar, _) in chart.finals.items():
                open_ms = time_ms((begins, bar))
                is_over = begins >= first and open_ms + chart.subscription.length_ms <= self.until_ms
                if is_over and values_of(bar) != truth.get(open_ms):
                    found.append(f"{chart.subscription}: sent as final: {bar}, the truth is {truth.get(open_ms)}")
        return found

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self.process.end(is_killed=True)
        self.store.close()
