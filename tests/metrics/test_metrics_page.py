"""docs/reference/metrics.md has every metric with its type, labels and meaning, and no other.

`python -m tests.metrics.test_metrics_page` prints the tables of the page.
"""

import re
from collections.abc import Sequence

import pytest

from candled.metrics.families import ALL, BUS, INGEST, PER_SYMBOL, PREFIX, PROCESS, SERVE, STORE, Family
from tests.sources import ROOT, read

PAGE = ROOT / "docs" / "reference" / "metrics.md"
TABLES = {
    "The process": PROCESS,
    "Exchanges": INGEST,
    "The store": STORE,
    "The bus": BUS,
    "Clients": SERVE,
    "Series of every symbol": PER_SYMBOL,
}


def table(families: Sequence[Family]) -> str:
    """Return the table of some metrics in Markdown."""
    rows = [
        f"| `{PREFIX}{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.meaning} |"
        for one in families
    ]
    return "\n".join(["| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows]).replace(
        "|  |", "| |"
    )


def test_every_family_is_in_a_table():
    assert sorted(one.name for families in TABLES.values() for one in families) == sorted(one.name for one in ALL)
    assert len({one.name for one in ALL}) == len(ALL)


@pytest.mark.parametrize("title", TABLES)
def test_the_tables_of_the_page_are_those_of_the_program(title):
    section = re.split(r"^## ", read(PAGE).split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    assert rows == table(TABLES[title]), "run `python -m tests.metrics.test_metrics_page` and paste the tables"


def test_the_page_names_no_other_metric():
    named = set(re.findall(rf"\b{PREFIX}([a-z_]+)", read(PAGE)))
    suffixes = {
        f"{one.name}{suffix}" for one in ALL if one.kind == "histogram" for suffix in ("_bucket", "_count", "_sum")
    }
    assert named - {one.name for one in ALL} - suffixes == set()


if __name__ == "__main__":
    for title, families in TABLES.items():
        print(f"## {title}\n\n{table(families)}\n")
