"""A timing wheel that pings all clients, without a timer or task for each."""

from typing import Protocol

_SHORTEST_S = 0.05
_MOST_SLOTS = 300


class PingTarget(Protocol):
    """A connection, as the wheel uses it. Only the wheel uses `slot`."""

    slot: int
    awaits_pong: bool

    def send_ping(self) -> None:
        """Send a ping and set `awaits_pong`."""

    def disconnect(self, code: int, reason: str) -> None:
        """Close the connection."""


class PingWheel:
    """Pings connections slot by slot. Pure: its owner calls `turn_once` every `step_s` seconds.

    A full turn takes the ping interval. Each step pings the connections of one slot, and closes those of an earlier
    slot that have not answered within the timeout.
    """

    def __init__(self, interval_s: float, timeout_s: float) -> None:
        count = max(2, min(_MOST_SLOTS, int(interval_s / _SHORTEST_S)))
        self.step_s = interval_s / count
        self._slots: list[dict[PingTarget, None]] = [{} for _ in range(count)]
        self._steps_to_answer = min(count - 1, max(1, round(timeout_s / self.step_s)))
        self._now = 0
        self._next = 0

    def add_connection(self, connection: PingTarget) -> None:
        """Start pinging a connection. Consecutive ones go to consecutive slots, so all steps cost the same."""
        connection.slot = self._next
        self._slots[connection.slot][connection] = None
        self._next = (self._next + 1) % len(self._slots)

    def remove_connection(self, connection: PingTarget) -> None:
        """Stop pinging a connection."""
        self._slots[connection.slot].pop(connection, None)

    def turn_once(self) -> None:
        """Advance by one slot: ping its connections and close those with an overdue pong."""
        self._now = (self._now + 1) % len(self._slots)
        for connection in list(self._slots[self._now - self._steps_to_answer]):
            if connection.awaits_pong:
                connection.disconnect(3012, "no pong")
        for connection in list(self._slots[self._now]):
            connection.send_ping()
