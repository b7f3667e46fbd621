"""The metrics of candled: names, types, labels and meanings. docs/reference/metrics.md lists the same.

Names follow Prometheus's conventions (prometheus.io/docs/practices/naming), which `promtool check metrics` checks: base
units, `_total` for counters only, and no unit in a number of candles. Labels have few values. Only `token`, whose
values the operator chooses, names a client, and only labels of `PER_SYMBOL` name a symbol.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
PREFIX = "candled_"


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. Its series differ in their labels."""

    #: The name without `PREFIX`.
    name: str
    #: The type of the metric in Prometheus.
    kind: Kind
    #: The meaning, for the page and for `# HELP`.
    meaning: str
    #: The names of the labels, in the order of their values.
    labels: tuple[str, ...] = ()


def _counter(name: str, meaning: str, *labels: str) -> Family:
    return Family(name, "counter", meaning, labels)


def _gauge(name: str, meaning: str, *labels: str) -> Family:
    return Family(name, "gauge", meaning, labels)


def _histogram(name: str, meaning: str, *labels: str) -> Family:
    return Family(name, "histogram", meaning, labels)


PROCESS = (
    _gauge("build_info", "1; the labels are the versions of candled and of Python", "version", "python"),
    _gauge("process_info", "1; the labels are the roles and the kinds of store and bus", "roles", "store", "bus"),
    _gauge("healthy", "1 if `status` of `/health` is `pass`, else 0"),
    _gauge("stopping", "1 once the process is stopping, else 0"),
    _histogram("loop_lag_seconds", "how late a timer of the event loop runs, sampled ten times a second"),
    _counter("plugin_blocks_total", "times that a plugin has blocked the event loop for half a second", "plugin"),
    _counter("closed_bar_calls_total", "calls of a plugin's hook for closed bars: `ok`, `failed`, or `dropped` because "
             "too many waited", "plugin", "result"),
    _gauge("closed_bar_calls_waiting", "waiting calls of a plugin's hook for closed bars", "plugin"),
)  # fmt: skip

INGEST = (
    _gauge("feed_state", "symbols in each state", "exchange", "state"),
    _gauge("feed_unhealthy_symbols", "symbols that are neither `live` nor `quiet`, or have a problem", "exchange"),
    _gauge("feed_connections", "connections to the exchange's stream that are open", "exchange"),
    _gauge("feed_connections_wanted", "connections to the exchange's stream that the symbols need", "exchange"),
    _counter("feed_connects_total", "connections to the exchange's stream that were made", "exchange"),
    _counter("feed_reconnects_total", "ends of connections and failed attempts, after which candled tries again: "
             "`closed`, `scheduled`, `no_pong`, `not_read`, `not_ready`, `flooded`, `not_connected` or `failed`",
             "exchange", "reason"),
    _counter("feed_events_total", "messages with candles from the stream", "exchange"),
    _counter("feed_malformed_frames_total", "frames of the stream that could not be read", "exchange"),
    _counter("feed_errors_total", "errors that the exchange reported about whole connections", "exchange"),
    _counter("feed_invalid_candles_total", "rows that are not valid candles, of the stream and of REST", "exchange"),
    _counter("feed_revisions_total", "final minutes that were corrected", "exchange"),
    _histogram("feed_lag_seconds", "the time from the send time in a message to its receipt, on candled's estimate "
               "of the exchange's clock; only every eighth message is measured", "exchange"),
    _gauge("feed_last_event_timestamp_seconds", "when the stream last delivered a candle of any symbol, on the "
           "exchange's clock", "exchange"),
    _gauge("exchange_clock_skew_seconds", "how far the exchange's clock is ahead of this machine's", "exchange"),
    _gauge("exchange_rest_up", "1 if the exchange's REST API can be read, else 0", "exchange"),
    _counter("exchange_requests_total", "requests to the exchange's REST API, by the status of the answer; `none` "
             "without an answer", "exchange", "status"),
    _gauge("exchange_budget_remaining_ratio", "the share of a request budget that is left; `budget` is `host`, or the "
           "plugin's name of the budget", "exchange", "host", "budget"),
    _gauge("exchange_pause_seconds", "the time for which no request is sent to a host, because it asked for a pause",
           "exchange", "host"),
    _gauge("gaps_open", "gaps by [reason](http.md#markets-coverage-and-gaps); `missing` ones are to be fetched",
           "exchange", "reason"),
    _gauge("gap_candles_open", "minutes in the gaps", "exchange", "reason"),
    _counter("gap_candles_repaired_total", "missing minutes that were fetched, also by the first backfill", "exchange"),
    _counter("audit_checked_total", "final minutes that were compared with REST for the first time", "exchange"),
    _counter("audit_mismatch_total", "compared minutes that differed from REST", "exchange"),
    _gauge("audit_unconfirmed_candles", "final minutes that REST has not confirmed yet", "exchange"),
    _gauge("parity_ratio", "the share that agreed, of the minutes compared with REST in the last 24 hours", "exchange"),
    _counter("store_audits_total", "comparisons of a symbol with the store", "exchange"),
    _counter("store_audit_lost_candles_total", "minutes that the store had lost, which are fetched again", "exchange"),
)  # fmt: skip

STORE = (
    _gauge("db_state", "1 for the store's state (`ok`, `unavailable`, `rejecting`), 0 for the others", "state"),
    _gauge("db_read_up", "1 if the last read of every symbol succeeded, else 0"),
    _gauge("db_conflicts", "other daemons that use the store with other settings"),
    _gauge("db_queue_rows", "rows in memory that wait to be written"),
    _histogram("db_write_seconds", "the time of a write, including the wait for its turn"),
    _histogram("db_batch_rows", "the rows of a write"),
    _counter("db_rows_written_total", "rows that were written"),
    _counter("db_rows_refused_total", "rows for which the queue had no room; they are fetched again later"),
    _counter("db_rows_rejected_total", "rows that the store refused"),
    _counter("db_errors_total", "writes that failed: `unavailable` or `rejected`", "reason"),
    _counter("db_reads_total", "reads that have ended: `ok` or `failed`", "result"),
    _gauge("db_last_write_timestamp_seconds", "when rows were last written"),
    _gauge("db_file_bytes", "the size of the SQLite file and of its log", "file"),
    _gauge("db_free_connections", "unused connections to PostgreSQL: `write` or `read`", "use"),
    _gauge("journal_rows", "rows in the journal that wait for the store"),
    _gauge("journal_bytes", "the size of the journal"),
    _gauge("journal_limit_bytes", "`store.journal_limit`"),
)

BUS = (
    _gauge("bus_connected", "1 if everything is received and can be published, else 0"),
    _gauge("bus_unpublished_symbols", "symbols that are read here and whose messages cannot be published"),
    _gauge("bus_lag_seconds", "the time from publishing a message to receiving it, on the slowest connection"),
    _counter("bus_connects_total", "connections that were made to receive messages"),
    _counter("bus_disconnects_total", "ends of connections that receive messages", "reason"),
    _counter("bus_sequence_gaps_total", "messages that are missing according to their numbers or to a heartbeat"),
    _counter("bus_rereads_total", "symbols that were read again because messages may be missing", "reason"),
    _counter("bus_ignored_total", "messages that were ignored", "reason"),
    _gauge("bus_heartbeat_age_seconds", "the largest age of a shard's last heartbeat"),
    _counter("bus_published_total", "messages that were published"),
    _counter("bus_refused_total", "messages that Redis refused"),
    _gauge("bus_queue_symbols", "symbols with messages that wait to be published"),
    _gauge("leases", "shards by the state of this process's lease: `leader`, `follower` or `unsure`", "state"),
    _counter("lease_transitions_total", "changes of a lease's state"),
    _gauge("ingest_processes", "processes that ingest, this one included"),
)

SERVE = (
    _gauge("ws_connections", "connected clients, event streams included"),
    _gauge("ws_connections_limit", "`server.max_connections`; 0 for no limit"),
    _gauge("ws_rooms", "rooms with subscribers"),
    _gauge("ws_subscriptions", "subscriptions of all clients"),
    _counter("ws_connects_total", "clients that connected"),
    _counter("ws_closed_total", "ends of connections by [close code](protocol.md#closing); 1006 without one, `other` "
             "for codes that only clients use", "code"),
    _counter("ws_refused_total", "handshakes that a limit or the origin policy refused", "status"),
    _counter("ws_messages_sent_total", "messages given to connections; a slow client is sent only the newest updates",
             "type"),
    _counter("ws_sent_bytes_total", "bytes of the messages given to connections, as WebSocket frames before TLS, also "
             "for event streams"),
    _counter("ws_messages_received_total", "messages from clients; `invalid` ones got an error, `refused` ones were "
             "over `server.max_messages_per_second`", "type"),
    _counter("ws_resume_total", "subscriptions continued after a lost connection: `recovered`, or `full` if all bars "
             "were sent again", "result"),
    _gauge("ws_slow_clients", "clients that have not read a message completely"),
    _gauge("ws_send_queue_bytes", "bytes that wait for slow clients"),
    _counter("ws_fell_behind_total", "times that a slow client missed so many updates that it got all bars again"),
    _gauge("tls_certificate_expiry_timestamp_seconds", "when the certificate of `server.tls_certificate` expires, Unix "
           "seconds; only with TLS"),
    _gauge("token_connections", "connections of each access token; all JWTs together are `jwt`", "token"),
    _counter("token_requests_total", "HTTP requests, handshakes and `auth` messages that each token allowed", "token"),
    _counter("token_refusals_total", "requests and connections that were refused: `missing`, `invalid` or `expired` "
             "token, its `scope`, or its limit of `requests` or `connections`", "reason"),
    _counter("http_requests_total", "HTTP requests by route; handshakes that succeed are in `ws_connects_total`",
             "route", "status"),
    _histogram("http_request_seconds", "the time of an answer. Answers from memory take less than a millisecond and "
               "are not measured", "route"),
    _gauge("http_connections", "connections with HTTP requests"),
    _gauge("http_unsent_bytes", "bytes of answers that clients have not read"),
    _counter("http_closed_total", "connections closed by candled: `late`, or to make `room`", "reason"),
    _gauge("work_addresses", "addresses whose budget of work is in use"),
    _counter("work_waits_total", "answers that waited because a budget of work was used up"),
    _counter("work_refusals_total", "requests that were refused because a budget of work was used up"),
    _counter("work_disconnects_total", "connections that were closed because a budget of work was used up"),
    _gauge("cache_bytes", "memory of encoded bars"),
    _gauge("cache_limit_bytes", "`server.cache`"),
    _counter("cache_requests_total", "requests for encoded bars: `bars` in memory or `pages` of history, `hit` or "
             "`miss`", "cache", "result"),
    _gauge("bars_candles", "minutes in memory"),
    _gauge("bars_recovering_symbols", "symbols that recover lost messages of the bus"),
    _counter("bars_recoveries_total", "recoveries from lost messages of the bus"),
)  # fmt: skip

PER_SYMBOL = (
    _gauge("symbol_state", "1 for the state of the symbol", "exchange", "symbol", "state"),
    _gauge("feed_last_candle_timestamp_seconds", "when the stream last delivered a candle, on the exchange's clock",
           "exchange", "symbol"),
    _gauge("symbol_missing_candles", "minutes that are still to be fetched", "exchange", "symbol"),
    _gauge("symbol_revisions", "final minutes that were corrected since candled began to read the symbol",
           "exchange", "symbol"),
)  # fmt: skip
"""With `server.metrics_per_symbol`."""

ALL = (*PROCESS, *INGEST, *STORE, *BUS, *SERVE, *PER_SYMBOL)
BY_NAME = {family.name: family for family in ALL}
