"""A scripted exchange over REST. It makes pages of any minutes, in the format and by the rules of a recorded page."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from candled.errors import ExchangeError, Unavailable
from candled.exchange import HttpAnswer
from candled.ingest.http import read_answer
from candled.model import MINUTE, MINUTE_MS, iso_ms

from .documents import (
    Path,
    Time,
    TimedDocument,
    list_lists,
    list_values,
    parse_document,
    read_time,
    with_value,
    write_document,
)
from .recording import Call, Recording, Request

_LIMIT = re.compile("limit|size|count|num|rows|bars|max", re.IGNORECASE)
_UNTIL = re.compile("end|to$|until|before", re.IGNORECASE)
_MOST_REQUESTS = 300
_ROUND = 10  # the sizes of pages are multiples of it
_FEW_ROWS = 10  # a page that lacks fewer minutes than these may lack them for another reason
_DAYS_MS = 40 * 24 * 60 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class Query:
    """The times and the limit in a request."""

    #: The name of the parameter with the beginning of the range; None without one.
    first: str | None = None
    #: The beginning of the range, UTC epoch milliseconds; None without one.
    first_ms: int | None = None
    #: The name of the parameter with the end of the range; None without one.
    until: str | None = None
    #: The end of the range, UTC epoch milliseconds; None without one.
    until_ms: int | None = None
    #: The largest number of rows that the plugin asks for.
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class PageRule:
    """The minutes that a page has, as the recorded pages show."""

    #: True if a page has the minute that begins at `Query.first_ms`.
    is_first_inclusive: bool = True
    #: True if a page has the minute that begins at `Query.until_ms`.
    is_until_inclusive: bool = True
    #: The most rows of a page.
    rows: int = 100_000
    #: True if a page that is too small has the newest minutes of the range.
    is_newest_kept: bool = True

    def __str__(self) -> str:
        first, until = (("exclusive", "inclusive")[one] for one in (self.is_first_inclusive, self.is_until_inclusive))
        return f"the beginning of a page is {first}, its end {until}"


Role = Literal["first", "until"]


def read_query(request: Request, span: tuple[int, int], roles: Mapping[str, Role]) -> Query:
    """Return the times of a request about the range `span`. `roles` are those of the parameters, by their names."""
    query = Query()
    for name, value in _parameters(request.url, request.body):
        time = _time_near(value, span)
        if time is not None:
            role = roles.get(name) or _role_of(name, time, span)
            first, until = (query.first, query.first_ms), (query.until, query.until_ms)
            first, until = ((name, time.at_ms), until) if role == "first" else (first, (name, time.at_ms))
            query = Query(*first, *until, query.limit)
        elif _LIMIT.search(name) and str(value).isdecimal():
            query = replace(query, limit=int(value))
    return query


def _time_near(value: Any, span: tuple[int, int]) -> Time | None:
    start_ms, end_ms = span
    return read_time(value, (start_ms + end_ms) // 2, within_ms=(end_ms - start_ms) // 2 + _DAYS_MS)


def _role_of(name: str, time: Time, span: tuple[int, int]) -> Role:
    """Return the role of a parameter in the first request about a range: the end that it is nearer to."""
    start_ms, end_ms = span
    if end_ms - start_ms > 2 * MINUTE_MS:
        return "first" if abs(time.at_ms - start_ms) <= abs(time.at_ms - end_ms) else "until"
    return "until" if _UNTIL.search(name) else "first"  # too close to each other: go by the name


def learn_roles(recording: Recording) -> dict[str, Role]:
    """Return the roles of the parameters with times, by their names, as the longest ranges show them."""
    roles: dict[str, Role] = {}
    calls = sorted(history_calls(recording), key=lambda call: call.span[1] - call.span[0])
    for call in calls:
        for request in recording.requests_of(call)[:1]:
            for name, value in _parameters(request.url, request.body):
                if (time := _time_near(value, call.span)) is not None:
                    roles[name] = _role_of(name, time, call.span)
    return roles


def history_calls(recording: Recording) -> list[Call]:
    """Return the calls of `fetch_history`."""
    return [call for call in recording.select(Call) if call.method == "fetch_history" and call.start_ms is not None]


def _parameters(url: str, body: str) -> Iterator[tuple[str, Any]]:
    yield from parse_qsl(urlsplit(url).query)
    for path, value in list_values(parse_document(body) if body else None):
        if path:
            yield str(path[-1]), value


def units_in(request: Request, span: tuple[int, int]) -> set[str]:
    """Return the units of the times in a request."""
    times = (_time_near(value, span) for _, value in _parameters(request.url, request.body))
    return {time.unit for time in times if time is not None}


@dataclass(frozen=True, slots=True)
class Page:
    """A recorded page of minutes."""

    #: The call of `fetch_history` that requested the page.
    call: Call
    #: The times and the limit in the request.
    query: Query
    #: The path of the request.
    address: str
    #: The answer, parsed.
    document: Any
    #: The place of the list of rows in the document.
    path: Path
    #: The rows in the order of the answer.
    rows: tuple[Any, ...]
    #: Opening times of the rows, oldest first, UTC epoch milliseconds. Rows with closing times have those here until
    #: `with_opening_times`.
    times: tuple[int, ...]
    #: The unit of the times in the rows, in words, as in `Time.unit`.
    unit: str
    #: True if the answer begins with the newest row; False if it has only one.
    is_newest_first: bool
    #: How far the time in a row is after the opening time: a minute where rows have their closing times.
    after_open_ms: int = 0

    def with_opening_times(self, read: Collection[int] | None = None) -> "Page":
        """Return the page with opening times, if the minutes that the plugin read show that rows have closing times.

        Without `read`, rows are known to have closing times.
        """
        opening = tuple(at - MINUTE_MS for at in self.times)
        if read is not None and sum(at in read for at in opening) <= sum(at in read for at in self.times):
            return self
        return replace(self, times=opening, after_open_ms=MINUTE_MS)

    @property
    def is_newest_only(self) -> bool:
        """True if the request had no times, so that the page has the newest minutes."""
        return self.query.first_ms is None and self.query.until_ms is None


def _read_page(request: Request, call: Call, roles: Mapping[str, Role]) -> Page | None:
    """Return the page in an answer; None if it has no rows of minutes."""
    document, address = parse_document(request.answer), urlsplit(request.url).path
    start_ms, end_ms = call.span
    query = read_query(request, (start_ms, end_ms), roles)
    middle_ms, within_ms = (start_ms + end_ms) // 2, (end_ms - start_ms) // 2 + _DAYS_MS
    best: Page | None = None
    for path, rows in list_lists(document):
        times, unit = _opening_times(rows, middle_ms, within_ms)
        if times and (best is None or len(times) > len(best.times)):
            is_newest_first = len(times) > 1 and times[0] > times[-1]
            opened = tuple(sorted(times))
            best = Page(call, query, address, document, path, tuple(rows), opened, unit, is_newest_first)
    return best


def _opening_times(rows: Sequence[Any], near_ms: int, within_ms: int) -> tuple[list[int], str]:
    """Return the time that each row has at the same place, on the minute; none if there is no such place."""
    if not rows or not all(isinstance(row, list | dict) for row in rows):
        return [], ""
    for path, value in list_values(rows[0]):
        first = read_time(value, near_ms, within_ms)
        if first is None or first.at_ms % MINUTE_MS:
            continue
        times = [_time_at(row, path, near_ms, within_ms) for row in rows]
        if None not in times and len(set(times)) == len(times):
            return [one for one in times if one is not None], first.unit
    return [], ""


def _time_at(row: Any, path: Path, near_ms: int, within_ms: int) -> int | None:
    for key in path:
        try:
            row = row[key]
        except (LookupError, TypeError):
            return None
    found = read_time(row, near_ms, within_ms)
    return None if found is None or found.at_ms % MINUTE_MS else found.at_ms


def list_pages(recording: Recording) -> list[Page]:
    """Return the recorded pages of minutes."""
    roles = learn_roles(recording)
    requests = ((one, call) for call in history_calls(recording) for one in recording.requests_of(call))
    found = (_read_page(one, call, roles) for one, call in requests if one.status == 200)
    return [page for page in found if page is not None]


def learn_rule(pages: Iterable[Page], existing: Iterable[int]) -> PageRule:
    """Return the rule by which the exchange made recorded pages. `existing` are minutes that it is known to have."""
    pages = list(pages)
    known = {*existing, *(at for page in pages for at in page.times)}
    rule = PageRule()
    for page in pages:
        query, times = page.query, set(page.times)
        if query.until_ms in known and not query.until_ms % MINUTE_MS and max(times) >= query.until_ms - MINUTE_MS:
            rule = replace(rule, is_until_inclusive=query.until_ms in times)
        if query.first_ms in known and not query.first_ms % MINUTE_MS and min(times) <= query.first_ms + MINUTE_MS:
            rule = replace(rule, is_first_inclusive=query.first_ms in times)
    for page in pages:
        query, count = page.query, len(page.rows)
        if count < _FEW_ROWS or count % _ROUND:
            continue  # a market that is young, or that is seldom traded
        if query.first_ms is None or query.until_ms is None:
            rule = replace(rule, is_newest_kept=query.first_ms is None)
            is_cut = query.limit is not None and count + _FEW_ROWS <= query.limit
        else:
            lacks_old_ms, lacks_new_ms = page.times[0] - query.first_ms, query.until_ms - page.times[-1]
            is_cut = max(lacks_old_ms, lacks_new_ms) >= _FEW_ROWS * MINUTE_MS
            rule = replace(rule, is_newest_kept=lacks_old_ms > lacks_new_ms) if is_cut else rule
        if is_cut:
            rule = replace(rule, rows=min(rule.rows, count))
    return rule


@dataclass(slots=True)
class Script:
    """The behaviour of the scripted exchange."""

    #: The rule by which pages are made.
    rule: PageRule
    #: The exchange's time, UTC epoch milliseconds; the minute in progress is the newest of the market.
    now_ms: int
    #: The first minute of the market.
    listed_ms: int = 0
    #: Change the rows of a page, each with its minute, oldest first.
    change: Callable[[list[tuple[int, Any]]], list[tuple[int, Any]]] = lambda rows: rows
    #: Change the row of one minute.
    change_row: Callable[[int, Any], Any] = lambda open_ms, row: row
    #: Status and body of every answer; None: pages.
    refusal: tuple[int, str] | None = None
    #: True to answer with the same form, without a row.
    is_empty: bool = False


class ScriptedHttp:
    """The `candled.exchange.Http` of the scripted exchange."""

    def __init__(self, page: Page, script: Script, recording: Recording) -> None:
        self._page = page
        self._script = script
        self._others = recording.select(Request)
        self._roles = learn_roles(recording)
        #: The queries about minutes.
        self.asked: list[Query] = []
        #: The minutes whose rows were in the answers.
        self.served: set[int] = set()
        #: The range that the plugin is asked for.
        self.span: tuple[int, int] = (0, 0)

    async def get_json(
        self, url: str, params: Mapping[str, str] | None = None, *, weight: float = 1.0, budget: str = ""
    ) -> Any:
        """Return a page; see `candled.exchange.Http.get_json`."""
        return self._answer(Request(url=f"{url}?{urlencode(params)}" if params else url, status=200, answer=""))

    async def post_json(self, url: str, body: Any = None, *, weight: float = 1.0, budget: str = "") -> Any:
        """Return a page; see `candled.exchange.Http.post_json`."""
        text = "" if body is None else write_document(body)
        return self._answer(Request(method="POST", url=url, body=text, status=200, answer=""))

    async def fetch_text(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        weight: float = 1.0,
        budget: str = "",
    ) -> HttpAnswer:
        """Return a page as text; see `candled.exchange.Http.fetch_text`."""
        kind: Literal["GET", "POST"] = "POST" if method == "POST" else "GET"
        if self._script.refusal is not None and self._script.refusal[0] not in (418, 429):
            return HttpAnswer(self._script.refusal[0], {}, self._script.refusal[1])
        answer = self._answer(Request(method=kind, url=url, body=body or "", status=200, answer=""))
        return HttpAnswer(200, {}, write_document(answer))

    def find_proxy(self, url: str) -> str | None:
        """Return None: there are no connections."""
        return None

    def pause_requests(self, url: str, seconds: float) -> None:
        """Do nothing."""

    def _answer(self, request: Request) -> Any:
        if self._script.refusal is not None:
            return self._refuse(*self._script.refusal)
        query, page = read_query(request, self.span, self._roles), self._page
        has_times = query.first_ms is not None or query.until_ms is not None
        if not has_times and not (page.is_newest_only and urlsplit(request.url).path == page.address):
            return self._answer_other(request)
        self.asked.append(query)
        if len(self.asked) > _MOST_REQUESTS:
            raise ExchangeError(f"expected at most {_MOST_REQUESTS} requests for a range, got more: do they ever end?")
        return parse_document(self._write(self._minutes_of(query)))

    def _refuse(self, status: int, body: str) -> Any:
        if status in (418, 429):
            raise Unavailable(f"the scripted exchange answered {status}, too many requests")
        return read_answer("the scripted exchange", status, "text/html", body.encode())

    def _answer_other(self, request: Request) -> Any:
        """Return a recorded answer of another kind, for instance the list of markets."""
        for one in self._others:
            if urlsplit(one.url).path == urlsplit(request.url).path:
                return parse_document(one.answer)
        raise ExchangeError(f"the recording has no answer to {request.method} {urlsplit(request.url).path}")

    def _minutes_of(self, query: Query) -> list[int]:
        rule, script = self._script.rule, self._script
        first_ms = script.listed_ms if query.first_ms is None else -(-query.first_ms // MINUTE_MS) * MINUTE_MS
        if query.first_ms == first_ms and not rule.is_first_inclusive:
            first_ms += MINUTE_MS
        until_ms = script.now_ms if query.until_ms is None else query.until_ms
        newest_ms = MINUTE.floor(until_ms if rule.is_until_inclusive else until_ms - 1)
        newest_ms = min(newest_ms, MINUTE.floor(script.now_ms))
        most = min(rule.rows, query.limit or rule.rows)
        if query.first_ms is None or (query.until_ms is not None and rule.is_newest_kept):
            first_ms = max(first_ms, newest_ms - (most - 1) * MINUTE_MS)
        first_ms = max(first_ms, script.listed_ms)
        return list(range(first_ms, newest_ms + 1, MINUTE_MS))[:most]

    def _write(self, minutes: Sequence[int]) -> str:
        page = self._page
        first_ms = page.times[-1] if page.is_newest_first else page.times[0]
        form = TimedDocument(page.rows[0], first_ms + page.after_open_ms)
        given = [] if self._script.is_empty else minutes
        pairs = self._script.change(
            [(one, self._script.change_row(one, form.at(one + page.after_open_ms))) for one in given]
        )
        self.served.update(one for one, _ in pairs)
        rows = [row for _, row in pairs]
        return write_document(with_value(page.document, page.path, rows[::-1] if page.is_newest_first else rows))


def name_missing(missing: Sequence[int], span: tuple[int, int], asked: Sequence[Query], rule: PageRule) -> str:
    """Return the mistake that explains the minutes missing from a range."""
    start_ms, end_ms = span
    total = (end_ms - start_ms) // MINUTE_MS
    seen = f"{len(missing)} of {total} minutes are missing, the first at {iso_ms(missing[0])}"
    ends = [one for one in asked if one.until_ms in missing]
    if ends and not rule.is_until_inclusive:
        return (
            f"the end of a page is exclusive on this exchange: a page up to {ends[0].until}="
            f"{iso_ms(ends[0].until_ms or 0)} does not have that minute, but the plugin expects it ({seen})"
        )
    starts = [one for one in asked if one.first_ms in missing]
    if starts and not rule.is_first_inclusive:
        return (
            f"the beginning of a page is exclusive on this exchange: a page from {starts[0].first}="
            f"{iso_ms(starts[0].first_ms or 0)} does not have that minute, but the plugin expects it ({seen})"
        )
    if list(missing) == [start_ms] and rule.is_until_inclusive and asked and asked[0].until_ms == end_ms:
        return f"the end of a page is inclusive on this exchange, so that its oldest minute does not fit ({seen})"
    if not asked:
        return f"the plugin asks for nothing ({seen})"
    most = min(rule.rows, asked[0].limit or rule.rows)
    if len(missing) > 1 and len(missing) >= total - 1:
        return f"the plugin finds no minute: does it ask for times in another unit, or read them so? ({seen})"
    if total > most:
        kept = "newest" if rule.is_newest_kept else "oldest"
        return f"a page has the {kept} {most} rows, and the plugin does not ask for the others ({seen})"
    return f"a minute is missing where two pages meet, or at an end ({rule}; {seen})"
