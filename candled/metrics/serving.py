"""The metrics of clients: rooms, connections, HTTP requests and caches."""

from candled.parts import Parts

from .samples import Samples


def collect_clients(samples: Samples, parts: Parts) -> None:
    """Add the clients, their rooms and their messages."""
    server, hub = parts.server, parts.hub
    counts, messages = server.counts, hub.counts
    samples.add("ws_connections", server.connection_count)
    samples.add("ws_connections_limit", server.most_connections)
    samples.add("ws_rooms", hub.room_count)
    samples.add("ws_subscriptions", hub.subscription_count)
    samples.add("ws_connects_total", counts.connects)
    samples.add_all("ws_closed_total", counts.closes.items())
    samples.add_all("ws_refused_total", counts.refusals.items())
    samples.add_all("ws_messages_sent_total", {"update": messages.updates, **messages.sent}.items())
    samples.add("ws_sent_bytes_total", server.sent_bytes)
    samples.add_all("ws_messages_received_total", messages.received.items())
    samples.add_all("ws_resume_total", ((result, messages.resumes[result]) for result in ("recovered", "full")))
    samples.add("ws_slow_clients", len(server.transport.blocked))
    samples.add("ws_send_queue_bytes", server.transport.queued_bytes)
    samples.add("ws_fell_behind_total", messages.fell_behind)


def collect_tokens(samples: Samples, parts: Parts) -> None:
    """Add the use of access tokens, if clients need one."""
    guard = parts.server.guard
    if guard is not None:
        samples.add_all("token_connections", guard.count_connections().items())
        samples.add_all("token_requests_total", guard.requests.items())
        samples.add_all("token_refusals_total", guard.refusals.items())


def collect_requests(samples: Samples, parts: Parts) -> None:
    """Add the HTTP requests and the budgets of work."""
    server = parts.server
    for (route, status), count in server.counts.requests.items():
        samples.add("http_requests_total", count, route, str(status))
    for route, histogram in server.counts.request_s.items():
        samples.add_histogram("http_request_seconds", histogram, route)
    if server.tls is not None:
        samples.add("tls_certificate_expiry_timestamp_seconds", server.tls.expires_ms / 1000)
    facts = server.describe()
    http, work = facts["http"], facts["work"]
    samples.add("http_connections", http["connections"])
    samples.add("http_unsent_bytes", http["unsentBytes"])
    samples.add_all("http_closed_total", {"late": http["closedLate"], "room": http["closedForRoom"]}.items())
    samples.add("work_addresses", work["addresses"])
    samples.add("work_waits_total", work["waited"])
    samples.add("work_refusals_total", work["refused"])
    samples.add("work_disconnects_total", work["ended"])


def collect_bars(samples: Samples, parts: Parts) -> None:
    """Add the bars in memory, and their encoded copies."""
    bars, cache = parts.bars, parts.cache
    samples.add("cache_bytes", cache.bytes)
    samples.add("cache_limit_bytes", cache.most_bytes)
    for name, hits, misses in (
        ("bars", cache.form_hits, cache.form_misses),
        ("pages", cache.page_hits, cache.page_misses),
    ):
        samples.add_all("cache_requests_total", {"hit": hits, "miss": misses}.items(), name)
    recovery = bars.describe_recovery()
    samples.add("bars_candles", bars.describe()["oneMinuteCandlesCount"])
    samples.add("bars_recovering_symbols", recovery["catchingUp"])
    samples.add("bars_recoveries_total", recovery["healed"])
