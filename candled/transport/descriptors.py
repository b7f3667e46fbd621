"""File descriptors: how many the process may have, and how many of them clients may take."""

import logging
import os
import resource

logger = logging.getLogger(__name__)

_FILES = resource.RLIMIT_NOFILE

#: for exchanges, the store, the bus and requests over HTTP, beside the connections of clients
OWN = 200
_RESERVE = 100
_QUIET_S = 60.0  # without a refusal for so long the shortage is over
_MOST = 2**31  # instead of "unlimited"


def raise_limit() -> int:
    """Raise the limit of open files as far as the system lets us; return what it is now."""
    soft, hard = (_MOST if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(_FILES))
    for wanted in (hard, min(hard, 10_240)):  # macOS refuses its own "unlimited"
        if soft >= wanted:
            break
        try:
            resource.setrlimit(_FILES, (wanted, resource.getrlimit(_FILES)[1]))
        except (OSError, ValueError):
            continue
        return wanted
    return soft


def shortage(limit: int, most_connections: int) -> str | None:
    """Return what is wrong with a limit of open files for so many clients; None if they all find room."""
    wanted = most_connections + OWN
    if limit >= wanted:
        return None
    return (
        f"the limit of open files is {limit}: about {max(0, limit - OWN)} clients find room, and the "
        f"{most_connections} of server.max_connections need {wanted} (ulimit -n, or LimitNOFILE= of systemd)"
    )


class Descriptors:
    """Keeps some descriptors back from clients, so that exchanges, the store and the bus always find one.

    The kernel gives the lowest number that is free: a high one means that all below it are in use.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            limit = resource.getrlimit(_FILES)[0]
            limit = _MOST if limit == resource.RLIM_INFINITY else limit
        reserve = min(_RESERVE, limit // 4)
        self.limit = limit
        self._clients_below = limit - reserve
        self._requests_below = limit - reserve // 2
        self._refused = 0
        self._refused_at: float | None = None  # the last one, while there is a shortage

    def has_room(self, now: float) -> bool:
        """Whether another client may stay; `now` is monotonic seconds."""
        try:
            free = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            free = self.limit
        else:
            os.close(free)
        return self._judged(free < self._clients_below, now)

    def has_room_for_request(self, descriptor: int, now: float) -> bool:
        """Whether a new connection with this descriptor can be answered at all."""
        return descriptor < self._requests_below or self._judged(False, now)

    def is_reserved(self, descriptor: int) -> bool:
        """Whether a connection is among those that must not stay."""
        return descriptor >= self._clients_below

    def exhausted(self, now: float) -> None:
        """Note that no connection could be taken."""
        self._judged(False, now)

    def _judged(self, is_room: bool, now: float) -> bool:
        if not is_room:
            if self._refused_at is None:
                logger.warning(
                    "no file descriptors are left for clients, which are refused: the limit of open files is %d",
                    self.limit,
                )
            self._refused, self._refused_at = self._refused + 1, now
        elif self._refused_at is not None and now - self._refused_at > _QUIET_S:
            logger.info("clients find file descriptors again; %d were refused", self._refused)
            self._refused, self._refused_at = 0, None
        return is_room
