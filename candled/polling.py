"""A feed over REST, for exchanges without a WebSocket."""

from collections.abc import AsyncIterator, Sequence

from candled.errors import CandledError, Unavailable
from candled.exchange import Candles, Event, Exchange, Http, InvalidRow, Row, StreamFeed
from candled.model import MINUTE, MINUTE_MS, Candle, Symbol
from candled.tasks import in_parallel

_AT_ONCE = 4
_MOST_AHEAD_MS = 60_000  # a clock that differs by more is not followed


class PollingFeed(StreamFeed):
    """Reads the newest two minutes of each symbol with `Exchange.fetch_history`, several times a minute.

    One poll begins `delay_s` after the end of each minute, so that it returns the minute's last version. The others
    divide the minute into equal parts of about `every_s`. Polls wait for the request budget like other requests; late
    ones are left out. A symbol that cannot be read does not affect the others. If no symbol can be read, the feed is
    interrupted and started again with backoff.
    """

    def __init__(
        self, exchange: Exchange, symbols: Sequence[Symbol], *, every_s: float = 15.0, delay_s: float = 1.0
    ) -> None:
        super().__init__(symbols)
        self._exchange = exchange
        self._step_ms = MINUTE_MS // max(1, round(60 / every_s))
        self._delay_ms = round(delay_s * 1000)
        #: How far the exchange's clock is ahead of this machine's, as far as its answers show.
        self._ahead_ms = 0

    async def stream_events(self, http: Http) -> AsyncIterator[Event]:
        """Yield the candles of each poll, the first one immediately."""
        while True:
            for event in await self._poll(http):
                yield event
            await self._exchange.clock.sleep(self._pause_ms() / 1000)

    def _pause_ms(self) -> int:
        """Return the time until the next poll."""
        into_step_ms = (self._now_ms() - self._delay_ms) % MINUTE_MS % self._step_ms
        return self._step_ms - into_step_ms

    def _now_ms(self) -> int:
        return self._exchange.now_ms() + self._ahead_ms

    async def _poll(self, http: Http) -> list[Event]:
        """Read all symbols.

        Raises:
            Unavailable: none could be read.
        """
        events: list[Event] = []
        errors: list[CandledError] = []

        async def read(symbol: Symbol) -> None:
            end_ms = MINUTE.floor(self._now_ms()) + MINUTE_MS
            try:
                rows = await self._exchange.fetch_history(http, symbol, end_ms - 2 * MINUTE_MS, end_ms)
            except CandledError as error:
                errors.append(error)
                return
            self._follow_clock(rows)
            candles = sorted(row for row in rows if isinstance(row, Candle))
            invalid = tuple(row for row in rows if isinstance(row, InvalidRow))
            events.append(Candles(symbol, tuple(candles), invalid=invalid))

        await in_parallel(_AT_ONCE, self.symbols, read)
        if errors and not events:
            raise Unavailable(str(errors[-1]), retry_after_s=getattr(errors[-1], "retry_after_s", None))
        return events

    def _follow_clock(self, rows: Sequence[Row]) -> None:
        as_of_ms = max((row.as_of_ms for row in rows if isinstance(row, Candle)), default=0)
        ahead_ms = as_of_ms - self._exchange.now_ms()
        if as_of_ms and abs(ahead_ms) <= _MOST_AHEAD_MS:
            self._ahead_ms = ahead_ms
