"""Reads the settings again while the daemon runs, and applies the changes that need no restart."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from candled.access.verifier import TokenVerifier
from candled.config import Config, make_exchanges, make_store
from candled.config.sections import MEMORY
from candled.daemon_threads import DaemonThreads
from candled.errors import ConfigError
from candled.exchange import Clock
from candled.reload import ReloadPlan, ReloadResult, plan_reload
from candled.service_manager import ServiceManager
from candled.tasks import TaskSet

logger = logging.getLogger(__name__)

_PROBLEM = "settings not reloaded: %s"


class Reloader:
    """Reloads the settings of one process, one reload at a time.

    `read` reads the settings and checks that they fit this process; it runs in a thread. `apply` applies a plan.
    """

    def __init__(
        self,
        running: Config,
        read: Callable[[], Config],
        apply: Callable[[ReloadPlan], Awaitable[None]],
        clock: Clock,
        manager: ServiceManager,
    ) -> None:
        self._running = running
        self._manager = manager
        self._read = read
        self._apply = apply
        self._clock = clock
        self._lock = asyncio.Lock()
        self._threads = DaemonThreads(1, "settings")
        self._tasks = TaskSet()
        # True while a requested reload has not begun
        self._is_requested = False

    def request(self) -> None:
        """Reload the settings soon, for a signal: the result is in the log."""
        if not self._is_requested:
            self._is_requested = True
            self._tasks.start(self.reload())

    async def reload(self) -> ReloadResult:
        """Read and check the settings, apply the changes, and log the result.

        Problems are logged and returned. The former settings then stay in force.
        """
        async with self._lock:
            self._is_requested = False
            self._manager.report_reload()
            try:
                loop = asyncio.get_running_loop()
                wanted = await loop.run_in_executor(self._threads, self._read_and_check)
                plan = plan_reload(self._running, wanted)
                if plan.problems:
                    raise ConfigError(plan.problems)
                await self._apply(plan)
            except ConfigError as error:
                for problem in error.problems:
                    logger.error(_PROBLEM, problem)
                return ReloadResult(problems=error.problems)
            except Exception as error:
                logger.exception(_PROBLEM, "an internal error")
                return ReloadResult(problems=(f"an internal error, see the log: {type(error).__name__}",))
            finally:
                self._manager.report_ready()
            self._running = plan.config
        if plan.live:
            logger.info("settings reloaded, changed: %s", ", ".join(plan.live))
        elif not plan.needs_restart:
            logger.info("settings reloaded, nothing has changed")
        if plan.needs_restart:
            logger.warning("settings that need a restart to change: %s", ", ".join(plan.needs_restart))
        return ReloadResult(applied=plan.live, needs_restart=plan.needs_restart)

    async def stop(self) -> None:
        """End a reload that is running. The settings that it has not applied yet stay as they are."""
        await self._tasks.cancel()
        self._threads.shutdown(wait=False)

    def _read_and_check(self) -> Config:
        config = self._read()
        check_parts(config, self._clock)
        return config


def check_parts(config: Config, clock: Clock) -> None:
    """Create the parts that check their own settings, without connecting to anything.

    Raises:
        ConfigError: some cannot be created: a line or more for each of them.
    """
    make_exchanges(config, clock)
    make_store(config)  # reads the address
    if config.access.needs_tokens:
        TokenVerifier(config.access, clock)
    if config.bus.url != MEMORY:
        from candled.bus.redis.address import RedisAddress
        from candled.bus.redis.connections import check_files

        check_files(RedisAddress.parse(config.bus.url))
