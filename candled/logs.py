"""The log on standard error: bounded, and protected against forged lines."""

import logging
import re
from contextlib import nullcontext
from types import TracebackType

from candled.model.texts import SECRET_NAMES, printable

_MAX_LINE = 4000  # characters
_MAX_TRACEBACK_LINES = 60
_MAX_LINES = 60  # of one place in the code, in a minute
_SECRET = re.compile(rf"([?&;#]{SECRET_NAMES}=)[^\s&;#\"']+", re.IGNORECASE)


class LineFormatter(logging.Formatter):
    """Writes each record as one line, even if its text contains line breaks. Lines of a traceback are indented.

    Control characters become escapes, and secrets in the query of an address become stars.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its traceback."""
        return _safe(super().formatMessage(record))

    def formatException(
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """Return a traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """Return a stack."""
        return _indented(stack_info)


class BoundedHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes at most 60 lines a minute from one place in the code, and counts the others.

    Their number is written with the first line of a later minute. Debug lines are not counted.
    """

    def __init__(self, format: str) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(format))
        self._minute = 0
        #: The records of this minute by logger and line number: their number, and the first one.
        self._counts: dict[tuple[str, int], tuple[int, logging.LogRecord]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        if record.levelno <= logging.DEBUG:
            super().emit(record)
            return
        self._begin_minute(record.created)
        place = record.name, record.lineno
        count, first = self._counts.get(place, (0, record))
        self._counts[place] = count + 1, first
        if count < _MAX_LINES:
            super().emit(record)

    def end_minute(self, now_s: float) -> None:
        """Report the lines that were left out, if their minute is over: no line may follow. `now_s` is UTC."""
        with self.lock or nullcontext():
            self._begin_minute(now_s)

    def close(self) -> None:
        """Report the lines that were left out, and close the handler."""
        self._report_dropped()
        super().close()

    def _begin_minute(self, now_s: float) -> None:
        if int(now_s // 60) != self._minute:
            self._report_dropped()
            self._minute = int(now_s // 60)

    def _report_dropped(self) -> None:
        counts, self._counts = self._counts, {}
        for (name, number), (count, first) in counts.items():
            if count > _MAX_LINES:
                text = "left out %d lines of the last minute, similar to: %s"
                arguments = count - _MAX_LINES, str(first.msg)[:100]
                super().emit(logging.LogRecord(name, first.levelno, first.pathname, number, text, arguments, None))


def _safe(line: str) -> str:
    return _SECRET.sub(r"\1***", printable(line, _MAX_LINE))


def _indented(text: str) -> str:
    lines = text.split("\n")
    left_out = len(lines) - _MAX_TRACEBACK_LINES
    if left_out > 0:
        half = _MAX_TRACEBACK_LINES // 2
        lines = [*lines[:half], f"… {left_out} lines …", *lines[-half:]]
    return "\n".join(f"    {_safe(line)}" for line in lines)
