"""Deletion of old minutes from the file, in steps that leave the writer free."""

import logging
from collections.abc import Iterator

from candled.model import DAY_MS, WEEK

from . import statements as sql
from .file import DatabaseFile

logger = logging.getLogger(__name__)

_STEP_MS = DAY_MS  # the minutes of a market that one transaction deletes: about 10 ms
_VACUUM_PAGES = 500  # 2 MB a step


def drop_minutes(file: DatabaseFile, before_ms: int) -> Iterator[None]:
    """Delete the minutes of all weeks that end by `before_ms` (UTC epoch milliseconds), step by step.

    No bar loses a part of its minutes, and longer bars stay. From the first step on, the store ignores new rows of
    these weeks. If the steps are not finished, the next call continues. The last steps return free pages to the file
    system, if the file was created with `auto_vacuum`.
    """
    before_ms = WEEK.floor(before_ms)
    if before_ms <= 0:
        return
    with file.begin_transaction() as connection:
        connection.execute(sql.SET_KEPT_FROM, (before_ms,))
    deleted = 0
    for (market_id,) in file.fetch_rows(sql.MARKET_IDS):
        while (oldest_ms := file.fetch_rows(sql.OLDEST_MINUTE, market_id)[0][0]) is not None and oldest_ms < before_ms:
            with file.begin_transaction() as connection:
                end_ms = min(before_ms, oldest_ms + _STEP_MS)
                deleted += connection.execute(sql.DELETE_MINUTES, (market_id, end_ms)).rowcount
            yield
    if not deleted:
        return
    logger.info("dropped %s minutes", deleted)
    while file.fetch_rows("PRAGMA auto_vacuum")[0][0] and file.fetch_rows("PRAGMA freelist_count")[0][0]:
        with file.errors_translated():  # `execute` would free one page and end the statement
            file.thread_connection().executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
        yield
