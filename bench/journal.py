"""How fast the journal takes rows and returns them, durably. Ratios are against the same bytes in a plain file, synced.

    python -m bench.journal [directory]

The directory decides which disk is measured; without it, a temporary one is used.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.store_sqlite import MARKET, Row, candle, seconds
from candled.store.journal import Journal

PAGE_ROWS = 5_000
PAGES = 60
BYTES_A_ROW = 130


def plain(path: Path, pages: Sequence[Sequence[Row]]) -> float:
    """Seconds to append as many bytes to a file, synced after each page."""
    with path.open("ab", buffering=0) as file:

        def append() -> None:
            for page in pages:
                file.write(b"x" * BYTES_A_ROW * len(page))
                os.fsync(file.fileno())

        return seconds(append)


def measure(directory: Path, name: str, pages: Sequence[Sequence[Row]]) -> None:
    """Write the pages and read them back."""
    rows = sum(map(len, pages))
    base = plain(directory / f"plain-{len(pages[0])}", pages)
    journal = Journal(directory / f"journal-{len(pages[0])}")
    journal.open()
    took = seconds(lambda: [journal.append_rows(page) for page in pages])
    assert journal.row_count == rows
    size = journal.describe()["bytes"]

    def drain() -> None:
        while journal.next_rows(PAGE_ROWS):
            journal.mark_done()

    back = seconds(drain)
    journal.close()
    print(
        f"{name}: {rows / took:,.0f} rows/s, {took / len(pages) * 1000:.1f} ms a page, {size / rows:.0f} bytes a row; "
        f"plain {rows / base:,.0f} rows/s, ratio {base / took:.2f}; back {rows / back:,.0f} rows/s"
    )


def main(directory: Path) -> None:
    """Measure and print."""
    history = [(MARKET, candle(at)) for at in range(PAGES * PAGE_ROWS)]
    measure(directory, "pages of 5,000", [history[at : at + PAGE_ROWS] for at in range(0, len(history), PAGE_ROWS)])
    measure(directory, "one row at a time", [[row] for row in history[:500]])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        main(Path(name))
