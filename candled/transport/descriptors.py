"""File descriptors: the limit of the process, and the clients' share of it."""

import logging
import os
import resource

logger = logging.getLogger(__name__)

_FILES = resource.RLIMIT_NOFILE

#: Descriptors for exchanges, the store, the bus and HTTP requests, in addition to the clients' connections.
OWN = 200
_RESERVE = 100
_QUIET_S = 60.0  # the shortage is over after this time without a refusal
_MOST = 2**31  # in place of "unlimited"


def raise_limit() -> int:
    """Raise the limit of open files as far as the system allows; return the resulting limit."""
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
    """Return a warning if the limit of open files is too low for `most_connections` clients, else None."""
    wanted = most_connections + OWN
    if limit >= wanted:
        return None
    return (
        f"the limit of open files is {limit}: about {max(0, limit - OWN)} clients find room, and the "
        f"{most_connections} of server.max_connections need {wanted} (ulimit -n, or LimitNOFILE= of systemd)"
    )


class Descriptors:
    """Reserves some descriptors, so that exchanges, the store and the bus always get one.

    The kernel assigns the lowest free number, so a high number means that all below it are in use.
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
        self._refused_at: float | None = None  # monotonic time of the last refusal, during a shortage

    @property
    def is_free(self) -> bool:
        """True if another client may stay."""
        try:
            free = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            return False
        os.close(free)
        return free < self._clients_below

    def has_room(self, now: float) -> bool:
        """Return True if another client may stay, and note the result. `now` is monotonic seconds."""
        return self._update_state(self.is_free, now)

    def has_room_for_request(self, descriptor: int, now: float) -> bool:
        """Return True if a new connection with this descriptor may get an HTTP answer."""
        return descriptor < self._requests_below or self._update_state(False, now)

    def is_reserved(self, descriptor: int) -> bool:
        """Return True if a connection with this descriptor must not stay."""
        return descriptor >= self._clients_below

    def on_exhausted(self, now: float) -> None:
        """Note that a connection could not be accepted."""
        self._update_state(False, now)

    def _update_state(self, is_room: bool, now: float) -> bool:
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
