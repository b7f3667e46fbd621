"""Any exchange of ccxt: its budget, the choice of its feed, and the paging of history."""

from collections.abc import Sequence
from typing import Any, Literal

from candled import (
    Clock,
    ConfigError,
    Exchange,
    ExchangeError,
    Feed,
    Http,
    Interval,
    Market,
    PollingFeed,
    RequestBudget,
    Row,
    Settings,
    Symbol,
    read_rows,
    rows_within,
    setting,
)

from . import messages
from .client import BUDGET, make_client, translate_error
from .feeds import CandleFeed, TradeFeed

_MOST_ROWS, _FEW_ROWS = 1000, 100  # the most rows of a page; the rows if ccxt names no limit
_MOST_PAGES = 40  # for one range
_POLLS_PER_MINUTE = 4
_EDGES = 2  # rows of a page outside the range: bounds may be exclusive


class CcxtSettings(Settings):
    """Settings of an exchange of ccxt."""

    exchange: str = setting("", "the exchange's id in ccxt, such as `bitstamp`")
    kind: Literal["spot", "swap"] = setting("spot", "the kind of markets: spot pairs or perpetual contracts")
    feed: Literal["auto", "candles", "trades", "polling"] = setting(
        "auto", "the source of live candles; `auto` is the first of the others that ccxt has for the exchange"
    )
    symbols_per_connection: int = setting(50, "symbols of one feed, which has sockets of its own", ge=1, le=1000)


class Ccxt(Exchange):
    """An exchange that ccxt knows. Candles keep the text that the exchange sent, where ccxt passes it on.

    ccxt has no quote volume, no time of sending and no mark of closed minutes: these stay unknown, and finality is left
    to the daemon and REST.
    """

    name = "ccxt"
    Settings = CcxtSettings
    closed_flag = "ignored"

    def __init__(self, settings: CcxtSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self._client = make_client(settings.exchange, settings.kind, self)
        if self._client.has.get("fetchOHLCV") is not True or "1m" not in (self._client.timeframes or {}):
            raise ConfigError(f"exchange: ccxt has no candles of a minute of {settings.exchange}")
        rate_limit_ms = max(1.0, float(self._client.rateLimit))
        self._page = self._page_rows()
        # they differ by exchange: class variables for every other plugin
        self.request_budgets = {BUDGET: RequestBudget(limit=60_000 / rate_limit_ms)}  # type: ignore[misc]
        self.max_history_minutes = self._page  # type: ignore[misc]
        self.intervals = {messages.INTERVALS.get(name, name): name for name in self._client.timeframes}  # type: ignore[misc]
        #: The rows of the longest answer so far.
        self._most = 0

    def _page_rows(self) -> int:
        sub_types = (None,) if self.settings.kind == "spot" else ("linear", "inverse")
        find = self._client.feature_value_by_type
        found = [find(self.settings.kind, one, "fetchOHLCV", "limit") for one in sub_types]
        return min([_MOST_ROWS, *(int(one) for one in found if one)] if any(found) else [_FEW_ROWS]) - _EDGES

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the listed markets of the `kind`."""
        self._client.http = http
        try:
            markets = await self._client.load_markets(True)
            tickers = await self._fetch_tickers()
        except Exception as error:
            raise translate_error(error, self._client.errors) from error
        return messages.read_markets(markets, tickers, self.settings.kind, self._client.precisionMode)

    async def _fetch_tickers(self) -> dict[str, Any]:
        """Return ccxt's tickers; none if the exchange has no list of them."""
        if self._client.has.get("fetchTickers") is not True:
            return {}
        try:
            found: dict[str, Any] = await self._client.fetch_tickers()
        except self._client.errors.BaseError:  # some exchanges want a list of symbols
            return {}
        return found

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return the feed of some symbols, of the kind in the settings or the best one that ccxt has."""
        kind = self.settings.feed
        if kind == "auto":
            has = self._client.has
            real = (name for name, method in _METHODS.items() if has.get(method) is True)
            kind = next(real, "polling")
        if kind == "polling":
            return PollingFeed(self, symbols, every_s=self._polling_step(len(symbols)))
        return CandleFeed(self, symbols) if kind == "candles" else TradeFeed(self, symbols)

    def _polling_step(self, count: int) -> float:
        """Return the seconds between polls, so that the polls of all symbols use at most half of the budget."""
        needed_s = 2 * count / self.request_budgets[BUDGET].share * float(self._client.rateLimit) / 1000
        return min(60.0, max(60.0 / _POLLS_PER_MINUTE, needed_s))

    async def make_watcher(self, http: Http) -> Any:
        """Return an object of ccxt for one feed, with sockets of its own and the known markets.

        Raises:
            Unavailable, ExchangeError: the markets cannot be read.
        """
        await self._load_markets(http)
        made = make_client(self.settings.exchange, self.settings.kind, self)
        made.http = http
        made.urls = self._client.urls
        made.set_markets_from_exchange(self._client)
        return made

    async def _load_markets(self, http: Http) -> None:
        self._client.http = http
        try:
            await self._client.load_markets()
        except Exception as error:
            raise translate_error(error, self._client.errors) from error

    async def fetch_rows(self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int) -> list[Row]:
        """Return the exchange's bars.

        A page is believed to be complete, unless it has as many rows as the longest one so far: then the exchange may
        have cut it, and the rest is asked for.
        """
        await self._load_markets(http)
        found: list[Row] = []
        ranges = [(start_ms, end_ms)]
        for _ in range(_MOST_PAGES):
            if not ranges:
                return found
            from_ms, until_ms = ranges.pop()
            page_ms = min(until_ms, from_ms + self._page * interval.ms)
            if page_ms < until_ms:
                ranges.append((page_ms, until_ms))
            rows = await self._fetch_page(symbol, interval, from_ms, page_ms)
            opened = [row.open_ms for row in rows if row.open_ms is not None]
            if opened and min(opened) >= page_ms and not found:
                # perhaps the range has none, perhaps the exchange ignores where it begins
                raise ExchangeError(f"asked for bars of {symbol} from {from_ms}, got one at {min(opened)}")
            within = rows_within(rows, from_ms, page_ms)
            found += within
            times = [row.open_ms for row in within if row.open_ms is not None]
            if times and len(rows) >= self._most:
                rest = ((from_ms, min(times)), (max(times) + interval.ms, page_ms))
                ranges += [one for one in rest if one[0] < one[1]]
            self._most = max(self._most, len(rows))
        count = (end_ms - start_ms) // interval.ms
        raise ExchangeError(f"expected at most {_MOST_PAGES} pages for {count} bars of {symbol}")

    async def _fetch_page(self, symbol: Symbol, interval: Interval, from_ms: int, until_ms: int) -> list[Row]:
        """Return the rows of an answer to a request for `[from_ms, until_ms)`; some may be outside.

        Raises:
            Unavailable, ExchangeError: as `Exchange.fetch_history`.
        """
        client = self._client
        is_bounded = "params.until" in (type(client).fetch_ohlcv.__doc__ or "")
        params = {"until": until_ms - 1} if is_bounded else {}
        limit = (until_ms - from_ms) // interval.ms + _EDGES
        since_ms, timeframe = max(0, from_ms - interval.ms), self.intervals[str(interval)]
        try:
            rows = await client.fetch_ohlcv(str(symbol), timeframe, since_ms, limit, params)
        except Exception as error:
            raise translate_error(error, client.errors) from error
        return read_rows(rows, messages.read_row)


_METHODS = {"candles": "watchOHLCV", "trades": "watchTrades"}
