"""The pacing of one lane of a room: at most one update a second, each bar's last state before the next bar's first."""

from candled.model import Candle

MIN_GAP_S = 1.0
RESYNC_GAP_S = 5.0
MOST_BEHIND = 5  # bars waiting for their turn before a fresh `initial` is the faster way


class UpdateThrottle:
    """Decides when which bar is sent. Pure: `now` is monotonic seconds.

    One slot per bar, oldest first: a bar's newest state replaces what waits in its slot. A change of a bar older than
    the last one sent cannot be an update any more; only a correction or a fresh `initial` can show it. That is so for
    the last one itself as soon as it was sent as final, so that this is said once.

    With `hold_s`, a bar waits until the one before it was sent as final, but no longer than that. With
    `revisions`, a bar with the same values but another `rev` has changed as well.
    """

    __slots__ = (
        "_busy",
        "_hold_s",
        "_next_at",
        "_resync",
        "_resynced_at",
        "_revisions",
        "_slots",
        "passed_over",
        "sent",
        "sent_final",
    )

    def __init__(self, *, hold_s: float = 0.0, revisions: bool = False) -> None:
        self.sent: Candle | None = None
        self.sent_final = False
        self.passed_over: int | None = None  # the bar that `take` left behind although it was not final yet
        self._hold_s = hold_s
        self._revisions = revisions
        self._slots: dict[int, tuple[Candle, bool, float]] = {}  # with the time since when one waits
        self._next_at = 0.0
        self._busy = False
        self._resync = False
        self._resynced_at = float("-inf")

    def start_after(self, newest: Candle | None, now: float, *, final: bool = False) -> None:
        """The first member was told everything up to `newest`, and whether that is final."""
        self.sent = newest
        self.sent_final = final
        self._slots.clear()
        self._next_at = max(self._next_at, now)
        self._resync = False

    def enqueue(self, bar: Candle, now: float, *, final: bool = False, spread_s: float = 0.0) -> bool:
        """Take a bar that changed or became final; False if no update can show it any more.

        `spread_s`: rooms that were changed together wait for their next second longer by this, each by its own, so
        that they do not all have their turn together for ever.
        """
        sent = self.sent
        if sent is not None and bar.open_ms <= sent.open_ms:
            if bar.open_ms < sent.open_ms:
                return False
            unchanged = bar.values == sent.values and (bar.rev == sent.rev or not self._revisions)
            if self.sent_final:
                self.sent = bar
                return unchanged
            if unchanged and not final:
                self._slots.pop(bar.open_ms, None)
                return True
        if not self._slots:
            self._wait_apart(now, spread_s)
        waiting = self._slots.get(bar.open_ms)
        self._slots[bar.open_ms] = (bar, final, now if waiting is None else waiting[2])
        if len(self._slots) > MOST_BEHIND:
            self._resync = True
        return True

    def try_send_now(self, bar: Candle, now: float) -> bool:
        """What `offer` and `take` come to for a bar that is not final while nothing waits; False if more is to be done.

        Not for a pace with `hold_s` or `revisions`.
        """
        if now < self._next_at or self._slots or not self._is_plain_news(bar):
            return False
        self._busy = False
        self.passed_over = None
        self.sent = bar
        self._next_at = now + MIN_GAP_S
        return True

    def enqueue_pending(self, bar: Candle, now: float, spread_s: float) -> bool:
        """What `offer` comes to for a bar that is not final while no other waits, within the second after an update.

        False if more is to be done. Not for a pace with `hold_s` or `revisions`.
        """
        if now >= self._next_at or not self._is_plain_news(bar):
            return False
        since = now
        if self._slots:
            waiting = self._slots.get(bar.open_ms)
            if waiting is None:
                return False
            since = waiting[2]
        else:
            self._wait_apart(now, spread_s)
        self._slots[bar.open_ms] = bar, False, since
        return True

    @property
    def next_at(self) -> float:
        """When the second after the last update is over."""
        return self._next_at

    @property
    def queued_bars(self) -> tuple[int, ...]:
        """The bars that wait for their turn."""
        return tuple(self._slots)

    @property
    def is_clean(self) -> bool:
        """Whether everything that was offered has been sent."""
        return not self._slots and not self._resync

    @property
    def is_overrun(self) -> bool:
        """Whether so many bars wait that all members are better served by a fresh `initial`."""
        return len(self._slots) > MOST_BEHIND

    def ask_resync(self) -> None:
        """Some members need a fresh `initial`."""
        self._resync = True

    @property
    def due_at(self) -> float | None:
        """When `take` or `take_resync` has something next; None when nothing waits."""
        at = None
        if self._slots:
            at = max(self._next_at, self._held_until(min(self._slots)))
        if self._resync:
            resync_at = self._resynced_at + RESYNC_GAP_S
            at = resync_at if at is None else min(at, resync_at)
        return at

    def take_due(self, now: float) -> Candle | None:
        """The bar to send now, if its time has come; `sent_final` says whether as final."""
        if not self._slots or now < self._next_at:
            return None
        oldest_ms = min(self._slots)
        held_until = self._held_until(oldest_ms)
        if now < held_until:
            return None
        self.passed_over = self.sent.open_ms if held_until and self.sent is not None else None
        self.sent, self.sent_final, _ = self._slots.pop(oldest_ms)
        self._next_at = now + MIN_GAP_S
        return self.sent

    def take_resync(self, now: float) -> bool:
        """Whether members that need it get a fresh `initial` now.

        With more bars waiting than `MOST_BEHIND` everybody needs it: `overrun` said so before.
        """
        if not self._resync or now < self._resynced_at + RESYNC_GAP_S:
            return False
        self._resync = False
        self._resynced_at = now
        return True

    def _is_plain_news(self, bar: Candle) -> bool:
        """Whether a bar is another one than was sent last, and nothing but an update is due."""
        sent = self.sent
        if sent is None or self.sent_final or self._resync:
            return False
        return bar.open_ms >= sent.open_ms and bar[:7] != sent[:7]  # the time and the values

    def _held_until(self, open_ms: int) -> float:
        """Until when a bar may not go out because the one before it is not final; 0.0 where nothing holds it."""
        if not self._hold_s or self.sent_final or self.sent is None or open_ms <= self.sent.open_ms:
            return 0.0
        return self._slots[open_ms][2] + self._hold_s

    def _wait_apart(self, now: float, spread_s: float) -> None:
        if now >= self._next_at:
            self._busy = False
        elif not self._busy:
            self._busy = True
            self._next_at += spread_s
