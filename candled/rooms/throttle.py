"""The throttle of a subscriber group: one update a second, and a bar's last state before the next bar's first."""

from dataclasses import dataclass, field

from candled.model import Candle

MIN_GAP_S = 1.0
RESYNC_GAP_S = 5.0
MOST_BEHIND = 5  # queued bars; above that a new `initial` is faster


@dataclass(eq=False, kw_only=True, slots=True)
class UpdateThrottle:
    """Decides when a bar is sent. Pure: `now` is monotonic seconds.

    There is one slot per bar, and the oldest is sent first. A newer state of a bar replaces the one in its slot. A
    change of a bar older than the last one sent can't be an `update`: only a `correction` or a new `initial` can show
    it. The same holds for the last bar itself once it was sent as final, so finality is sent only once.
    """

    #: The longest time that a bar waits for the one before it to be sent as final, in seconds; 0: none waits.
    final_wait_s: float = 0.0
    #: True if a new `rev` alone counts as a change.
    revisions: bool = False
    #: The last bar sent; None before the first.
    sent: Candle | None = None
    #: True if the last bar was sent as final.
    sent_final: bool = False
    #: Opening time of the bar that was passed over before it was final.
    skipped_open_ms: int | None = None
    #: The monotonic time from which the next update may be sent.
    next_at: float = 0.0
    #: Bar, finality and time of queuing, by opening time.
    _slots: dict[int, tuple[Candle, bool, float]] = field(default_factory=dict)
    #: True once `spread_s` was added; added again only after a quiet second.
    _busy: bool = False
    #: True while new snapshots are requested.
    _resync: bool = False
    #: When `take_resync` last returned True, monotonic seconds; minus infinity before the first time.
    _resynced_at: float = float("-inf")

    def start_after(self, newest: Candle | None, now: float, *, final: bool = False) -> None:
        """Start after a snapshot that ends with `newest`; `final` is the finality of that bar."""
        self.sent = newest
        self.sent_final = final
        self._slots.clear()
        self.next_at = max(self.next_at, now)
        self._resync = False

    def queue_bar(self, bar: Candle, now: float, *, final: bool = False, spread_s: float = 0.0) -> bool:
        """Queue a bar that changed or became final; return False if no `update` can show it any more.

        `spread_s` delays the next update once, by a different time for each room. Otherwise rooms that changed together
        would always be due together.
        """
        sent = self.sent
        if sent is not None and bar.open_ms <= sent.open_ms:
            if bar.open_ms < sent.open_ms:
                return False
            unchanged = bar.values == sent.values and (bar.rev == sent.rev or not self.revisions)
            if self.sent_final:
                self.sent = bar
                return unchanged
            if unchanged and not final:
                self._slots.pop(bar.open_ms, None)
                return True
        if not self._slots:
            self._stagger_next(now, spread_s)
        waiting = self._slots.get(bar.open_ms)
        self._slots[bar.open_ms] = (bar, final, now if waiting is None else waiting[2])
        if len(self._slots) > MOST_BEHIND:
            self._resync = True
        return True

    def try_send_now(self, bar: Candle, now: float) -> bool:
        """Take a forming bar for sending if the queue is empty and an update is due; return False otherwise.

        A shortcut for `queue_bar` and `take_due`. Not for a throttle with `final_wait_s` or `revisions`.
        """
        if now < self.next_at or self._slots or not self._is_plain_change(bar):
            return False
        self._busy = False
        self.skipped_open_ms = None
        self.sent = bar
        self.next_at = now + MIN_GAP_S
        return True

    def queue_pending(self, bar: Candle, now: float, spread_s: float) -> bool:
        """Queue a forming bar within the second after an update if no other bar is queued; return False otherwise.

        A shortcut for `queue_bar`. Not for a throttle with `final_wait_s` or `revisions`.
        """
        if now >= self.next_at or not self._is_plain_change(bar):
            return False
        since = now
        if self._slots:
            waiting = self._slots.get(bar.open_ms)
            if waiting is None:
                return False
            since = waiting[2]
        else:
            self._stagger_next(now, spread_s)
        self._slots[bar.open_ms] = bar, False, since
        return True

    @property
    def queued_bars(self) -> tuple[int, ...]:
        """Opening times of the queued bars."""
        return tuple(self._slots)

    @property
    def is_clean(self) -> bool:
        """True if everything that was queued has been sent."""
        return not self._slots and not self._resync

    @property
    def is_overrun(self) -> bool:
        """True if so many bars are queued that a new `initial` serves all members better."""
        return len(self._slots) > MOST_BEHIND

    def ask_resync(self) -> None:
        """Request new snapshots for some members."""
        self._resync = True

    @property
    def due_at(self) -> float | None:
        """The monotonic time at which `take_due` or `take_resync` has something; None if nothing is queued."""
        at = None
        if self._slots:
            at = max(self.next_at, self._wait_until(min(self._slots)))
        if self._resync:
            resync_at = self._resynced_at + RESYNC_GAP_S
            at = resync_at if at is None else min(at, resync_at)
        return at

    def take_due(self, now: float) -> Candle | None:
        """Return the bar to send now, or None. `sent_final` is its finality."""
        if not self._slots or now < self.next_at:
            return None
        oldest_ms = min(self._slots)
        wait_until = self._wait_until(oldest_ms)
        if now < wait_until:
            return None
        self.skipped_open_ms = self.sent.open_ms if wait_until and self.sent is not None else None
        self.sent, self.sent_final, _ = self._slots.pop(oldest_ms)
        self.next_at = now + MIN_GAP_S
        return self.sent

    def take_resync(self, now: float) -> bool:
        """Return True if members that need a new `initial` get it now.

        If more than `MOST_BEHIND` bars were queued, all members need it; check `is_overrun` first.
        """
        if not self._resync or now < self._resynced_at + RESYNC_GAP_S:
            return False
        self._resync = False
        self._resynced_at = now
        return True

    def _is_plain_change(self, bar: Candle) -> bool:
        """Return True if a bar differs from the last one sent and nothing but an update is due."""
        sent = self.sent
        if sent is None or self.sent_final or self._resync:
            return False
        return bar.open_ms >= sent.open_ms and bar[:7] != sent[:7]  # the time and the values

    def _wait_until(self, open_ms: int) -> float:
        """Return when a bar may be sent although the one before it is not final; 0.0 if it need not wait."""
        if not self.final_wait_s or self.sent_final or self.sent is None or open_ms <= self.sent.open_ms:
            return 0.0
        return self._slots[open_ms][2] + self.final_wait_s

    def _stagger_next(self, now: float, spread_s: float) -> None:
        if now >= self.next_at:
            self._busy = False
        elif not self._busy:
            self._busy = True
            self.next_at += spread_s
