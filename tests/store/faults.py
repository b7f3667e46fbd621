"""A store that can be told to fail, around a real one."""

from collections.abc import Sequence

from candled.model import Candle, MarketKey
from candled.store.sqlite.store import SqliteStore


class FailingStore(SqliteStore):
    """A SQLite store whose `write` raises `trouble` while that is set, and remembers the size of every batch."""

    failure: Exception | None = None

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.batches: list[int] = []

    def write_minutes(self, rows: Sequence[tuple[MarketKey, Candle]]) -> None:
        self.batches.append(len(rows))
        if self.failure:
            raise self.failure
        super().write_minutes(rows)
