"""The progress of long commands."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(label: str, total: int | None, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Draw a bar on standard error while the block runs; yield a function that adds to the completed work.

    Where standard error is no terminal, or with `quiet`, nothing is drawn. Other lines appear above the bar, which
    disappears when the block ends. Without `total`, the bar shows no end and no remaining time.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    # Commands that draw nothing do not load rich.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f}" if total is None else "{task.completed:,.0f} of {task.total:,.0f}"),
        TimeElapsedColumn() if total is None else TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # output to a file or a pipe stays as it is
        refresh_per_second=5,
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
