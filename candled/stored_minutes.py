"""Stored minutes, for plugins that read them."""

from collections.abc import Iterator
from typing import Self

from candled.model import MINUTE, WEEK, Candle, MarketKey, Range, Symbol
from candled.store import make_store


class StoredMinutes:
    """A context manager that reads minutes from the store at an address, such as `sqlite:///candled.db`.

    The store is not changed. The methods block: call them in the constructor of an exchange only.

    Raises:
        ConfigError: no store has such an address.
        StoreUnavailable, StoreRejected: the store cannot be read; `candled.CandledError` is the base of all three.
    """

    def __init__(self, url: str) -> None:
        self._store = make_store(url, None)

    def __enter__(self) -> Self:
        """Open the store."""
        self._store.open()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self._store.close()

    def span(self, exchange: str, symbol: Symbol) -> tuple[int, int] | None:
        """Return the time from the oldest stored minute to the end of the newest one, UTC epoch ms; None if none is."""
        return self._store.span(MarketKey(exchange, symbol), MINUTE)

    def read(self, exchange: str, symbol: Symbol, start_ms: int, end_ms: int) -> Iterator[Candle]:
        """Yield the final minutes with `start_ms <= open_ms < end_ms` (UTC epoch ms), oldest first."""
        for page in Range(start_ms, end_ms).split(WEEK.ms):
            yield from self._store.read_bars_between(MarketKey(exchange, symbol), MINUTE, *page)
