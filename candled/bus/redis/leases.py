"""Leases: one per shard in Redis, with a growing token. Its holder reads the shard's markets from their exchanges.

A lease protects published messages, not stored minutes. Two processes may store the same minutes for a while: the
version decides which one is kept (`Candle.supersedes`), in any order of writing, and known gaps are saved by range. But
published messages are numbered: two processes would give the same number to different messages. Therefore each market
has a fence: the highest token that has published. Messages with a lower token are rejected.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from enum import Enum
from typing import Any
from zlib import crc32

from candled.bus.codec import epoch_of
from candled.bus.shards import fair_share
from candled.exchange import Clock
from candled.model.texts import printable
from candled.tasks import TaskSet, first_of

from .connections import Call, Caller, reason_of
from .context import RedisContext
from .lua import LEASE, REGISTER, RELEASE

logger = logging.getLogger(__name__)

_TURNS = 6  # how often a lease is renewed, and free ones are requested, during its lifetime
# A process keeps more than its fair share for this many turns. Otherwise the process that starts first would lead some
# shards for only a second.
_TURNS_BEFORE_RELEASE = 3
_HANDLING_S = 5.0  # how long to wait until the ingest of a shard that is given up has stopped
_MOST_NAME = 64  # characters of a process's name in Redis, which any program may have written
_MARGIN = 1 / 12  # of a lease's time: a leader stops this much before Redis gives the lease to another process


class LeaseState(Enum):
    """The role of this process for a shard.

    FOLLOWER: another process ingests, or soon will. LEADER: this process ingests and publishes. UNSURE: this process
    ingests but publishes nothing, because it cannot learn from Redis whether there is a leader.
    """

    FOLLOWER = "follower"
    LEADER = "leader"
    UNSURE = "unsure"


class Lease:
    """The lease of one shard, as this process knows it. `epoch` is the name of this process's feed of the shard."""

    def __init__(self, shard: int, epoch: str, clock: Clock) -> None:
        self.shard = shard
        self.state = LeaseState.FOLLOWER
        self.token = 0
        self.epoch = epoch
        self.leader = ""  # the process that has the lease, as of the last turn; empty if none has it
        self.floor = 0  # the highest token that had published when Redis rejected this process's token
        self.is_wanted = True  # False while it is being given up
        self._clock = clock
        self._deadline = 0.0
        self._handled = LeaseState.FOLLOWER
        self._changed = asyncio.Event()

    @property
    def must_ingest(self) -> bool:
        """True if this process must read the shard's markets from their exchanges."""
        return self.state is not LeaseState.FOLLOWER

    def may_publish(self) -> bool:
        """Return whether the lease is certainly valid now. A process that was suspended notices that it has expired."""
        return self.state is LeaseState.LEADER and self._clock.monotonic() < self._deadline

    async def watch_states(self) -> AsyncIterator[LeaseState]:
        """Yield the state now and after each change. A state that changes again before it is requested is skipped.

        When the next state is requested, the previous one counts as handled: its ingest was started or stopped.
        """
        yielded: LeaseState | None = None
        while True:
            if self.state is yielded:
                self._changed.clear()
                await self._changed.wait()
                continue
            yielded = self.state
            yield yielded
            self._handled = yielded

    @property
    def is_handled(self) -> bool:
        """True if the consumer of `watch_states` has handled the current state."""
        return self._handled is self.state

    def acquire(self, token: int, until: float) -> bool:
        """Record that this process has the lease with a token, until a monotonic time.

        Returns:
            Whether that is a change.
        """
        self._deadline = until
        is_same = self.state is LeaseState.LEADER and self.token == token
        if self.token != token:
            self.token, self.epoch = token, epoch_of(self.shard, token)
        self._set_state(LeaseState.LEADER)
        return not is_same

    def release(self) -> bool:
        """Record that another process has the lease; return whether that is a change."""
        return self._set_state(LeaseState.FOLLOWER)

    def mark_unsure(self) -> bool:
        """Record that the holder of the lease is unknown; return whether that is a change."""
        return self._set_state(LeaseState.UNSURE)

    def has_run_out(self) -> bool:
        """Return whether this process was the leader and cannot be sure of its lease any more."""
        return self.state is LeaseState.LEADER and self._clock.monotonic() >= self._deadline

    def _set_state(self, state: LeaseState) -> bool:
        if state is self.state:
            return False
        self.state = state
        self._changed.set()
        return True


class Leases:
    """The leases of all shards. A lease lasts for `ttl_s` seconds.

    After `alone_after_s` seconds without Redis, this process ingests without leases; None: never.
    """

    def __init__(self, context: RedisContext, *, ttl_s: float, alone_after_s: float | None) -> None:
        self._caller = Caller(context.servers)
        self._names = context.names
        self._clock = clock = context.clock
        self._process = context.process
        self._member = f"{context.process}/{context.shards}"
        self._ttl_s = ttl_s
        self._turn_s = ttl_s / _TURNS
        self._alone_after_s = alone_after_s
        self._listeners: list[Callable[[Lease], None]] = []
        self._answered_at = clock.monotonic()
        self._turn_requested = asyncio.Event()
        self._tasks = TaskSet()
        self._to_take: set[int] = set()
        self._too_many = 0  # turns in a row with more than a fair share
        self._is_mixed = False
        self.processes = 0  # how many ingest, including this one; 0 if not known yet
        self._failures = context.failures.record_of("leases")  # its parts are shards, and the list of processes
        self.transitions = 0  # changes of a lease's state or token
        self.all = [Lease(shard, epoch_of(shard, 0, context.process), clock) for shard in range(context.shards)]

    def add_listener(self, listener: Callable[[Lease], None]) -> None:
        """Call `listener` immediately with each lease whose state or token changes."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to request leases."""
        self._answered_at = self._clock.monotonic()
        self._tasks.start_endless(self._run_turns, self._clock)
        self._tasks.start_periodic(self._note_expiry, self._clock, self._turn_s / 4)

    async def stop(self) -> None:
        """Release all leases, so that others take over immediately. Stop ingest before calling this."""
        await self._tasks.cancel()
        led = [lease for lease in self.all if lease.token]
        deregister = Call.of_script(REGISTER, [self._names.processes_key], self._member, 0)
        await self._caller.call_all([*map(self._release_call, led), deregister])
        for lease in self.all:
            self._on_change(lease, lease.release())
        await self._caller.close()

    def on_fenced(self, lease: Lease, token: int) -> None:
        """Handle a rejection by Redis: another process has published with a higher token.

        The lease is unsure until it is requested again.
        """
        if token <= lease.token:
            return
        lease.floor = max(lease.floor, token)
        if lease.state is LeaseState.LEADER:
            self._on_change(lease, lease.mark_unsure())
        self._turn_requested.set()

    @property
    def problem(self) -> str | None:
        """The reason why leases cannot be requested; None if they can."""
        return self._failures.reason

    def describe(self) -> list[dict[str, Any]]:
        """Return facts for `/health`."""
        return [
            {
                "shard": one.shard,
                "state": one.state.value,
                "epoch": one.epoch,
                "leader": printable(one.leader, _MOST_NAME),
            }
            for one in self.all
        ]

    # ------------------------------------------------------------ inside

    async def _run_turns(self) -> None:
        while True:
            if await self._take_turn():
                continue
            self._turn_requested.clear()
            await first_of(self._turn_requested.wait(), self._clock.sleep(self._turn_s))

    def _note_expiry(self) -> None:
        """Mark leases that have expired as unsure, even while a reply from Redis is pending."""
        for lease in self.all:
            if lease.has_run_out():
                self._on_change(lease, lease.mark_unsure())

    async def _take_turn(self) -> bool:
        """Renew this process's leases and take free ones; return whether to ask again immediately."""
        asked_at = self._clock.monotonic()
        asked = [lease for lease in self.all if lease.is_wanted]
        register = Call.of_script(REGISTER, [self._names.processes_key], self._member, round(self._ttl_s * 1000))
        members, *answers = await self._caller.call_all([register, *map(self._renew_call, asked)])
        self._count_members(members)
        free = []
        for lease, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                self._on_no_answer(lease, answer)
                continue
            self._answered_at = self._clock.monotonic()
            self._failures.record_success(lease.shard)
            token, owner = int(answer[0]), answer[1].decode()
            lease.leader = owner
            if owner != self._process and owner:
                self._on_change(lease, lease.release())
            elif owner and token > lease.floor:
                self._on_change(lease, lease.acquire(token, asked_at + self._ttl_s * (1 - _MARGIN)))
            else:
                # free; or this process's, but a higher token has published: a cluster lost a lease that it had assigned
                if owner:
                    await self._caller.call_all([self._release_call(lease)])
                if lease.state is LeaseState.LEADER:
                    self._on_change(lease, lease.mark_unsure())
                free.append(lease)
        before, self._to_take = self._to_take, self._choose_shards(free)
        return bool(self._to_take - before)

    def _renew_call(self, lease: Lease) -> Call:
        token = lease.token if lease.must_ingest and lease.token > lease.floor else 0
        keys = [self._names.lease_key(lease.shard), self._names.token_key(lease.shard)]
        ttl_ms, takes_free = round(self._ttl_s * 1000), int(lease.shard in self._to_take)
        return Call.of_script(LEASE, keys, self._process, token, ttl_ms, takes_free, lease.floor)

    def _release_call(self, lease: Lease) -> Call:
        return Call.of_script(RELEASE, [self._names.lease_key(lease.shard)], self._process)

    def _count_members(self, members: Any) -> None:
        """Count the processes that ingest, and check that all use the same number of shards."""
        if isinstance(members, Exception):
            self._failures.record_failure(reason_of(members), "processes")
            return
        self._failures.record_success("processes")
        texts = [member.decode("utf-8", "replace") for member in members]
        shards = f"/{len(self.all)}"
        self.processes = sum(text.endswith(shards) for text in texts)
        is_mixed = self.processes < len(texts)
        if is_mixed and not self._is_mixed:
            logger.error("another process has other ingest.shards than %d: no takeovers until all agree", len(self.all))
        self._is_mixed = is_mixed

    def _choose_shards(self, free: Sequence[Lease]) -> set[int]:
        """Return the free shards to take, up to a fair share. Surplus shards are given up, one at a time."""
        share = fair_share(len(self.all), self.processes)
        led = [lease for lease in self.all if lease.state is LeaseState.LEADER]
        self._too_many = self._too_many + 1 if len(led) > share else 0
        if self._too_many >= _TURNS_BEFORE_RELEASE:
            self._too_many = 0
            self._tasks.start(self._give_up(led[-1]))
        if self._is_mixed:
            return set()
        first = crc32(self._process.encode())  # processes begin with different shards
        free = sorted(free, key=lambda one: (not one.must_ingest, (one.shard + first) % len(self.all)))
        return {lease.shard for lease in free[: max(0, share - len(led))]}

    async def _give_up(self, lease: Lease) -> None:
        lease.is_wanted = False
        self._on_change(lease, lease.release())
        deadline = self._clock.monotonic() + _HANDLING_S
        while not lease.is_handled and self._clock.monotonic() < deadline:
            await self._clock.sleep(self._turn_s / 10)
        await self._caller.call_all([self._release_call(lease)])
        lease.is_wanted = True

    def _on_no_answer(self, lease: Lease, error: Exception) -> None:
        self._failures.record_failure(reason_of(error), lease.shard)
        alone_s = self._clock.monotonic() - self._answered_at
        if self._alone_after_s is not None and alone_s > self._alone_after_s and not lease.must_ingest:
            self._on_change(lease, lease.mark_unsure())

    def _on_change(self, lease: Lease, changed: bool) -> None:
        if not changed:
            return
        self.transitions += 1
        logger.info(
            "shard %d: %s%s", lease.shard, lease.state.value, f", feed {lease.epoch}" if lease.must_ingest else ""
        )
        for listener in self._listeners:
            listener(lease)
