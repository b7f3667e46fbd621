"""The present problems in words. An alert of deploy/prometheus has the same name and the same condition. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from candled.ingest.measures import IngestMeasures

Severity = Literal["critical", "warning"]

_LATE_SHARE = 0.01
_CERTIFICATE_S = 14 * 86_400
_NEARLY = 0.9  # of the file descriptors, and of the connections
_PAUSE_S = 60.0
_SKEW_MS = 2_000
_MISSING_MINUTES = 5
_PARITY = 0.9999
_JOURNAL = 0.5
_SILENT_S = 15.0
_REFUSALS_PER_S = 10.0

# The severity and the sentence of each problem. The name of an exchange or a plugin is put before it.
PROBLEMS: Mapping[str, tuple[Severity, str]] = {
    "CandledStoreUnavailable": (
        "critical",
        "The database takes no candles: they wait in memory and in the journal, and live charts go on.",
    ),
    "CandledStoreUnreadable": ("critical", "The database cannot be read: requests for older candles fail."),
    "CandledStoreConflict": ("critical", "Another daemon uses the same database with other settings."),
    "CandledRowsRejected": ("critical", "The database refused {count} rows in the last 15 minutes."),
    "CandledStoreLosesMinutes": (
        "critical",
        "The database lost {count} minutes in the last hour, which are fetched again.",
    ),
    "CandledJournalFilling": (
        "warning",
        "The journal is filling: {percent} of its limit is used, because the database takes no candles.",
    ),
    "CandledBusDown": ("critical", "Redis does not answer: candles of other processes do not arrive, or none leave."),
    "CandledLeaderSilent": (
        "critical",
        "No process that reads the exchanges has sent a heartbeat for {time}: charts stop.",
    ),
    "CandledFeedDown": ("critical", "The exchange's stream does not answer: {count} of {of} connections are missing."),
    "CandledExchangePaused": ("critical", "The exchange refuses requests, and asked for a pause of {time}."),
    "CandledRestDown": (
        "warning",
        "The exchange's REST API does not answer: missing minutes are not fetched, and minutes are not confirmed.",
    ),
    "CandledClockWrong": ("warning", "The exchange's clock and that of this machine differ by {time}."),
    "CandledMinutesMissing": ("warning", "{count} minutes are missing, and are being fetched."),
    "CandledParityLow": ("warning", "Only {percent} of the minutes agree with the exchange's REST API."),
    "CandledSymbolsUnhealthy": ("warning", "Markets with a problem: {count} of {of}."),
    "CandledLoopBlocked": ("warning", "The event loop is late by more than 0.1 s: updates and answers are late too."),
    "CandledPluginBlocks": ("warning", "The plugin blocked the event loop in the last 15 minutes."),
    "CandledCertificateExpires": ("warning", "The certificate expires in {time}."),
    "CandledCertificateExpired": ("critical", "The certificate has expired: clients refuse to connect."),
    "CandledFewDescriptors": ("warning", "{percent} of the file descriptors are in use."),
    "CandledClientsFull": ("warning", "{count} of {of} connections are in use: new clients will be refused."),
    "CandledWorkRefused": ("warning", "{count} requests a second are refused, of addresses that ask for too much."),
    "CandledUnhealthy": ("warning", "Something has a problem that is only described in /health?verbose."),
}


class Problem(NamedTuple):
    """A problem of this moment."""

    #: One of `PROBLEMS`, the name of the alert.
    id: str
    severity: Severity
    #: A sentence, without texts of exchanges or of the database.
    text: str
    #: The exchange or the plugin; empty if it concerns none.
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeReadings:
    """The numbers of one exchange."""

    #: The numbers of ingest, if this process reads the exchange.
    measures: IngestMeasures = field(default_factory=IngestMeasures)
    #: The number of markets.
    symbols: int = 0
    #: The number of markets that are neither `live` nor `quiet`, or have a problem.
    unhealthy: int = 0
    #: The longest pause that one of its hosts asked for, in seconds.
    pause_s: float = 0.0
    #: Stored minutes that were lost in the last hour.
    lost: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The numbers that problems are found in. The defaults are those of a healthy process."""

    #: True if the status of `/health` is `pass`.
    is_healthy: bool = True
    #: The numbers of each exchange, by its name.
    exchanges: Mapping[str, ExchangeReadings] = field(default_factory=dict)
    #: The state of writing to the store: `ok`, `unavailable` or `rejecting`.
    store_state: str = "ok"
    #: True if the store can be read.
    is_readable: bool = True
    #: The number of other daemons that use the store with other settings.
    conflicts: int = 0
    #: Rows that the store refused in the last 15 minutes.
    rejected: float = 0.0
    #: The used share of the journal.
    journal: float = 0.0
    #: True if the bus is connected.
    is_bus_connected: bool = True
    #: The age of the oldest of the last heartbeats of all shards, in seconds.
    heartbeat_s: float = 0.0
    #: The share of timers that were late by more than 0.1 s in the last 5 minutes.
    late_share: float = 0.0
    #: By plugin, the times that it blocked the loop in the last 15 minutes.
    blocks: Mapping[str, float] = field(default_factory=dict)
    #: Seconds until the certificate expires; None without TLS.
    certificate_s: float | None = None
    #: The used share of the file descriptors.
    descriptors: float = 0.0
    #: The number of connected clients.
    connections: int = 0
    #: The limit of connections; 0 for none.
    most_connections: int = 0
    #: Refused requests per second of the last 5 minutes.
    refusals_per_s: float = 0.0


def find_problems(readings: Readings) -> list[Problem]:
    """Return all problems, the critical ones first."""
    found = [
        *_find_in_store(readings),
        *_find_in_bus(readings),
        *(one for name, exchange in readings.exchanges.items() for one in _find_in_exchange(name, exchange)),
        *_find_in_process(readings),
    ]
    if not found and not readings.is_healthy:
        found = [_make("CandledUnhealthy")]
    return sorted(found, key=lambda one: one.severity != "critical")


def _make(
    name: str, subject: str = "", *, count: float = 0, of: int = 0, share: float = 0, seconds: float = 0
) -> Problem:
    severity, text = PROBLEMS[name]
    percent = f"{int(share * 10_000) / 100:g} %"  # never rounded up to 100 %
    filled = text.format(count=f"{count:,.0f}", of=f"{of:,}", percent=percent, time=_duration(seconds))
    return Problem(name, severity, filled, subject)


def _duration(seconds: float) -> str:
    """Return a duration in words: two or more of the largest unit."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _find_in_store(readings: Readings) -> Iterator[Problem]:
    if readings.store_state != "ok":
        yield _make("CandledStoreUnavailable")
    if not readings.is_readable:
        yield _make("CandledStoreUnreadable")
    if readings.conflicts:
        yield _make("CandledStoreConflict")
    if readings.rejected:
        yield _make("CandledRowsRejected", count=readings.rejected)
    if readings.journal > _JOURNAL:
        yield _make("CandledJournalFilling", share=readings.journal)


def _find_in_bus(readings: Readings) -> Iterator[Problem]:
    if not readings.is_bus_connected:
        yield _make("CandledBusDown")
    if readings.heartbeat_s > _SILENT_S:
        yield _make("CandledLeaderSilent", seconds=readings.heartbeat_s)


def _find_in_exchange(name: str, readings: ExchangeReadings) -> Iterator[Problem]:
    measures = readings.measures
    if measures.connected_feeds < measures.feeds:
        yield _make("CandledFeedDown", name, count=measures.feeds - measures.connected_feeds, of=measures.feeds)
    if readings.pause_s > _PAUSE_S:
        yield _make("CandledExchangePaused", name, seconds=readings.pause_s)
    if not measures.is_rest_available:
        yield _make("CandledRestDown", name)
    if abs(measures.skew_ms) > _SKEW_MS:
        yield _make("CandledClockWrong", name, seconds=abs(measures.skew_ms) / 1000)
    if measures.gap_minutes["missing"] > _MISSING_MINUTES:
        yield _make("CandledMinutesMissing", name, count=measures.gap_minutes["missing"])
    if measures.compared and 1 - measures.differing / measures.compared < _PARITY:
        yield _make("CandledParityLow", name, share=1 - measures.differing / measures.compared)
    if readings.lost:
        yield _make("CandledStoreLosesMinutes", name, count=readings.lost)
    if readings.unhealthy:
        yield _make("CandledSymbolsUnhealthy", name, count=readings.unhealthy, of=readings.symbols)


def _find_in_process(readings: Readings) -> Iterator[Problem]:
    if readings.late_share > _LATE_SHARE:
        yield _make("CandledLoopBlocked")
    for plugin, count in readings.blocks.items():
        if count:
            yield _make("CandledPluginBlocks", plugin)
    if readings.certificate_s is not None and readings.certificate_s <= 0:
        yield _make("CandledCertificateExpired")
    elif readings.certificate_s is not None and readings.certificate_s < _CERTIFICATE_S:
        yield _make("CandledCertificateExpires", seconds=readings.certificate_s)
    if readings.descriptors > _NEARLY:
        yield _make("CandledFewDescriptors", share=readings.descriptors)
    if readings.most_connections and readings.connections > _NEARLY * readings.most_connections:
        yield _make("CandledClientsFull", count=readings.connections, of=readings.most_connections)
    if readings.refusals_per_s > _REFUSALS_PER_S:
        yield _make("CandledWorkRefused", count=readings.refusals_per_s)
