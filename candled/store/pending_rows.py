"""Candles on their way to the store: the newest version of each minute, in bounded number."""

from collections.abc import Iterable

from candled.model import Candle, MarketKey

Row = tuple[MarketKey, Candle]

_MOST_FORMING = 60  # of a market; older ones will not become final by the stream any more


class PendingRows:
    """Rows that are not stored yet. A row stays until `drop`, so a write that fails or is cut short loses nothing.

    At most `limit` final minutes wait; forming minutes, until their final versions come, are on top.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._minutes: dict[MarketKey, dict[int, Candle]] = {}
        self._forming: dict[MarketKey, dict[int, Candle]] = {}
        self._forming_count = 0

    def __len__(self) -> int:
        """How many rows wait."""
        return self._count + self._forming_count

    @property
    def minute_count(self) -> int:
        """How many of them are final minutes."""
        return self._count

    def put_row(self, market: MarketKey, candle: Candle) -> bool:
        """Keep `candle` unless a superseding version waits already; False where it is refused for lack of room.

        Of two versions of a minute `Candle.merged_with` says which one is kept.
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
        kept = candle if known is None else candle.merged_with(known)
        self._minutes.setdefault(market, {})[candle.open_ms] = kept
        self._drop_forming(market, candle.open_ms)
        return True

    def next_rows(self, limit: int, *, forming: bool = True) -> list[Row]:
        """The first `limit` rows by market and time, without the forming ones if so asked. Fewer are all there are.

        Every writer keeps this order, so that two of them never wait for each other's rows.
        """
        rows: list[Row] = []
        for market in sorted(self._minutes.keys() | self._forming.keys(), key=str):
            for kind in (self._minutes, self._forming) if forming else (self._minutes,):
                minutes = kind.get(market, {})
                rows += [(market, minutes[open_ms]) for open_ms in sorted(minutes)[: limit - len(rows)]]
            if len(rows) == limit:
                break
        return rows

    def drop_rows(self, rows: Iterable[Row]) -> None:
        """Forget rows that are stored. A row of which another version was put meanwhile stays."""
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
        if known is None or candle.supersedes(known):
            forming[candle.open_ms] = candle
        if len(forming) > _MOST_FORMING:
            self._drop_forming(market, min(forming))

    def _drop_forming(self, market: MarketKey, open_ms: int) -> None:
        forming = self._forming.get(market, {})
        if forming.pop(open_ms, None) is None:
            return
        self._forming_count -= 1
        if not forming:
            del self._forming[market]
