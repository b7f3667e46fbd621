"""Concurrent work on many items, with a limit."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_parallel(most: int, items: Iterable[T], work: Callable[[T], Awaitable[object]]) -> None:
    """Run `work` for every item, at most `most` at a time. The first error cancels all work and is raised."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    workers = [asyncio.ensure_future(worker()) for _ in range(most)]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
