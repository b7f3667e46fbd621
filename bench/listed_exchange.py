"""A stamped exchange with a list of many markets and their history, whose REST takes its time.

    python -m bench.listed_exchange PORT MARKETS START_MS DELAY_S

MARKETS are groups with a letter each such as A=300,B=700: A000/USDT, A001/USDT and on. Every subscribed market is
pushed every 1.05 s. A subscription begins with 500 minutes. The minutes before a market's first push are all the same,
with as many digits as the later ones: otherwise all markets in memory would need wider numbers in the same second.
DELAY_S is the time that REST takes for each answer. It refuses more than 20 requests a second, as Bitget does.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from tornado.web import RequestHandler

from bench.hostile_exchange import CANDLES
from bench.stamped_exchange import StampedExchange
from bench.stamped_exchange import main as serve
from candled.model import MINUTE_MS

EVERY_S = 1.05  # at every second exactly, updates would wait for their room's next second
_SNAPSHOT = 500
_MOST_PER_S = 20
_LIST = "/api/v2/spot/public/symbols"
# below the pushed prices, which are the seconds of CLOCK_MONOTONIC
_PAST, _PAST_QUOTE = f"{time.monotonic() - 2:.0f}.123457", f"{60 * time.monotonic():.0f}.12345678"


class ListedExchange(StampedExchange):
    """The markets of `names`, each with a quote coin of four letters."""

    def __init__(self, port: int, start_ms: int, names: Sequence[str], delay_s: float) -> None:
        super().__init__(port, start_ms, names, delay_s)
        #: By market: the minutes that were pushed, by opening time.
        self._pushed: dict[str, dict[int, list[str]]] = {name: {} for name in names}
        self._asked_at: deque[float] = deque([float("-inf")], maxlen=_MOST_PER_S)

    def rows(self, name: str, action: str) -> list[list[str]]:
        """See `StampedExchange.rows`. A minute opens at the close of the one before, as Bitget's do."""
        (row,) = super().rows(name, action)
        open_ms = int(row[0])
        row[1] = row[3] = self._row(name, open_ms - MINUTE_MS)[4]
        self._pushed[name][open_ms] = row
        first_ms = open_ms - (_SNAPSHOT - 1) * MINUTE_MS if action == "snapshot" else open_ms
        return [self._row(name, at_ms) for at_ms in range(first_ms, open_ms + 1, MINUTE_MS)]

    def answer(self, request: RequestHandler, data: Sequence[Any] = ()) -> None:
        """Answer a GET request."""
        now, path = asyncio.get_running_loop().time(), request.request.path
        if len(self._asked_at) == _MOST_PER_S and now - self._asked_at[0] < 1.0:
            request.set_status(429)
        self._asked_at.append(now)
        if path == _LIST:
            data = [_entry(name) for name in self._names]
        elif path in CANDLES:
            data = self._page(request, path)
        super().answer(request, data)

    def _page(self, request: RequestHandler, path: str) -> list[list[str]]:
        if request.get_query_argument("granularity") != "1min":
            return []
        end_ms, limit = int(request.get_query_argument("endTime")), int(request.get_query_argument("limit"))
        end_ms = min(end_ms + (path == CANDLES[0]), self.now_ms())  # it takes in the minute at the end
        name, newest_ms = request.get_query_argument("symbol"), (end_ms - 1) // MINUTE_MS * MINUTE_MS
        return [self._row(name, newest_ms - back * MINUTE_MS) for back in reversed(range(limit))]

    def _row(self, name: str, open_ms: int) -> list[str]:
        return self._pushed[name].get(open_ms) or _past_row(open_ms)


@cache
def _past_row(open_ms: int) -> list[str]:
    return [str(open_ms), *[_PAST] * 4, "60.123", _PAST_QUOTE, _PAST_QUOTE]


def _entry(name: str) -> dict[str, str]:
    """Return a market of the list."""
    return {
        "symbol": name,
        "baseCoin": name[:-4],
        "quoteCoin": name[-4:],
        "pricePrecision": "6",
        "quantityPrecision": "6",
        "status": "online",
        "openTime": "0",
    }


def names_of(groups: str) -> list[str]:
    """Return the symbols of the argument."""
    pairs = (group.split("=") for group in groups.split(","))
    return [f"{letter}{number:03}/USDT" for letter, count in pairs for number in range(int(count))]


if __name__ == "__main__":
    make = partial(ListedExchange, delay_s=float(sys.argv[4]))
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[3]), EVERY_S, names_of(sys.argv[2]), make))
