"""Brings candles to the store in batches, and keeps them while it is away."""

import asyncio
import logging
from typing import Any, Literal

from candled.errors import StoreRejected, StoreUnavailable
from candled.exchange import Clock
from candled.model import Candle, MarketKey

from .interface import Store
from .threads import StoreThreads
from .waiting import Row, Waiting

logger = logging.getLogger(__name__)

PAGE_ROWS = 5_000
RETRY_AT_MOST_S = 30.0


class Writer:
    """Collects candles on the event loop and writes them every `flush_interval_s` seconds on the store's threads.

    While the store is away candles wait, the newest version of each minute only, and attempts follow with doubling
    pauses. Beyond `max_waiting` final minutes further ones are refused: the minutes that wait stay, and the refused
    ones are missing in the store, where the repair of gaps finds them and fetches them again.
    """

    def __init__(
        self,
        store: Store,
        threads: StoreThreads,
        clock: Clock,
        *,
        flush_interval_s: float,
        max_waiting: int = 200_000,
    ) -> None:
        self._store = store
        self._threads = threads
        self._clock = clock
        self._flush_interval_s = flush_interval_s
        self._waiting = Waiting(max_waiting)
        self._turn = asyncio.Lock()
        self._is_closed = False
        self._state: Literal["ok", "away", "rejecting"] = "ok"
        self._away_since = 0.0
        self._written = 0
        self._refused = 0
        self._refused_before = 0
        self._rejected = 0
        self._last_error: str | None = None
        self._last_flush_ms: int | None = None

    def put(self, market: MarketKey, candle: Candle) -> bool:
        """Take a candle to be stored; to be called on the event loop.

        A final one becomes part of history; one that is not final replaces the market's running minute. False: too
        many wait already or the writer is closed, and the candle was not taken.
        """
        taken = not self._is_closed and self._waiting.put(market, candle)
        self._refused += not taken
        return taken

    async def flush(self) -> None:
        """Write what waits. On return everything put before the call is durable.

        Raises:
            StoreUnavailable: not all could be written; the rest is kept for the next attempt.
            StoreRejected: the store refused some rows for good; they were dropped, all others are written.
        """
        async with self._turn:
            rejection: StoreRejected | None = None
            while page := self._waiting.page(PAGE_ROWS):
                try:
                    await self._threads.write(self._store.write, page)
                except StoreUnavailable as error:
                    self._note_away(error)
                    raise
                except StoreRejected as error:
                    self._note_rejected(page, error)
                    rejection = rejection or error
                else:
                    self._note_written(page)
                self._waiting.drop(page)
                if len(page) < PAGE_ROWS:  # it was all there was when the page was taken
                    break
            if rejection:
                raise rejection

    async def run(self) -> None:
        """Flush for ever. Ends only by cancellation, which loses nothing."""
        pause_s = self._flush_interval_s
        while True:
            await self._clock.sleep(pause_s)
            pause_s = self._flush_interval_s if await self._try_flush() else self._longer(pause_s)

    async def close(self, *, within_s: float = 10.0) -> int:
        """Take no more candles and write what waits; return how many rows had to be left.

        Attempts are repeated while the store is away, but none begins later than `within_s` seconds from now.
        """
        self._is_closed = True
        deadline = self._clock.monotonic() + within_s
        pause_s = self._flush_interval_s
        while not await self._try_flush():
            pause_s = self._longer(pause_s)
            if self._clock.monotonic() + pause_s > deadline:
                break
            await self._clock.sleep(pause_s)
        if self._waiting:
            logger.error("%s rows could not be stored before the end: %s", len(self._waiting), self._last_error)
        return len(self._waiting)

    def status(self) -> dict[str, Any]:
        """Facts for `/health`, counts since the start.

        `state` is `ok`, `away` (rows wait and are tried again) or `rejecting` (the last write was refused for good).
        `waiting`, `written`, `refused` (no room) and `rejected` (dropped) are rows; `lastFlushMs` is the time of the
        last write that succeeded, UTC epoch milliseconds; `lastError` is the last error, also after it is over.
        """
        return {
            "state": self._state,
            "waiting": len(self._waiting),
            "written": self._written,
            "refused": self._refused,
            "rejected": self._rejected,
            "lastError": self._last_error,
            "lastFlushMs": self._last_flush_ms,
        }

    async def _try_flush(self) -> bool:
        """Whether nothing is left to be tried again."""
        try:
            await self.flush()
        except StoreUnavailable:
            return False
        except StoreRejected:
            return True
        except Exception as error:
            self._last_error = repr(error)
            logger.exception("writing to the store failed; %s rows wait", len(self._waiting))
            return False
        return True

    def _longer(self, pause_s: float) -> float:
        return min(pause_s * 2, RETRY_AT_MOST_S)

    def _note_away(self, error: StoreUnavailable) -> None:
        self._last_error = str(error)
        if self._state == "away":
            return
        self._state = "away"
        self._away_since = self._clock.monotonic()
        self._refused_before = self._refused
        logger.warning("the store is unavailable, %s rows wait: %s", len(self._waiting), error)

    def _note_written(self, page: list[Row]) -> None:
        self._note_back()
        self._state = "ok"
        self._written += len(page)
        self._last_flush_ms = self._clock.now_ms()

    def _note_rejected(self, page: list[Row], error: StoreRejected) -> None:
        self._note_back()
        self._state = "rejecting"
        self._rejected += len(page)
        self._last_error = str(error)
        logger.error("the store refused %s rows for good, they are dropped: %s", len(page), error)

    def _note_back(self) -> None:
        if self._state != "away":
            return
        logger.info(
            "the store is back after %.1f s: writing %s rows that waited, %s were refused",
            self._clock.monotonic() - self._away_since,
            len(self._waiting),
            self._refused - self._refused_before,
        )
