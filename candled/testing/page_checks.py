"""Checks of a plugin's requests against a scripted exchange."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from candled.errors import CandledError, ExchangeError, Unavailable
from candled.exchange import InvalidRow
from candled.ingest.rows import sift
from candled.model import MINUTE, MINUTE_MS, Candle, Market, Range, Symbol

from .documents import Path, list_values, parse_document, with_value, write_document
from .recording import Call, Request
from .replayed import RecordedHttp
from .scripted_pages import Script, ScriptedHttp, history_calls, name_missing, units_in
from .stage import CheckFailed, NotShown, Stage, require

_HTML = "<html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"
_SHORT = 10  # minutes
_NEW_NAME = "RENAMEDCOIN"
_BAD_ROWS: tuple[Any, ...] = (None, [], {}, "x", 0, [None] * 12, ["x"] * 12)


def _spans(stage: Stage) -> Iterator[tuple[int, int]]:
    """Yield ranges, up to the forming minute and older: of one minute, around the size of a page, and the longest."""
    most = stage.kind.max_history_minutes
    rows = min(stage.rule.rows, stage.page.query.limit or most, most)
    counts = {1, 2, 61, rows - 1, rows, rows + 1, most - 1, most} & set(range(1, most + 1))
    end_ms = MINUTE.floor(stage.now_ms) + MINUTE_MS
    for count in sorted(counts, key=lambda count: (count < _SHORT, count)):  # long ranges show more
        yield end_ms - count * MINUTE_MS, end_ms
        past_ms = end_ms - 200 * MINUTE_MS
        yield past_ms - count * MINUTE_MS, past_ms


def _fetch(stage: Stage, script: Script, start_ms: int, end_ms: int) -> tuple[list[Any], Any]:
    """Fetch a range. An exception is a failure.

    Raises:
        CheckFailed: the plugin raises an exception.
    """
    try:
        return stage.fetch(script, start_ms, end_ms)
    except Exception as error:
        count = (end_ms - start_ms) // MINUTE_MS
        raise CheckFailed(f"fetch_history of {count} minutes raises {error!r}") from error


def _times(rows: Iterable[Any], span: tuple[int, int]) -> list[int]:
    return [candle.open_ms for candle in sift(rows, Range(*span)).candles]


def check_pages_are_read(stage: Stage) -> str:
    """Require that the plugin reads at least one minute of each recorded page that has minutes of its range."""
    for page in stage.pages:
        start_ms, end_ms = page.call.span
        inside = [at for at in page.times if start_ms <= at < end_ms]
        read = stage.replay.minutes.get(page.call.phase, {})
        require(
            not inside or any(at in read for at in inside),
            f"a page has {len(inside)} minutes of the range, with times in {page.unit}, and the plugin reads none of "
            "them: does it read them in another unit?",
        )
    empty = [call for call in history_calls(stage.recording) if not any(page.call is call for page in stage.pages)]
    units = {unit for call in empty for one in stage.recording.requests_of(call) for unit in units_in(one, call.span)}
    known = {form.unit for _, form in stage.form.times} if empty else set()
    require(
        not empty,
        f"{len(empty)} answers to fetch_history have no minutes. The request has times in {' and '.join(sorted(units))}"
        f", the frames in {' and '.join(sorted(known))}: does the exchange expect another unit?",
    )
    return f"{len(stage.pages)} pages"


def check_pages(stage: Stage) -> str:
    """Fetch ranges of many lengths: every minute must be found, by the rule that the recorded pages show."""
    count = 0
    for span in _spans(stage):
        rows, http = _fetch(stage, stage.script(), *span)
        expected = [at for at in range(*span, MINUTE_MS) if at <= stage.now_ms]
        found = set(_times(rows, span))
        is_forming_optional = expected[-1] + MINUTE_MS > stage.now_ms
        missing = [at for at in expected[: -1 if is_forming_optional else None] if at not in found]
        if missing:
            raise CheckFailed(name_missing(missing, span, http.asked, stage.rule))
        count += 1
    return f"{count} ranges; {stage.rule}"


def check_overlapping_pages(stage: Stage) -> str:
    """Return each row twice, and rows outside of the range: a minute must be found once, and none outside."""
    span = _recent(stage, 30)
    for change in (lambda rows: [row for row in rows for _ in range(2)], lambda rows: rows + rows[:1]):
        rows, _ = _fetch(stage, stage.script(change=change), *span)
        once, _ = _fetch(stage, stage.script(), *span)
        require(set(_times(rows, span)) >= set(_times(once, span)), "minutes are lost from a page with rows twice")
    outside = [row for row in rows if isinstance(row, Candle) and not span[0] <= row.open_ms < span[1]]
    require(not outside, f"fetch_history returns a minute outside of its range: {outside[:1]}")
    return "rows twice"


def _recent(stage: Stage, count: int) -> tuple[int, int]:
    """Return a range in the near past.

    Raises:
        NotShown: no page was recorded.
    """
    assert stage.page  # else NotShown
    end_ms = MINUTE.floor(stage.now_ms) - 10 * MINUTE_MS
    return end_ms - min(count, stage.kind.max_history_minutes) * MINUTE_MS, end_ms


def check_partial_pages(stage: Stage) -> str:
    """Return half of each page: the other minutes may be missing, but none may be invented, and requests must end."""
    span = _recent(stage, stage.kind.max_history_minutes)
    halves: tuple[Callable[[list[Any]], list[Any]], ...] = (
        lambda rows: rows[len(rows) // 2 :],
        lambda rows: rows[: len(rows) // 2],
    )
    for half in halves:
        rows, http, _ = _fetch_or_refuse(stage, stage.script(change=half), span)
        _require_served(rows, http, span)
    return "the older and the newer half"


def _require_served(rows: Iterable[Any], http: ScriptedHttp | None, span: tuple[int, int]) -> None:
    extra = [at for at in _times(rows, span) if http is None or at not in http.served]
    require(not extra, f"{len(extra)} minutes are invented that no answer has")


def _fetch_or_refuse(stage: Stage, script: Script, span: tuple[int, int]) -> tuple[list[Any], ScriptedHttp | None, str]:
    """Return the rows and the requests, or the error if the plugin raised one of those that are allowed.

    Raises:
        CheckFailed: it raised another exception.
    """
    try:
        return *stage.fetch(script, *span), ""
    except CandledError as error:
        require("do they ever end" not in str(error), str(error))
        return [], None, type(error).__name__
    except Exception as error:
        raise CheckFailed(f"the plugin raises {error!r} instead of an ExchangeError") from error


def check_empty_success(stage: Stage) -> str:
    """Answer with success and no row: no minute may be invented, and requests must end."""
    rows, _, error = _fetch_or_refuse(stage, stage.script(is_empty=True), _recent(stage, 30))
    require(not rows, f"an answer without rows is read as {len(rows)} minutes")
    return error or "no minutes"


def check_listing_date(stage: Stage) -> str:
    """Ask for minutes before the market was listed: those after it must be found, and none before."""
    span = _recent(stage, 40)
    listed_ms = span[1] - 10 * MINUTE_MS
    rows, http = _fetch(stage, stage.script(listed_ms=listed_ms), *span)
    found, expected = _times(rows, span), list(range(listed_ms, span[1], MINUTE_MS))
    missing = [at for at in expected if at not in found]
    _require_served(rows, http, span)
    if missing:
        raise CheckFailed(name_missing(missing, span, http.asked, stage.rule))
    rows, later, _ = _fetch_or_refuse(stage, stage.script(listed_ms=span[1] + 50 * MINUTE_MS), span)
    _require_served(rows, later, span)
    return "ten minutes after the listing, and before it"


def check_bad_rows_in_page(stage: Stage) -> str:
    """Spoil one row of a page: it must be an `InvalidRow`, and the other rows must be used."""
    span = _recent(stage, 20)
    lost_ms = span[0] + 7 * MINUTE_MS
    changes: list[Callable[[Any], Any]] = [lambda _, bad=bad: bad for bad in _BAD_ROWS]  # type: ignore[misc]
    changes += _unreadable(stage)
    right, _ = _fetch(stage, stage.script(), *span)
    others = [at for at in _times(right, span) if at != lost_ms]
    for change in changes:
        script = stage.script(change_row=lambda at, row, change=change: change(row) if at == lost_ms else row)
        rows, _ = _fetch(stage, script, *span)
        found, bad = _times(rows, span), str(change(stage.page.rows[0]))[:80]
        missing = [at for at in others if at not in found]
        require(not missing, f"the bad row {bad} costs {len(missing)} good ones")
        require(lost_ms not in found, f"the bad row {bad} is read as a candle")
        require(any(isinstance(row, InvalidRow) for row in rows), f"the bad row {bad} leaves no InvalidRow")
    return f"{len(changes)} kinds of bad rows"


def _unreadable(stage: Stage) -> Iterator[Callable[[Any], Any]]:
    """Yield changes of a row, each spoiling one value that the plugin needs."""
    span = _recent(stage, 20)
    for path, value in list_values(stage.page.rows[0]):
        if isinstance(value, bool) or value is None:
            continue

        def change(row: Any, path: Path = path) -> Any:
            return with_value(row, path, "x")

        rows, _, _ = _fetch_or_refuse(stage, stage.script(change_row=lambda _, row, change=change: change(row)), span)
        if not _times(rows, span):
            yield change


def check_refused_requests(stage: Stage) -> str:
    """Answer 429, 418 and 503 with a page of HTML: the plugin must pass on `Unavailable`, and invent no empty range."""
    span = _recent(stage, 30)
    for status in (429, 418, 503):
        try:
            rows, _ = stage.fetch(stage.script(refusal=(status, _HTML)), *span)
        except Unavailable:
            continue
        except Exception as error:
            raise CheckFailed(
                f"the plugin raises {error!r} for status {status}, instead of passing on Unavailable: "
                "the daemon would not ask again soon"
            ) from error
        raise CheckFailed(
            f"status {status} is read as {len(rows)} rows: the daemon would believe that the exchange has no others"
        )
    return "429, 418 and 503"


def check_html_success(stage: Stage) -> str:
    """Answer 200 with a page of HTML, and 404: the plugin must raise an error."""
    span = _recent(stage, 30)
    for status in (200, 404):
        try:
            rows, _ = stage.fetch(stage.script(refusal=(status, _HTML)), *span)
        except (ExchangeError, Unavailable):
            continue
        except Exception as error:
            raise CheckFailed(f"the plugin raises {error!r} for a page of HTML, instead of ExchangeError") from error
        raise CheckFailed(f"a page of HTML with status {status} is read as {len(rows)} rows")
    return "200 and 404"


def check_markets(stage: Stage) -> str:
    """Change the list of markets: a delisted market must be absent or not trade, and a bad entry must be an error."""
    symbol, read = stage.recording.symbol, _market_reader(stage)
    for name, change in (
        ("an empty object", lambda _: {}),
        ("null", lambda _: None),
        ("entries of text", lambda _: ["x"]),
    ):
        require(not read(change), f"markets are invented for {name} instead of the list")
    listed = read(lambda document: document)
    require(any(one.symbol == symbol for one in listed), f"the list of markets does not have {symbol}")
    without = read(lambda document: _change_entries(document, symbol, lambda _: None))
    require(not any(one.symbol == symbol for one in without), f"{symbol} is listed although the exchange removed it")
    return f"{len(listed)} markets, and {symbol} removed"


def check_renamed_market(stage: Stage) -> str:
    """Rename the market in the list: it must have its new symbol, and no market may get the history of another one."""
    symbol, read = stage.recording.symbol, _market_reader(stage)
    new = symbol._replace(base=_NEW_NAME)
    names = {symbol.base: _NEW_NAME, symbol.base.lower(): _NEW_NAME.lower()}
    was_renamed = False

    def rename(entry: Any) -> Any:
        nonlocal was_renamed
        was_renamed = True
        return _rename_texts(entry, names)

    listed = read(lambda document: document)
    renamed = read(lambda document: _change_entries(document, symbol, rename))
    if not was_renamed:
        raise NotShown(f"no entry of the list has both coins of {symbol}")
    require(not any(one.symbol == symbol for one in renamed), f"{symbol} is listed although the exchange renamed it")
    require(any(one.symbol == new for one in renamed), f"{symbol} was renamed to {new}, which is not listed")
    for markets in (listed, renamed):
        _require_former(markets)
    count = sum(one.former is not None for one in listed)
    return f"{symbol} renamed; {count} of {len(listed)} markets have a former symbol"


def _require_former(markets: Iterable[Market]) -> None:
    """Check that no former symbol of a market is traded, or is the former symbol of another market too."""
    traded = {one.symbol for one in markets if one.status != "delisted"}
    heirs: dict[Symbol, Symbol] = {}
    for one in markets:
        if one.former is None:
            continue
        require(one.former not in traded, f"{one.symbol} has the former symbol {one.former}, which is traded")
        other = heirs.setdefault(one.former, one.symbol)
        require(other == one.symbol, f"both {other} and {one.symbol} have the former symbol {one.former}")


def _market_reader(stage: Stage) -> Callable[[Callable[[Any], Any]], list[Market]]:
    """Return a function that reads a changed copy of the recorded list. It returns no markets if that is an error.

    Raises:
        NotShown: no list was recorded.
    """
    recording = stage.recording
    calls = [call for call in recording.select(Call) if call.method == "fetch_markets" and recording.requests_of(call)]
    if not calls or stage.replay.markets is None:
        raise NotShown("no list of markets was recorded")
    requests = recording.requests_of(calls[0])

    def read(change: Callable[[Any], Any]) -> list[Market]:
        changed = [_changed(one, change) for one in requests]
        try:
            return list(stage.runner.run(stage.make_exchange().fetch_markets(RecordedHttp(changed))))
        except CandledError:
            return []
        except Exception as error:
            raise CheckFailed(f"fetch_markets raises {error!r} instead of ExchangeError") from error

    return read


def _changed(request: Request, change: Callable[[Any], Any]) -> Request:
    return msgspec.structs.replace(request, answer=write_document(change(parse_document(request.answer))))


def _change_entries(document: Any, symbol: Symbol, change: Callable[[Any], Any]) -> Any:
    """Return a list of markets in which the entries that name both coins of a symbol are changed; None removes one."""
    if isinstance(document, dict):
        return {key: _change_entries(one, symbol, change) for key, one in document.items()}
    if not isinstance(document, list):
        return document
    changed = [change(one) if _names_symbol(one, symbol) else _change_entries(one, symbol, change) for one in document]
    return [new for new, old in zip(changed, document, strict=True) if new is not None or old is None]


def _names_symbol(entry: Any, symbol: Symbol) -> bool:
    if not isinstance(entry, dict | list):
        return False
    texts = "\0".join(str(value) for _, value in list_values(entry)).upper()
    keys = "\0".join(map(str, entry)).upper() if isinstance(entry, dict) else ""
    return symbol.base in texts + keys and symbol.quote in texts + keys


def _rename_texts(document: Any, names: Mapping[str, str]) -> Any:
    """Return a document with names replaced in its keys and texts."""
    if isinstance(document, str):
        for old, new in names.items():
            document = document.replace(old, new)
    elif isinstance(document, list):
        return [_rename_texts(one, names) for one in document]
    elif isinstance(document, dict):
        return {_rename_texts(key, names): _rename_texts(one, names) for key, one in document.items()}
    return document
