"""Limits that all processes share through Redis: request budgets of hosts, request counts, and markets on demand."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from candled.bus.codec import MAX_LIST_BYTES, MAX_LISTED, Names
from candled.bus.failures import FailureLog, FailureRecord
from candled.errors import Unavailable
from candled.exchange import Clock
from candled.model import MarketKey, Symbol
from candled.tasks import Backoff, TaskSet, retry
from candled.token_bucket import MOST_CLOSED_S, TokenBucket
from candled.universe_choice import REPORTED_S, DemandRules

from .connections import Call, Caller, reason_of
from .lua import BUDGET

_REPLY_TIMEOUT_S = 0.5  # a caller waits no longer than this for Redis
_PAUSE_S = 2.0  # after a failure, Redis is not asked again for this long
_COMMAND_SHARE = 0.1  # the share of a budget that is left to commands while Redis is unavailable
_LISTED_TTL_S = 7 * 86_400
_MAX_WAIT_S = 1.0  # then ask again, because another process may have closed or used the budget


class _RedisCaller:
    """Calls Redis, with a pause after each failure."""

    def __init__(self, caller: Caller, clock: Clock, failures: FailureRecord) -> None:
        self._caller = caller
        self._clock = clock
        self._failures = failures
        self._paused_until = 0.0
        self._harmless: Call | None = None  # a harmless replacement for the call that failed last
        failures.retry = self._retry_call

    async def call_redis(self, *calls: Call, harmless: Call) -> list[Any]:
        """Return the replies to calls for one key. If they fail, `harmless` is retried until it works.

        Raises:
            Unavailable: a call has no reply, or was refused.
        """
        if self._clock.monotonic() < self._paused_until:
            raise Unavailable("Redis did not answer a moment ago")
        try:
            async with asyncio.timeout(_REPLY_TIMEOUT_S):
                answers = await self._caller.call_all(calls)
        except TimeoutError:
            answers = [Unavailable(f"no answer within {_REPLY_TIMEOUT_S:g} s")]
        error = next((one for one in answers if isinstance(one, Exception)), None)
        if error is None:
            self._failures.record_success()
            return answers
        self._failures.record_failure(reason_of(error))
        self._harmless = harmless
        self._paused_until = self._clock.monotonic() + _PAUSE_S
        raise Unavailable(f"Redis: {reason_of(error)}") from error

    async def _retry_call(self) -> None:
        if self._harmless is not None:
            with suppress(Unavailable):
                await self.call_redis(self._harmless, harmless=self._harmless)


class RedisCounter:
    """A count of requests by key in fixed windows, across all processes of one Redis.

    It uses plain commands, so that a process that only serves needs no permission to run scripts.
    """

    def __init__(self, caller: Caller, names: Names, clock: Clock, failures: FailureLog) -> None:
        self._names = names
        self._redis = _RedisCaller(caller, clock, failures.record_of("counting requests", vital=False))

    async def count_hit(self, key: str, window_s: float) -> tuple[int, float]:
        """Count a request; return the count in the key's window, including this one, and the seconds left in it.

        A key's window begins with its first request.

        Raises:
            Unavailable: the request cannot be counted now.
        """
        name, window_ms = self._names.count_key(key), round(window_s * 1000)
        expire = Call(name, ("PEXPIRE", name, window_ms))
        count, left_ms = await self._redis.call_redis(
            Call(name, ("INCR", name)), Call(name, ("PTTL", name)), harmless=expire
        )
        # the first request, or the process of that one failed before setting this, or the window was longer then
        if not 0 <= int(left_ms) <= window_ms:
            await self._redis.call_redis(expire, harmless=expire)
            left_ms = window_ms
        return int(count), int(left_ms) / 1000


class RedisBook:
    """A `candled.on_demand.DemandBook` in Redis: a sorted set of symbols by the time of their last use.

    Like `RedisCounter`, it uses plain commands. Two processes that request different markets at the same moment may
    exceed the limit; the leader then leaves out the newest ones. The times are those of the processes' clocks.
    """

    def __init__(self, caller: Caller, names: Names, clock: Clock, failures: FailureLog) -> None:
        self._names = names
        self._clock = clock
        self._redis = _RedisCaller(caller, clock, failures.record_of("sharing markets on demand", vital=False))

    async def request_market(self, market: MarketKey, rules: DemandRules) -> bool:
        """See `DemandBook`."""
        key, symbol, now_ms = self._names.demand_key(market.exchange), str(market.symbol), self._clock.now_ms()
        since_ms = now_ms - rules.keep_s * 1000
        score, count = await self._call(key, ("ZSCORE", key, symbol), ("ZCOUNT", key, since_ms, "+inf"))
        if (score is None or float(score) < since_ms) and int(count) >= rules.most:
            return False
        expire = ("PEXPIRE", key, round(rules.keep_s * 2000))  # if the setting is removed
        await self._call(key, ("ZADD", key, now_ms, symbol), expire)
        return True

    async def renew_markets(self, exchange: str, symbols: Sequence[Symbol]) -> None:
        """See `DemandBook`."""
        key, now_ms = self._names.demand_key(exchange), self._clock.now_ms()
        pairs = [word for symbol in symbols for word in (now_ms, str(symbol))]
        await self._call(key, ("ZADD", key, "XX", *pairs))

    async def read_markets(self, exchange: str, rules: DemandRules) -> list[Symbol]:
        """See `DemandBook`."""
        key, since_ms = self._names.demand_key(exchange), self._clock.now_ms() - rules.keep_s * 1000
        return await self._read_recent(key, since_ms, rules.most * 2)

    async def write_listed(self, exchange: str, symbols: Iterable[Symbol]) -> None:
        """See `DemandBook`."""
        key = self._names.listed_key(exchange)
        await self._call(key, ("SET", key, "\n".join(map(str, symbols)), "EX", _LISTED_TTL_S))

    async def read_listed(self, exchange: str) -> list[Symbol]:
        """See `DemandBook`."""
        key = self._names.listed_key(exchange)
        (text,) = await self._call(key, ("GETRANGE", key, 0, MAX_LIST_BYTES))
        return [symbol for symbol in map(_symbol_of, text.split(b"\n")) if symbol is not None]

    async def report_delisted(self, exchange: str, symbols: Sequence[Symbol]) -> None:
        """See `DemandBook`."""
        key, now_ms = self._names.delisted_key(exchange), self._clock.now_ms()
        pairs = [word for symbol in symbols for word in (now_ms, str(symbol))]
        await self._call(key, ("ZADD", key, *pairs), ("PEXPIRE", key, round(REPORTED_S * 1000)))

    async def read_delisted(self, exchange: str) -> list[Symbol]:
        """See `DemandBook`."""
        key, since_ms = self._names.delisted_key(exchange), self._clock.now_ms() - REPORTED_S * 1000
        return await self._read_recent(key, since_ms, MAX_LISTED)

    async def _read_recent(self, key: str, since_ms: float, most: int) -> list[Symbol]:
        """Return the symbols of a sorted set that were used since a time, oldest first, and remove the others."""
        _, found = await self._call(key, ("ZREMRANGEBYSCORE", key, "-inf", f"({since_ms}"), ("ZRANGE", key, 0, most))
        return [symbol for symbol in map(_symbol_of, found) if symbol is not None]

    async def _call(self, key: str, *commands: tuple[Any, ...]) -> list[Any]:
        calls = [Call(key, command) for command in commands]
        return await self._redis.call_redis(*calls, harmless=calls[-1])


def _symbol_of(text: bytes) -> Symbol | None:
    """Return a symbol; None for text of another program."""
    try:
        return Symbol.parse(text.decode())
    except ValueError:
        return None


class RedisBudgets:
    """The budgets of hosts, each shared by all processes of one Redis.

    While Redis is unavailable, each process uses only its share. `processes` returns the number of processes, 0 if
    unknown. In a command, which runs next to them, `processes` is None.
    """

    def __init__(
        self, caller: Caller, names: Names, clock: Clock, failures: FailureLog, processes: Callable[[], int] | None
    ) -> None:
        self._redis = _RedisCaller(caller, clock, failures.record_of("sharing request budgets", vital=False))
        self._names = names
        self._clock = clock
        self._processes = processes
        self._budgets: dict[str, RedisBudget] = {}

    def budget_for(self, host: str, rate: float) -> "RedisBudget":
        """Return the budget of a host, the same one for all callers. Of several rates, the lowest applies."""
        found = self._budgets.get(host)
        if found is None:
            key = self._names.budget_key(host)
            found = self._budgets[host] = RedisBudget(self._redis, key, self._clock, rate, self._share)
        found.limit(rate)
        return found

    def _share(self) -> float:
        """Return this process's share of a budget while Redis is unavailable.

        A part is left to commands, which do not know how many processes there are.
        """
        if self._processes is None:
            return _COMMAND_SHARE
        return (1.0 - _COMMAND_SHARE) / (self._processes() or 2)

    async def stop(self) -> None:
        """Stop all background tasks."""
        for one in self._budgets.values():
            await one.tasks.cancel()


class RedisBudget:
    """A `candled.budget.Budget` that is stored in Redis."""

    def __init__(self, redis: _RedisCaller, key: str, clock: Clock, rate: float, share: Callable[[], float]) -> None:
        self._redis = redis
        self._key = key
        self._clock = clock
        self._rate = rate
        self._share = share
        self._lock = asyncio.Lock()  # within this process
        self._local_bucket = TokenBucket(rate)
        self._remaining = 1.0
        self._remaining_at = clock.monotonic()
        self._closed_until = 0.0
        self._unsent_closing = 0.0  # not sent to Redis yet
        self.tasks = TaskSet()

    def limit(self, rate: float) -> None:
        """Allow at most `rate` requests a second from now on."""
        self._rate = min(self._rate, rate)
        self._local_bucket.limit_rate(rate)

    async def acquire(self, weight: float = 1.0) -> None:
        """Wait until a request may be made, and count it `weight` times."""
        async with self._lock:
            while wait_s := await self._try_acquire(weight):
                await self._clock.sleep(min(wait_s, _MAX_WAIT_S))

    def close_for(self, seconds: float) -> None:
        """Allow no requests for some time, in all processes, because the host asked for it."""
        until = self._clock.monotonic() + min(seconds, MOST_CLOSED_S)
        self._closed_until = max(self._closed_until, until)
        self._unsent_closing = max(self._unsent_closing, until)
        self._local_bucket.close_until(until)
        if not self.tasks:
            self.tasks.start(self._publish_closing())

    def closed_for(self) -> float:
        """Return the seconds until the host may be asked again."""
        return max(0.0, self._closed_until - self._clock.monotonic())

    def remaining_share(self) -> float:
        """Return the share of the budget left at the last request, plus the amount refilled since."""
        if self.closed_for():
            return 0.0
        back = (self._clock.monotonic() - self._remaining_at) * self._rate / max(1.0, self._rate)
        return min(1.0, self._remaining + back)

    async def _try_acquire(self, weight: float) -> float:
        """Return the seconds to wait before asking again, or 0.0 once a request was counted."""
        if closed_s := self.closed_for():
            return closed_s
        try:
            return await self._request_share(weight)
        except Unavailable:
            return self._take_own_share(weight)

    def _take_own_share(self, weight: float) -> float:
        """Take a request from this process's share; return the seconds to wait. All processes have equal shares.

        If the number of processes is unknown, the share is about half.
        """
        self._local_bucket.rate = self._rate * self._share()
        wait_s = self._local_bucket.try_take(self._clock.monotonic(), weight)
        self._remaining_at = self._clock.monotonic()
        self._remaining = self._local_bucket.remaining_share(self._remaining_at)
        return wait_s

    async def _request_share(self, weight: float | None) -> float:
        """Take a request of `weight`, or nothing with None; return the seconds to wait."""
        now = self._clock.monotonic()
        close_ms = max(0, round((self._unsent_closing - now) * 1000))
        closing_until = self._unsent_closing
        burst = max(1.0, self._rate)
        call = Call.of_script(BUDGET, [self._key], self._rate, burst, close_ms, *_taking(weight))
        harmless = Call.of_script(BUDGET, [self._key], self._rate, burst, 0, *_taking(None))
        (answer,) = await self._redis.call_redis(call, harmless=harmless)
        wait_ms, left, closed_ms = (int(part) for part in answer)
        if self._unsent_closing == closing_until:
            self._unsent_closing = 0.0
        self._remaining, self._remaining_at = left / 1000, self._clock.monotonic()
        if closed_ms:
            self._closed_until = max(self._closed_until, self._clock.monotonic() + closed_ms / 1000)
        return wait_ms / 1000

    async def _publish_closing(self) -> None:
        """Send the closing of the host to Redis, with retries while it lasts."""
        send, backoff = partial(self._request_share, None), Backoff(_MAX_WAIT_S, _MAX_WAIT_S)
        while self._unsent_closing > self._clock.monotonic():
            await retry(send, self._clock, backoff, on=Unavailable)


def _taking(weight: float | None) -> tuple[int, float]:
    """Return the arguments of the script that take a request of `weight`, or nothing with None."""
    return (0, 1.0) if weight is None else (1, weight)
