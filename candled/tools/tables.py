"""Rows of results: a table on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Sequence


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]) -> None:
    """Print `rows` as a table if standard output is a terminal, else `lines`, which have the same facts."""
    if not sys.stdout.isatty():
        print("".join(f"{line}\n" for line in lines), end="")
    elif rows:
        from rich import box  # commands that draw nothing do not load it
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headings, box=box.SIMPLE)
        for row in rows:
            table.add_row(*map(Text, row))  # a cell is no markup
        Console(highlight=False).print(table)
