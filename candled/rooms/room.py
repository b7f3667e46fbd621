"""A room: the subscribers of one market and interval, in groups with the same delivery rules."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from candled.model import Candle, Position, Topic
from candled.protocol.messages import FINAL, REV, Options, RequestId, Resume

from .recipients import Recipients, RecipientSlot
from .throttle import MIN_GAP_S, UpdateThrottle

MOST_CORRECTIONS = 100  # bars corrected at a time; above that a new `initial` is faster
_MOST_CORRECTING = 20_000  # frames at a time: bars times members

_NOT_SHOWN_YET = 2  # newest bars that a group may not show yet: not final, or queued behind one that is not

Mode = Literal["live", "final", "closed"]


class Member(Protocol):
    """A client in a room."""

    def request_initial(self, membership: "Membership") -> None:
        """Have `Hub.render_snapshot` called as soon as the `initial` can be sent."""

    def on_market_removed(self, membership: "Membership") -> None:
        """Leave the room, whose market is not served any more."""


@dataclass(eq=False, repr=False, slots=True)
class Membership(RecipientSlot):
    """The subscription of one client to a room. It is in a list of its group while it receives updates."""

    #: The client that has subscribed.
    client: Member
    #: The group of the room that the client belongs to.
    group: "SubscriberGroup"
    #: The number of bars that the client requested for its snapshot.
    bars: int
    #: The delivery options of the subscription.
    options: Options
    #: The `id` of the last request to subscribe, for error messages; None without one.
    request_id: RequestId = None
    #: True until the first `initial`, which may wait for more bars to be loaded.
    is_new: bool = True
    #: The position to resume from, until the next `initial` or `resumed`.
    resume: Resume | None = None
    #: The result of `prepare_resume` for that position.
    prepared: Any = None
    #: True once the member has had its `initial`, until it waits for another one.
    is_initialized: bool = False
    #: True if the last snapshot had fewer bars than requested.
    is_short: bool = False
    #: Opening time of the first bar of the last snapshot.
    sent_from_ms: int | None = None
    #: Opening time of the last bar of its snapshot, while older bars are still queued in the group.
    ahead_ms: int | None = None

    @property
    def topic(self) -> Topic:
        """The topic of the room."""
        return self.group.room.topic

    @property
    def bars_needed(self) -> int:
        """The number of bars that must be in memory. In some groups the newest ones may not be shown yet."""
        return self.bars if self.group.mode == "live" else self.bars + _NOT_SHOWN_YET


@dataclass(eq=False, repr=False, slots=True)
class SubscriberGroup:
    """Members of a room that receive the same bars at the same time.

    The modes:

    - `live` sends each change.
    - `final` also sends each change, but delays the next bar until the last one is final.
    - `closed` sends final bars only.
    """

    #: The room that the group is part of.
    room: "Room"
    #: The way in which changes are sent.
    mode: Mode
    #: True if a new `rev` alone counts as a change.
    revisions: bool
    #: In mode `final`: the longest delay of the next bar, in seconds; 0 in other modes.
    final_wait_s: float
    #: The key in `Room.groups`.
    key: tuple[Mode, bool, float] = field(init=False)
    #: The queue of changed bars, which decides when each is sent.
    throttle: UpdateThrottle = field(init=False)
    #: True in mode `live` without `revisions`.
    _is_plain: bool = field(init=False)
    #: By options: the list of the members that have them and receive updates.
    groups: dict[Options, Recipients] = field(default_factory=dict)
    #: The number of members, including those that wait for their `initial`.
    members: int = 0
    #: The number of members that have had their `initial`.
    initialized: int = 0
    #: Members whose snapshot ends with a newer bar than the last one sent to the group.
    ahead_of_queue: dict[Membership, None] = field(default_factory=dict)
    #: Members whose snapshot contains a state of the last bar that is still queued.
    saw_queued_state: dict[Membership, None] = field(default_factory=dict)
    #: Members that need a new `initial`.
    needs_snapshot: dict[Membership, None] = field(default_factory=dict)
    #: Opening times of the bars to correct, UTC epoch milliseconds.
    corrections: set[int] = field(default_factory=set)
    #: When the last corrections were sent, monotonic seconds; minus infinity before the first.
    corrected_at: float = float("-inf")
    #: Opening times of bars that were sent, or left out, before they were final, and are too old for an `update`.
    pending_final: set[int] = field(default_factory=set)
    #: The feed's position when the queue was last empty.
    delivered_position: Position | None = None
    #: When the hub runs this group next; None while nothing is queued.
    scheduled_at: float | None = None
    #: The last bar sent, its finality and its text, by optional fields.
    last_texts: dict[int, tuple[Candle, bool, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = self.mode, self.revisions, self.final_wait_s
        self.throttle = UpdateThrottle(final_wait_s=self.final_wait_s, revisions=self.revisions)
        self._is_plain = self.mode == "live" and not self.revisions

    def is_simple(self, bar: Candle) -> bool:
        """Return True if a changed bar only needs the throttle, which is nearly always so.

        With 10,000 rooms, the data of a room is not in the CPU's caches. Each attribute read here is part of the cost
        of an update.
        """
        return (
            self._is_plain
            and self.initialized > 0
            and bar.open_ms > self.room.read_ms
            and not (self.ahead_of_queue or self.saw_queued_state or self.needs_snapshot or self.corrections)
        )

    @property
    def is_clean(self) -> bool:
        """True if the members that had their `initial` have been sent every change."""
        return self.throttle.is_clean and not self.corrections and not self.needs_snapshot

    @property
    def is_sending(self) -> bool:
        """True while an earlier broadcast is unfinished."""
        for recipients in self.groups.values():  # noqa: SIM110 - `any` takes four times as long, and this runs for every change
            if recipients.sending:
                return True
        return False

    @property
    def is_correcting(self) -> bool:
        """True if at least one member wants corrections."""
        return any(options.corrections and recipients for options, recipients in self.groups.items())

    @property
    def due_at(self) -> float | None:
        """The monotonic time at which something is due, in seconds; None if nothing is queued."""
        at = self.throttle.due_at
        if self.corrections:
            correct_at = self.corrected_at + MIN_GAP_S
            at = correct_at if at is None else min(at, correct_at)
        return at

    @property
    def is_beyond_correcting(self) -> bool:
        """True if a new `initial` is cheaper than the queued corrections."""
        members = sum(len(recipients) for options, recipients in self.groups.items() if options.corrections)
        return len(self.corrections) > MOST_CORRECTIONS or len(self.corrections) * members > _MOST_CORRECTING

    def initialized_members(self) -> list[Membership]:
        """Return the members that had their `initial` and do not wait for another."""
        active = [slot for recipients in self.groups.values() for slot in recipients.slots]
        return [*active, *self.ahead_of_queue]  # type: ignore[list-item]  # the slots of a group are memberships

    def remove_member(self, membership: Membership) -> None:
        """Remove a member."""
        self.await_initial(membership)
        self.members -= 1

    def await_initial(self, membership: Membership) -> None:
        """Send the member nothing more before its next `initial`."""
        if membership.position >= 0:
            self.groups[membership.options].remove_slot(membership)
        self.ahead_of_queue.pop(membership, None)
        self.saw_queued_state.pop(membership, None)
        self.needs_snapshot.pop(membership, None)
        self.initialized -= membership.is_initialized
        membership.is_initialized = False
        membership.ahead_ms = None

    def admit_member(self, membership: Membership, newest_ms: int | None) -> None:
        """Let a member receive updates after its snapshot, which ends with the bar `newest_ms`.

        If the group has not been sent that bar yet, the member joins with that bar's update.
        """
        membership.is_initialized = True
        self.initialized += 1
        sent = self.throttle.sent
        is_ahead = newest_ms in self.throttle.queued_bars and (sent is None or sent.open_ms != newest_ms)
        if self.mode == "live" and is_ahead:
            membership.ahead_ms = newest_ms
            self.ahead_of_queue[membership] = None
        else:
            if newest_ms in self.throttle.queued_bars:
                self.saw_queued_state[membership] = None
            self._activate_member(membership)

    def request_snapshots(self, members: Sequence[Membership]) -> None:
        """Request new snapshots for members."""
        self.needs_snapshot.update(dict.fromkeys(members))
        if members:
            self.throttle.ask_resync()

    def take_stale(self) -> list[Membership]:
        """Return the members that need a new snapshot, which receive nothing more before it."""
        stale = self.initialized_members() if self.throttle.is_overrun else list(self.needs_snapshot)
        for membership in stale:
            self.await_initial(membership)
        self.needs_snapshot.clear()
        return stale

    def catch_up(self, open_ms: int) -> None:
        """Let the members whose snapshot ends at or before `open_ms` join the group's updates, from this bar on."""
        self.saw_queued_state.clear()
        for membership in [one for one in self.ahead_of_queue if one.ahead_ms is not None and one.ahead_ms <= open_ms]:
            del self.ahead_of_queue[membership]
            membership.ahead_ms = None
            self._activate_member(membership)

    def _activate_member(self, membership: Membership) -> None:
        recipients = self.groups.get(membership.options)
        if recipients is None:
            recipients = self.groups[membership.options] = Recipients()
        recipients.add_slot(membership)


class Room:
    """A market and interval, and its groups. `phase`, from 0 to 1, staggers rooms that are due at the same moment."""

    __slots__ = ("groups", "head", "last_broadcast_ms", "memberships", "name", "phase", "read_ms", "topic", "version")

    def __init__(self, topic: Topic, name: str, head: str) -> None:
        self.topic = topic
        self.name = name
        self.head = head
        self.phase = zlib.crc32(name.encode()) / 2**32
        self.groups: dict[tuple[Mode, bool, float], SubscriberGroup] = {}
        self.memberships: set[Membership] = set()  # of all groups
        self.version = 0  # changes whenever a bar does
        self.last_broadcast_ms = 0
        self.read_ms = -1  # opening time of the newest bar in the cached texts of an `initial`

    @property
    def member_count(self) -> int:
        """The number of members in all groups."""
        return sum(group.members for group in self.groups.values())

    def group_for(self, options: Options) -> SubscriberGroup:
        """Return the group for members with these options."""
        mode: Mode = "closed" if options.on_close else "final" if options.fields & FINAL else "live"
        key = (mode, bool(options.fields & REV), options.final_wait_s if mode == "final" else 0.0)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = SubscriberGroup(self, *key)
        return group
