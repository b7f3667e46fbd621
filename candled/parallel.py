"""The same work for many things, some at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_parallel(most: int, items: Iterable[T], work: Callable[[T], Awaitable[object]]) -> None:
    """Do `work` for every item, for at most `most` of them at a time. The first error ends all of it and is raised."""
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
