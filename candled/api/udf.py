"""TradingView's UDF below `/udf`. All answers are JSON that its adapter reads, with any HTTP status.

Source: "UDF" in the Charting Library's documentation, and the behaviour of its published UDF adapter.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from math import inf
from typing import Any, ClassVar

from candled.api.queries import BarQuery, Headers, HistoryRequest, PrintedPage
from candled.model import DAY, DAY_MS, END_OF_TIME_MS, MINUTE_MS, REASONS, Gap, Interval, MarketKey, Range, iso_ms
from candled.serve.hot_path import HotRequest
from candled.transport.work_budget import SEARCHED

from .bar_answers import BarHandler
from .catalog import MarketCatalog, tradingview_name
from .errors import ApiError, UnknownSymbol, shown
from .formats import json_number
from .handler import Handler, NotFound
from .pages import day_interval
from .parameters import Parameter, numbers, read_query, seconds, text, whole
from .printers import udf_printer

MOST_BARS = 5000
_MOST_FOUND = 100
_MOST_MARKS = 200
_MARKED_MS = 92 * DAY_MS
_DAY = "1D"
_PRICE_DECIMALS = 2  # for a market without candles
_VOLUME_DECIMALS = 8

_SYMBOL = text("symbol", "a symbol such as BITGET:BTCUSDT", required=True)
_RESOLUTION = text("resolution", "a resolution such as 5, 240 or 1D", required=True)
_FROM = seconds("from", "the beginning, Unix seconds", 0)
_TO = seconds("to", "the end, Unix seconds", END_OF_TIME_MS)


class UdfHandler(Handler):
    """A UDF resource. A client's errors are answered with status 200, as TradingView's own tests require."""

    parameters: ClassVar[Sequence[Parameter]] = ()
    has_json_only = True

    def initialize(self, next_time: str, **shared: Any) -> None:  # type: ignore[override]
        """Store the unit of `nextTime`."""
        super().initialize(**shared)
        self.next_time = next_time

    @classmethod
    def describe_error(cls, refusal: ApiError) -> tuple[int, Any]:
        """Return the status and the JSON of an error as UDF does."""
        is_read = refusal.status in (400, 404) and refusal.code != "not_found"
        return 200 if is_read else refusal.status, {"s": "error", "errmsg": str(refusal)}

    def read_query(self) -> dict[str, Any]:
        """Return the values of the query's parameters.

        Raises:
            ApiError: one is invalid.
        """
        return read_query(self.parameters, self.request.query_arguments)

    def decimals_of(self, market: MarketKey) -> tuple[int, int]:
        """Return the decimals that a chart shows for prices and volumes.

        If the exchange declares none, prices get those seen in its candles, and volumes 8 because later ones may need
        more.
        """
        volume = self.source.decimals(market).volume
        price = self.source.likely_decimals(market).price
        return _PRICE_DECIMALS if price is None else price, _VOLUME_DECIMALS if volume is None else volume


def _market(catalog: MarketCatalog, ticker: str) -> MarketKey:
    """Return the market of a ticker.

    Raises:
        ApiError: it is not served.
    """
    market = catalog.by_ticker(ticker)
    if market is None:
        raise UnknownSymbol(404, "unknown_symbol", "unknown_symbol", kind="ticker", name=ticker)
    return market


def _interval(catalog: MarketCatalog, name: str) -> Interval:
    """Return the interval of a resolution.

    Raises:
        ApiError: it is not served.
    """
    found = catalog.find_resolution(name)
    if found is None:
        known = ", ".join(catalog.resolutions)
        raise ApiError(400, "unknown_resolution", f"resolution: expected one of {known}, got {shown(name)}")
    return found


class Config(UdfHandler):
    """`/udf/config`: the server's features."""

    async def answer(self) -> None:
        """Answer with the server's features."""
        catalog = self.source.catalog
        names = catalog.exchanges
        self.set_cache_headers(False)
        self.write_json(
            {
                "supported_resolutions": list(catalog.resolutions),
                "supports_search": True,
                "supports_group_request": False,
                "supports_marks": True,
                "supports_timescale_marks": True,
                "supports_time": True,
                "exchanges": [
                    {"value": name.upper(), "name": name.capitalize(), "desc": name.capitalize()} for name in names
                ],
                "symbols_types": [{"name": "Crypto", "value": "crypto"}],
            }
        )


class Symbols(UdfHandler):
    """`/udf/symbols`. A successful answer must not have a key `s`."""

    parameters = (_SYMBOL,)

    async def answer(self) -> None:
        """Answer with the description of a market."""
        market = _market(self.source.catalog, self.read_query()["symbol"])
        await self.write_kept((self.source.catalog.version, market), partial(self._symbol_info, market))

    async def _symbol_info(self, market: MarketKey) -> dict[str, Any]:
        catalog = self.source.catalog
        price_decimals, volume_decimals = self.decimals_of(market)
        ticker, exchange = catalog.ticker_of(market), market.exchange.upper()
        return {
            "name": ticker.partition(":")[2],
            "ticker": ticker,
            "full_name": ticker,
            "description": f"{market.symbol}",
            "type": "crypto",
            "session": "24x7",
            "timezone": "Etc/UTC",
            "exchange": exchange,
            "listed_exchange": exchange,
            "minmov": 1,
            "pricescale": 10**price_decimals,
            "has_intraday": any(one.ms < DAY_MS for one in catalog.intervals.values()),
            "has_daily": _DAY in catalog.intervals,
            "has_weekly_and_monthly": "1W" in catalog.intervals,
            "intraday_multipliers": _intraday(catalog),
            "supported_resolutions": list(catalog.resolutions),
            "volume_precision": volume_decimals,
            "data_status": "streaming",
            "format": "price",
        }


class SymbolInfo(UdfHandler):
    """`/udf/symbol_info`: all symbols of an exchange, in columns."""

    parameters = (text("group", "an exchange such as BITGET"),)

    async def answer(self) -> None:
        """Answer with the descriptions of an exchange's markets."""
        group = self.read_query()["group"]
        markets = [key for key in self.source.catalog.markets if group is None or key.exchange.upper() == group.upper()]
        if not markets:
            raise ApiError(404, "unknown_group", "unknown_group")
        await self.write_kept(tuple(markets), partial(self._describe, markets))

    async def _describe(self, markets: Sequence[MarketKey]) -> dict[str, Any]:
        catalog = self.source.catalog
        tickers = [catalog.ticker_of(key) for key in markets]  # before the catalog changes
        decimals = [self.decimals_of(key) async for key in self.source.spread(markets)]
        exchanges = [key.exchange.upper() for key in markets]
        return {
            "symbol": [ticker.partition(":")[2] for ticker in tickers],
            "description": [str(key.symbol) for key in markets],
            "exchange-listed": exchanges,
            "exchange-traded": exchanges,
            "minmovement": 1,
            "pricescale": [10**price for price, _ in decimals],
            "type": "crypto",
            "timezone": "Etc/UTC",
            "session-regular": "24x7",
            "has-intraday": any(one.ms < DAY_MS for one in catalog.intervals.values()),
            "has-daily": _DAY in catalog.intervals,
            "has-weekly-and-monthly": "1W" in catalog.intervals,
            "intraday-multipliers": [_intraday(catalog)] * len(markets),
            "supported-resolutions": [list(catalog.resolutions)] * len(markets),
            "ticker": tickers,
            "volume-precision": [volume for _, volume in decimals],
        }


class Search(UdfHandler):
    """`/udf/search`: a bare list; symbols that begin with the query come first."""

    parameters = (
        text("query", "a part of a symbol"),
        text("type", "a type such as crypto"),
        text("exchange", "an exchange such as BITGET"),
        whole("limit", "how many symbols", 0, 10**9, 30),
    )

    async def answer(self) -> None:
        """Answer with the matching markets, those that clients may start included."""
        values = self.read_query()
        wanted, exchange = ((values[name] or "").strip().upper() for name in ("query", "exchange"))
        if values["type"] not in (None, "", "crypto"):
            exchange = "none of this type"
        limit = min(values["limit"], _MOST_FOUND)
        offered = self.source.offered
        versions = self.source.catalog.version, None if offered is None else offered.demand.version
        await self.write_kept((*versions, wanted, exchange, limit), partial(self._find, wanted, exchange, limit), inf)

    async def _find(self, wanted: str, exchange: str, limit: int) -> list[dict[str, str]]:
        found: list[tuple[bool, MarketKey]] = []
        catalog, offered = self.source.catalog, self.source.offered
        served = frozenset(catalog.markets)
        more = {} if offered is None else {key: name for key, name in offered.tickers.items() if key not in served}
        self.charge_work((len(served) + len(more)) * SEARCHED)
        spellings = [(key, (tradingview_name(key.symbol), str(key.symbol).upper(), more[key])) for key in more]
        for key, names in [*catalog.spellings, *spellings]:
            if exchange in ("", key.exchange.upper()) and any(wanted in name for name in names):
                found.append((not any(name.startswith(wanted) for name in names), key))
        found.sort(key=lambda one: one[0])
        return [self._search_item(key, more.get(key) or catalog.ticker_of(key)) for _, key in found[:limit]]

    def _search_item(self, key: MarketKey, ticker: str) -> dict[str, str]:
        return {
            "symbol": ticker.partition(":")[2],
            "full_name": ticker,
            "description": str(key.symbol),
            "exchange": key.exchange.upper(),
            "ticker": ticker,
            "type": "crypto",
        }


class History(BarHandler, UdfHandler):
    """`/udf/history`. `countback` takes precedence over `from`; with it, `no_data` means that no older bars exist."""

    parameters = (
        _SYMBOL,
        _RESOLUTION,
        _FROM,
        _TO,
        whole("countback", "how many bars before `to`", 0, 10**9),
        numbers(),
    )

    @classmethod
    def parse_query(cls, request: HotRequest, sources: Mapping[str, Any]) -> BarQuery:
        """See `BarHandler.parse_query`."""
        return cls._query(sources["source"].catalog, read_query(cls.parameters, request.arguments))

    @staticmethod
    def _query(catalog: MarketCatalog, values: dict[str, Any]) -> BarQuery:
        market, interval = _market(catalog, values["symbol"]), _interval(catalog, values["resolution"])
        count = values["countback"]
        asked = HistoryRequest(min(count or MOST_BARS, MOST_BARS), 0 if count else values["from"], values["to"])
        return BarQuery(market, interval, udf_printer(values["numbers"]), asked, _columns, _headers)

    async def answer(self) -> None:
        """Answer with the requested bars, or with `no_data` and the time of the next older bar."""
        values = self.read_query()
        query = self._query(self.source.catalog, values)
        written = await self.answer_bars(query)
        if written is None or written.page.last_ms is not None:
            return
        empty_ms = min(values["from"], values["to"])
        older = None
        if not values["countback"]:
            older = await self.source.pages.read_page(query.market, query.interval, HistoryRequest(1, end_ms=empty_ms))
        if older is None or not older.bars:
            self.write_json({"s": "no_data"})
            return
        newest_ms = older.bars[-1].open_ms
        self.write_json({"s": "no_data", "nextTime": newest_ms if self.next_time == "ms" else newest_ms // 1000})


def _columns(page: PrintedPage) -> bytes:
    """Return the answer; nothing if it has no bars."""
    if page.last_ms is None:
        return b""
    return b'{"s":"ok","t":[%b],"o":[%b],"h":[%b],"l":[%b],"c":[%b],"v":[%b]}' % (*page.columns,)


def _headers(page: PrintedPage, _: int) -> Headers:
    return () if page.last_ms is None else (("X-Candled-Last-Final", "true" if page.last_final else "false"),)


class Time(UdfHandler):
    """`/udf/time`: Unix seconds as plain text."""

    async def answer(self) -> None:
        """Answer with the server's time."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.write_body(str(self.source.clock.now_ms() // 1000).encode())


class Quotes(UdfHandler):
    """`/udf/quotes`: prices since 00:00 UTC. Bid and ask are left out, because candles don't have them."""

    parameters = (text("symbols", "symbols with commas between them", required=True), numbers())

    async def answer(self) -> None:
        """Answer with the quotes of several markets."""
        values = self.read_query()
        names = values["symbols"].split(",")[:_MOST_FOUND]
        self.set_cache_headers(False)
        self.write_json({"s": "ok", "d": [await self._make_quote(name, values["numbers"]) for name in names]})

    async def _find_started(self, name: str) -> MarketKey:
        """Return the market of a ticker, after starting it if it runs on demand.

        Raises:
            ApiError: it is neither served nor can it be started.
        """
        try:
            return _market(self.source.catalog, name)
        except UnknownSymbol as refusal:
            market = await self.start_offered(refusal)
            if market is None:
                raise
            return market

    async def _make_quote(self, name: str, numbers: int) -> dict[str, Any]:
        try:
            market = await self._find_started(name)
        except ApiError as refusal:
            return {"s": "error", "n": name[:64], "errmsg": str(refusal), "v": {}}
        intervals = self.source.catalog.intervals
        if self.source.note_request(market) and self.source.wait_for_bars is not None:
            interval = day_interval(intervals.values())
            await self.source.wait_for_bars(market, interval, DAY.ms // interval.ms + 1)
        self.charge_read(0)
        quote = await self.source.pages.read_day(market, intervals.values())
        if quote is None:
            return {"s": "error", "n": name[:64], "errmsg": "no_data", "v": {}}
        ticker = self.source.catalog.ticker_of(market)
        today, before = quote
        change = Decimal(0) if before is None else today.close - before.close
        percent = Decimal(0) if before is None else round(change / before.close * 100, 2)
        return {
            "s": "ok",
            "n": name,
            "v": {
                "lp": json_number(today.close, numbers),
                "ch": json_number(change, numbers),
                "chp": json_number(percent, numbers),
                "short_name": ticker.partition(":")[2],
                "exchange": market.exchange.upper(),
                "description": str(market.symbol),
                "open_price": json_number(today.open, numbers),
                "high_price": json_number(today.high, numbers),
                "low_price": json_number(today.low, numbers),
                "prev_close_price": json_number(today.open if before is None else before.close, numbers),
                "volume": json_number(today.volume, numbers),
            },
        }


class Marks(UdfHandler):
    """`/udf/marks`: gaps, in columns."""

    parameters = (_SYMBOL, _FROM, _TO, _RESOLUTION)

    async def answer(self) -> None:
        """Answer with the marks of gaps."""
        found = await self.marked_gaps()
        self.set_cache_headers(False)
        self.write_json(
            {
                "id": [mark["id"] for mark in found],
                "time": [mark["time"] for mark in found],
                "color": [mark["color"] for mark in found],
                "text": [" ".join(mark["tooltip"]) for mark in found],
                "label": [mark["label"] for mark in found],
                "labelFontColor": ["white"] * len(found),
                "minSize": [14] * len(found),
            }
        )

    async def marked_gaps(self) -> list[dict[str, Any]]:
        """Return the marks of the newest gaps in the range, oldest first. A mark is at the bar before the gap."""
        values = self.read_query()
        catalog = self.source.catalog
        market, interval = _market(catalog, values["symbol"]), _interval(catalog, values["resolution"])
        since_ms = await self.source.stored.served_from(market)
        end_ms = min(values["to"], self.source.clock.now_ms() - MINUTE_MS) // MINUTE_MS * MINUTE_MS
        start_ms = max(values["from"] // MINUTE_MS * MINUTE_MS, end_ms - _MARKED_MS, since_ms or END_OF_TIME_MS)
        found = await self.source.stored.find_gaps(market, Range(start_ms, end_ms), limit=_MOST_MARKS, reasons=_MARKED)
        return [_mark(gap, interval) for gap in found[-_MOST_MARKS:]]


class TimescaleMarks(Marks):
    """`/udf/timescale_marks`: gaps, as a list."""

    async def answer(self) -> None:
        """Answer with the marks of gaps."""
        found = await self.marked_gaps()
        self.set_cache_headers(False)
        self.write_json(found)


class UnknownUdfPath(UdfHandler, NotFound):
    """Any other path below `/udf`."""

    @classmethod
    def refusal_of(cls, path: str) -> ApiError:
        """See `NotFound.refusal_of`."""
        return ApiError(404, "not_found", "not_found")

    answer = NotFound.answer


_MARKED = {
    "missing": ("red", "G"),
    "unconfirmed": ("red", "U"),
    "invalid": ("red", "I"),
    "exchange_outage": ("yellow", "O"),
}


def _mark(gap: Gap, interval: Interval) -> dict[str, Any]:
    color, label = _MARKED[gap.reason]
    why = REASONS[gap.reason]
    return {
        "id": f"{gap.reason}-{gap.start_ms // 1000}",
        "color": color,
        "label": label,
        "time": interval.floor(gap.start_ms - MINUTE_MS) // 1000,
        "tooltip": [
            f"{gap.minute_count} minutes missing",
            f"from {iso_ms(gap.start_ms)} to {iso_ms(gap.end_ms)}:",
            why,
        ],
    }


def _intraday(catalog: MarketCatalog) -> list[str]:
    return [name for name in catalog.resolutions if name.isdigit()]
