"""What `candled verify` prints: a line per finding, for people or as JSON, and the exit status that follows."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .compare import Difference
from .progress import Progress


class Report:
    """Findings go to standard output as they come, with `as_json` as one JSON object a line."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json = as_json
        self._shown = False if quiet or as_json else None
        self._progress: Progress | None = None
        self._differences: Counter[str] = Counter()
        self._repaired = 0
        self._unchecked = 0

    def progress(self, label: str, total: int | None) -> Progress:
        """A progress line that makes way for findings."""
        self._progress = Progress(label, total, enabled=self._shown)
        return self._progress

    def differ(self, differences: Sequence[Difference], *, repaired: bool = False) -> None:
        """Report bars that differ, or did until now."""
        for difference in differences:
            if repaired:
                self._repaired += 1
            else:
                self._differences[difference.check] += 1
            self.say(
                f"{difference}{' (repaired)' if repaired else ''}", {**difference.as_plain(), "repaired": repaired}
            )

    def unchecked(self, what: str, why: object) -> None:
        """Report something that could not be checked."""
        self._unchecked += 1
        self.say(f"{what}: not checked: {why}", {"unchecked": what, "reason": str(why)})

    def say(self, text: str, plain: Mapping[str, Any]) -> None:
        """Print a finding, in one of its two forms."""
        if self._progress is not None:
            self._progress.clear()
        print(json.dumps(plain) if self._as_json else text, flush=sys.stdout.isatty())

    @property
    def found(self) -> int:
        """How many differences there are, the repaired ones left out."""
        return self._differences.total()

    @property
    def repaired(self) -> int:
        """How many differences there were and are no more."""
        return self._repaired

    @property
    def status(self) -> int:
        """The exit status: 1 where something differs or could not be checked."""
        return 1 if self.found or self._unchecked else 0
