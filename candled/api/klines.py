"""Binance's REST klines, served from the same candles, for programs that are written for Binance.

Source: Binance's spot REST API, "Market Data endpoints" and "Error codes".
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from candled.api.queries import MOST_BARS, BarQuery, Headers, HistoryRequest, PrintedPage
from candled.model import END_OF_TIME_MS, MINUTE_MS, Interval, MarketKey, Symbol, decimal_text
from candled.serve.hot_path import HotRequest, set_headers
from candled.serve.rate_limit import RateLimit
from candled.transport.library_internals import is_finished

from .bar_answers import BarHandler
from .catalog import TIME_UNITS, BinanceMarkets, binance_name
from .errors import ApiError, UnknownSymbol
from .handler import Handler, NotFound
from .printers import klines_printer

DEFAULT_BARS = 500
_DIGITS = "^[0-9]{1,20}$"
_ZONE = re.compile(r"([+-]?)(\d{1,2})(?::?([0-5]\d))?")
_CODES = {
    "too_many_requests": -1003,
    "unavailable": -1001,
    "too_many_markets": -1003,
    "internal": -1000,
    "unauthorized": -2015,  # an invalid API key
    "forbidden": -1002,
    "invalid_request": -1101,
}
_UNSUPPORTED = -1020  # not -1000, which clients take for temporary and retry
_NOT_HERE = "This operation is not supported: here are klines, uiKlines, exchangeInfo, time and ping, for GET."
_DECIMALS = 8
_PERPETUAL_MS = 4_133_404_800_000  # Binance's own delivery date of contracts that have none
_LARGEST = "9000000000.00000000"
_NOT_ALLOWED = (
    "icebergAllowed", "ocoAllowed", "otoAllowed", "opoAllowed", "quoteOrderQtyMarketAllowed", "allowTrailingStop",
    "cancelReplaceAllowed", "amendAllowed", "pegInstructionsAllowed",
)  # fmt: skip


class KlinesParameters:
    """The parameters of a request, read and refused as Binance does."""

    def __init__(
        self, markets: BinanceMarkets, arguments: Mapping[str, Sequence[bytes]], headers: Mapping[str, str]
    ) -> None:
        self._markets = markets
        self._arguments = arguments
        self._time_unit = headers.get("x-mbx-time-unit", "MILLISECOND")

    def expect(self, *names: str) -> None:
        """Check that the query has no other parameters than these.

        Raises:
            ApiError: it has another one.
        """
        sent = self._arguments
        read = len(sent.keys() & {*names, "timeUnit"})
        if read < len(sent):
            message = f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{len(sent)}'."
            raise ApiError(400, "-1104", message)

    def units_per_ms(self) -> int:
        """Return the units of an answer's times per millisecond: 1, or 1,000 if the client requests microseconds.

        Raises:
            ApiError: the client requests another unit.
        """
        name = self.text_parameter("timeUnit")
        units = TIME_UNITS.get((self._time_unit if name is None else name).upper())
        if units is None:
            raise ApiError(400, "-1130", "Data sent for parameter 'timeUnit' is not valid.")
        return units

    def text_parameter(self, name: str) -> str | None:
        """Return a parameter as it was sent; None if it was not sent.

        Raises:
            ApiError: it was sent twice, or is not UTF-8.
        """
        given = self._arguments.get(name, [])
        if len(given) > 1:
            raise ApiError(400, "-1101", f"Duplicate values for parameter '{name}' detected.")
        try:
            return given[0].decode() if given else None
        except UnicodeDecodeError:
            raise ApiError(400, "-1100", f"Illegal characters found in parameter '{name}'.") from None

    def required_parameter(self, name: str) -> str:
        """Return a mandatory parameter.

        Raises:
            ApiError: it was not sent, or is empty.
        """
        value = self.text_parameter(name)
        if not value:
            message = f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."
            raise ApiError(400, "-1102", message)
        return value

    def int_parameter(self, name: str, default: int, most: int) -> int:
        """Return a non-negative whole number, at most `most`.

        Raises:
            ApiError: it is not a whole number.
        """
        value = self.text_parameter(name)
        if value is None:
            return default
        if not value:
            raise ApiError(400, "-1105", f"Parameter '{name}' was empty.")
        if not re.fullmatch(_DIGITS, value, re.ASCII):
            message = f"Illegal characters found in parameter '{name}'; legal range is '{_DIGITS}'."
            raise ApiError(400, "-1100", message)
        return min(int(value), most)

    def moment(self, name: str, default: int, *, up: bool) -> int:
        """Return a time in UTC epoch ms.

        A value later than any candle counts as microseconds and is rounded `up` or down to milliseconds.
        """
        at = self.int_parameter(name, default, most=10**20)
        if at > END_OF_TIME_MS:
            at = -(-at // 1000) if up else at // 1000
        return min(at, END_OF_TIME_MS)

    def market_parameter(self, name: str) -> MarketKey:
        """Return the market of a symbol.

        Raises:
            ApiError: the symbol is not served.
        """
        market = self._markets.find_market(name)
        if market is None:
            exchange = self._markets.exchange
            raise UnknownSymbol(400, "-1121", "Invalid symbol.", kind="binance", name=name, exchange=exchange)
        return market

    def check_zone(self, interval: Interval) -> None:
        """Check that bars begin at the same times in the requested time zone as in UTC.

        Raises:
            ApiError: they don't.
        """
        zone = self.text_parameter("timeZone")
        if zone is None:
            return
        match = _ZONE.fullmatch(zone)
        shift = 0 if match is None else int(match[2]) * 60 + int(match[3] or 0)
        if match is None or shift * MINUTE_MS % interval.ms:
            message = "Data sent for parameter 'timeZone' is not valid: days and weeks begin by UTC here."
            raise ApiError(400, "-1130", message)


class KlinesHandler(Handler):
    """A Binance resource. Errors look like Binance's: `{"code": -1121, "msg": "Invalid symbol."}`."""

    has_json_only = True

    def initialize(self, markets: BinanceMarkets, **shared: Any) -> None:  # type: ignore[override]
        """Store the markets by Binance's names."""
        super().initialize(markets=markets, **shared)
        self.markets = markets
        self.parameters = KlinesParameters(markets, self.request.query_arguments, self.request.headers)

    async def prepare(self) -> None:
        """Count the request, and report the count in Binance's header."""
        await super().prepare()
        if not is_finished(self):
            set_headers(self, self.count_headers(self.limit_result.count))

    @classmethod
    def count_headers(cls, count: int) -> Headers:
        """Return Binance's header of the number of requests."""
        return (("X-MBX-USED-WEIGHT-1M", str(count)),) if count else ()

    @classmethod
    def describe_error(cls, refusal: ApiError) -> tuple[int, Any]:
        """Return the status and the JSON of an error as Binance does."""
        code = int(refusal.code) if refusal.code.startswith("-") else _CODES.get(refusal.code, _UNSUPPORTED)
        return refusal.status, {"code": code, "msg": _NOT_HERE if code == _UNSUPPORTED else str(refusal)}


class Klines(BarHandler, KlinesHandler):
    """`/api/v3/klines` and `/api/v3/uiKlines`: bars."""

    @classmethod
    def parse_query(cls, request: HotRequest, sources: Mapping[str, Any]) -> BarQuery:
        """See `BarHandler.parse_query`."""
        markets: BinanceMarkets = sources["markets"]
        query = KlinesParameters(markets, request.arguments, request.headers)
        query.expect("symbol", "interval", "startTime", "endTime", "timeZone", "limit")
        market = query.market_parameter(query.required_parameter("symbol"))
        interval = markets.intervals.get(query.required_parameter("interval"))
        if interval is None:
            raise ApiError(400, "-1120", "Invalid interval.")
        limit = query.int_parameter("limit", DEFAULT_BARS, MOST_BARS)
        if limit == 0:
            raise ApiError(400, "-1130", "Data sent for parameter 'limit' is not valid.")
        query.check_zone(interval)
        asked = HistoryRequest(
            limit,
            query.moment("startTime", 0, up=True),
            query.moment("endTime", END_OF_TIME_MS, up=False) + 1,
            query.text_parameter("startTime") is None,
        )
        return BarQuery(market, interval, klines_printer(interval, query.units_per_ms()), asked, _rows, _headers)


def _rows(page: PrintedPage) -> bytes:
    return b"[%b]" % page.columns[0]


def _headers(page: PrintedPage, now_ms: int) -> Headers:
    if page.last_ms is None:
        return ()
    if page.last_final:
        return (("X-Candled-Last-Final", "true"),)
    return ("X-Candled-Last-Final", "false"), ("Age", str(max(0, now_ms - page.last_as_of_ms) // 1000))


class ExchangeInfo(KlinesHandler):
    """`/api/v3/exchangeInfo`: the description of the symbols. No symbol can be traded here."""

    async def answer(self) -> None:
        """Answer with the requested symbols."""
        markets = {name: self.parameters.market_parameter(name) for name in self._requested_symbols()}
        symbols = [self._describe_symbol(*one) async for one in self.source.spread(markets.items())]
        self.set_cache_headers(False)
        self.write_json(
            {
                "timezone": "UTC",
                "serverTime": self.source.clock.now_ms() * self.parameters.units_per_ms(),
                "rateLimits": [_limit(self.limit)] if self.limit.requests else [],
                "exchangeFilters": [],
                "symbols": symbols,
            }
        )

    def _requested_symbols(self) -> Sequence[str]:
        self.parameters.expect("symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus")
        one, several = self.parameters.text_parameter("symbol"), self.parameters.text_parameter("symbols")
        if one is not None:
            return [one]
        if several is None:
            return list(self.markets.markets)
        try:
            names = json.loads(several)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ApiError(400, "-1100", "Illegal characters found in parameter 'symbols'.")
        return names

    def _describe_symbol(self, name: str, market: MarketKey) -> dict[str, Any]:
        tick, step = map(_unit, self.source.likely_decimals(market))
        return {
            "symbol": name,
            "status": "TRADING",
            "baseAsset": market.symbol.base,
            "baseAssetPrecision": _DECIMALS,
            "quoteAsset": market.symbol.quote,
            "quotePrecision": _DECIMALS,
            "quoteAssetPrecision": _DECIMALS,
            "baseCommissionPrecision": _DECIMALS,
            "quoteCommissionPrecision": _DECIMALS,
            "orderTypes": [],
            **dict.fromkeys(_NOT_ALLOWED, False),
            "isSpotTradingAllowed": not market.symbol.settle,
            "isMarginTradingAllowed": False,
            "filters": [
                {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": _LARGEST, "tickSize": tick},
                {"filterType": "LOT_SIZE", "minQty": step, "maxQty": _LARGEST, "stepSize": step},
            ],
            "permissions": [],
            "permissionSets": [[] if market.symbol.settle else ["SPOT"]],
            "defaultSelfTradePreventionMode": "NONE",
            "allowedSelfTradePreventionModes": ["NONE"],
            **_contract_facts(market.symbol),
        }


class Time(KlinesHandler):
    """`/api/v3/time`: the server's time."""

    async def answer(self) -> None:
        """Answer with the server's time."""
        self.parameters.expect()
        self.write_json({"serverTime": self.source.clock.now_ms() * self.parameters.units_per_ms()})


class Ping(KlinesHandler):
    """`/api/v3/ping`: an empty answer."""

    async def answer(self) -> None:
        """Answer with an empty object."""
        self.parameters.expect()
        self.write_json({})


class UnknownPath(KlinesHandler, NotFound):
    """Any other path of this API."""

    answer = NotFound.answer


def _limit(limit: RateLimit) -> dict[str, Any]:
    return {
        "rateLimitType": "REQUEST_WEIGHT",
        "interval": "SECOND",
        "intervalNum": round(limit.window_s),
        "limit": limit.requests,
    }


def _contract_facts(symbol: Symbol) -> dict[str, Any]:
    """Return the fields by which Binance's futures APIs describe a contract; empty for a spot pair.

    Source: Binance's USDⓈ-M futures API, "Exchange Information".
    """
    if not symbol.settle:
        return {}
    facts = {"pair": binance_name(Symbol(symbol.base, symbol.quote)), "marginAsset": symbol.settle_coin}
    if not symbol.expiry:
        return {**facts, "contractType": "PERPETUAL", "deliveryDate": _PERPETUAL_MS}
    try:
        expiry = datetime.strptime(f"{symbol.expiry}T08+0000", "%y%m%dT%H%z")  # the hour at most exchanges
    except ValueError:
        return {**facts, "contractType": ""}
    return {**facts, "contractType": "", "deliveryDate": int(expiry.timestamp()) * 1000}


def _unit(decimals: int | None) -> str:
    """Return the smallest step of a number with this many decimals; 0, which means no rule at Binance, if unknown."""
    return "0" if decimals is None else decimal_text(Decimal(1).scaleb(-decimals))
