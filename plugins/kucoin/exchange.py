"""KuCoin: its addresses, tokens and budget."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

from candled import (
    Clock,
    CommandFeed,
    ConnectionLimits,
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
    read_rows_in_slices,
    setting,
    skip_without,
)

from . import messages

_PAUSE_S = 30.0  # KuCoin blocks an address for so long


class KucoinSettings(Settings):
    """Settings of the KuCoin exchange."""

    rest_url: HttpUrl = setting("https://api.kucoin.com", "the REST API, without a path; it names the WebSocket")
    symbols_per_connection: int = setting(
        100, "symbols on one connection; KuCoin ignores those above 300 in silence", ge=1, le=300
    )


class KucoinUsdtSettings(Settings):
    """Settings of KuCoin's contracts in USDT."""

    rest_url: HttpUrl = setting(
        "https://api-futures.kucoin.com", "the REST API for contracts, without a path; it names the WebSocket"
    )
    symbols_per_connection: int = setting(100, "symbols on one connection", ge=1, le=300)


class KucoinFeed(CommandFeed):
    """One connection to KuCoin's public WebSocket.

    Each connection needs a token of its own, which KuCoin gives out over REST together with the address and the times
    of pings. Nothing may be sent before its greeting.
    """

    awaits_ready = True
    lifetime_s = 23.5 * 3600  # a token is valid for 24 hours
    symbols_per_frame = 100

    name_symbol = staticmethod(messages.name_of)

    async def prepare_connection(self, http: Http) -> str:
        """Return the address of the next connection, with its token.

        Raises:
            Unavailable, ExchangeError: as `Http.post_json`; an answer without a token.
        """
        answer = await http.post_json(f"{self.url.rstrip('/')}/api/v1/bullet-public")
        found = messages.read_connection(answer)
        self.ping_every_s, self.pong_within_s = found.ping_every_s, found.pong_within_s
        return found.url

    def make_ping(self) -> str:
        """Return the next ping."""
        return messages.ping_frame(self.requests)

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command."""
        return messages.command_frame(command, symbols, self.requests)

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.by_name, self.requests)


class KucoinUsdtFeed(KucoinFeed):
    """One connection for contracts. It reads their sizes before it connects, because KuCoin counts contracts."""

    symbols_per_frame = 1

    def __init__(self, rest_url: str, symbols: Sequence[Symbol], sizes: MarketTable[str, Decimal]) -> None:
        super().__init__(rest_url, symbols)
        self._sizes = sizes

    async def prepare_connection(self, http: Http) -> str:
        """Return the address of the next connection, once the sizes of the contracts are known.

        Raises:
            Unavailable, ExchangeError: as `KucoinFeed.prepare_connection`.
        """
        await self._sizes.load(http)
        return await super().prepare_connection(http)

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.by_name, self.requests, self._sizes.known)


class Kucoin(Exchange):
    """KuCoin's spot market. It has no candle for a minute without trades."""

    name = "kucoin"
    evidence = Evidence(
        markets="spot",
        stream="recorded",
        boundary="recorded",
        rest="recorded",
        answers={"finality": "socket.txt", "empty minutes": "socket.txt", "currency": "rest_hours.json"},
    )
    bypass_reasons = skip_without("markets", "refusal", "together")
    Settings: ClassVar[type[Any]] = KucoinSettings
    request_budgets: ClassVar[Mapping[str, RequestBudget]] = {"weight": RequestBudget(limit=2000, period_s=30)}
    max_history_minutes = 1490  # a page has 1,500 rows
    intervals = messages.INTERVALS
    limits = ConnectionLimits(frames_per_s=5.0, attempts_per_minute=15.0)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets."""
        symbols = await self._fetch_data(http, "/api/v2/symbols", {}, 4.0)
        return messages.read_markets(symbols, await self._fetch_data(http, "/api/v1/market/allTickers", {}, 15.0))

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return the feed of one connection."""
        return KucoinFeed(self.settings.rest_url, symbols)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return KuCoin's bars. `startAt` is inclusive, `endAt` exclusive."""
        query = {
            "symbol": messages.name_of(symbol),
            "type": self.intervals[str(interval)],
            "startAt": str(start_ms // 1000),
            "endAt": str(end_ms // 1000),
        }
        data = await self._fetch_data(http, "/api/v1/market/candles", query, 3.0)
        return await read_rows_in_slices(data, messages.read_row, self.clock, open_ms=messages.opening_of)

    async def _fetch_data(self, http: Http, path: str, query: Mapping[str, str], weight: float) -> Any:
        url = self.settings.rest_url.rstrip("/") + path
        body = await http.get_json(url, query, weight=weight, budget="weight")
        if messages.is_too_many(body):
            http.pause_requests(url, _PAUSE_S)
        return messages.read_envelope(body)


class KucoinUsdt(Kucoin):
    """KuCoin's perpetual contracts that are settled in USDT. They have no candle for a minute without trades."""

    name = "kucoin-usdt"
    evidence = Evidence(markets="perpetual contracts in USDT", stream="documented", rest="documented")
    bypass_reasons = skip_without("markets", "refusal", "together", "boundary")
    Settings = KucoinUsdtSettings
    max_history_minutes = 190  # the page says 500, and 200 come
    intervals = messages.CONTRACT_INTERVALS

    def __init__(self, settings: Any, clock: Clock) -> None:
        super().__init__(settings, clock)
        #: The base coins in one contract of each market, by KuCoin's names.
        self._sizes = MarketTable(self._fetch_sizes)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed contracts."""
        contracts = await self._fetch_data(http, "/api/v1/contracts/active", {}, 3.0)
        self._sizes.known |= messages.read_sizes(contracts)
        return messages.read_contracts(contracts)

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return the feed of one connection."""
        return KucoinUsdtFeed(self.settings.rest_url, symbols, self._sizes)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return KuCoin's bars. `from` is exclusive, so it is a bar earlier."""
        name = messages.name_of(symbol)
        size = await self._sizes.find(http, name)
        query = {
            "symbol": name,
            "granularity": self.intervals[str(interval)],
            "from": str(start_ms - interval.ms),
            "to": str(end_ms - 1),
        }
        data = await self._fetch_data(http, "/api/v1/kline/query", query, 3.0)
        return await read_rows_in_slices(data, partial(messages.read_contract_row, size=size), self.clock)

    async def _fetch_sizes(self, http: Http) -> dict[str, Decimal]:
        return messages.read_sizes(await self._fetch_data(http, "/api/v1/contracts/active", {}, 3.0))
