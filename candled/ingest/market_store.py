"""The store as ingest needs it; implemented by `candled.store.ingest_store.IngestStore`."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from candled.model import Candle, Gap, MarketKey, Position, Range, Symbol


class MarketStore(Protocol):
    """The methods that ingest calls."""

    def enqueue_row(self, market: MarketKey, candle: Candle, *, changes: Position | None = None) -> bool:
        """See `Writer.enqueue_row`."""

    async def flush(self) -> None:
        """See `Writer.flush`."""

    async def register_feed(self, markets: Sequence[MarketKey], epoch: str) -> None:
        """See `Store.register_feed`."""

    async def log_changes(self, market: MarketKey, epoch: str | None, changes: Sequence[tuple[int, Range]]) -> None:
        """See `Store.log_changes`."""

    async def save_coverage(
        self, market: MarketKey, since_ms: int | None, known_gaps: Sequence[Gap], within: Range | None
    ) -> None:
        """See `IngestStore.save_coverage`."""

    async def newest_minutes(self, exchange: str) -> Mapping[Symbol, int]:
        """See `Store.newest_minutes`."""

    async def stored_ranges(self, market: MarketKey, start_ms: int, end_ms: int) -> Sequence[Range]:
        """See `Store.stored_ranges`."""

    async def read_minutes(self, market: MarketKey, start_ms: int, end_ms: int) -> Sequence[Candle]:
        """Return the final minutes of `[start_ms, end_ms)`, oldest first."""

    async def read_forming(self, market: MarketKey) -> Sequence[Candle]:
        """See `Store.read_forming`."""

    async def complete_from(self, market: MarketKey) -> int | None:
        """See `Store.complete_from`."""

    async def served_from(self, market: MarketKey) -> int | None:
        """See `Store.served_from`."""

    async def unpublished(self, exchange: str) -> Mapping[Symbol, Sequence[Range]]:
        """See `Store.unpublished`."""

    async def has_before(self, market: MarketKey, at_ms: int) -> bool:
        """Return whether a final minute before `at_ms` is stored."""

    async def known_gaps(self, market: MarketKey, within: Range) -> Sequence[Gap]:
        """See `Store.known_gaps`."""
