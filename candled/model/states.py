"""The states of a market's feed and their reasons, for ingest, bus, `/health`, the wire and the page."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

State = Literal["live", "quiet", "polling", "stale", "warming", "recovering"]
StateReason = Literal[
    "starting",
    "no_trades",
    "unconfirmed_silence",
    "stream_down",
    "stream_flooded",
    "stream_silent",
    "subscription_refused",
    "not_listed",
    "not_open",
    "suspended",
    "delisted",
    "rest_unavailable",
    "fetching",
    "unconfirmed_beginning",
    "leader_silent",
    "leader_differs",
    "messages_lost",
    "bus_unreadable",
    "not_published",
]

# Each state with a description for all readers.
STATES: Mapping[State, str] = {
    "live": "candles arrive",
    "quiet": "no candles arrive, and the exchange's REST API confirms that nothing was traded since the last one",
    "polling": "candles are read over REST, because the stream does not bring them",
    "stale": "no candles arrive, and candled does not know whether there are any",
    "warming": "the current week is not complete yet",
    "recovering": "minutes of the last two hours are being fetched",
}
# The reason why a market's state is not `live`. Every other state comes with one of these.
STATE_REASONS: Mapping[StateReason, str] = {
    "starting": "neither the stream nor REST has answered yet",
    "no_trades": "nothing was traded",
    "unconfirmed_silence": "the stream is silent, and REST has not confirmed that nothing was traded",
    "stream_down": "the stream is not connected",
    "stream_flooded": "the stream was interrupted because the exchange sends more messages than candled accepts",
    "stream_silent": "the stream is connected, but does not bring trades that REST has",
    "subscription_refused": "the exchange refuses the subscription; it is asked again after growing pauses",
    "not_listed": "the exchange does not list the symbol; its list is read again after growing pauses",
    "not_open": "the exchange lists the symbol, but trading has not begun",
    "suspended": "the exchange has suspended trading",
    "delisted": "the exchange does not trade the symbol any more; its history is kept",
    "rest_unavailable": "the exchange's REST API cannot be read, or answers with nothing",
    "fetching": "missing minutes are being fetched",
    "unconfirmed_beginning": "the exchange reports no older minutes, and nothing else confirms it yet",
    "leader_silent": "no messages of the process that reads the exchange arrive on the bus",
    "leader_differs": "the process that reads the exchange has other settings and does not read this symbol",
    "messages_lost": "the process that reads the exchange publishes, but its messages do not arrive",
    "bus_unreadable": "the symbol's newest state cannot be read from Redis",
    "not_published": "Redis does not accept this process's messages, so other processes receive none",
}

# The reasons that are facts about a market and no problem of candled.
NOT_TRADED: Collection[StateReason] = ("not_listed", "not_open", "suspended", "delisted")


HEALTHY_STATES: tuple[State, ...] = ("live", "quiet")
"""The states of a market that is read as it should be."""


class StateCounts:
    """The markets of one exchange by state and by reason, and the number of those with a problem."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        #: Traded markets in another state than `HEALTHY_STATES`, or with a problem in words.
        self.unhealthy = 0

    def count_state(self, state: str, reason: str, *, has_problem: bool) -> None:
        """Count a market."""
        self.states[state] += 1
        if reason:
            self.reasons[reason] += 1
        self.unhealthy += reason not in NOT_TRADED and (has_problem or state not in HEALTHY_STATES)

    def add_counts(self, others: "Iterable[StateCounts]") -> None:
        """Add the markets of other counts."""
        for other in others:
            self.states += other.states
            self.reasons += other.reasons
            self.unhealthy += other.unhealthy


class FeedState(NamedTuple):
    """The state of a market's feed, its start (UTC epoch ms), its reason, and the problem in words (may be empty).

    `reason` is one of `STATE_REASONS`, or empty if the feed is `live`.
    """

    state: str
    since_ms: int
    reason: str = ""
    problem: str = ""


class Position(NamedTuple):
    """The position of a message in a market's feed.

    `epoch` is the name of the feed: a process that begins to read a market from its exchange begins a new one. `seq`
    counts the messages of the market within the feed, from 1.
    """

    epoch: str
    seq: int
