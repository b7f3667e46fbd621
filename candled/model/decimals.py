"""Exact decimal numbers: their bounds, sums and texts."""

from collections.abc import Iterable
from decimal import Clamped, Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow, Rounded, Underflow

#: The most digits of a number, and of those the most after the point. Numbers are below 1e50.
MAX_DIGITS, MAX_PLACES = 50, 49
# `plus` compares a number with these bounds without writing out its digits: 1e999999999 is short, its digits are not.
_BOUNDS = Context(prec=MAX_DIGITS, Emin=0, Emax=MAX_PLACES, traps=[Clamped, InvalidOperation, Overflow, Rounded])
# Sums must be exact. The precision is enough for any sum of numbers within the bounds, and a result that does not fit
# raises an error instead of being rounded.
_EXACT = Context(prec=200, traps=[Inexact, Rounded, Overflow, Underflow, InvalidOperation])
add_exactly = _EXACT.add


def is_bounded(number: Decimal | None) -> bool:
    """Return whether a number is None, or finite and within the bounds."""
    if number is None:
        return True
    try:
        return _BOUNDS.plus(number).is_finite()
    except DecimalException:
        return False


def are_bounded(numbers: Iterable[Decimal]) -> bool:
    """Return `is_bounded` of all numbers, in half the time."""
    try:
        return all(map(Decimal.is_finite, map(_BOUNDS.plus, numbers)))
    except DecimalException:
        return False


def decimal_text(number: Decimal) -> str:
    """Format a decimal exactly, in its shortest form and without an exponent: `67234.5`, `0.00000001`, `0`."""
    text = str(number)
    if "E" in text:
        text = format(number, "f")
    if text[-1] == "0" and "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
