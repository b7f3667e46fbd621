"""Every bundled exchange passes the conformance kit with its recordings, and claims no more than they show.

`python -m tests.plugins.test_conformance` prints the table for docs/reference/exchanges.md.
"""

import time
from functools import cache
from pathlib import Path

import pytest

from bench.frames import FORMS
from candled.evidence import CHECKS_WITHOUT, QUESTIONS, Evidence, Parity
from candled.testing.kit import CHECKS, Result, format_result, run_checks
from candled.testing.recording import Received, Recording, read_recording
from tests.bundled import PLUGINS
from tests.sources import ROOT, read

FOLDER = Path(__file__).parent
EXCHANGES = PLUGINS.exchanges
# `ccxt` stands for many exchanges, and `replay` for none: neither has frames of its own.
REAL = {name: kind for name, kind in EXCHANGES.items() if name not in ("ccxt", "replay")}
_DOCUMENTED = "answers in the form that the exchange documents"
_COLUMNS = ("exchange", "level", "markets", "live frames", "boundary", "REST", "closed minutes are marked")


@cache
def recordings() -> dict[str, dict[str, Recording]]:
    """The recordings of the bundled exchanges, by the exchange and the name of the file."""
    found: dict[str, dict[str, Recording]] = {name: {} for name in EXCHANGES}
    for path in sorted(FOLDER.rglob("*.jsonl*")):
        recording = read_recording(path)
        found[recording.header.exchange][path.name] = recording
    return found


#: The processor time of the kit, in seconds, by exchange.
spent_s: dict[str, float] = {}


@cache
def results(name: str) -> list[Result]:
    """The results of the kit."""
    started_s = time.process_time()
    found = list(run_checks(EXCHANGES[name], recordings()[name]))
    spent_s[name] = time.process_time() - started_s
    return found


@pytest.mark.parametrize("name", REAL)
def test_a_bundled_exchange_passes_every_check_that_it_has_no_reason_to_skip(name):
    assert [format_result(one) for one in results(name) if one.outcome == "failed"] == []
    assert len(results(name)) == len(CHECKS)


@pytest.mark.parametrize("name", REAL)
def test_the_kit_of_all_bundled_exchanges_takes_less_than_a_minute(name):
    assert len(results(name)) == len(CHECKS)
    assert spent_s[name] < 60 / len(REAL)  # each one's part


def test_the_cost_of_a_frame_is_measured_for_every_bundled_exchange():
    assert FORMS.keys() == REAL.keys()


@pytest.mark.parametrize("name", REAL)
def test_no_reason_is_kept_for_a_check_that_can_be_run(name):
    skipped = {one.check.name for one in results(name) if one.outcome == "skipped"}
    assert EXCHANGES[name].bypass_reasons.keys() <= skipped


def test_reasons_are_about_checks():
    names = {check.name for check in CHECKS}
    assert {name for _, checks in CHECKS_WITHOUT.values() for name in checks} <= names


def recorded(name: str) -> list[Recording]:
    """The recordings of an exchange that do not come from its documentation."""
    return [one for one in recordings()[name].values() if one.header.source != _DOCUMENTED]


@pytest.mark.parametrize("name", REAL)
def test_nothing_claims_more_than_its_files_show(name):
    evidence, folder = REAL[name].evidence, FOLDER / name.partition("-")[0] / "frames"
    frames = [frame for one in recorded(name) for frame in one.select(Received)]
    assert bool(frames) == (evidence.stream == "recorded")
    if evidence.boundary == "recorded":
        text = "\n".join(path.read_text("utf-8") for path in folder.glob("*.txt"))
        assert text, "a boundary is in a file of frames"
    if evidence.rest == "recorded":
        assert list(folder.glob("rest_*.json"))
    assert all((folder / file).is_file() for file in evidence.answers.values())
    assert evidence.parity is None, "no exchange can be reached from here"


def test_no_bundled_exchange_is_above_bronze():
    assert {name: kind.evidence.level for name, kind in EXCHANGES.items() if kind.evidence.level != "unproven"} == (
        dict.fromkeys(("binance", "bitget", "gate", "hyperliquid", "kraken", "kucoin", "okx"), "bronze")
    )


def test_the_levels_of_the_scale():
    answers = dict.fromkeys(QUESTIONS, "frames.txt")
    bronze = {"stream": "recorded", "rest": "recorded"}
    day = Parity(day="2026-11-29", minutes=1440, equal=1440)
    assert Evidence().level == "unproven"
    assert Evidence(stream="recorded", rest="documented", parity=day).level == "unproven"
    assert Evidence(**bronze, parity=day).level == "bronze"
    assert Evidence(**bronze, boundary="recorded").level == "bronze"
    assert Evidence(**bronze, boundary="documented", answers=answers).level == "bronze"
    assert Evidence(**bronze, boundary="recorded", answers={**answers, "limits": ""}).level == "bronze"
    assert Evidence(**bronze, boundary="recorded", answers=answers).level == "silver"
    assert Evidence(**bronze, boundary="recorded", answers=answers, parity=day).level == "gold"
    for minutes, equal in ((1439, 1439), (1440, 1439), (20_000, 19_997)):
        less = Parity(day="2026-11-29", minutes=minutes, equal=equal)
        assert Evidence(**bronze, boundary="recorded", answers=answers, parity=less).level == "silver"
    assert Parity(day="2026-11-29", minutes=20_000, equal=19_998).is_enough


def table() -> str:
    """The table of exchanges, in Markdown."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for name, kind in sorted(REAL.items()):
        one = kind.evidence
        mark = f"yes (`{one.closed_mark}`)" if one.closed_mark else "no"
        rows.append((f"`{name}`", one.level, one.markets, one.stream, one.boundary, one.rest, mark))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_page_has_the_table():
    assert table() in read(ROOT / "docs" / "reference" / "exchanges.md")


if __name__ == "__main__":
    print(table(), end="")
