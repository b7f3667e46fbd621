"""The request budgets of commands, which they share with the daemon of the same settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from candled.budget import LocalBudgets, MakeBudget, part_of
from candled.budget_file import BudgetFile
from candled.config import Config, budget_path
from candled.exchange import Clock

SHARE = 0.5  # part of a host's budget that a command may use; the rest is for live repairs of a daemon


@asynccontextmanager
async def request_budgets(config: Config, clock: Clock) -> AsyncIterator[MakeBudget]:
    """Yield budgets that a command may use half of, shared with daemons through Redis or a file.

    Raises:
        ConfigError: a file for TLS that `bus.url` names cannot be used.
    """
    path = budget_path(config)
    if not config.bus.url.startswith("memory:"):
        from candled.bus.factory import redis_budgets  # imports redis, which takes long

        names = {"default_exchange": config.exchanges[0].name, "prefix": config.bus.prefix}
        async with redis_budgets(config.bus.url, clock, **names) as shared:
            yield part_of(clock, SHARE, shared)
    elif path is not None:
        yield part_of(clock, SHARE, BudgetFile(path, clock).budget)
    else:
        yield part_of(clock, SHARE, LocalBudgets(clock).budget)
