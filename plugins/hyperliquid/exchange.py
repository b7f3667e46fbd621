"""Hyperliquid: its addresses, and weights that grow with the rows of an answer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from candled import (
    Clock,
    CommandFeed,
    ConnectionLimits,
    Distinct,
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

_NEWEST = 5000  # rows that exist
_WEIGHT, _ROWS_PER_WEIGHT = 20.0, 60
_ALL_PAIRS = {"type": "spotMetaAndAssetCtxs"}


class HyperliquidSettings(Settings):
    """Settings of the Hyperliquid exchange."""

    markets: Distinct[Literal["perpetual", "spot"]] = setting(
        ("perpetual",), "the kinds of markets to list: perpetual contracts, and spot pairs", min_length=1
    )
    ws_url: WebSocketUrl = setting("wss://api.hyperliquid.xyz/ws", "the WebSocket")
    rest_url: HttpUrl = setting("https://api.hyperliquid.xyz", "the REST API, without a path")
    symbols_per_connection: int = setting(
        100, "symbols on one connection; Hyperliquid allows 1,000 on all connections of an address", ge=1, le=1000
    )


class HyperliquidFeed(CommandFeed):
    """One connection to Hyperliquid, which closes a connection without a message for 60 seconds.

    If the feed has spot pairs, it reads their names before it connects.
    """

    ping = messages.PING

    def __init__(self, url: str, symbols: Sequence[Symbol], pairs: MarketTable[Symbol, str]) -> None:
        self._pairs = pairs
        super().__init__(url, symbols)

    def name_symbol(self, symbol: Symbol) -> str:
        """Return Hyperliquid's name of a coin, as far as it is known."""
        return messages.coin_of(symbol, self._pairs.known)

    async def prepare_connection(self, http: Http) -> str:
        """Return the address, once the names of spot pairs are known.

        Raises:
            Unavailable, ExchangeError: as `Http.post_json`.
        """
        if not all(symbol.settle for symbol in self.symbols):
            await self._pairs.load(http)
        return self.url

    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command. The name may have become known after `set_symbols`."""
        coin = self.name_symbol(symbols[0])
        if command == "subscribe":
            self.by_name[coin] = symbols[0]
        return messages.command_frame(command, coin)

    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Return the events of a frame."""
        return messages.read_frame(frame, self.by_name)


class Hyperliquid(Exchange):
    """Hyperliquid's perpetual contracts and spot pairs.

    It keeps the newest 5,000 candles. A minute without trades may be missing at first, and appear later as a flat row.
    """

    name = "hyperliquid"
    evidence = Evidence(
        markets="perpetual contracts (frames recorded), spot (rows recorded)", stream="recorded", rest="recorded"
    )
    bypass_reasons = skip_without("markets", "refusal", "together", "boundary")
    Settings = HyperliquidSettings
    request_budgets: ClassVar[Mapping[str, RequestBudget]] = {"weight": RequestBudget(limit=1200)}
    max_history_minutes = 1500
    history_minutes = _NEWEST - 10
    intervals = messages.INTERVALS
    limits = ConnectionLimits(connections=10, attempts_per_minute=15.0)

    def __init__(self, settings: HyperliquidSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        #: Hyperliquid's names of spot pairs.
        self._pairs = MarketTable(self._fetch_pairs)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets of all configured kinds."""
        found: list[Market] = []
        if "perpetual" in self.settings.markets:
            found += messages.read_markets(await self._post(http, {"type": "metaAndAssetCtxs"}, _WEIGHT))
        if "spot" in self.settings.markets:
            pairs = messages.read_pairs(await self._post(http, _ALL_PAIRS, _WEIGHT))
            self._pairs.known |= {market.symbol: coin for coin, market in pairs.items()}
            found += pairs.values()
        return found

    async def _fetch_pairs(self, http: Http) -> dict[Symbol, str]:
        pairs = messages.read_pairs(await self._post(http, _ALL_PAIRS, _WEIGHT))
        return {market.symbol: coin for coin, market in pairs.items()}

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return the feed of one connection."""
        return HyperliquidFeed(self.settings.ws_url, symbols, self._pairs)

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return Hyperliquid's bars, of the newest 5,000. Both bounds are inclusive."""
        name = self.intervals[str(interval)]
        coin = messages.coin_of(symbol, {}) if symbol.settle else await self._pairs.find(http, symbol)
        request = {"coin": coin, "interval": name, "startTime": start_ms, "endTime": end_ms - 1}
        most = min(_NEWEST, (end_ms - start_ms) // interval.ms)
        body = {"type": "candleSnapshot", "req": request}
        answer = await self._post(http, body, _WEIGHT + most / _ROWS_PER_WEIGHT)
        read = partial(messages.read_row, interval=name)
        return await read_rows_in_slices(answer, read, self.clock, open_ms=messages.opening_of)

    async def _post(self, http: Http, body: Mapping[str, Any], weight: float) -> Any:
        return await http.post_json(f"{self.settings.rest_url.rstrip('/')}/info", body, weight=weight, budget="weight")
