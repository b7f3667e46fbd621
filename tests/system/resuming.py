"""Clients that stay subscribed while the processes that serve them are restarted, and a record of their reconnects."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from candled.client.connection import ServerConnection
from candled.client.stream import BarSubscription
from candled.client.values import Bar, Status
from candled.clock import SystemClock
from candled.tasks import Backoff, TaskSet

_AGAIN_S = 1.0

Room = tuple[str, str]
"""A symbol and an interval."""


@dataclass
class Reconnect:
    """One lost connection, in monotonic seconds of the machine: 0 if it has not happened."""

    #: When the `bye` came, or the end of the connection without one.
    lost: float
    #: The delay that the `bye` named; None without one.
    bye_ms: int | None
    #: When the next connection was open.
    opened: float = 0.0
    #: When the bars came, and whether they were only those that had changed.
    answered: float = 0.0
    is_resumed: bool = False
    #: Why the connection ended, in words.
    reason: str = ""


@dataclass
class Record:
    """The reconnects of many clients."""

    reconnects: list[Reconnect] = field(default_factory=list)
    #: Attempts to connect that failed.
    failures: int = 0
    #: Temporary errors, by their text.
    errors: Counter[str] = field(default_factory=Counter)


class ResumingClient:
    """One subscription of candled's own client, which resumes after each loss; a context manager."""

    def __init__(self, url: str, room: Room, bars: int, record: Record) -> None:
        self.room = room
        self.subscription = BarSubscription({"symbol": room[0], "interval": room[1]}, bars, 20_000)
        self._record = record
        self._lost: Reconnect | None = None  # from its loss to the bars of the next connection
        self._bye: tuple[float, int] | None = None
        self._asked = 0
        self._tasks = TaskSet()
        self._connection = ServerConnection(
            url,
            opened=self._on_open,
            received=self._on_message,
            lost=self._on_loss,
            clock=SystemClock(),
            backoff=Backoff(first_s=1.0, most_s=30.0),
            ping_s=20.0,
            attempts=None,
        )

    async def __aenter__(self) -> "ResumingClient":
        self._tasks.start(self._connection.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.cancel()

    @property
    def bars(self) -> Sequence[Bar]:
        """The bars that it shows, oldest first."""
        return self.subscription.series.bars

    def find_differences(self, fresh: Mapping[Room, Sequence[Bar]]) -> list[str]:
        """Return the final bars of a fresh subscription that this client lacks or shows otherwise."""
        shown = {bar.time: bar for bar in self.bars}
        return [
            f"{self.room}: {shown.get(bar.time)} instead of {bar}"
            for bar in fresh[self.room]
            if bar.final and bar.time >= self.bars[0].time and shown.get(bar.time) != bar
        ]

    def _on_open(self) -> None:
        if self._lost is not None:
            self._lost.opened = time.monotonic()
        self._subscribe()

    async def _subscribe_later(self) -> None:
        """Subscribe again after a temporary error, as candled's client does."""
        await asyncio.sleep(_AGAIN_S)
        if not self.subscription.has_bars:
            self._subscribe()

    def _subscribe(self) -> None:
        self._asked += 1
        self._connection.send(self.subscription.subscribe_message(self._asked))

    def _on_message(self, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "initial" | "resumed" | "update" | "correction":
                self.subscription.on_bars_message(message)
                self._on_bars(message)
            case "bye":
                delay_ms = int(message["reconnectAfterMs"])
                self._bye = time.monotonic(), delay_ms
                self._connection.expect_end(delay_ms / 1000)
            case "error":
                assert message.get("temporary"), message
                self._record.errors[str(message["message"])] += 1
                self._tasks.start(self._subscribe_later())

    def _on_bars(self, message: Mapping[str, Any]) -> None:
        if self._lost is not None and message["type"] in ("initial", "resumed"):
            self._lost.answered = time.monotonic()
            self._lost.is_resumed = bool(message.get("recovered"))
            self._lost = None

    def _on_loss(self, error: Exception, wait_s: float) -> None:
        self.subscription.on_connection_lost(Status("lost", retry_s=wait_s, message=str(error)))
        if self._lost is not None or not self.bars:
            self._record.failures += 1
            return
        at, delay_ms = self._bye or (time.monotonic(), None)
        self._bye = None
        self._lost = Reconnect(at, delay_ms, reason=str(error))
        self._record.reconnects.append(self._lost)


async def read_fresh(url: str, rooms: Sequence[Room], bars: int) -> dict[Room, Sequence[Bar]]:
    """Return the bars of the first answer to a fresh subscription of each room."""
    clients = {room: ResumingClient(url, room, bars, Record()) for room in rooms}
    for client in clients.values():
        await client.__aenter__()
    try:
        while not all(client.subscription.has_bars for client in clients.values()):
            await asyncio.sleep(0.02)
        return {room: list(client.bars) for room, client in clients.items()}
    finally:
        for client in clients.values():
            await client.__aexit__()


async def wait_until_equal(
    clients: Sequence[ResumingClient], url: str, rooms: Sequence[Room], bars: int, within_s: float
) -> list[str]:
    """Wait until all clients show the final bars of fresh subscriptions; return the differences that remain."""
    deadline = time.monotonic() + within_s
    while True:
        fresh = await read_fresh(url, rooms, bars)
        differences = [text for client in clients for text in client.find_differences(fresh)]
        if not differences or time.monotonic() > deadline:
            return differences
        await asyncio.sleep(0.5)
