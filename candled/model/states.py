"""How a market's feed is doing: the states and their reasons, for ingest, bus, `/health`, the wire and the page."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

State = Literal["live", "quiet", "polling", "stale", "warming", "recovering"]
StateReason = Literal[
    "starting",
    "no_trades",
    "unconfirmed_silence",
    "stream_down",
    "stream_silent",
    "subscription_refused",
    "not_listed",
    "rest_unavailable",
    "fetching",
    "unconfirmed_beginning",
    "leader_silent",
    "leader_differs",
    "messages_lost",
    "bus_unreadable",
    "not_published",
]

# Each with a line that any reader understands.
STATES: Mapping[State, str] = {
    "live": "candles come",
    "quiet": "no candles come, and the exchange's REST API confirms that nothing was traded since the last one",
    "polling": "candles are read over REST, because the stream does not bring them",
    "stale": "no candles come, and whether there are any is not known",
    "warming": "the running week is not complete yet",
    "recovering": "minutes of the last two hours are being fetched",
}
# Why a market is in another state than `live`: every such state has one of them beside it.
STATE_REASONS: Mapping[StateReason, str] = {
    "starting": "neither the stream nor REST has answered yet",
    "no_trades": "nothing was traded",
    "unconfirmed_silence": "the stream is silent, and REST has not confirmed that nothing was traded",
    "stream_down": "the stream is not connected",
    "stream_silent": "the stream is connected, but does not bring trades that REST has",
    "subscription_refused": "the exchange refuses the subscription; it is asked again after growing pauses",
    "not_listed": "the exchange does not list the symbol; its list is read again after growing pauses",
    "rest_unavailable": "the exchange's REST API cannot be read, or answers with nothing",
    "fetching": "missing minutes are being fetched",
    "unconfirmed_beginning": "the exchange says that it has no older minutes, and nothing else confirms it yet",
    "leader_silent": "the process that reads the exchange is not heard on the bus",
    "leader_differs": "the process that reads the exchange has other settings and does not read this symbol",
    "messages_lost": "the process that reads the exchange publishes, but its messages do not arrive",
    "bus_unreadable": "the symbol's newest state cannot be read from Redis",
    "not_published": "other processes get nothing of what this one reads, because Redis does not take it",
}


class FeedState(NamedTuple):
    """How a market's feed is doing, since when (UTC epoch ms), why, and the trouble in words (empty if there is none).

    `reason` is one of `STATE_REASONS`; empty where the feed is `live`.
    """

    state: str
    since_ms: int
    reason: str = ""
    trouble: str = ""
