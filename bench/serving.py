"""The serving half of the daemon in this process: bus, bars, hub, broadcaster, HTTP. Without ingest and store."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from candled.aggregate.live_bars import LiveBars
from candled.api.pages import BarReader
from candled.bus import MinuteChanged
from candled.bus.memory_bus import MemoryBus
from candled.clock import SystemClock
from candled.config.sections import ServerSettings
from candled.model import DEFAULT_INTERVALS, Candle, MarketKey, Symbol
from candled.protocol.frames import Frame
from candled.protocol.requests import RequestCodec
from candled.rooms.encoded_bars import EncodedBarCache
from candled.rooms.hub import Hub
from candled.rooms.recipients import Recipients
from candled.serve.client import ClientSession
from candled.serve.connection_limiter import ClientLimits
from candled.serve.gc_tuner import GcTuner
from candled.serve.pager import HistoryPages, SessionContext
from candled.serve.server import Server
from candled.transport.broadcaster import Broadcaster
from tests.rooms.stage import Stored
from tests.rows import minute
from tests.serve.peers import make_reports

NO_LIMITS: dict[str, Any] = {"max_connections_per_ip": 0, "max_connections": 0, "max_handshakes_per_second": 0}
_DURATIONS = {"ping_interval", "ping_timeout", "slow_client_timeout"}  # in seconds here
_LAG_STEP_S = 0.005
_HISTORY = 1100  # minutes


@dataclass
class Timed:
    """A hub that notes when its last tick began."""

    hub: Hub
    began: int = 0

    def run_due(self) -> bool:
        """One tick."""
        self.began = time.thread_time_ns()
        return self.hub.run_due()


class Serving:
    """Serves `markets` named `BTC/USDT`, `SYM001/USDT`, …, each with some history. `settings` are of `server`."""

    def __init__(self, port: int, markets: int = 1, **settings: Any) -> None:
        symbols = [Symbol("BTC", "USDT"), *(Symbol(f"SYM{number:03}", "USDT") for number in range(1, markets))]
        self._markets = [MarketKey("replay", symbol) for symbol in symbols]
        stored, clock = Stored(minute(number, final=True) for number in range(_HISTORY)), SystemClock()
        self._bus = MemoryBus()
        self._bars = bars = LiveBars(self._markets, DEFAULT_INTERVALS, stored, clock)
        codec = RequestCodec({"replay": symbols}, DEFAULT_INTERVALS)
        loop = asyncio.get_running_loop()
        self._broadcaster = Broadcaster(loop.call_soon, loop.call_later, time.thread_time)
        hub = Hub(codec, bars, clock, self)
        self._rooms = Timed(hub)
        durations = {name: timedelta(seconds=settings.pop(name)) for name in _DURATIONS & settings.keys()}
        options = ServerSettings(host="127.0.0.1", port=port, **NO_LIMITS | settings | durations)
        pages = HistoryPages(BarReader(bars, stored, EncodedBarCache(), clock).read_history)
        sessions = SessionContext(hub, bars, codec, clock, ClientLimits(options), pages)
        self._server = Server(
            options,
            hub=self._rooms,
            broadcaster=self._broadcaster,
            make_client=lambda connection: ClientSession(connection, sessions),
            clock=clock,
            reports=make_reports(count_clients=hub.describe),
            page=bytes,
        )
        bars.add_listener(hub)
        self._bus.add_listener(bars)
        self._sent = asyncio.Event()
        self._opened = minute(_HISTORY)
        self._versions = count(self._opened.as_of_ms - 50_000)
        self._tasks: list[asyncio.Task[None]] = []
        self.longest_s = 0.0  # that the loop was blocked, since it was last set to 0

    async def start(self) -> None:
        """Load the bars and listen."""
        await self._bars.start()
        self._server.listen()
        GcTuner().start()

    async def send(self, values: Sequence[Decimal]) -> float:
        """Publish one change of the first market; return the microseconds of this thread that its way took."""
        self._sent.clear()
        change = MinuteChanged(self._markets[0], self._candle(values))
        began = time.thread_time_ns()
        self._bus.publish(change)
        if not self._sent.is_set():  # its turn comes a little later; what passes until then is not its time
            spent = time.thread_time_ns() - began
            await asyncio.wait_for(self._sent.wait(), 5)
            began = self._rooms.began - spent
        while self._broadcaster.is_busy:
            await asyncio.sleep(0)
        return (time.thread_time_ns() - began) / 1000

    def live(self) -> None:
        """From now on every market changes once a second, and how long the loop is blocked is watched."""
        self._tasks.append(asyncio.ensure_future(self._change_all()))
        self.watch()

    def watch(self) -> None:
        """From now on how long the loop is blocked is watched."""
        self._tasks.append(asyncio.ensure_future(self._watch()))

    def broadcast(self, recipients: Recipients, frame: Frame) -> None:
        """Send a frame, as the broadcaster does, and record that it was sent."""
        self._broadcaster.broadcast(recipients, frame)
        self._sent.set()

    def _candle(self, values: Sequence[Decimal]) -> Candle:
        return Candle(self._opened.open_ms, *values, next(self._versions))

    async def _change_all(self) -> None:
        prices = [Decimal(price) for price in ("67234.5", "67340", "67200", "67310.25")]
        pause_s = 1.0 / len(self._markets)
        for number in count(1):
            for market in self._markets:
                change = MinuteChanged(market, self._candle((*prices, Decimal(number), Decimal("9772345.67"))))
                self._bus.publish(change)
                await asyncio.sleep(pause_s)

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(_LAG_STEP_S)
            self.longest_s = max(self.longest_s, time.monotonic() - began - _LAG_STEP_S)
