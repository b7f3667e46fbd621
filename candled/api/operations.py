"""The operations of the REST API: what each takes and answers. Both reading a query and OpenAPI go by it."""

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
    """One GET: `answers` maps content types to names of schemas, None for what JSON schema cannot describe."""

    path: str
    name: str
    summary: str
    about: str = ""
    parameters: Sequence[Parameter] = ()
    answers: Mapping[str, str | None]


def candles(directory: MarketCatalog) -> Operation:
    """Bars of one market."""
    return Operation(
        path="/api/candles",
        name="getCandles",
        summary="Bars of one market and interval, oldest first",
        about=(
            "Without `from` the newest `limit` bars before `to`; with `from` the first `limit` bars at or after it. "
            "`next` leads to the following page in that direction and is null at the end. Every bar is whole and each "
            "one says whether it is final; the running bar is among them. Formats other than json are streamed, and "
            "without `limit` they hold the whole range."
        ),
        parameters=(
            *_market(directory),
            parameters.interval("interval", directory.intervals),
            parameters.whole(
                "limit", "how many bars; by default 500, in the other formats all of the range", 1, MOST_BARS
            ),
            parameters.moment("from", "the earliest opening time"),
            parameters.moment("to", "bars that open before this time"),
            parameters.choice("format", "how the answer is written", ("json", *CONTENT_TYPES), "json"),
            parameters.numbers(),
        ),
        answers={"application/json": "Candles", **dict.fromkeys(CONTENT_TYPES.values())},
    )


def symbols(directory: MarketCatalog) -> Operation:
    """The markets."""
    return Operation(
        path="/api/symbols",
        name="getSymbols",
        summary="The served markets",
        parameters=(_exchange(directory, "only the markets of this exchange"),),
        answers={"application/json": "Symbols"},
    )


def intervals() -> Operation:
    """The lengths of bars."""
    return Operation(
        path="/api/intervals",
        name="getIntervals",
        summary="The lengths of bars that are served, shortest first",
        answers={"application/json": "Intervals"},
    )


def exchanges() -> Operation:
    """The exchanges."""
    return Operation(
        path="/api/exchanges",
        name="getExchanges",
        summary="The exchanges; the first one is meant where a request names none",
        answers={"application/json": "Exchanges"},
    )


def coverage(directory: MarketCatalog) -> Operation:
    """Which minutes are there, by day."""
    return Operation(
        path="/api/coverage",
        name="getCoverage",
        summary="Day by day: how many minutes are there, and the holes with their reasons",
        about=(
            f"By default the last {DEFAULT_DAYS} days, at most the last {MOST_DAYS} of the range asked for. Days begin "
            "at 00:00 UTC. Nothing is said of the time before history is complete, and of the last minute."
        ),
        parameters=(
            *_market(directory),
            parameters.moment("from", f"the beginning; by default {DEFAULT_DAYS} days before `to`"),
            parameters.moment("to", "the end; by default now"),
        ),
        answers={"application/json": "Coverage"},
    )


def gaps(directory: MarketCatalog) -> Operation:
    """What is missing."""
    return Operation(
        path="/api/gaps",
        name="getGaps",
        summary="Missing minutes and why, newest first",
        about=(
            f"Of one market at most the last {MOST_DAYS} days of the range, of several at most the last 7. "
            "`hasMore` says that there are more gaps in it than `limit`."
        ),
        parameters=(
            parameters.text("symbol", "BASE/QUOTE; by default every market", values=_symbols(directory)),
            _exchange(directory, "the exchange; by default the first one, without a symbol all of them"),
            parameters.moment("from", "the beginning; by default 7 days before `to`"),
            parameters.moment("to", "the end; by default now"),
            parameters.whole("limit", "how many gaps", 1, MOST_GAPS, DEFAULT_GAPS),
        ),
        answers={"application/json": "Gaps"},
    )


def description() -> Operation:
    """OpenAPI."""
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
