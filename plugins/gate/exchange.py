"""Gate: its addresses, budgets, and the sizes of its contracts."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

from candled import (
    Clock,
    CommandFeed,
    Event,
    Evidence,
    Exchange,
    Feed,
    Http,
    HttpUrl,
    Interval,
    Market,
    MarketTable,
    RequestBudget,
    Row,
    Settings,
    Symbol,
    WebSocketUrl,
    read_rows_in_slices,
    setting,
    skip_without,
)

from . import messages


class GateioSettings(Settings):
    """Settings of the Gate spot exchange."""

    ws_url: WebSocketUrl = setting("wss://api.gateio.ws/ws/v4/", "the public WebSocket for spot pairs")
    rest_url: HttpUrl = setting("https://api.gateio.ws", "the REST API, without a path")
    symbols_per_connection: int = setting(100, "symbols on one connection", ge=1, le=1000)


class GateioUsdtSettings(GateioSettings):
    """Settings of Gate's contracts in USDT."""

    ws_url: WebSocketUrl = setting("wss://fx-ws.gateio.ws/v4/ws/usdt", "the WebSocket for contracts in USDT")


class GateioFeed(CommandFeed):
    """One connection to Gate's WebSocket, which takes one market in a frame."""

    ping_every_s = 15.0
    kind: ClassVar[messages.Kind] = "spot"

    def __init__(self, url: str, symbols: Sequence[Symbol], now_ms: Callable[[], int]) -> None:
        super().__init__(url, symbols)
        self._now_ms = now_ms

    def name_symbol(self, symbol: Symbol) -> str:
        """Return Gate's name of a symbol."""
        return messages.name_of(symbol, self.kind)

    def make_ping(self) -> str:
        """Return the next ping, which has the time."""
        return messages.ping_frame(self.kind, self._now_ms())

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command."""
        return messages.command_frame(command, self.kind, symbols, self.requests, self._now_ms())

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.by_name, self.requests, None)


class GateioUsdtFeed(GateioFeed):
    """One connection for contracts. It reads their sizes before it connects, because Gate counts contracts."""

    kind = "futures"

    def __init__(
        self, url: str, symbols: Sequence[Symbol], now_ms: Callable[[], int], sizes: MarketTable[str, Decimal]
    ) -> None:
        super().__init__(url, symbols, now_ms)
        self._sizes = sizes

    async def prepare_connection(self, http: Http) -> str:
        """Return the address, once the sizes of the contracts are known.

        Raises:
            Unavailable, ExchangeError: as `Http.get_json`.
        """
        await self._sizes.load(http)
        return self.url

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.by_name, self.requests, self._sizes.known)


class Gateio(Exchange):
    """Gate's spot market. Gate keeps the newest 10,000 minutes."""

    name = "gate"
    evidence = Evidence(markets="spot", stream="recorded", boundary="documented", rest="recorded", closed_mark="w")
    bypass_reasons = skip_without("markets", "refusal", "together", "boundary")
    Settings: ClassVar[type[Any]] = GateioSettings
    request_budgets: ClassVar[Mapping[str, RequestBudget]] = {"candles": RequestBudget(limit=200, period_s=10)}
    max_history_minutes = 999  # both bounds count, and a page has 1,000 rows
    history_minutes = 9990
    kind: ClassVar[messages.Kind] = "spot"
    intervals = messages.INTERVALS

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets."""
        pairs = await self._fetch_path(http, "spot/currency_pairs")
        return messages.read_spot_markets(pairs, await self._fetch_path(http, "spot/tickers"))

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return the feed of one connection."""
        return GateioFeed(self.settings.ws_url, symbols, self.now_ms)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return Gate's bars. It refuses minutes that it does not keep any more."""
        query = self._query(symbol, interval, start_ms, end_ms)
        body = await self._fetch_path(http, "spot/candlesticks", query, "candles")
        return await read_rows_in_slices(body, messages.read_spot_row, self.clock, open_ms=messages.spot_row_ms)

    def _query(self, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> dict[str, str]:
        """Return the query for a range. Both bounds are inclusive; a `limit` beside them is refused."""
        return {
            "currency_pair": messages.name_of(symbol, self.kind),
            "interval": self.intervals[str(interval)],
            "from": str(start_ms // 1000),
            "to": str((end_ms - 1) // 1000),
        }

    async def _fetch_path(self, http: Http, path: str, query: Mapping[str, str] | None = None, budget: str = "") -> Any:
        return await http.get_json(f"{self.settings.rest_url.rstrip('/')}/api/v4/{path}", query, budget=budget)


class GateioUsdt(Gateio):
    """Gate's perpetual contracts that are settled in USDT."""

    name = "gate-usdt"
    evidence = Evidence(
        markets="perpetual contracts in USDT",
        stream="recorded",
        boundary="documented",
        rest="documented",
        closed_mark="w",
    )
    bypass_reasons = skip_without("markets", "refusal", "together", "versions", "boundary")
    Settings = GateioUsdtSettings
    kind = "futures"

    def __init__(self, settings: Any, clock: Clock) -> None:
        super().__init__(settings, clock)
        #: The base coins in one contract of each market, by Gate's names.
        self._sizes = MarketTable(self._fetch_sizes)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed contracts."""
        contracts = await self._fetch_path(http, "futures/usdt/contracts")
        self._sizes.known |= messages.read_sizes(contracts)
        return messages.read_futures_markets(contracts, await self._fetch_path(http, "futures/usdt/tickers"))

    async def _fetch_sizes(self, http: Http) -> dict[str, Decimal]:
        return messages.read_sizes(await self._fetch_path(http, "futures/usdt/contracts"))

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return the feed of one connection."""
        return GateioUsdtFeed(self.settings.ws_url, symbols, self.now_ms, self._sizes)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return Gate's bars, with volumes in base currency."""
        size = await self._sizes.find(http, messages.name_of(symbol, self.kind))
        query = self._query(symbol, interval, start_ms, end_ms)
        query["contract"] = query.pop("currency_pair")
        body = await self._fetch_path(http, "futures/usdt/candlesticks", query, "candles")
        read = partial(messages.read_futures_row, size=size)
        return await read_rows_in_slices(body, read, self.clock, open_ms=messages.opening_of)
