"""Candles queued for the store: the newest version of each minute, up to a limit."""

from collections.abc import Iterable

from candled.model import Candle, MarketKey

Row = tuple[MarketKey, Candle]

_MOST_FORMING = 60  # per market; older ones will no longer become final through the stream


class _Versions(dict[MarketKey, dict[int, Candle]]):
    """The version to store of each minute, by market and opening time."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def version_of(self, market: MarketKey, open_ms: int) -> Candle | None:
        return self.get(market, {}).get(open_ms)

    def put(self, market: MarketKey, candle: Candle) -> None:
        minutes = self.setdefault(market, {})
        known = minutes.get(candle.open_ms)
        self.count += known is None
        minutes[candle.open_ms] = candle.merged_with(known)

    def drop(self, market: MarketKey, open_ms: int) -> None:
        minutes = self.get(market, {})
        if minutes.pop(open_ms, None) is not None:
            self.count -= 1
            if not minutes:
                del self[market]


class PendingRows:
    """Rows that are not stored yet. A row stays until `drop_rows`, so a failed or cancelled write loses nothing.

    The limit counts only final minutes. Forming minutes are queued beyond it, until their final versions arrive.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._minutes = _Versions()
        self._forming = _Versions()

    def __len__(self) -> int:
        """Return the number of queued rows."""
        return self._minutes.count + self._forming.count

    def __contains__(self, market: MarketKey) -> bool:
        """Return whether rows of a market are queued."""
        return market in self._minutes or market in self._forming

    @property
    def minute_count(self) -> int:
        """The number of queued final minutes."""
        return self._minutes.count

    def put_row(self, market: MarketKey, candle: Candle) -> bool:
        """Queue `candle`, unless a version that supersedes it is queued already; return False if there is no room.

        `Candle.merged_with` decides which version of a minute is kept.
        """
        is_new = self._minutes.version_of(market, candle.open_ms) is None
        if not candle.final:
            if is_new:
                self._forming.put(market, candle)
                if len(forming := self._forming[market]) > _MOST_FORMING:
                    self._forming.drop(market, min(forming))
            return True
        if is_new and self._minutes.count >= self._limit:
            return False
        self._minutes.put(market, candle)
        self._forming.drop(market, candle.open_ms)
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
            queue = self._minutes if candle.final else self._forming
            if queue.version_of(market, candle.open_ms) is candle:
                queue.drop(market, candle.open_ms)
