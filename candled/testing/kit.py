"""The conformance kit: every check about a plugin and its recordings, with the reason why it matters to a chart."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from candled.exchange import Exchange

from .findings import CHECKS as RECORDING_CHECKS
from .findings import judge
from .frame_checks import (
    check_bad_rows,
    check_clock,
    check_closed_twice,
    check_cut_frame,
    check_disorder,
    check_duplicates,
    check_html_frame,
    check_late_version,
    check_other_symbols,
    check_refusal,
    check_silence,
    check_time_lies,
)
from .mistakes import judge_connection, judge_interval, judge_versions, judge_volumes
from .page_checks import (
    check_bad_rows_in_page,
    check_empty_success,
    check_html_success,
    check_listing_date,
    check_markets,
    check_overlapping_pages,
    check_pages,
    check_pages_are_read,
    check_partial_pages,
    check_refused_requests,
    check_renamed_market,
)
from .recording import Recording
from .stage import CheckFailed, NotShown, Stage

Outcome = Literal["passed", "failed", "skipped", "note"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check."""

    #: The property that the check is about, as a sentence.
    name: str
    #: The consequence of a failure for a chart.
    why: str
    #: Return details about a stage, or raise `CheckFailed` or `NotShown`.
    run: Callable[[Stage], str]


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a check."""

    #: The check that was run.
    check: Check
    #: The outcome; `note` for a finding that depends on the exchange, not on the plugin.
    outcome: Outcome
    #: The mistake, the reason for which the check was skipped, or details.
    detail: str = ""


class _Note(Exception):
    """A finding that depends on the exchange, not on the plugin."""


def _of_finding(name: str) -> Callable[[Stage], str]:
    def run(stage: Stage) -> str:
        finding = judge(name, stage.recording, stage.make_exchange(), stage.replay)
        if finding.is_right is None and name not in _ESSENTIAL:
            raise _Note(finding.detail)
        return _judge(finding.is_right, finding.detail)

    return run


def _judge(is_right: bool | None, detail: str) -> str:
    """Return the details of a finding.

    Raises:
        NotShown, CheckFailed: it is unknown, or wrong.
    """
    if is_right is None:
        raise NotShown(detail)
    if not is_right:
        raise CheckFailed(detail)
    return detail


def _interval(stage: Stage) -> str:
    return _judge(*judge_interval([page.times for page in stage.pages], sorted(stage.versions)))


def _connection(stage: Stage) -> str:
    return _judge(*judge_connection(stage.recording))


def _versions(stage: Stage) -> str:
    return _judge(*judge_versions(stage.versions))


def _volumes(stage: Stage) -> str:
    return _judge(*judge_volumes(stage.versions, stage.replay.minutes.get("after", {})))


# Findings that every plugin must have, or give a reason for not having. Others depend on the exchange or on the
# plugin's promises.
_ESSENTIAL = frozenset(
    {
        "the list of markets has the symbol",
        "the stream has candles of the symbol",
        "candles arrive in their minute",
        "REST has each minute of the stream",
        "the minutes of the stream are those of REST",
        "a page has only the minutes of its range",
    }
)
_REFUSAL = "a refusal names its symbol"

CHECKS = (
    *(Check(name, why, _of_finding(name)) for name, (_, why) in RECORDING_CHECKS.items()),
    Check("the connection stays open", "the chart stops until the next connection", _connection),
    Check("candles are of one minute", "every bar has the values of a longer time", _interval),
    Check("versions of a minute grow", "a bar shows a range and a volume that the minute never had", _versions),
    Check("volumes of the stream and of REST agree", "volumes are wrong by the factor of the price", _volumes),
    Check("frames may come twice", "a candle disappears after a reconnect", check_duplicates),
    Check("frames may come in any order", "a value is drawn in the wrong minute", check_disorder),
    Check("a silence ends", "the chart does not move after a quiet hour", check_silence),
    Check("a late last version is shown", "the close of a minute is not that of the exchange", check_late_version),
    Check("a wrong clock changes nothing", "candles move when the machine's clock is wrong", check_clock),
    Check("wrong times of sending change nothing", "a candle jumps to another minute", check_time_lies),
    Check("bad numbers are refused", "one bad row draws a spike to zero", check_bad_rows),
    Check("a part of a frame is an error", "a connection that breaks leaves a wrong candle", check_cut_frame),
    Check("HTML is an error", "the page of a proxy stops the stream", check_html_frame),
    Check("symbols are kept apart", "the chart of one market shows the prices of another", check_other_symbols),
    Check(_REFUSAL, "one unknown symbol stops all charts of a connection", check_refusal),
    Check("a closed minute may come twice", "a bot acts twice on one candle", check_closed_twice),
    Check("pages of minutes are read", "history is empty", check_pages_are_read),
    Check("every range is complete", "minutes are missing from history, always at the same places", check_pages),
    Check("pages may overlap", "a minute is drawn twice", check_overlapping_pages),
    Check("pages may be partial", "invented minutes hide a gap", check_partial_pages),
    Check("an empty answer is empty", "invented minutes hide a gap", check_empty_success),
    Check("history begins at the listing", "a chart of a new market does not load", check_listing_date),
    Check("a bad row costs one minute", "one bad row empties a page of the chart", check_bad_rows_in_page),
    Check("refused requests are repeated", "a gap that could be repaired stays", check_refused_requests),
    Check("HTML over REST is an error", "a maintenance page is taken for a quiet market", check_html_success),
    Check("the list of markets is followed", "a delisted market looks alive", check_markets),
    Check("a renamed market is followed", "a chart goes on with the history of another market", check_renamed_market),
)
"""Every check, in the order of the report: first those of recordings, then those of the scripted exchange."""


def run_checks(
    kind: type[Exchange], recordings: Mapping[str, Recording], settings: Iterable[str] = ()
) -> Iterator[Result]:
    """Yield the result of each check of a plugin with its recordings, by their names.

    A check passes if it passes with at least one recording, and does not fail with any. If no recording has the
    material for it, it fails, unless the plugin has a reason in `Exchange.bypass_reasons`.
    """
    with asyncio.Runner() as runner:
        stages = {name: Stage(kind, one, tuple(settings), runner) for name, one in recordings.items()}
        for check in CHECKS:
            yield run_check(check, kind, stages)


def run_check(check: Check, kind: type[Exchange], stages: Mapping[str, Stage]) -> Result:
    """Return the result of a check; see `run_checks`."""
    # a recording that has only a refusal is of no use to other checks
    useful = {name: stage for name, stage in stages.items() if check.name == _REFUSAL or not stage.is_refusal}
    results = {name: _run_with(check, stage) for name, stage in useful.items()}
    for outcome in ("failed", "passed", "note"):
        found = {name: one for name, one in results.items() if one.outcome == outcome}
        if found:
            names = found if outcome == "failed" and len(stages) > 1 else ()
            details = [f"{name}: {one.detail}" if name in names else one.detail for name, one in found.items()]
            return Result(check, outcome, "; ".join(dict.fromkeys(details)))
    if reason := kind.bypass_reasons.get(check.name):
        return Result(check, "skipped", reason)
    missing = next(iter({one.detail for one in results.values()}), "there is no recording")
    return Result(
        check,
        "failed",
        f"cannot be run: {missing}. Record it, or give the reason in bypass_reasons[{check.name!r}] of the plugin",
    )


def _run_with(check: Check, stage: Stage) -> Result:
    try:
        return Result(check, "passed", check.run(stage))
    except CheckFailed as failure:
        return Result(check, "failed", str(failure))
    except _Note as note:
        return Result(check, "note", str(note))
    except NotShown as missing:
        return Result(check, "skipped", str(missing))


def format_result(result: Result) -> str:
    """Return a line of the report; that of a failure says why it matters."""
    mark = "FAILED" if result.outcome == "failed" else result.outcome
    line = f"{mark:<8}{result.check.name}" + (f": {result.detail}" if result.detail else "")
    return f"{line}\n        {result.check.why}" if result.outcome == "failed" else line
