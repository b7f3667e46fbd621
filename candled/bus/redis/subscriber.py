"""Receives channels of Redis, over connections that are checked with loopback messages.

redis-py does not notice a half-open connection, and reconnects silently. So each connection publishes to a private
channel every second, over another connection, and is replaced as a whole if it does not receive that message.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from candled.bus.codec import private_channel
from candled.errors import Unavailable
from candled.tasks import Backoff, TaskSet, repeat, retry

from .connections import REDIS_ERRORS, Node, close, reason_of
from .context import RedisContext

logger = logging.getLogger(__name__)

LOOPBACK_S = 1.0
SILENT_S = 3.0  # a connection without a loopback message for this long is dead
_OLDEST_LOOPBACK_S = 60.0
_READ_S = 0.25  # how long one read waits for a message
_TURN_S = 0.002  # how long buffered messages are delivered before other tasks run
_BUFFERED_S = 0.0005  # a read that took less did not wait: the message was buffered
_MAX_EARLY_NONES = 20  # this many immediate "no message yet": the connection is dead, and the loop would spin
_SUBSCRIBE_S = 3.0
_CHECK_S = 5.0  # how often to check whether channels have moved to other servers
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 1.0
_CONFIRMED = ("subscribe", "ssubscribe")
_MESSAGES = ("message", "smessage")


class _ServerChannels(NamedTuple):
    """The channels of one server."""

    node: Node
    channels: tuple[str, ...]
    sharded: bool


class Subscriber:
    """A subscription to `channels` over one or more connections.

    `on_message` is called with channel and data of each message. `on_ready` is called with channels that are received
    from now on, because they were added, or their connection was made or replaced: earlier messages may have been
    missed.
    """

    def __init__(
        self,
        context: RedisContext,
        channels: Sequence[str],
        *,
        on_message: Callable[[str, bytes], None],
        on_ready: Callable[[Sequence[str]], None],
    ) -> None:
        self.context = context
        self.on_message = on_message
        self._channels = tuple(channels)
        self.on_ready = on_ready
        self._connections: dict[Node, _SubscriberConnection] = {}
        self._has_failed = asyncio.Event()
        self._must_arrange = asyncio.Event()  # set if a connection failed or the channels changed
        #: The pauses between attempts to connect, until a loopback message shows that a connection works.
        self.backoff = Backoff(_MIN_RETRY_S, _MAX_RETRY_S)
        self.generation = 0  # how many connections were made
        self.end_counts: Counter[str] = Counter()
        self._failures = context.failures.record_of("subscribing")
        self._servers = context.servers

    @property
    def is_connected(self) -> bool:
        """True if every channel is received."""
        return bool(self._connections) and all(connection.is_ready for connection in self._connections.values())

    @property
    def lag_s(self) -> float | None:
        """The publish-to-receive latency of the slowest connection, in seconds; None if nothing is received."""
        ready = (one for one in self._connections.values() if one.is_ready)
        return max((one.lag_s for one in ready if one.lag_s is not None), default=None)

    def set_channels(self, channels: Sequence[str]) -> None:
        """Receive these channels from now on. Those that were received before are received without a pause."""
        self._channels = tuple(channels)
        self._must_arrange.set()

    async def run(self) -> None:
        """Keep a connection to each server that has channels, until cancelled. `stop` ends the connections."""
        await retry(self._keep_connected, self.context.clock, self.backoff, on=Unavailable)

    async def stop(self) -> None:
        """End the connections, after `run` has ended."""
        for connection in self._connections.values():
            await connection.stop()

    async def _keep_connected(self) -> None:
        """Keep the connections until one fails.

        Raises:
            Unavailable: always.
        """
        self._has_failed.clear()
        while not self._has_failed.is_set():
            self._must_arrange.clear()
            try:
                await self._arrange_connections()
            except Unavailable as error:
                self._failures.record_failure(str(error), None)
                self._servers.suspect_topology()
                raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._must_arrange.wait(), None if self._servers.is_fixed else _CHECK_S)
        raise Unavailable("a connection failed")

    async def _arrange_connections(self) -> None:
        """Replace connections that ended, and those whose channels have moved; subscribe to channels that are new."""
        if not self._servers.is_fixed:
            self._servers.suspect_topology()
        assigned = {one.node: one for one in await self._assign_channels()}
        self._failures.record_success(*(node for node in self._failures.parts if node not in assigned))
        wanted = frozenset(self._channels)
        for node, connection in list(self._connections.items()):
            one = assigned.get(node)
            if connection.is_over or one is None or not connection.assign(one, wanted):
                del self._connections[node]
                await connection.stop()
        for node, one in assigned.items():
            if node not in self._connections:
                self._connections[node] = _SubscriberConnection(self, one)

    async def _assign_channels(self) -> list[_ServerChannels]:
        topology = await self._servers.find_topology()
        groups: dict[Node, list[str]] = {}
        for channel in self._channels:
            groups.setdefault(topology.owner_of(channel), []).append(channel)
        if not topology.sharded and len(groups) > 1:  # without sharding, every node of a cluster carries all channels
            alive = [node for node, one in self._connections.items() if node in topology.nodes and not one.is_over]
            return [_ServerChannels(random.choice(alive or topology.nodes), self._channels, False)]
        return [_ServerChannels(node, tuple(channels), topology.sharded) for node, channels in groups.items()]

    # ------------------------------------------------------------ called by the connections

    def on_connection_ready(self, connection: "_SubscriberConnection", channels: Sequence[str]) -> None:
        """Record that a connection has subscribed, and notify the owner."""
        self.generation += 1
        self._failures.record_success(connection.assigned.node)
        self.on_ready(channels)

    def on_connection_end(self, connection: "_SubscriberConnection", reason: str, *, was_ready: bool) -> None:
        """Record the end of a connection, and have it replaced."""
        if was_ready:
            self.end_counts[reason.split(":")[0]] += 1
        self._failures.record_failure(f"{connection.assigned.node}: {reason}", connection.assigned.node)
        self._servers.suspect_topology(connection.assigned.node)
        self._has_failed.set()
        self._must_arrange.set()


class _SubscriberConnection:
    """One subscription at one server, from its beginning to its first failure."""

    def __init__(self, owner: Subscriber, assigned: _ServerChannels) -> None:
        self.assigned = assigned
        self.is_ready = False
        self.is_over = False
        self._is_stopped = False
        self.lag_s: float | None = None
        self._owner = owner
        self._clock = owner.context.clock
        self._private = private_channel(assigned.channels[0], owner.context.process)
        self._loopback_at = 0.0
        self._client, self._loopback_client = (owner.context.servers.make_client(assigned.node) for _ in range(2))
        self._pubsub = self._client.pubsub()
        self._loopback_error = ""
        # the assignment for which subscriptions were sent last, and its channels
        self._applied = assigned
        self._subscribed = dict.fromkeys(assigned.channels)
        # confirmations that are expected after a change, by kind and channel, and until when
        self._expected: Counter[tuple[bool, str]] = Counter()
        self._expected_until = 0.0
        self._added: list[str] = []  # confirmed channels that the owner is not notified of yet
        self._tasks = TaskSet()  # receives, and sends loopback messages
        self._receiving = self._tasks.start(self._receive())
        self._ending = TaskSet()
        self._ending.start(self._run_until_end())

    def assign(self, assigned: _ServerChannels, wanted: Collection[str]) -> bool:
        """Change the channels; return False if that needs another connection.

        It does if a channel that is still `wanted` has moved to another server.
        """
        if assigned != self.assigned:
            left = set(self.assigned.channels).difference(assigned.channels)
            if assigned.sharded is not self.assigned.sharded or left.intersection(wanted):
                return False
            self.assigned = assigned
        return True

    async def stop(self) -> None:
        """End the subscription. No messages are delivered afterwards."""
        self._is_stopped = True
        await self._tasks.cancel()
        await self._ending.wait()

    async def _run_until_end(self) -> None:
        """Clean up after the receiving task, however it ended. This task is never cancelled."""
        await asyncio.wait([self._receiving])
        was_ready, self.is_ready = self.is_ready, False
        reason = "stopped" if self._receiving.cancelled() else self._receiving.result()
        await self._tasks.cancel()
        for one in (self._pubsub, self._client, self._loopback_client):
            await close(one)
        self.is_over = True
        if not self._is_stopped:
            self._owner.on_connection_end(self, reason, was_ready=was_ready)

    async def _receive(self) -> str:
        """Receive until the first failure; return its reason."""
        try:
            await self._subscribe_channels()
            self._loopback_at = self._clock.monotonic()
            self.is_ready = True
            self._owner.on_connection_ready(self, tuple(self._subscribed))
            self._tasks.start(repeat(self._send_loopback, self._clock, LOOPBACK_S))
            return await self._read_messages()
        except REDIS_ERRORS as error:
            return f"{type(error).__name__}: {reason_of(error)}"
        except Exception as error:  # any error: a connection that ended silently would never be replaced
            logger.exception("receiving from Redis at %s failed", self.assigned.node)
            return f"{type(error).__name__}: {error}"

    async def _subscribe_channels(self) -> None:
        """Subscribe, and wait until every channel is confirmed."""
        pubsub: Any = self._pubsub
        channels = (*self._subscribed, self._private)
        async with asyncio.timeout(_SUBSCRIBE_S):
            await self._send_command("subscribe", channels)
            confirmed = 0
            while confirmed < len(channels):
                message = await pubsub.get_message(timeout=_SUBSCRIBE_S)
                if message is not None and message["type"] in _CONFIRMED:
                    confirmed += 1
                elif message is not None:
                    self._accept_message(message)

    async def _apply_assignment(self) -> None:
        """Subscribe to the channels that were added, and unsubscribe from those that were removed."""
        self._applied = self.assigned
        channels = dict.fromkeys(self.assigned.channels)
        added = [channel for channel in channels if channel not in self._subscribed]
        removed = [channel for channel in self._subscribed if channel not in channels]
        self._subscribed = channels
        self._expected.update((True, channel) for channel in added)
        self._expected.update((False, channel) for channel in removed)
        self._expected_until = self._clock.monotonic() + _SUBSCRIBE_S
        await self._send_command("subscribe", added)
        await self._send_command("unsubscribe", removed)

    async def _send_command(self, command: str, channels: Collection[str]) -> None:
        """Send `subscribe` or `unsubscribe` with channels, or the variants of sharded channels."""
        if self.assigned.sharded:
            for channel in channels:  # one command accepts channels of one slot only
                await getattr(self._pubsub, f"s{command}")(channel)
        elif channels:
            await getattr(self._pubsub, command)(*channels)

    def _confirm(self, message: dict[str, Any]) -> str:
        """Process the confirmation of a change; for an unexpected one, return why the connection is unusable."""
        is_added, channel = message["type"] in _CONFIRMED, message["channel"].decode("utf-8", "replace")
        if not self._expected[is_added, channel]:
            if is_added:
                return "subscribed again without a request: redis-py has reconnected"
            return f"no longer subscribed: {message['type']}"
        self._expected[is_added, channel] -= 1
        if is_added and channel in self._subscribed and not self._expected[True, channel]:
            self._added.append(channel)
        self._expected += Counter()  # drops those that are zero
        if not self._expected and self._added:
            added, self._added = self._added, []
            self._owner.on_ready(added)
        return ""

    async def _read_messages(self) -> str:
        """Deliver messages; return why that ended."""
        pubsub: Any = self._pubsub
        early, turn_began = 0, self._clock.monotonic()
        while True:
            if self.assigned is not self._applied:
                await self._apply_assignment()
            asked_at = self._clock.monotonic()
            if asked_at - turn_began > _TURN_S:
                await self._clock.sleep(0)  # `get_message` does not wait while messages are buffered
                asked_at = turn_began = self._clock.monotonic()
            message = await pubsub.get_message(timeout=_READ_S)
            now = self._clock.monotonic()
            if now - asked_at > _BUFFERED_S:
                turn_began = now
            if message is None:
                early = early + 1 if now - asked_at < _READ_S / 2 else 0
                if early >= _MAX_EARLY_NONES:
                    return "a dead connection that returns immediately"
                await self._clock.sleep(0)
            elif message["type"] in _MESSAGES:
                early = 0
                self._accept_message(message)
            elif reason := self._confirm(message):
                return reason
            if self._expected and now > self._expected_until:
                return f"channels were not confirmed within {_SUBSCRIBE_S:g} s"
            if now - self._loopback_at > SILENT_S:
                why = f" ({self._loopback_error})" if self._loopback_error else ""
                return f"silent: no loopback message for {SILENT_S:g} s{why}"

    def _accept_message(self, message: dict[str, Any]) -> None:
        channel = message["channel"].decode("utf-8", "replace")
        if channel != self._private:
            self._owner.on_message(channel, message["data"])
            return
        now, sent_at = self._clock.monotonic(), _sent_at(message["data"])
        if sent_at is None or not now - _OLDEST_LOOPBACK_S <= sent_at <= now:  # this process did not send it
            return
        self._loopback_at, self.lag_s = now, now - sent_at
        self._owner.backoff.on_success()

    async def _send_loopback(self) -> None:
        """Publish to the private channel. The receiving side detects failures."""
        word = "SPUBLISH" if self.assigned.sharded else "PUBLISH"
        try:
            await self._loopback_client.execute_command(word, self._private, repr(self._clock.monotonic()))  # type: ignore[no-untyped-call]
            self._loopback_error = ""
        except REDIS_ERRORS as error:
            self._loopback_error = reason_of(error)


def _sent_at(data: bytes) -> float | None:
    """Return the monotonic time in a loopback message, or None if it contains none."""
    try:
        return float(data)
    except ValueError:
        return None
