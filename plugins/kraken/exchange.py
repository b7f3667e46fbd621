"""Kraken: its addresses and limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from candled import (
    CommandFeed,
    ConnectionLimits,
    Event,
    Evidence,
    Exchange,
    Http,
    HttpUrl,
    Interval,
    Market,
    Row,
    Settings,
    Symbol,
    WebSocketUrl,
    read_rows_in_slices,
    setting,
    skip_without,
)

from . import messages

# REST has the newest 720 minutes, the forming one among them, whatever it is asked for.
_NEWEST = 720
_PAUSE_S = 10.0


class KrakenSettings(Settings):
    """Settings of the Kraken exchange."""

    ws_url: WebSocketUrl = setting("wss://ws.kraken.com/v2", "the public WebSocket, version 2")
    rest_url: HttpUrl = setting("https://api.kraken.com", "the REST API, without a path")
    symbols_per_connection: int = setting(100, "symbols on one connection", ge=1, le=1000)


class KrakenFeed(CommandFeed):
    """One connection to Kraken's public WebSocket.

    A subscription starts with a snapshot of some minutes. While nothing else comes, Kraken sends a heartbeat every
    second, so that a ping is only needed if that fails.
    """

    ping = messages.PING
    pings_when_idle = True
    snapshot = True
    symbols_per_frame = 100

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command."""
        return messages.command_frame(command, list(map(str, symbols)))

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.by_name)


class Kraken(Exchange):
    """Kraken's spot market.

    Its REST API has a row for most minutes without trades, its WebSocket has none. It revises closed candles, and keeps
    only the newest 12 hours of minutes.
    """

    name = "kraken"
    evidence = Evidence(markets="spot", stream="recorded", rest="recorded")
    bypass_reasons = skip_without("markets", "refusal", "together")
    Settings = KrakenSettings
    feed_class = KrakenFeed
    requests_per_s = 0.8  # Kraken allows one per second and address
    max_history_minutes = _NEWEST - 20
    history_minutes = _NEWEST - 20
    intervals = messages.INTERVALS
    # Kraken allows about 150 attempts in ten minutes per address
    limits = ConnectionLimits(frames_per_s=2.0, attempts_per_minute=10.0)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets."""
        pairs = await self._fetch_public(http, "AssetPairs", {})
        return messages.read_markets(pairs, await self._fetch_public(http, "Ticker", {}))

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return Kraken's bars: those after `since`, up to the present, of the newest 720."""
        query = {
            "pair": messages.pair_of(symbol),
            "interval": self.intervals[str(interval)],
            "since": str(start_ms // 1000 - 1),
        }
        rows = messages.rows_of(await self._fetch_public(http, "OHLC", query))
        return await read_rows_in_slices(rows, messages.read_row, self.clock, open_ms=messages.row_ms)

    async def _fetch_public(self, http: Http, endpoint: str, query: Mapping[str, str]) -> dict[str, Any]:
        url = f"{self.settings.rest_url.rstrip('/')}/0/public/{endpoint}"
        body = await http.get_json(url, query)
        if messages.is_too_many(body):
            http.pause_requests(url, _PAUSE_S)
        return messages.read_envelope(body)
