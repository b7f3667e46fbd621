"""The id of a request that failed because of an error in candled, for the log and the header of the answer.

Other requests have none: their answers are often made before anything but the path and the query was read.
"""

import secrets
from typing import Any

HEADER = "X-Request-Id"
_LONGEST = 64


def is_logged(status: int) -> bool:
    """Return True if an answer with this status is logged. 501 and 503 are not candled's faults."""
    return status >= 500 and status not in (501, 503)


def find_id(request: Any) -> str:
    """Return the id that a proxy sent with a request of Tornado, or a new one, which the request keeps."""
    known: str | None = getattr(request, "log_id", None)
    if known is None:
        given = request.headers.get(HEADER, "")[:_LONGEST]
        known = given if given.isascii() and given.isprintable() and given else secrets.token_hex(8)
        request.log_id = known
    return known
