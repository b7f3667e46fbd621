"""Candles on their way to the store: the newest version of each minute, in bounded number."""

from collections.abc import Iterable

from candled.model import Candle, MarketKey

from .batch import merged, newer_running

Row = tuple[MarketKey, Candle]


class Waiting:
    """Rows that are not stored yet. A row stays until `drop`, so a write that fails or is cut short loses nothing.

    At most `limit` final minutes wait; running minutes, one per market, come on top.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._minutes: dict[MarketKey, dict[int, Candle]] = {}
        self._running: dict[MarketKey, Candle] = {}

    def __len__(self) -> int:
        """How many rows wait."""
        return self._count + len(self._running)

    @property
    def minutes(self) -> int:
        """How many of them are final minutes."""
        return self._count

    def put(self, market: MarketKey, candle: Candle) -> bool:
        """Keep `candle` unless a superseding version waits already; False where it is refused for lack of room.

        Of two versions of a minute `merged` is kept.
        """
        if not candle.final:
            if newer_running(candle, self._running.get(market)):
                self._running[market] = candle
            return True
        known = self._minutes.get(market, {}).get(candle.open_ms)
        if known is None:
            if self._count >= self._limit:
                return False
            self._count += 1
        kept = candle if known is None else merged(candle, known)
        self._minutes.setdefault(market, {})[candle.open_ms] = kept
        return True

    def page(self, limit: int, *, running: bool = True) -> list[Row]:
        """The first `limit` rows by market and time, without the running minutes if so asked. Fewer are all there are.

        Every writer keeps this order, so that two of them never wait for each other's rows.
        """
        rows: list[Row] = []
        for market in sorted(self._minutes.keys() | self._running.keys(), key=str):
            minutes = self._minutes.get(market, {})
            rows += [(market, minutes[open_ms]) for open_ms in sorted(minutes)[: limit - len(rows)]]
            if running and market in self._running and len(rows) < limit:
                rows.append((market, self._running[market]))
            if len(rows) == limit:
                break
        return rows

    def drop(self, rows: Iterable[Row]) -> None:
        """Forget rows that are stored. A row of which another version was put meanwhile stays."""
        for market, candle in rows:
            if not candle.final:
                if self._running.get(market) is candle:
                    del self._running[market]
                continue
            minutes = self._minutes.get(market, {})
            if minutes.get(candle.open_ms) is not candle:
                continue
            del minutes[candle.open_ms]
            self._count -= 1
            if not minutes:
                del self._minutes[market]
