"""Reports of the daemon's state to systemd, in the protocol of sd_notify(3). Without systemd they go nowhere."""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping

from candled.exchange import Clock
from candled.tasks import TaskSet

logger = logging.getLogger(__name__)

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_BEATS = 3  # per watchdog interval, so that one late beat is no reason for a restart


class ServiceManager:
    """Sends reports to the socket that the environment names.

    The variables of the protocol are removed from `environment`, so that child processes report nothing.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        values = {name: environment.pop(name, "") for name in _VARIABLES}
        self._address = values["NOTIFY_SOCKET"]
        #: The longest time between two beats, in seconds; 0 if systemd expects none of this process.
        self.watchdog_s = _watchdog_s(values)

    def report_ready(self) -> None:
        """Report that the start or a reload has ended."""
        self._send_state("READY=1")

    def report_reload(self) -> None:
        """Report that the settings are being read again."""
        self._send_state(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def report_stop(self) -> None:
        """Report that the process is about to end."""
        self._send_state("STOPPING=1")

    def start_beats(self, tasks: TaskSet, clock: Clock, is_moving: Callable[[], bool]) -> None:
        """Send a beat several times per watchdog interval, while the caller's loop runs and `is_moving` returns True.

        systemd restarts the process once the beats end.
        """

        def beat() -> None:
            if is_moving():
                self._send_state("WATCHDOG=1")

        if self.watchdog_s:
            tasks.start_periodic(beat, clock, self.watchdog_s / _BEATS)

    def _send_state(self, text: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):  # an abstract socket
            address = f"\0{address[1:]}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), address)
        except OSError as error:
            logger.debug("systemd does not take %s: %s", text, error)


def _watchdog_s(values: Mapping[str, str]) -> float:
    """Return the watchdog interval in seconds; 0 if there is none, or if it is meant for another process."""
    is_own = values["WATCHDOG_PID"] in ("", str(os.getpid()))
    return int(values["WATCHDOG_USEC"]) / 1e6 if is_own and values["WATCHDOG_USEC"].isdigit() else 0.0
