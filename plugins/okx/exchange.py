"""OKX: its addresses, budgets, and the paging of history."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from candled import (
    MINUTE_MS,
    CommandFeed,
    ConnectionLimits,
    Distinct,
    Event,
    Evidence,
    Exchange,
    ExchangeError,
    Http,
    HttpUrl,
    Interval,
    Market,
    RequestBudget,
    Row,
    Settings,
    Symbol,
    WebSocketUrl,
    read_rows_in_slices,
    rows_within,
    setting,
    skip_without,
)

from . import messages

# `candles` has the newest 1,440 bars, the forming one among them.
_RECENT_BARS = 1430
_PAGE = 300
_PAUSE_S = 2.0  # the period of OKX's limits
_INST_TYPES: Mapping[str, messages.InstType] = {"spot": "SPOT", "swap": "SWAP"}


class OkxSettings(Settings):
    """Settings of the OKX exchange."""

    markets: Distinct[Literal["spot", "swap"]] = setting(
        ("spot",), "the kinds of markets to list: spot pairs, and perpetual contracts", min_length=1
    )
    ws_url: WebSocketUrl = setting("wss://ws.okx.com:8443/ws/v5/business", "the business WebSocket, which has candles")
    rest_url: HttpUrl = setting("https://www.okx.com", "the REST API, without a path")
    symbols_per_connection: int = setting(100, "symbols on one connection", ge=1, le=1000)


class OkxFeed(CommandFeed):
    """One connection to OKX's business WebSocket.

    OKX closes a connection on which nothing was sent for 30 seconds. It allows 480 subscriptions an hour, and three new
    connections a second.
    """

    ping = messages.PING
    ping_every_s = 15.0
    pings_when_idle = True
    symbols_per_frame = 100  # of at most 64 KB

    name_symbol = staticmethod(messages.inst_id_of)

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command."""
        return messages.command_frame(command, map(messages.inst_id_of, symbols))

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.by_name)


class Okx(Exchange):
    """OKX's spot pairs and perpetual contracts, over its API V5."""

    name = "okx"
    evidence = Evidence(
        markets="spot (recorded), perpetual contracts (documented)",
        stream="recorded",
        boundary="documented",
        rest="recorded",
        closed_mark="confirm",
    )
    bypass_reasons = skip_without("markets", "refusal", "together", "boundary")
    Settings = OkxSettings
    feed_class = OkxFeed
    request_budgets: ClassVar[Mapping[str, RequestBudget]] = {
        "candles": RequestBudget(limit=40, period_s=2),
        "history": RequestBudget(limit=20, period_s=2),
    }
    max_history_minutes = _PAGE
    intervals = messages.INTERVALS
    limits = ConnectionLimits(frames_per_s=3.0, subscribes_per_hour=480, attempts_per_minute=60.0)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets of all configured kinds."""
        found: list[Market] = []
        for kind in self.settings.markets:
            inst_type = _INST_TYPES[kind]
            query = {"instType": inst_type}
            instruments = await self._fetch_path(http, "/api/v5/public/instruments", query)
            tickers = await self._fetch_path(http, "/api/v5/market/tickers", query)
            found += messages.read_markets(instruments, tickers, inst_type)
        return found

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return OKX's bars: minutes of the last day from `candles`, others from `history-candles`.

        Page back from `end_ms`, because some clients got 100 rows of `history-candles` where others got 300. `before`
        and `after` are both exclusive, and mean newer than and older than.
        """
        is_recent = interval.ms == MINUTE_MS and start_ms >= self.now_ms() - _RECENT_BARS * MINUTE_MS
        read = partial(messages.read_row, inst_type=messages.inst_type_of(symbol))
        path, budget = ("candles", "candles") if is_recent else ("history-candles", "history")
        found: list[Row] = []
        while end_ms > start_ms:
            query = {
                "instId": messages.inst_id_of(symbol),
                "bar": self.intervals[str(interval)],
                "before": str(start_ms - 1),
                "after": str(end_ms),
                "limit": str(_PAGE),
            }
            body = await self._fetch_path(http, f"/api/v5/market/{path}", query, budget)
            rows = await read_rows_in_slices(messages.read_envelope(body), read, self.clock)
            page = rows_within(rows, start_ms, end_ms)
            found += page
            times = [row.open_ms for row in page if row.open_ms is not None]
            if not times:
                if rows and not page:
                    raise ExchangeError(f"expected bars from {start_ms} to {end_ms}, got {str(rows[0])[:200]}")
                break
            end_ms = min(times)
        return found

    async def _fetch_path(self, http: Http, path: str, query: Mapping[str, str], budget: str = "") -> Any:
        url = self.settings.rest_url.rstrip("/") + path
        body = await http.get_json(url, query, budget=budget)
        if messages.is_too_many(body):
            http.pause_requests(url, _PAUSE_S)
        return body
