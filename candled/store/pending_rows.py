"""Candles queued for the store: the newest version of each minute, up to a limit."""

from collections.abc import Iterable

from candled.model import Candle, MarketKey

Row = tuple[MarketKey, Candle]

_MOST_FORMING = 60  # per market; older ones will no longer become final through the stream


class PendingRows:
    """Rows that are not stored yet. A row stays until `drop_rows`, so a failed or cancelled write loses nothing.

    The limit counts only final minutes. Forming minutes are queued beyond it, until their final versions arrive.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._minutes: dict[MarketKey, dict[int, Candle]] = {}
        self._forming: dict[MarketKey, dict[int, Candle]] = {}
        self._forming_count = 0

    def __len__(self) -> int:
        """Return the number of queued rows."""
        return self._count + self._forming_count

    def __contains__(self, market: MarketKey) -> bool:
        """Return whether rows of a market are queued."""
        return market in self._minutes or market in self._forming

    @property
    def minute_count(self) -> int:
        """The number of queued final minutes."""
        return self._count

    def put_row(self, market: MarketKey, candle: Candle) -> bool:
        """Queue `candle`, unless a version that supersedes it is queued already; return False if there is no room.

        `Candle.merged_with` decides which version of a minute is kept.
        """
        if not candle.final:
            if candle.open_ms not in self._minutes.get(market, {}):
                self._put_forming(market, candle)
            return True
        known = self._minutes.get(market, {}).get(candle.open_ms)
        if known is None:
            if self._count >= self._limit:
                return False
            self._count += 1
        self._minutes.setdefault(market, {})[candle.open_ms] = candle.merged_with(known)
        self._drop_forming(market, candle.open_ms)
        return True

    def next_rows(self, limit: int, *, forming: bool = True) -> list[Row]:
        """Return the first `limit` rows by market and time, or all if there are fewer. Forming ones can be left out.

        All writers use this order, so two of them never deadlock on each other's rows.
        """
        rows: list[Row] = []
        for market in sorted(self._minutes.keys() | self._forming.keys(), key=str):
            rows += self._rows_of(market, limit - len(rows), forming=forming)
            if len(rows) == limit:
                break
        return rows

    def rows_of(self, markets: Iterable[MarketKey], limit: int) -> tuple[list[Row], list[MarketKey]]:
        """Return the first `limit` rows of some markets, and the markets whose rows are all among them.

        The rows are in the order of `next_rows`.
        """
        found: dict[MarketKey, list[Row]] = {}
        complete = []
        for market in markets:
            found[market] = self._rows_of(market, limit)
            limit -= len(found[market])
            if not limit:
                break
            complete.append(market)
        return [row for market in sorted(found, key=str) for row in found[market]], complete

    def _rows_of(self, market: MarketKey, limit: int, *, forming: bool = True) -> list[Row]:
        kinds = (self._minutes, self._forming) if forming else (self._minutes,)
        rows = [(market, minutes[at]) for kind in kinds if (minutes := kind.get(market)) for at in sorted(minutes)]
        return rows[:limit]

    def drop_rows(self, rows: Iterable[Row]) -> None:
        """Forget rows that are stored. A row stays if another version of it was queued since."""
        for market, candle in rows:
            if not candle.final:
                if self._forming.get(market, {}).get(candle.open_ms) is candle:
                    self._drop_forming(market, candle.open_ms)
                continue
            minutes = self._minutes.get(market, {})
            if minutes.get(candle.open_ms) is not candle:
                continue
            del minutes[candle.open_ms]
            self._count -= 1
            if not minutes:
                del self._minutes[market]

    def _put_forming(self, market: MarketKey, candle: Candle) -> None:
        forming = self._forming.setdefault(market, {})
        known = forming.get(candle.open_ms)
        if known is None:
            self._forming_count += 1
        forming[candle.open_ms] = candle.merged_with(known)
        if len(forming) > _MOST_FORMING:
            self._drop_forming(market, min(forming))

    def _drop_forming(self, market: MarketKey, open_ms: int) -> None:
        forming = self._forming.get(market, {})
        if forming.pop(open_ms, None) is None:
            return
        self._forming_count -= 1
        if not forming:
            del self._forming[market]
