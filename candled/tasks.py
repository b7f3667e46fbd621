"""Tasks that restart after errors, and that end reliably when cancelled."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from candled.exchange import Clock

logger = logging.getLogger(__name__)

_AGAIN_S = 0.5
_REST_S = 1.0


async def keep(work: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Run work that never ends by itself, and restart it after an unexpected error."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("a task of the bus failed; starting again")
        await clock.sleep(_REST_S)


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks and wait until they have ended.

    One cancellation is not always enough: redis-py may turn a cancellation during connecting into an error of its own,
    and a loop that survives errors then continues.
    """
    all_ = set(tasks)
    pending = all_
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
    for task in all_:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the bus failed", exc_info=error)
