"""The published scale of exchanges: how much is known about each one, and by which evidence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Source = Literal["recorded", "documented", "none"]
"""The source of a form of frames or rows: a recording of the exchange, its documentation, or neither."""
Question = Literal["finality", "empty minutes", "currency", "pages", "limits"]
"""The five questions about an exchange; plugins/README.md has them in full."""
Level = Literal["gold", "silver", "bronze", "unproven"]

QUESTIONS: tuple[Question, ...] = ("finality", "empty minutes", "currency", "pages", "limits")
GOLD_PARITY = 0.9999
DAY_MINUTES = 1440


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """A day with the real exchange, measured by `candled verify --exchange-check`."""

    #: The day, as 2026-11-29.
    day: str
    #: The number of minutes that were compared.
    minutes: int
    #: The number of those whose values were equal.
    equal: int

    @property
    def is_enough(self) -> bool:
        """True if a whole day was compared, and 99.99 % of its minutes were equal."""
        return self.minutes >= DAY_MINUTES and self.equal >= GOLD_PARITY * self.minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The evidence that there is for an exchange. Claim only facts that a file shows."""

    #: The kinds of markets, in words.
    markets: str = ""
    #: The frames with candles.
    stream: Source = "none"
    #: The last version of a minute, and the first one of the next.
    boundary: Source = "none"
    #: The rows over REST.
    rest: Source = "none"
    #: The field that marks a closed minute. Empty: the exchange marks none.
    closed_mark: str = ""
    #: The files with the frames that answer the five questions.
    answers: Mapping[Question, str] = field(default_factory=dict)
    #: A day with the real exchange; None if none was measured.
    parity: Parity | None = None

    @property
    def level(self) -> Level:
        """The level on the scale; docs/reference/exchanges.md explains each one."""
        if self.stream != "recorded" or self.rest != "recorded":
            return "unproven"
        if self.boundary != "recorded" or any(not self.answers.get(question) for question in QUESTIONS):
            return "bronze"
        return "gold" if self.parity is not None and self.parity.is_enough else "silver"


Missing = Literal["markets", "refusal", "together", "boundary", "versions", "frames", "pages"]

_FRAMES = (
    "the stream has candles of the symbol",
    "frames may come twice",
    "frames may come in any order",
    "a silence ends",
    "a late last version is shown",
    "a wrong clock changes nothing",
    "wrong times of sending change nothing",
    "bad numbers are refused",
    "a part of a frame is an error",
    "HTML is an error",
    "symbols are kept apart",
)
_PAGES = (
    "a page has only the minutes of its range",
    "every range is complete",
    "pages may overlap",
    "pages may be partial",
    "an empty answer is empty",
    "history begins at the listing",
    "a bad row costs one minute",
    "refused requests are repeated",
    "HTML over REST is an error",
)
_TOGETHER = (
    "candles arrive in their minute",
    "REST has each minute of the stream",
    "the minutes of the stream are those of REST",
    "volumes of the stream and of REST agree",
)
CHECKS_WITHOUT: Mapping[Missing, tuple[str, tuple[str, ...]]] = {
    "markets": (
        "no list of markets was recorded",
        ("the list of markets has the symbol", "the list of markets is followed", "a renamed market is followed"),
    ),
    "refusal": ("no refusal of a symbol was recorded", ("a refusal names its symbol",)),
    "together": ("the stream and REST were not recorded together", _TOGETHER),
    "boundary": ("no closed minute was recorded", ("a closed minute may come twice",)),
    "versions": ("no two versions of a minute were recorded", ("versions of a minute grow",)),
    "frames": ("no frame was recorded", _FRAMES),
    "pages": ("no page of history was recorded", _PAGES),
}
"""For each kind of material that may be missing, the reason and the checks that need it."""


def skip_without(*missing: Missing) -> Mapping[str, str]:
    """Return the `bypass_reasons` of an exchange for which some kinds of recordings are missing."""
    return {name: reason for kind in missing for reason, names in [CHECKS_WITHOUT[kind]] for name in names}
