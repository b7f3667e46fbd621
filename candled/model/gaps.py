"""The reasons for missing minutes: one list for the stores, `/api/gaps`, `/udf/marks`, `candled gaps` and the page."""

from collections.abc import Mapping

# Each reason with a description for all readers. A store records gaps of every reason except the first.
REASONS: Mapping[str, str] = {
    "missing": "not fetched yet",
    "unconfirmed": "the exchange says that it has nothing there, and nothing else confirms it; it is asked again",
    "invalid": "the exchange's rows for them cannot be candles; it is asked again",
    "exchange_outage": "the exchange does not have them",
    "no_trades": "nothing was traded",
    "beyond_history": "older than anything the exchange has",
}
