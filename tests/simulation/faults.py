"""The kinds of faults and lies, and the weather: which of them are going on, and which were met."""

from collections import Counter
from collections.abc import Callable
from random import Random

#: lies about the time in frames of the stream: what a stamp becomes
STAMPS: dict[str, Callable[[int], int]] = {
    "stream stamp a minute ahead": lambda at_ms: at_ms + 65_000,
    "stream stamp an hour ahead": lambda at_ms: at_ms + 3_600_000,
    "stream stamp a year ahead": lambda at_ms: at_ms + 31_536_000_000,
    "stream stamp five minutes back": lambda at_ms: at_ms - 300_000,
    "stream stamp constant": lambda at_ms: at_ms // 86_400_000 * 86_400_000 + 18_000_000,
    "stream stamp zero": lambda at_ms: 0,
    "stream stamp negative": lambda at_ms: -at_ms,
    "stream stamp in seconds": lambda at_ms: at_ms // 1000,
    "stream stamp in microseconds": lambda at_ms: at_ms * 1000,
}
REST_STAMPS: dict[str, Callable[[int], int]] = {
    "REST stamp an hour ahead": lambda at_ms: at_ms + 3_600_000,
    "REST stamp in seconds": lambda at_ms: at_ms // 1000,
    "REST stamp zero": lambda at_ms: 0,
}
DATES = ("REST dates an hour ahead",)
#: what the stream does wrong beside
STREAM = (
    "stream cut",
    "stream cut, no snapshot after it",
    "stream silent",
    "stream drops each second frame",
    "stream drops the last version of minutes",
    "stream sends rows that cannot be read",
    "stream sends impossible rows",
    "stream sends each frame twice",
    "stream sends older minutes after newer ones",
    "stream sends rows off the grid",
    "stream sends minutes to come",
    "stream refuses the subscription",
    "stream complains",
)
#: what REST does wrong beside; a part of them only in some answers
REST = (
    "REST down",
    "REST answers 429",
    "REST answers 418",
    "REST answers another status",
    "REST answer crashes the plugin",
    "REST answers late",
    "REST answers with nothing",
    "REST knows no minute before now",
    "REST cuts pages short at their end",
    "REST cuts pages short at their beginning",
    "REST leaves out rows",
    "REST sends one impossible row",
    "REST sends rows that cannot be read",
    "REST sends a row without a time",
    "REST sends rows twice, with different values",
    "REST sends rows in descending order",
    "REST sends rows off the grid",
    "REST sends rows of another time",
    "REST dates an hour ahead",
    "list of markets lacks the symbol",
    "list of markets is empty",
    "list of markets is down",
)
NETWORK = ("network down",)
STORE = ("store down", "store stalls", "store cannot be read", "store cannot be written")
BUS = ("bus refuses messages", "bus loses messages", "bus repeats messages", "bus down")
CLIENTS = ("client stops reading",)
LASTING = (*STAMPS, *REST_STAMPS, *STREAM, *REST, *NETWORK, *STORE, *BUS, *CLIENTS)
#: what happens in a moment
MOMENTS = (
    "restart",
    "kill",
    "machine sleeps",
    "machine clock set ahead",
    "machine clock set back",
    "client loses its connection",
    "store loses minutes",
    "exchange revises a minute of the last hour, and sends it",
    "exchange revises a minute older than an hour, and sends it",
)
#: the same, but candled finds out only when it compares the last day again, which is every six hours
RARE = ("exchange revises a minute in silence",)
KINDS = (*LASTING, *MOMENTS, *RARE)


class Weather:
    """Which faults are going on; `met` counts how often each made something go wrong."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self.met: Counter[str] = Counter()
        self.now: Callable[[], float] = lambda: 0.0

    def begin(self, kind: str, until: float) -> None:
        self._until[kind] = max(until, self._until.get(kind, 0.0))

    def clear(self) -> None:
        self._until.clear()

    def has(self, kind: str) -> bool:
        """Whether a kind of fault is going on at this moment, and is met now."""
        if not self.goes_on(kind):
            return False
        self.met[kind] += 1
        return True

    def goes_on(self, kind: str) -> bool:
        """Whether a kind of fault is going on."""
        return self.now() < self._until.get(kind, 0.0)

    def any_of(self, kinds: dict[str, Callable[[int], int]]) -> Callable[[int], int]:
        """The first of some lies about the time that is going on."""
        return next((lie for kind, lie in kinds.items() if self.has(kind)), lambda at_ms: at_ms)


def draw_schedule(draw: Random, count: int, span_s: float) -> list[tuple[float, str, float]]:
    """So many faults within a span, each with its beginning and its length in seconds, in order."""
    kinds = [*LASTING, *MOMENTS] + ([RARE[0]] if draw.random() < 0.05 else [])
    chosen = draw.sample(kinds, min(len(kinds), count))
    if RARE[0] in kinds and RARE[0] not in chosen:
        chosen[0] = RARE[0]
    return sorted((draw.uniform(60, span_s), kind, draw.choice((15.0, 40.0, 90.0, 240.0))) for kind in chosen)
