"""Request budgets that the processes of one machine share without Redis: in a file next to the store."""

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from candled.budget import LocalBudget
from candled.exchange import Clock
from candled.token_bucket import MOST_CLOSED_S, BucketState, TokenBucket

logger = logging.getLogger(__name__)

_SHARE = 0.5  # of a budget while the file cannot be used: another process may use the same budget
_BUSY_S = 0.02  # between two attempts to lock the file
_ATTEMPTS = 25  # attempts to lock the file; if all fail, the process that has locked it may be suspended
_LARGEST = 64 * 1024
_MOST_WAIT_S = 1.0  # while a host is closed, the file is read again after this time


class BudgetFile:
    """The budgets of all hosts in one file, which is locked briefly while it is read and written.

    Its times are on the wall clock, which is the same for all processes. The contents need not be valid: an unreadable
    file counts as empty. If the clock is set, no host stays closed for more than an hour.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._budgets: dict[str, SharedBudget] = {}
        self._is_well = True

    def budget(self, host: str, rate: float) -> "SharedBudget":
        """Return the budget of a host. Of several rates in this process, the lowest applies."""
        found = self._budgets.get(host)
        if found is None:
            found = self._budgets[host] = SharedBudget(self, host, rate, self._clock)
        found.limit(rate)
        return found

    @contextmanager
    def bucket(self, host: str, rate: float) -> Iterator[TokenBucket]:
        """Yield the current bucket of a host, which all processes share. Changes within the block are saved.

        Raises:
            BlockingIOError: another process has just locked the file.
            OSError: the file cannot be used.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            states = _read(descriptor)
            now = self._clock.now_ms() / 1000
            known = states.get(host)
            bucket = TokenBucket(rate) if known is None else TokenBucket.restored(rate, known, now)
            yield bucket
            states[host] = bucket.state
            _write(descriptor, {name: one for name, one in states.items() if _is_of_use(one, now)})
            self._leave_to_owner(descriptor)
        finally:
            os.close(descriptor)
        if not self._is_well:
            logger.info("%s: request budgets are shared again", self._path)
            self._is_well = True

    def failed(self, reason: str) -> None:
        """Record that the file cannot be used now."""
        if self._is_well:
            logger.warning("%s: request budgets are not shared with other processes: %s", self._path, reason)
            self._is_well = False

    def _leave_to_owner(self, descriptor: int) -> None:
        """Give a file created by root to the owner of its folder; otherwise the daemon could not use it."""
        if os.geteuid() == 0 and os.fstat(descriptor).st_uid == 0:
            folder = self._path.parent.stat()
            with suppress(OSError):
                os.fchown(descriptor, folder.st_uid, folder.st_gid)


class SharedBudget:
    """A `candled.budget.Budget` stored in a file. If the file cannot be used, this process uses half of the budget."""

    def __init__(self, file: BudgetFile, host: str, rate: float, clock: Clock) -> None:
        self._file = file
        self._host = host
        self._rate = rate
        self._clock = clock
        self._turn = asyncio.Lock()  # within this process
        self._own = LocalBudget(clock, rate * _SHARE)
        self._seen = TokenBucket(rate)  # as of the last read of the file, in seconds of the wall clock
        self._to_close_until = 0.0  # not in the file yet, in seconds of the wall clock

    def limit(self, rate: float) -> None:
        """Allow at most `rate` requests a second from now on."""
        self._rate = min(self._rate, rate)
        self._own.limit(rate * _SHARE)

    async def acquire(self, weight: float = 1.0) -> None:
        """Wait until a request may be made, and count it `weight` times. Processes take turns."""
        async with self._turn:
            while (seen := await self._try_to_look(weight)) is not None:
                closed_s, wait_s = seen
                if closed_s:
                    await self._clock.sleep(min(closed_s, _MOST_WAIT_S))
                    continue
                if not wait_s:
                    return
                await self._clock.sleep(wait_s)
                seen = await self._try_to_look(None)
                if seen is None or not seen[0]:  # otherwise another process has closed the host in the meantime
                    return
            await self._own.acquire(weight)

    def close_for(self, seconds: float) -> None:
        """Allow no requests for some time, in all processes, because the host asked for it."""
        until = self._now() + min(seconds, MOST_CLOSED_S)
        self._to_close_until = max(self._to_close_until, until)
        self._own.close_for(seconds)
        with suppress(OSError):  # the next request writes it
            self._look(None)

    def closed_for(self) -> float:
        """Return the seconds until the host may be asked again, as of the last read."""
        now = self._now()
        return max(0.0, min(MOST_CLOSED_S, max(self._seen.closed_for(now), self._to_close_until - now)))

    def remaining_share(self) -> float:
        """Return the share of the budget that is left, as of the last read."""
        return 0.0 if self.closed_for() else self._seen.remaining_share(self._now())

    async def _try_to_look(self, weight: float | None) -> tuple[float, float] | None:
        """Read and update the file, with retries while it is locked; return None if it cannot be used."""
        for _ in range(_ATTEMPTS):
            try:
                return self._look(weight)
            except BlockingIOError:
                await self._clock.sleep(_BUSY_S)
            except OSError as error:
                self._file.failed(error.strerror or str(error))
                return None
        self._file.failed("another process keeps it locked")
        return None

    def _look(self, weight: float | None) -> tuple[float, float]:
        """Read and update the file; return the seconds for which the host is closed, and those to wait for a request.

        A request of `weight` is reserved unless the host is closed. With None, no request is reserved.
        """
        with self._file.bucket(self._host, self._rate) as bucket:
            now = self._now()
            if self._to_close_until > now:
                bucket.close_until(min(self._to_close_until, now + MOST_CLOSED_S))
            closed_s = bucket.closed_for(now)
            wait_s = bucket.reserve(now, weight) if weight is not None and not closed_s else 0.0
            self._seen = bucket
        self._to_close_until = 0.0
        return closed_s, wait_s

    def _now(self) -> float:
        return self._clock.now_ms() / 1000


def _read(descriptor: int) -> dict[str, BucketState]:
    try:
        return msgspec.json.decode(os.pread(descriptor, _LARGEST, 0), type=dict[str, BucketState])
    except (ValueError, RecursionError):
        return {}


def _write(descriptor: int, states: dict[str, BucketState]) -> None:
    data = msgspec.json.encode(states)
    if len(data) > _LARGEST:
        data = b"{}"
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))


def _is_of_use(state: BucketState, now: float) -> bool:
    """Return whether a state is still relevant: a bucket that was not used for an hour is full."""
    return state.at > now - MOST_CLOSED_S
