"""The log on standard error: bounded, and protected against forged lines."""

import json
import logging
import re
from contextlib import nullcontext
from typing import Any

from candled.model import iso_ms
from candled.model.texts import SECRET_NAMES, printable

_MAX_LINE = 4000  # characters
_MAX_TRACEBACK_LINES = 60
_MAX_TEXTS = 20  # different ones of one place in the code, in a minute
_MAX_KEY = 300  # characters by which texts differ
_SECRET = re.compile(rf"([?&;#]{SECRET_NAMES}=)[^\s&;#\"']+", re.IGNORECASE)


class LineFormatter(logging.Formatter):
    """Writes each record as one line, even if its text contains line breaks. Lines of a traceback are indented.

    Control characters become escapes, and secrets in the query of an address become stars. Times are UTC.
    """

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time of a record, in UTC."""
        return iso_ms(int(record.created * 1000))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its traceback."""
        return _safe(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Return a traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """Return a stack."""
        return _indented(stack_info)


class JsonFormatter(LineFormatter):
    """Writes each record as a JSON object on one line; `process` names the process, if there are several."""

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        found = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _safe(record.getMessage()),
        }
        if self._process is not None:
            found["process"] = self._process
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)


class _Place:
    """The records of one place in the code, in one minute."""

    __slots__ = ("dropped", "first", "texts")

    def __init__(self, first: logging.LogRecord) -> None:
        self.first = first
        #: The number of records by their text, the text with the latest record last.
        self.texts: dict[str, int] = {}
        #: The number of records with other texts.
        self.dropped = 0

    def count(self, record: logging.LogRecord) -> bool:
        """Count a record; return True if it is the first one with its text."""
        text = _text_of(record)
        count = self.texts.pop(text, 0)
        if not count and len(self.texts) >= _MAX_TEXTS:
            self.dropped += 1
            return False
        self.texts[text] = count + 1
        return not count


class BoundedHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Limits the lines of each place in the code: a text is written once a minute, and at most 20 texts.

    The other lines are counted, and the numbers are written when the minute is over. Debug lines have no limit.
    """

    def __init__(self, format: str | LineFormatter) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(format) if isinstance(format, str) else format)
        self._minute = 0
        # the records of this minute by logger and line number
        self._places: dict[tuple[str, int], _Place] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        if record.levelno <= logging.DEBUG:
            super().emit(record)
            return
        self._begin_minute(record.created)
        key = record.name, record.lineno
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = _Place(record)
        if place.count(record):
            super().emit(record)

    def end_minute(self, now_s: float) -> None:
        """Report the counted lines if their minute is over, even if no further line comes. `now_s` is UTC."""
        with self.lock or nullcontext():
            self._begin_minute(now_s)

    def close(self) -> None:
        """Report the counted lines, and close the handler."""
        self._report_counts()
        super().close()

    def _begin_minute(self, now_s: float) -> None:
        if int(now_s // 60) != self._minute:
            self._report_counts()
            self._minute = int(now_s // 60)

    def _report_counts(self) -> None:
        """Write the counts of each place, the latest text last."""
        places, self._places = self._places, {}
        for place in places.values():
            if place.dropped:
                text = "left out %d lines of the last minute, similar to: %s"
                self._report(place.first, text, place.dropped, str(place.first.msg)[:100])
            for text, count in place.texts.items():
                if count > 1:
                    self._report(place.first, "%d times in the last minute: %s", count, text)

    def _report(self, first: logging.LogRecord, text: str, *arguments: object) -> None:
        super().emit(logging.LogRecord(first.name, first.levelno, first.pathname, first.lineno, text, arguments, None))


def _text_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()[:_MAX_KEY]
    except Exception:  # wrong arguments, which `emit` reports
        return str(record.msg)[:_MAX_KEY]


def _safe(line: str) -> str:
    return _SECRET.sub(r"\1***", printable(line, _MAX_LINE))


def _indented(text: str) -> str:
    lines = text.split("\n")
    left_out = len(lines) - _MAX_TRACEBACK_LINES
    if left_out > 0:
        half = _MAX_TRACEBACK_LINES // 2
        lines = [*lines[:half], f"… {left_out} lines …", *lines[-half:]]
    return "\n".join(f"    {_safe(line)}" for line in lines)
