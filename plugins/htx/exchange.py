"""HTX: its addresses and limits."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from candled import (
    CommandFeed,
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

_NEWEST = 2000  # rows at most, always the newest ones


class HtxSettings(Settings):
    """Settings of the HTX exchange."""

    ws_url: WebSocketUrl = setting("wss://api.huobi.pro/ws", "the public WebSocket")
    rest_url: HttpUrl = setting("https://api.huobi.pro", "the REST API, without a path")
    symbols_per_connection: int = setting(100, "symbols on one connection", ge=1, le=1000)


class HtxUsdtSettings(HtxSettings):
    """Settings of HTX's contracts in USDT."""

    ws_url: WebSocketUrl = setting("wss://api.hbdm.com/linear-swap-ws", "the WebSocket for contracts in USDT")
    rest_url: HttpUrl = setting("https://api.hbdm.com", "the REST API for contracts, without a path")


class HtxFeed(CommandFeed):
    """One connection to HTX's WebSocket, whose frames are compressed.

    HTX pings every five seconds, and closes a connection that leaves two pings unanswered.
    """

    compression = "gzip"
    commands = ("sub", "unsub")

    name_symbol = staticmethod(messages.topic_of)

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command."""
        return messages.command_frame(command, symbols[0])

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.by_name)


class Htx(Exchange):
    """HTX's spot market. It has a row for a minute without trades, and keeps the newest 2,000 minutes."""

    name = "htx"
    evidence = Evidence(markets="spot", stream="recorded", rest="documented")
    bypass_reasons = skip_without("markets", "refusal", "together", "boundary")
    Settings: ClassVar[type[Any]] = HtxSettings
    feed_class = HtxFeed
    requests_per_s = 5.0  # HTX allows ten per second and address
    max_history_minutes = 1000
    history_minutes: ClassVar[int | None] = _NEWEST - 10
    publishes_empty_candles = True
    intervals = messages.INTERVALS

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets."""
        symbols = await self._fetch_path(http, "/v1/common/symbols", {})
        return messages.read_markets(symbols, await self._fetch_path(http, "/market/tickers", {}))

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return HTX's bars, of the newest 2,000. A request names a number of rows, which end with the newest one."""
        size = (self.now_ms() - start_ms) // interval.ms + 2
        query = {"symbol": messages.name_of(symbol), "size": str(max(1, min(_NEWEST, size)))}
        return await self._fetch_kline(http, "/market/history/kline", interval, query)

    async def _fetch_kline(self, http: Http, path: str, interval: Interval, query: Mapping[str, str]) -> list[Row]:
        answer = await self._fetch_path(http, path, {**query, "period": self.intervals[str(interval)]})
        data, now_ms = messages.read_envelope(answer)
        read = partial(messages.read_row, as_of_ms=now_ms)
        return await read_rows_in_slices(data, read, self.clock, open_ms=messages.opening_of)

    async def _fetch_path(self, http: Http, path: str, query: Mapping[str, str]) -> Any:
        return await http.get_json(self.settings.rest_url.rstrip("/") + path, query)


class HtxUsdt(Htx):
    """HTX's perpetual contracts that are settled in USDT. REST takes a range of time, and has older minutes too."""

    name = "htx-usdt"
    evidence = Evidence(markets="perpetual contracts in USDT", stream="documented", rest="documented")
    bypass_reasons = skip_without("markets", "refusal", "together", "boundary")
    Settings = HtxUsdtSettings
    history_minutes = None
    publishes_empty_candles = False

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed contracts."""
        infos = await self._fetch_path(http, "/linear-swap-api/v1/swap_contract_info", {})
        merged = await self._fetch_path(http, "/linear-swap-ex/market/detail/batch_merged", {})
        return messages.read_contracts(infos, merged)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return HTX's bars. Whether `from` is inclusive is not documented, so the request begins a bar earlier."""
        query = {
            "contract_code": messages.name_of(symbol),
            "from": str((start_ms - interval.ms) // 1000),
            "to": str((end_ms - 1) // 1000),
        }
        return await self._fetch_kline(http, "/linear-swap-ex/market/history/kline", interval, query)
