"""Patterns that choose markets by their symbols."""

import re
from dataclasses import dataclass, field

from candled.model import SYMBOL_FORM, SYMBOL_PATTERN, Symbol

#: The form of a pattern, as a regular expression and in words.
SYMBOL_PATTERN_FORM = f"{SYMBOL_FORM}, a pattern such as */USDT or /^BTC/, or ! and one of these"
SYMBOL_PATTERN_PATTERN = rf"!?(?:\*|{SYMBOL_PATTERN}|/.+/)"

_FORM = re.compile(SYMBOL_PATTERN_PATTERN)
_MAX_EXPRESSION = 200
# The steps that a regular expression may need grow exponentially with these; see `_check_expression`.
_MAX_COUNTS = {"*+{": 3, "?": 6, "(": 4}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")


@dataclass(frozen=True)
class SymbolPattern:
    """A symbol, or a pattern of symbols, in the text form of the settings and of requests.

    `*` alone matches every symbol. Within a part, `*` stands for any characters, so that `*/USDT` matches spot pairs,
    and `*/USDT:USDT` perpetual contracts. `/…/` is a regular expression, which may match anywhere in the symbol. With
    `!` before it, a pattern excludes the markets that it matches.
    """

    #: The text as it was written.
    text: str
    #: True if the text begins with `!`.
    is_exclusion: bool
    #: The symbol if the text is one, without `!`; otherwise None.
    symbol: Symbol | None
    #: The compiled pattern, without `!`, which `matches` searches for in a symbol's text.
    _expression: re.Pattern[str] = field(repr=False, compare=False)

    @staticmethod
    def parse(text: str) -> "SymbolPattern":
        """Parse a pattern.

        Raises:
            ValueError: the text has another form, or its regular expression is wrong or may take too long.
        """
        if _FORM.fullmatch(text) is None:
            raise ValueError(f"expected {SYMBOL_PATTERN_FORM}, got {text!r}")
        is_exclusion, body = text.startswith("!"), text.removeprefix("!")
        if body.startswith("/"):
            return SymbolPattern(text, is_exclusion, None, _compile(body[1:-1]))
        if body == "*":
            return SymbolPattern(text, is_exclusion, None, re.compile(""))
        # Several * in a row mean the same as one.
        parts = [re.escape(part) for part in re.split(r"\*+", body)]
        symbol = Symbol.parse(body) if len(parts) == 1 else None
        return SymbolPattern(text, is_exclusion, symbol, re.compile(rf"\A{'[^/:]*'.join(parts)}\Z"))

    def matches(self, symbol: Symbol) -> bool:
        """Return whether the pattern fits a symbol, regardless of `!`.

        Only symbols that are well formed fit a pattern with `*` or a regular expression.
        """
        if self.symbol is not None:
            return self.symbol == symbol
        return symbol.is_well_formed and self._expression.search(str(symbol)) is not None

    def __str__(self) -> str:
        return self.text


def _compile(expression: str) -> re.Pattern[str]:
    _check_expression(expression)
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}") from None


def _check_expression(expression: str) -> None:
    """Refuse regular expressions that may need very long for a symbol of some letters.

    Python's `re` tries every combination of repetitions. So groups may not be repeated, references, assertions and
    flags are refused, and the number of repetitions is limited.
    """
    if len(expression) > _MAX_EXPRESSION:
        raise ValueError(f"a regular expression has at most {_MAX_EXPRESSION} characters")
    if re.search(r"\\[1-9]", _ESCAPE.sub(lambda found: found[0] if found[1].isdigit() else "a", expression)):
        raise ValueError("a regular expression may not refer to its groups")
    plain = _CLASS.sub("a", _ESCAPE.sub("a", expression))
    if re.search(r"\(\?(?!:)", plain):
        raise ValueError("a regular expression may contain (?:…), but no other group with (?")
    plain = plain.replace("(?:", "(")
    if re.search(r"\)[*+{]", plain):
        raise ValueError("a regular expression may not repeat a group, such as (…)*")
    for signs, most in _MAX_COUNTS.items():
        if sum(map(plain.count, signs)) > most:
            raise ValueError(f"a regular expression has at most {most} of {' '.join(signs)}")
