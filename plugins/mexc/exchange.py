"""MEXC: its addresses, budgets and binary frames."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

from candled import (
    Clock,
    CommandFeed,
    Event,
    Evidence,
    Exchange,
    ExchangeError,
    Feed,
    Http,
    HttpRejected,
    HttpUrl,
    Interval,
    Market,
    MarketTable,
    RequestBudget,
    Row,
    Settings,
    Symbol,
    Unavailable,
    WebSocketUrl,
    read_rows_in_slices,
    setting,
    skip_without,
)

from . import messages
from .pushes import make_push_class

_FIREWALL_PAUSE_S = 300.0
_PAUSE_S = 10.0


class MexcSettings(Settings):
    """Settings of the MEXC exchange."""

    ws_url: WebSocketUrl = setting("wss://wbs-api.mexc.com/ws", "the public WebSocket for spot pairs")
    rest_url: HttpUrl = setting("https://api.mexc.com", "the REST API, without a path")
    symbols_per_connection: int = setting(30, "symbols on one connection; MEXC allows 30", ge=1, le=30)


class MexcUsdtSettings(Settings):
    """Settings of MEXC's contracts in USDT."""

    ws_url: WebSocketUrl = setting("wss://contract.mexc.com/edge", "the public WebSocket for contracts")
    rest_url: HttpUrl = setting("https://contract.mexc.com", "the REST API for contracts, without a path")
    symbols_per_connection: int = setting(30, "symbols on one connection", ge=1, le=100)


class MexcFeed(CommandFeed):
    """One connection to MEXC's WebSocket: candles in protobuf, answers in JSON.

    MEXC closes a connection without data for a minute, and every one after 24 hours.
    """

    ping = messages.PING
    lifetime_s = 23.5 * 3600
    commands = ("SUBSCRIPTION", "UNSUBSCRIPTION")
    symbols_per_frame = 10

    def __init__(self, url: str, symbols: Sequence[Symbol], push_class: Any) -> None:
        super().__init__(url, symbols)
        self._push_class = push_class

    name_symbol = staticmethod(messages.channel_of)

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command."""
        return messages.command_frame(command, symbols)

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        if isinstance(frame, str):
            return messages.read_answer(frame, self.by_name)
        try:
            push = self._push_class.FromString(frame)
        except Exception as error:  # `DecodeError` of a library that is imported only where it is needed
            raise ExchangeError(f"expected a PushDataV3ApiWrapper, got {frame[:40]!r}") from error
        return messages.read_push(push, self.by_name)


class Mexc(Exchange):
    """MEXC's spot market, over its API V3. It needs protobuf (`pip install 'candled[mexc]'`)."""

    name = "mexc"
    evidence = Evidence(markets="spot", stream="documented", rest="recorded")
    bypass_reasons = skip_without("markets", "refusal", "together", "frames", "versions", "boundary")
    Settings = MexcSettings
    request_budgets: ClassVar[Mapping[str, RequestBudget]] = {
        "weight": RequestBudget(limit=500, period_s=10, share=0.2)
    }
    max_history_minutes = 500  # the page says 1,000, and 500 come
    intervals = messages.INTERVALS

    def __init__(self, settings: MexcSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self._push_class = make_push_class()

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets."""
        info = await self._fetch_endpoint(http, "exchangeInfo", {}, 10.0)
        return messages.read_markets(info, await self._fetch_endpoint(http, "ticker/24hr", {}, 40.0))

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return the feed of one connection."""
        return MexcFeed(self.settings.ws_url, symbols, self._push_class)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return MEXC's bars. A request has both bounds or none, and the end is exclusive."""
        query = {
            "symbol": messages.name_of(symbol),
            "interval": self.intervals[str(interval)],
            "startTime": str(start_ms),
            "endTime": str(end_ms),
            "limit": str(self.max_history_minutes),
        }
        body = await self._fetch_endpoint(http, "klines", query, 1.0)
        return await read_rows_in_slices(body, messages.read_row, self.clock)

    async def _fetch_endpoint(self, http: Http, endpoint: str, query: Mapping[str, str], weight: float) -> Any:
        url = f"{self.settings.rest_url.rstrip('/')}/api/v3/{endpoint}"
        try:
            return await http.get_json(url, query, weight=weight, budget="weight")
        except HttpRejected as error:
            if error.status != 403:
                raise
            http.pause_requests(url, _FIREWALL_PAUSE_S)
            raise Unavailable("MEXC's firewall refuses requests from this address (403)") from error


class MexcUsdtFeed(CommandFeed):
    """One connection for contracts, in JSON. It reads their sizes before it connects, because MEXC counts contracts.

    MEXC closes a connection that has sent no ping for a minute.
    """

    ping = messages.CONTRACT_PING
    ping_every_s = 15.0
    commands = ("sub.kline", "unsub.kline")

    def __init__(self, url: str, symbols: Sequence[Symbol], sizes: MarketTable[str, Decimal]) -> None:
        super().__init__(url, symbols)
        self._sizes = sizes

    name_symbol = staticmethod(messages.contract_name)

    async def prepare_connection(self, http: Http) -> str:
        """Return the address, once the sizes of the contracts are known.

        Raises:
            Unavailable, ExchangeError: as `Http.get_json`.
        """
        await self._sizes.load(http)
        return self.url

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command."""
        return messages.contract_frame(command, symbols[0])

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_contract_frame(frame, self.by_name, self._sizes.known)


class MexcUsdt(Exchange):
    """MEXC's perpetual contracts that are settled in USDT, over its contract API V1."""

    name = "mexc-usdt"
    evidence = Evidence(markets="perpetual contracts in USDT", stream="documented", rest="documented")
    bypass_reasons = skip_without("markets", "refusal", "together", "boundary", "pages")
    Settings = MexcUsdtSettings
    requests_per_s = 5.0  # MEXC allows 20 in two seconds
    max_history_minutes = 1990  # a page has 2,000 rows
    intervals = messages.CONTRACT_INTERVALS

    def __init__(self, settings: MexcUsdtSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        #: The base coins in one contract of each market, by MEXC's names.
        self._sizes = MarketTable(self._fetch_sizes)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed contracts."""
        contracts = await self._fetch_data(http, "detail", {})
        self._sizes.known |= messages.read_sizes(contracts)
        return messages.read_contracts(contracts, await self._fetch_data(http, "ticker", {}))

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return the feed of one connection."""
        return MexcUsdtFeed(self.settings.ws_url, symbols, self._sizes)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return MEXC's bars. Whether `start` is inclusive is not documented, so the request begins a bar earlier."""
        name = messages.contract_name(symbol)
        size = await self._sizes.find(http, name)
        query = {
            "interval": self.intervals[str(interval)],
            "start": str((start_ms - interval.ms) // 1000),
            "end": str((end_ms - 1) // 1000),
        }
        data = messages.contract_rows(await self._fetch_data(http, f"kline/{name}", query))
        read = partial(messages.read_contract_row, size=size)
        return await read_rows_in_slices(data, read, self.clock, open_ms=messages.contract_row_ms)

    async def _fetch_sizes(self, http: Http) -> dict[str, Decimal]:
        return messages.read_sizes(await self._fetch_data(http, "detail", {}))

    async def _fetch_data(self, http: Http, endpoint: str, query: Mapping[str, str]) -> Any:
        url = f"{self.settings.rest_url.rstrip('/')}/api/v1/contract/{endpoint}"
        body = await http.get_json(url, query)
        if messages.is_too_often(body):
            http.pause_requests(url, _PAUSE_S)
        return messages.read_contract_envelope(body)
