"""1-minute candles made from trades, for exchanges that publish no such candles."""

from dataclasses import dataclass, field
from decimal import Context, Decimal, DecimalException

from candled.errors import InvalidCandle
from candled.exchange import Candles, InvalidRow
from candled.model import MINUTE_MS, YEAR_10000_MS, Candle, Symbol
from candled.model.decimals import add_exactly, is_bounded

_KEPT_MS = 3 * MINUTE_MS  # trades that arrive later than this are left to REST
_MOST_TRADES = 100_000  # of a minute; one with more is left to REST
_EXACT = Context(prec=200)


@dataclass(slots=True)
class _Bar:
    """A minute that is being made."""

    #: Time (UTC epoch milliseconds), number and price of the first trade.
    first: tuple[int, int, Decimal]
    #: Time (UTC epoch milliseconds), number and price of the last trade.
    last: tuple[int, int, Decimal]
    #: The highest price.
    high: Decimal
    #: The lowest price.
    low: Decimal
    #: The sum of the sizes of the trades.
    volume: Decimal = Decimal(0)
    #: The sum of price times size, in quote currency.
    quote_volume: Decimal = Decimal(0)
    #: The numbers of the trades that are counted.
    known: set[int] = field(default_factory=set)


class TradeBars:
    """Makes the 1-minute candles of one symbol from its trades. Pure: times are arguments, UTC epoch milliseconds.

    A minute counts only if all its trades were seen: call `begin_at` when a subscription starts, and after trades were
    lost. If you do not, the first trade is the beginning. Trades may come in any order and more than once. A minute
    without trades has no candle.
    """

    def __init__(self, symbol: Symbol) -> None:
        self._symbol = symbol
        self._bars: dict[int, _Bar] = {}
        self._changed: set[int] = set()
        #: Minutes with some trades missing. The beginning of the next minute does not prove that they are complete.
        self._interrupted: set[int] = set()
        #: The first minute with all its trades.
        self._complete_ms: int | None = None
        self._newest_ms = 0

    def begin_at(self, at_ms: int) -> None:
        """Record that all trades from `at_ms` on will be added. Minutes that began earlier are incomplete."""
        self._complete_ms = -(-at_ms // MINUTE_MS) * MINUTE_MS
        self._interrupted |= {open_ms for open_ms in self._bars if open_ms < self._complete_ms}
        self._bars = {open_ms: bar for open_ms, bar in self._bars.items() if open_ms >= self._complete_ms}
        self._changed &= self._bars.keys()

    def add_trade(self, at_ms: int, price: str | Decimal, size: str | Decimal, number: int) -> None:
        """Add a trade. `number` is the exchange's; it orders the trades of one millisecond, and reveals repetitions.

        Raises:
            InvalidCandle: price or size is not a number above zero.
        """
        price, size = _positive(price), _positive(size)
        if self._complete_ms is None:
            self.begin_at(at_ms)
        open_ms = at_ms - at_ms % MINUTE_MS
        if open_ms < max(self._complete_ms or 0, self._newest_ms - _KEPT_MS):
            return
        place = at_ms, number, price
        bar = self._bars.get(open_ms)
        if bar is None:
            bar = self._bars[open_ms] = _Bar(place, place, price, price)
        elif number in bar.known:
            return
        if place > bar.last:
            bar.last = place
        elif place < bar.first:
            bar.first = place
        if price > bar.high:
            bar.high = price
        elif price < bar.low:
            bar.low = price
        bar.volume = add_exactly(bar.volume, size)
        bar.quote_volume = add_exactly(bar.quote_volume, _EXACT.multiply(price, size))
        bar.known.add(number)
        self._changed.add(open_ms)
        if open_ms > self._newest_ms:
            self._drop_old(open_ms)
        if len(bar.known) > _MOST_TRADES:
            self.begin_at(open_ms + MINUTE_MS)

    def take_candles(self, as_of_ms: int) -> list[Candles]:
        """Return an event with the candles that changed since the last call, or no event.

        `as_of_ms` is the exchange's time. A minute with lost trades is `invalid` in the event: REST decides how it
        ended.
        """
        candles: list[Candle] = []
        invalid: list[InvalidRow] = []
        for open_ms in sorted(self._changed):
            try:
                candles.append(self._candle(open_ms, as_of_ms))
            except InvalidCandle as error:  # a sum beyond the bounds
                invalid.append(InvalidRow(open_ms, str(error)))
        self._changed.clear()
        if self._interrupted:
            invalid += (InvalidRow(open_ms, "some of its trades were missed") for open_ms in sorted(self._interrupted))
            self._interrupted.clear()
        if not candles and not invalid:
            return []
        return [Candles(self._symbol, tuple(candles), invalid=tuple(invalid), from_trades=True)]

    def _candle(self, open_ms: int, as_of_ms: int) -> Candle:
        bar = self._bars[open_ms]
        candle = Candle(open_ms, bar.first[2], bar.high, bar.low, bar.last[2], bar.volume, bar.quote_volume, as_of_ms)
        # the prices of trades were checked one by one, so only the sums and the time may be beyond the bounds
        is_valid = is_bounded(bar.volume) and is_bounded(bar.quote_volume) and 0 <= open_ms < YEAR_10000_MS
        return candle if is_valid else candle.checked()

    def _drop_old(self, open_ms: int) -> None:
        self._newest_ms = open_ms
        for old_ms in [one for one in self._bars if one < open_ms - _KEPT_MS]:
            del self._bars[old_ms]
            self._changed.discard(old_ms)


def _positive(number: str | Decimal) -> Decimal:
    try:
        value = Decimal(number)
    except (ValueError, TypeError, DecimalException) as error:
        raise InvalidCandle(f"expected a number, got {str(number)[:60]!r}") from error
    if not is_bounded(value) or value <= 0:
        raise InvalidCandle(f"expected a number above zero, got {str(number)[:60]!r}")
    return value
