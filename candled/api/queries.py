"""Requests for bars, and the pages that answer them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from candled.model import END_OF_TIME_MS, Candle, Interval, MarketKey, Position
from candled.rooms.encoded_bars import Printer

MOST_BARS = 1000


class HistoryRequest(NamedTuple):
    """A request for at most `limit` bars with `start_ms <= open_ms < end_ms`: the last or the first of them."""

    limit: int
    start_ms: int = 0
    end_ms: int = END_OF_TIME_MS
    newest_first: bool = True


@dataclass(frozen=True, slots=True)
class Page:
    """Some bars, oldest first, each with its current finality."""

    #: The bars, at most as many as requested.
    bars: tuple[Candle, ...]
    #: True if the requested range has more bars: older ones for the newest bars, else newer ones.
    has_more: bool
    #: True if the answer cannot change any more, except by repairs or more fetched history.
    is_final: bool
    #: The bars contain every change of the market's feed up to this position.
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class PrintedPage:
    """The bars of a page as a dialect prints them: for each column, the texts joined with its separator."""

    #: The texts of each column, joined; empty if the client already has these bytes.
    columns: Sequence[bytes]
    #: The opening time of the first bar, UTC epoch milliseconds; None without bars.
    first_ms: int | None
    #: The opening time of the last bar, UTC epoch milliseconds; None without bars.
    last_ms: int | None
    #: True if the last bar is final; False without bars.
    last_final: bool
    #: The exchange's time of the last bar's values, UTC epoch milliseconds; 0 without bars, and for a page of the past.
    last_as_of_ms: int
    #: True if the requested range has more bars, as in `Page`.
    has_more: bool
    #: True if the answer cannot change any more, as in `Page`.
    is_final: bool
    #: The position of the market's feed, as in `Page`; None before its first message.
    position: Position | None
    #: A strong ETag, if it can be computed without the bytes.
    tag: str | None = None
    #: True if it changes only when memory does, not with time.
    is_lasting: bool = False
    #: True if its bars are older than those in memory.
    is_past: bool = False


Headers = Iterable[tuple[str, str]]


@dataclass(slots=True)
class BarQuery:
    """A request for bars, and the way its dialect writes the answer."""

    #: The market of the bars.
    market: MarketKey
    #: The interval of the bars.
    interval: Interval
    #: The way to print the bars.
    printer: Printer
    #: The range, and the number of bars.
    asked: HistoryRequest
    #: Return the body.
    write: Callable[[PrintedPage], bytes]
    #: Return the dialect's own headers; the second argument is the time, UTC epoch ms.
    headers: Callable[[PrintedPage, int], Headers]
    #: The `Content-Type` of the answer.
    content_type: str = "application/json; charset=utf-8"
    #: The part that distinguishes it from queries for the same bars with another body.
    variant: object = None
    #: True if final pages are tagged by revisions, which are the same in every process; others by their bytes.
    has_revision: bool = False
    #: The revision in the query's address; None if it has none.
    wanted_revision: str | None = None
    #: Returns the address of the same page with another revision, or with none.
    address: Callable[[str | None], str] = str
    #: The last answer, without columns, if it lasts; else None. Set by `BarReader.written_now`.
    page: PrintedPage | None = None
    #: The state of the bars at the last answer; empty before the first. Set with `page`.
    state: tuple[object, ...] = ()


class WrittenPage(NamedTuple):
    """The answer to a query."""

    page: PrintedPage
    #: None if the client already has it.
    body: bytes | None
    #: The name of the body's content coding; empty if it has none.
    coding: str
    #: The strong ETag of the body; None if it cannot be computed without the bytes.
    tag: str | None
    #: The revision of a final page, as an ETag, if the query has revisions.
    revision: str | None = None


def print_bars(bars: Iterable[Candle], printer: Printer) -> list[bytes]:
    """Return the columns of some bars, for `join_parts`."""
    rows = [printer.print(bar, bar.final) for bar in bars]
    return [printer.separator.join(map(str.encode, column)) for column in zip(*rows, strict=True)]


def join_parts(page: Page, printer: Printer, parts: Sequence[Sequence[bytes]]) -> PrintedPage:
    """Return a page, given the columns of its bars, part by part."""
    bars = page.bars
    return PrintedPage(
        [printer.separator.join(column) for column in zip(*parts, strict=True)] or [b""] * printer.columns,
        bars[0].open_ms if bars else None,
        bars[-1].open_ms if bars else None,
        bool(bars) and bars[-1].final,
        bars[-1].as_of_ms if bars else 0,
        page.has_more,
        page.is_final,
        page.position,
    )


def join_pages(older: PrintedPage, newer: PrintedPage, separator: bytes, known: str, *, is_full: bool) -> PrintedPage:
    """Return the page that two pages with bars make, with a tag if both have one; without texts if it is `known`.

    `is_full` is True if the page has no space for the older bars.
    """
    tag = f"{older.tag[:-1]}.{newer.tag[1:]}" if older.tag and newer.tag else None
    page = replace(newer, tag=tag, has_more=is_full or older.has_more)
    if not is_full:
        columns = [separator.join(texts) for texts in zip(older.columns, newer.columns, strict=True)]
        is_final = newer.is_final and older.is_final
        page = replace(page, columns=columns, first_ms=older.first_ms, is_final=is_final)
    return replace(page, columns=()) if tag is not None and tag in known else page
