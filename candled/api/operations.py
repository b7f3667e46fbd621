"""The operations of the REST API: parameters and answers, used to parse queries and to generate OpenAPI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

from candled.api.queries import MOST_BARS
from candled.model import REASONS, Decimals, Market, MarketKey, MarketState, decimal_text, iso_ms

from . import parameters
from .catalog import MarketCatalog
from .formats import CONTENT_TYPES
from .parameters import Parameter

DEFAULT_BARS = 500
MOST_PAGES = 10**6
DEFAULT_DAYS = 30
MOST_DAYS = 92
DEFAULT_GAPS = 100
MOST_GAPS = 1000


# ---------------------------------------------------------------- answers


def _about(text: str, **schema: Any) -> Meta:
    return Meta(description=text, extra_json_schema=schema)


_DAY = r"^\d{4}-\d\d-\d\d"
_Day = Annotated[str, Meta(pattern=f"{_DAY}$", extra_json_schema={"format": "date"})]
_Time = Annotated[str, Meta(pattern=rf"{_DAY}T\d\d:\d\d:\d\d\.\d{{3}}Z$", extra_json_schema={"format": "date-time"})]
_Number = Annotated[float | str, _about("a string with `numbers=string`, which keeps every digit")]
_Reason = Annotated[str, _about("; ".join(f"{reason}: {why}" for reason, why in REASONS.items()), enum=list(REASONS))]
_Count = Annotated[int, Meta(ge=0)]


class _Answer(Struct, rename="camel", forbid_unknown_fields=True):
    pass


class Bar(_Answer):
    """A bar of one interval."""

    time: Annotated[_Time, _about("when the bar begins")]
    open: _Number
    high: _Number
    low: _Number
    close: _Number
    volume: Annotated[_Number, _about("in base currency")]
    final: Annotated[bool, _about("true once the bar is over and the grace period for late updates has passed")]
    quote_volume: Annotated[_Number, _about("left out if the exchange does not send it")] | UnsetType = UNSET


class Candles(_Answer):
    """Bars of one market, oldest first."""

    exchange: str
    symbol: str
    interval: str
    bars: list[Bar]
    has_more: Annotated[bool, _about("true if there are more bars in the direction of paging")]
    oldest: Annotated[_Time | None, _about("when the first of these bars begins")]
    next: Annotated[str | None, _about("the next page, relative to this one's address")]
    epoch: Annotated[str | UnsetType, _about("with seq: the position of the market's feed, for `resume`")] = UNSET
    seq: int | UnsetType = UNSET


class Symbol(_Answer):
    """A served market."""

    exchange: str
    symbol: str
    ticker: Annotated[str, _about("its name at /udf")]
    price_decimals: int | None
    volume_decimals: int | None
    status: Annotated[MarketState | None, _about("the state of trading; null if the exchange's list is not known here")]
    tick_size: Annotated[str | None, _about("the smallest step of prices")]
    listed: Annotated[_Time | None, _about("the start of trading")]
    quote_volume24h: Annotated[str | None, _about("the volume of the last 24 hours in quote currency")] = field(
        name="quoteVolume24h"
    )
    former: Annotated[str | None, _about("its symbol before the exchange renamed it")] = None


def describe_symbol(market: MarketKey, ticker: str, decimals: Decimals, facts: Market | None) -> Symbol:
    """Return a served market with the `facts` of the exchange's list, or nulls without them."""
    if facts is None:
        return Symbol(market.exchange, str(market.symbol), ticker, *decimals, None, None, None, None)
    tick, volume = (None if fact is None else decimal_text(fact) for fact in (facts.tick_size, facts.quote_volume_24h))
    listed = None if facts.listed_ms is None else iso_ms(facts.listed_ms)
    former = None if facts.former is None else str(facts.former)
    return Symbol(market.exchange, str(market.symbol), ticker, *decimals, facts.status, tick, listed, volume, former)


class Symbols(_Answer):
    """The served markets."""

    symbols: list[Symbol]


class Interval(_Answer):
    """A served interval."""

    interval: str
    ms: Annotated[int, Meta(ge=60_000)]


class Intervals(_Answer):
    """The served intervals."""

    intervals: list[Interval]


class Exchange(_Answer):
    """A configured exchange and the number of its served markets."""

    name: str
    default: bool
    symbols: _Count
    simulated: bool


class Exchanges(_Answer):
    """The configured exchanges."""

    exchanges: list[Exchange]


class DayGap(_Answer):
    """A gap within one day."""

    from_: _Time = field(name="from")
    to: _Time
    minutes: Annotated[int, Meta(ge=1)]
    reason: _Reason


class CoveredDay(_Answer):
    """The stored minutes of one day, and its first gaps."""

    day: _Day
    minutes: _Count
    expected: Annotated[int, Meta(ge=1, le=1440)]
    hole_count: _Count
    holes: list[DayGap]


class Coverage(_Answer):
    """A market's stored minutes by day."""

    exchange: str
    symbol: str
    complete_from: Annotated[_Time | None, _about("the time from which history is complete, except for known gaps")]
    days: list[CoveredDay]


class Gap(DayGap):
    """A gap of a market."""

    exchange: str
    symbol: str
    attempts: _Count
    next_try: _Time | None


class Gaps(_Answer):
    """Gaps of markets, newest first."""

    gaps: list[Gap]
    has_more: bool


class Problem(_Answer):
    """The reason why a request is refused."""

    code: str
    message: str


class Error(_Answer):
    """The answer to a refused request."""

    error: Problem


# ---------------------------------------------------------------- operations


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One GET, and its description in OpenAPI."""

    #: The path of its route, such as `/api/candles`.
    path: str
    #: The `operationId` in OpenAPI.
    name: str
    #: One line for OpenAPI, without a full stop.
    summary: str
    #: More sentences for OpenAPI; empty for none.
    about: str = ""
    #: All parameters of the query, in the order of the description. Others are refused.
    parameters: Sequence[Parameter] = ()
    #: The types of answers, by content type.
    answers: Mapping[str, Any]
    #: True if an answer may be a redirect.
    redirects: bool = False

    def read_query(self, query: Mapping[str, Sequence[bytes]]) -> dict[str, Any]:
        """Return the values of a query's parameters.

        Raises:
            ApiError: one is invalid or unknown.
        """
        parameters.refuse_unknown(self.parameters, query)
        return parameters.read_query(self.parameters, query)


def candles(catalog: MarketCatalog) -> Operation:
    """Return the operation for the bars of one market."""
    return Operation(
        path="/api/candles",
        name="getCandles",
        summary="Bars of one market and interval, oldest first",
        about=(
            "Without `from` you get the newest `limit` bars before `to`, with `from` the first `limit` bars at or "
            "after it. `next` is the next page in that direction; it is null at the end. All bars are complete, and "
            "`final` is false for the forming bar and others that may still change. Formats other than json are "
            "streamed; without `limit` they contain the complete range."
        ),
        parameters=(
            *_market(catalog),
            parameters.interval(catalog.intervals),
            parameters.whole(
                "limit", "number of bars; by default 500, in formats other than json the complete range", 1, MOST_BARS
            ),
            parameters.moment("from", "the earliest opening time"),
            parameters.moment("to", "bars that open before this time"),
            parameters.choice("format", "the format of the answer", ("json", *CONTENT_TYPES), "json"),
            parameters.numbers(),
        ),
        answers={"application/json": Candles, **dict.fromkeys(CONTENT_TYPES.values(), str)},
    )


def pages(catalog: MarketCatalog) -> Operation:
    """Return the operation for the bars of one aligned page."""
    return Operation(
        path="/api/pages",
        name="getPage",
        summary="The bars of one page, under an address whose answer never changes",
        about=(
            "Page n has the bars that open in [n, n + 1) * 1000 * the interval's length, from 1970 on. If none of them "
            "can change any more, you are redirected to the address with `rev`, whose answer caches may keep forever. "
            "A repaired page has another `rev`, and the old address redirects to it."
        ),
        parameters=(
            *_market(catalog),
            parameters.interval(catalog.intervals),
            parameters.whole("page", "the number of the page", 0, MOST_PAGES, required=True),
            parameters.text("rev", "the page's revision, from a redirect"),
            parameters.numbers(),
        ),
        answers={"application/json": Candles},
        redirects=True,
    )


def symbols(catalog: MarketCatalog) -> Operation:
    """Return the operation for the served markets."""
    return Operation(
        path="/api/symbols",
        name="getSymbols",
        summary="The served markets",
        parameters=(_exchange(catalog, "only the markets of this exchange"),),
        answers={"application/json": Symbols},
    )


#: The operation for the served intervals.
INTERVALS = Operation(
    path="/api/intervals",
    name="getIntervals",
    summary="The lengths of bars that are served, shortest first",
    answers={"application/json": Intervals},
)


#: The operation for the exchanges.
EXCHANGES = Operation(
    path="/api/exchanges",
    name="getExchanges",
    summary="The exchanges; the first one is the default of requests",
    answers={"application/json": Exchanges},
)


def coverage(catalog: MarketCatalog) -> Operation:
    """Return the operation for the stored minutes by day."""
    return Operation(
        path="/api/coverage",
        name="getCoverage",
        summary="By day: the number of stored minutes, and the gaps with their reasons",
        about=(
            f"By default you get the last {DEFAULT_DAYS} days, and at most the last {MOST_DAYS} of the requested "
            "range. Days begin at 00:00 UTC. The time before history is complete and the last minute are left out."
        ),
        parameters=(
            *_market(catalog),
            parameters.moment("from", f"the start; by default {DEFAULT_DAYS} days before `to`"),
            parameters.moment("to", "the end; by default now"),
        ),
        answers={"application/json": Coverage},
    )


def gaps(catalog: MarketCatalog) -> Operation:
    """Return the operation for the gaps of markets."""
    return Operation(
        path="/api/gaps",
        name="getGaps",
        summary="Gaps and their reasons, newest first",
        about=(
            f"For one market you get at most the last {MOST_DAYS} days of the range, for several at most the last 7. "
            "`hasMore` is true if the range has more gaps than `limit`."
        ),
        parameters=(
            parameters.text("symbol", "a symbol such as BTC/USDT; by default every market", values=_symbols(catalog)),
            _exchange(catalog, "the exchange; by default the first one, without a symbol all of them"),
            parameters.moment("from", "the start; by default 7 days before `to`"),
            parameters.moment("to", "the end; by default now"),
            parameters.whole("limit", "number of gaps", 1, MOST_GAPS, DEFAULT_GAPS),
        ),
        answers={"application/json": Gaps},
    )


#: The operation for the OpenAPI description itself.
DESCRIPTION = Operation(
    path="/api/openapi.json",
    name="getOpenapi",
    summary="This description",
    answers={"application/json": dict[str, Any]},
)


def _market(catalog: MarketCatalog) -> tuple[Parameter, Parameter]:
    return (
        parameters.text("symbol", "a symbol such as BTC/USDT", values=_symbols(catalog), required=True),
        _exchange(catalog, "the exchange; by default the first one"),
    )


def _exchange(catalog: MarketCatalog, about: str) -> Parameter:
    return parameters.text("exchange", about, values=catalog.exchanges)


def _symbols(catalog: MarketCatalog) -> list[str]:
    return list(dict.fromkeys(str(key.symbol) for key in catalog.markets))
