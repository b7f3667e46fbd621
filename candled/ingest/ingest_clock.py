"""The exchange's time during ingest: the estimate of `ExchangeClock`, fed from one exchange, or the plugin's own."""

import logging
from collections.abc import Sequence
from typing import get_args

from candled.exchange import Candles, Clock, Exchange, InvalidRow
from candled.model import Candle

from .error_counter import ErrorCounter
from .exchange_clock import ExchangeClock, Source

logger = logging.getLogger(__name__)

_NOTABLE_SKEW_MS = 2_000


class IngestClock:
    """The best estimate of one exchange's clock.

    It follows the time on which most sources agree, so setting this machine's clock changes nothing.
    """

    def __init__(self, name: str, exchange: Exchange, clock: Clock) -> None:
        self._name = name
        self._exchange = exchange
        self._clock = clock
        self.estimate = ExchangeClock()
        #: True if the plugin has its own clock, as the replay does.
        self.is_own = type(exchange).now_ms is not Exchange.now_ms
        #: How often each source of time was ignored.
        self._ignored: dict[Source, ErrorCounter] = {source: ErrorCounter() for source in get_args(Source)}
        self._is_skew_logged = False

    @property
    def is_reliable(self) -> bool:
        """True once the time is reliable."""
        return self.is_own or self.estimate.is_reliable

    def now_ms(self) -> int:
        """Return the exchange's time, UTC epoch milliseconds."""
        if self.is_own:
            return self._exchange.now_ms()
        return self.estimate.now_ms(self.steady_ms(), self._clock.now_ms())

    def steady_ms(self) -> int:
        """Return the milliseconds of a clock that never goes back."""
        return round(self._clock.monotonic() * 1000)

    def skew_ms(self) -> int:
        """Return how far the exchange's clock is ahead of this machine's."""
        return self.now_ms() - self._exchange.now_ms()

    def observe_frame(self, event: Candles) -> None:
        """Use the timestamp of a frame of the stream."""
        newest = event.candles[-1]
        self.estimate.observe_frame(newest.as_of_ms, newest.open_ms, self.steady_ms())

    def observe_rows(self, rows: Sequence[Candle | InvalidRow], asked_ms: int) -> None:
        """Use the timestamps of a REST response. It was requested at `asked_ms` on the steady clock."""
        if self.is_own:
            return
        stated_ms = max((row.as_of_ms for row in rows if isinstance(row, Candle)), default=0)
        self.estimate.observe_answer(stated_ms, asked_ms, self.steady_ms())

    def update_estimate(self) -> bool:
        """Update the time; return whether this machine's clock was set, or the machine slept."""
        return not self.is_own and self.estimate.update_estimate(self.steady_ms(), self._clock.now_ms())

    def log_differences(self) -> None:
        """Log sources that are ignored, and a notable difference between the exchange and this machine."""
        for source, off_ms in self.estimate.ignored.items():
            if source != "machine" and self._ignored[source].add_error(self.steady_ms()):
                logger.warning("%s: the time from its %s is %.1f s off, ignored", self._name, source, off_ms / 1000)
        for source, counter in self._ignored.items():
            if counter.end_series(self.steady_ms()):
                logger.info("%s: the time from its %s is right again", self._name, source)
        skew_ms = self.skew_ms()
        is_notable = abs(skew_ms) > _NOTABLE_SKEW_MS
        if is_notable and not self._is_skew_logged:
            logger.warning(
                "%s: its clock is %.1f s from this machine's; candles follow the exchange, check this machine",
                self._name,
                skew_ms / 1000,
            )
        elif self._is_skew_logged and not is_notable:
            logger.info("%s: its clock and this machine's agree again", self._name)
        self._is_skew_logged = is_notable
