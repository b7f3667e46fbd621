"""The output of `candled verify`: a line per finding, as text or JSON, and the exit status."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from .compare import Difference
from .progress import show_progress


class Report:
    """Prints findings on standard output as they come; with `as_json`, each is a line of JSON."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json = as_json
        self._quiet = quiet or as_json
        self._unchecked = 0
        #: The number of differences, without the repaired ones.
        self.found_count = 0
        #: The number of repaired differences.
        self.repaired_count = 0

    def show_progress(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Draw a bar while the block runs; see `candled.tools.progress.show_progress`."""
        return show_progress(label, total, quiet=self._quiet)

    def add_differences(self, differences: Sequence[Difference], *, repaired: bool = False) -> None:
        """Report bars that differ, or that differed until they were repaired."""
        if repaired:
            self.repaired_count += len(differences)
        else:
            self.found_count += len(differences)
        for difference in differences:
            self.print_finding(
                f"{difference}{' (repaired)' if repaired else ''}", {**difference.as_plain(), "repaired": repaired}
            )

    def add_unchecked(self, what: str, why: object) -> None:
        """Report something that could not be checked."""
        self._unchecked += 1
        self.print_finding(f"{what}: not checked: {why}", {"unchecked": what, "reason": str(why)})

    def print_finding(self, text: str, plain: Mapping[str, Any]) -> None:
        """Print a finding, as text or as JSON."""
        print(json.dumps(plain) if self._as_json else text, flush=sys.stdout.isatty())

    @property
    def exit_status(self) -> int:
        """The exit status: 1 if something differs or could not be checked."""
        return 1 if self.found_count or self._unchecked else 0
