"""The operations of the REST API: parameters and answers, used to parse queries and to generate OpenAPI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import parameters
from .catalog import MarketCatalog
from .formats import CONTENT_TYPES
from .pages import MOST_BARS
from .parameters import Parameter

DEFAULT_BARS = 500
DEFAULT_DAYS = 30
MOST_DAYS = 92
DEFAULT_GAPS = 100
MOST_GAPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One GET. `answers` maps content types to schema names; None for formats that JSON Schema cannot describe."""

    path: str
    name: str
    summary: str
    about: str = ""
    parameters: Sequence[Parameter] = ()
    answers: Mapping[str, str | None]


def candles(directory: MarketCatalog) -> Operation:
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
            *_market(directory),
            parameters.interval("interval", directory.intervals),
            parameters.whole(
                "limit", "number of bars; by default 500, in formats other than json the complete range", 1, MOST_BARS
            ),
            parameters.moment("from", "the earliest opening time"),
            parameters.moment("to", "bars that open before this time"),
            parameters.choice("format", "the format of the answer", ("json", *CONTENT_TYPES), "json"),
            parameters.numbers(),
        ),
        answers={"application/json": "Candles", **dict.fromkeys(CONTENT_TYPES.values())},
    )


def symbols(directory: MarketCatalog) -> Operation:
    """Return the operation for the served markets."""
    return Operation(
        path="/api/symbols",
        name="getSymbols",
        summary="The served markets",
        parameters=(_exchange(directory, "only the markets of this exchange"),),
        answers={"application/json": "Symbols"},
    )


def intervals() -> Operation:
    """Return the operation for the served intervals."""
    return Operation(
        path="/api/intervals",
        name="getIntervals",
        summary="The lengths of bars that are served, shortest first",
        answers={"application/json": "Intervals"},
    )


def exchanges() -> Operation:
    """Return the operation for the exchanges."""
    return Operation(
        path="/api/exchanges",
        name="getExchanges",
        summary="The exchanges; the first one is the default of requests",
        answers={"application/json": "Exchanges"},
    )


def coverage(directory: MarketCatalog) -> Operation:
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
            *_market(directory),
            parameters.moment("from", f"the start; by default {DEFAULT_DAYS} days before `to`"),
            parameters.moment("to", "the end; by default now"),
        ),
        answers={"application/json": "Coverage"},
    )


def gaps(directory: MarketCatalog) -> Operation:
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
            parameters.text("symbol", "BASE/QUOTE; by default every market", values=_symbols(directory)),
            _exchange(directory, "the exchange; by default the first one, without a symbol all of them"),
            parameters.moment("from", "the start; by default 7 days before `to`"),
            parameters.moment("to", "the end; by default now"),
            parameters.whole("limit", "number of gaps", 1, MOST_GAPS, DEFAULT_GAPS),
        ),
        answers={"application/json": "Gaps"},
    )


def description() -> Operation:
    """Return the operation for the OpenAPI description itself."""
    return Operation(
        path="/api/openapi.json",
        name="getOpenapi",
        summary="This description",
        answers={"application/json": "Description"},
    )


def _market(directory: MarketCatalog) -> tuple[Parameter, Parameter]:
    return (
        parameters.text("symbol", "a symbol such as BTC/USDT", values=_symbols(directory), required=True),
        _exchange(directory, "the exchange; by default the first one"),
    )


def _exchange(directory: MarketCatalog, about: str) -> Parameter:
    return parameters.text("exchange", about, values=directory.exchanges)


def _symbols(directory: MarketCatalog) -> list[str]:
    return list(dict.fromkeys(str(key.symbol) for key in directory.markets))
