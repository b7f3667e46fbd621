"""The order of a kline stream: which states of which bars are sent, and which of them close a bar. Pure."""

from candled.model import Candle

MOST_UNCLOSED = 10  # bars whose close may come late; more than that of the past tells a stream's reader nothing


class KlineOrder:
    """Lets time in a stream go forward only, and each bar close at most once, in the order of the bars.

    A message closes a bar (`x` is true) when the bar is final. A bar that is not final when the next one begins is
    closed later, by the only kind of message that may be about a bar older than one sent before. After its close
    nothing more is sent of a bar.
    """

    __slots__ = ("_unclosed", "is_closed", "newest")

    def __init__(self) -> None:
        #: The newest bar as it was sent last, None before the first one.
        self.newest: Candle | None = None
        #: Whether `newest` was closed.
        self.is_closed = False
        self._unclosed: dict[int, None] = {}

    @property
    def unclosed(self) -> tuple[int, ...]:
        """When the bars before the newest open that are still to be closed, oldest first."""
        return tuple(self._unclosed)

    def take(self, bar: Candle, *, final: bool) -> bool:
        """Take the state of a bar; return whether it is to be sent."""
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
        """Take the end of a bar before the newest; return whether it is to be sent."""
        if open_ms not in self._unclosed:
            return False
        for earlier_ms in [one for one in self._unclosed if one <= open_ms]:
            del self._unclosed[earlier_ms]
        return True
