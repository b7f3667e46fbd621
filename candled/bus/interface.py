"""What travels from ingest to serve, and what every bus can do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from candled.model import Candle, MarketKey


@dataclass(frozen=True, slots=True)
class MinuteChanged:
    """A 1-minute candle at the live edge: new, grown, final, or revised. Sent before it is stored."""

    market: MarketKey
    candle: Candle


@dataclass(frozen=True, slots=True)
class Healed:
    """The stored past of a market changed within `[start_ms, end_ms)`. Sent after it is stored: read it again there.

    `complete_from_ms` is since when history is now complete but for known holes.
    """

    market: MarketKey
    start_ms: int
    end_ms: int
    complete_from_ms: int | None


Message = MinuteChanged | Healed
Listener = Callable[[Message], None]


class Bus(Protocol):
    """Carries messages of one market in the order they were published."""

    def publish(self, message: Message) -> None:
        """Hand a message to all listeners; never blocks and never raises for trouble on the way."""

    def listen(self, listener: Listener) -> None:
        """Call `listener` for every later message. It must not block."""

    def describe(self) -> dict[str, object]:
        """Facts for `/health`: at least `kind` and `connected`."""
