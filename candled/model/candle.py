"""The candle: exact OHLCV values of one bar, and the one way to fold several into a longer one."""

from collections.abc import Sequence
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow, Rounded, Underflow
from typing import NamedTuple, Self

from candled.errors import InvalidCandle

MINUTE_MS = 60_000

# Sums must equal decimal addition on paper. The precision is far beyond any exchange's digits, and
# a result that would not fit raises instead of being rounded.
_EXACT = Context(prec=200, traps=[Inexact, Rounded, Overflow, Underflow, InvalidOperation])
add_exactly = _EXACT.add


class Candle(NamedTuple):
    """One OHLCV bar that begins at `open_ms`; which market and interval it belongs to is known by its holder.

    `open_ms` is UTC epoch milliseconds. Prices are in quote currency, `volume` in base currency,
    `quote_volume` in quote currency, or None where the exchange did not send it (never 0 instead).
    `as_of_ms` is the exchange's own clock when it made this statement: of two versions of one minute the
    one with the later `as_of_ms` holds. `final` is True once the bar is over and its late versions had
    their chance. `rev` counts how many times the minute was revised after it was final; of a longer bar it is
    the sum over its minutes. `src` says who stated the values: `live` (the exchange's stream), `rest` (its answer to
    a question of the daemon), `backfill` (the same to the tool), `agg` (folded here), or "" where that is not known.
    Neither is part of `values`, nor decides which version holds.
    """

    open_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal | None = None
    as_of_ms: int = 0
    final: bool = False
    rev: int = 0
    src: str = ""

    @classmethod
    def parse(
        cls,
        open_ms: int | str,
        open: str,
        high: str,
        low: str,
        close: str,
        volume: str,
        quote_volume: str | None = None,
        *,
        as_of_ms: int = 0,
        final: bool = False,
    ) -> Self:
        """Read the decimal texts that an exchange printed and check the result.

        Raises:
            InvalidCandle: a text is not a number, or `check` refuses the values.
        """
        try:
            candle = cls(
                int(open_ms),
                Decimal(open),
                Decimal(high),
                Decimal(low),
                Decimal(close),
                Decimal(volume),
                None if quote_volume is None else Decimal(quote_volume),
                as_of_ms,
                final,
            )
        except (ValueError, TypeError, DecimalException) as error:
            row = [open_ms, open, high, low, close, volume, quote_volume]
            raise InvalidCandle(f"expected a time and decimal numbers, got {row!r}") from error
        return candle.checked()

    def checked(self, grid_ms: int = MINUTE_MS) -> Self:
        """Return the candle itself if it is possible.

        Raises:
            InvalidCandle: off the grid, not finite, low and high do not enclose open and close, a price that is
                not positive, a negative volume.
        """
        _, opened, high, low, close, volume, quote, *_ = self
        finite = (opened.is_finite() and high.is_finite() and low.is_finite() and close.is_finite()) and (
            volume.is_finite() and (quote is None or quote.is_finite())
        )
        if not finite:
            raise InvalidCandle(f"expected finite numbers, got {self}")
        if self.open_ms < 0 or self.open_ms % grid_ms:
            raise InvalidCandle(f"expected an opening time on a boundary of {grid_ms} ms, got {self.open_ms}")
        if not (low <= opened <= high and low <= close <= high):
            raise InvalidCandle(f"expected low <= open, close <= high, got {self}")
        if low <= 0:
            raise InvalidCandle(f"expected prices above zero, got {self}")
        if volume < 0 or (quote is not None and quote < 0):
            raise InvalidCandle(f"expected volumes of zero or more, got {self}")
        return self

    @property
    def values(self) -> tuple[Decimal, Decimal, Decimal, Decimal, Decimal, Decimal | None]:
        """What a client sees, without the opening time: open, high, low, close, volume, quote volume."""
        return self.open, self.high, self.low, self.close, self.volume, self.quote_volume

    def supersedes(self, other: "Candle") -> bool:
        """Whether this version of a minute replaces `other`, whichever of them arrived first.

        A statement made after the minute was over replaces one made before; of two made after, the later holds. While
        the minute runs its volume only grows, so of two statements made before its end the larger volume is the later
        one: a cached copy with a newer stamp cannot turn the minute back. Equal ones are settled by their values.
        """
        is_over, was_over = self.as_of_ms >= self.open_ms + MINUTE_MS, other.as_of_ms >= other.open_ms + MINUTE_MS
        if is_over is not was_over:
            return is_over
        if not is_over and self.volume != other.volume:  # most of what an exchange says in a minute
            return self.volume > other.volume
        return self._version() > other._version()

    def merged_with(self, known: "Candle") -> "Candle":
        """Return the version of a minute to keep, of which `known` was there when this one came: `known`, or a new row.

        The rule of every writer: of ingest's memory, of what waits for the store, and of the stores themselves. A
        version that replaces a final one with other values is a revision more than that, or as many as it says itself.
        The same version said again never counts twice, so that a batch may be written again. The source is whose
        statement had these values first.
        """
        is_same = self[1:7] == known[1:7]
        if self.supersedes(known):
            rev = max(self.rev, known.rev + (known.final and not is_same))
        elif self.rev > known.rev and not known.supersedes(self):
            rev = self.rev
        else:
            return known
        src, final = known.src if is_same else self.src, self.final or known.final
        return self if (final, rev, src) == self[-3:] else self._replace(final=final, rev=rev, src=src)

    def copied_over(self, known: "Candle") -> "Candle":
        """Return the version to show of a minute, of which `known` was shown when a writer's version came.

        The rule of those who show: the writer has merged already, but one that has just begun may not know of
        revisions before it. The source is as it is told: another one for the same values means that a writer ended
        before it had stored them.
        """
        if not self.supersedes(known):
            return known
        return self._replace(rev=known.rev) if self.rev < known.rev else self

    def confirmed_over(self, known: "Candle") -> "Candle":
        """Return the exchange's REST answer about a minute that is over as a version that replaces `known`.

        REST is the higher authority, whatever stamp `known` has.
        """
        if self.supersedes(known) or (known.final and self.values == known.values):
            return self
        return self._replace(as_of_ms=max(known.as_of_ms, self.open_ms + MINUTE_MS) + 1)

    def _version(self) -> tuple[object, ...]:
        quote = Decimal(-1) if self.quote_volume is None else self.quote_volume
        rest = (quote, self.high, -self.low, self.close, self.open, self.final)
        if self.as_of_ms >= self.open_ms + MINUTE_MS:
            return 1, self.as_of_ms, self.volume, *rest
        return 0, self.volume, self.as_of_ms, *rest


def fold(candles: Sequence[Candle], open_ms: int, *, final: bool = False) -> Candle:
    """Fold candles, oldest first and at least one, into the bar that begins at `open_ms`.

    Volumes are added exactly, revisions too. The quote volume is absent as soon as one part lacks it.
    """
    first = candles[0]
    rev = first.rev
    high, low, volume, quote, as_of_ms = first.high, first.low, first.volume, first.quote_volume, first.as_of_ms
    for candle in candles[1:]:
        if candle.high > high:
            high = candle.high
        if candle.low < low:
            low = candle.low
        if candle.as_of_ms > as_of_ms:
            as_of_ms = candle.as_of_ms
        volume = add_exactly(volume, candle.volume)
        rev += candle.rev
        if quote is not None:
            quote = None if candle.quote_volume is None else add_exactly(quote, candle.quote_volume)
    return Candle(open_ms, first.open, high, low, candles[-1].close, volume, quote, as_of_ms, final, rev, "agg")


def decimal_text(number: Decimal) -> str:
    """Print a decimal exactly, in its shortest form and never with an exponent: `67234.5`, `0.00000001`, `0`."""
    text = str(number)
    if "E" in text:
        text = format(number, "f")
    if text[-1] == "0" and "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
