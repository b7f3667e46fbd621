"""The reasons for missing minutes: one list for the stores, `/api/gaps`, `/udf/marks`, `candled gaps` and the page."""

from collections.abc import Mapping

# Each reason with a description for all readers. A store records gaps of every reason except the first.
REASONS: Mapping[str, str] = {
    "missing": "not fetched yet",
    "unconfirmed": "the exchange returns nothing for them, and nothing else confirms it; it is asked again",
    "invalid": "the exchange's rows for them are not valid candles; it is asked again",
    "exchange_outage": "the exchange does not have them",
    "no_trades": "nothing was traded",
    "beyond_history": "older than anything the exchange has",
}
