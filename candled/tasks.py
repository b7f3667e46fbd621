"""Tasks that go on whatever happens, and that end when they are told to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from candled.exchange import Clock

logger = logging.getLogger(__name__)

_AGAIN_S = 0.5
_REST_S = 1.0


async def keep(work: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Do work that never ends by itself, and begin again where it failed in a way that nobody thought of."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("a task of the bus failed and begins again")
        await clock.sleep(_REST_S)


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks and wait until they have ended.

    Once is not always enough: redis-py may turn a cancellation that meets it while connecting into an error of its
    own, after which a loop that outlives errors goes on.
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
