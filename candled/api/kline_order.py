"""The order of a kline stream: select the bar states to send and the messages that close a bar. Pure."""

from candled.model import Candle

MOST_UNCLOSED = 10  # bars whose close may come late; a reader of the stream has no use for older ones


class KlineOrder:
    """Keeps the bars of a stream in order, and lets each one close at most once.

    A message closes its bar (`x` is true) if the bar is final. If a bar is not final when the next one begins, the
    message that closes it comes later. No other message is about a bar older than one already sent, and none about a
    bar that is closed.
    """

    __slots__ = ("_unclosed", "is_closed", "newest")

    def __init__(self) -> None:
        #: The newest bar as last sent; None before the first one.
        self.newest: Candle | None = None
        #: True if `newest` was closed.
        self.is_closed = False
        self._unclosed: dict[int, None] = {}

    @property
    def unclosed(self) -> tuple[int, ...]:
        """Opening times of the bars before the newest that are still to be closed, oldest first."""
        return tuple(self._unclosed)

    def take(self, bar: Candle, *, final: bool) -> bool:
        """Record the state of a bar; return True if it is to be sent."""
        newest = self.newest
        if newest is not None:
            if bar.open_ms < newest.open_ms:
                return False
            if bar.open_ms == newest.open_ms and (self.is_closed or (bar.values == newest.values and not final)):
                return False
            if bar.open_ms > newest.open_ms and not self.is_closed:
                self._unclosed[newest.open_ms] = None
        self.newest, self.is_closed = bar, final
        if final:
            self._unclosed.clear()
        while len(self._unclosed) > MOST_UNCLOSED:
            del self._unclosed[next(iter(self._unclosed))]
        return True

    def close(self, open_ms: int) -> bool:
        """Record the close of a bar before the newest; return True if it is to be sent."""
        if open_ms not in self._unclosed:
            return False
        for earlier_ms in [one for one in self._unclosed if one <= open_ms]:
            del self._unclosed[earlier_ms]
        return True
