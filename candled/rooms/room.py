"""A room: the members of one topic, in lanes by how they want to be told."""

import zlib
from typing import Any, Literal, Protocol

from candled.bus import Position
from candled.model import Candle
from candled.protocol.messages import FINAL, REV, Options, RequestId, Topic
from candled.protocol.requests import Resume

from .recipients import RecipientConnection, Recipients, RecipientSlot
from .throttle import MIN_GAP_S, UpdateThrottle

MOST_CORRECTIONS = 100  # bars corrected in one go; above that a fresh `initial` is the faster way
_MOST_CORRECTING = 20_000  # frames in one go, so many bars to so many members

_NOT_SHOWN_YET = 2  # bars that are not final yet or wait for another that is not

Mode = Literal["live", "final", "closed"]


class Member(Protocol):
    """A client in a room."""

    def want_initial(self, membership: "Membership") -> None:
        """Have `Hub.initial` called as soon as it can be sent."""


class Membership(RecipientSlot):
    """What one member has of a room: the bars it asked for, the first one it was shown, and whether those were fewer.

    It has a place in the lists of its lane while it gets the updates. `told`: it has had its `initial`. `ahead_ms`:
    its `initial` ended with this bar, while older ones still wait for their turn.
    """

    __slots__ = (
        "ahead_ms",
        "bars",
        "client",
        "found",
        "fresh",
        "lane",
        "options",
        "request_id",
        "resume",
        "short",
        "shown_from_ms",
        "told",
    )

    def __init__(
        self, client: Member, link: RecipientConnection, lane: "SubscriberGroup", bars: int, options: Options
    ) -> None:
        super().__init__(link)
        self.client = client
        self.lane: SubscriberGroup = lane
        self.bars = bars
        self.options = options
        self.request_id: RequestId = None
        self.fresh = True  # had no `initial` yet, so that a better one may be waited for
        self.resume: Resume | None = None  # where it was, if it wants only what changed since
        self.found: Any = None  # what the bars in memory need to tell that
        self.told = False
        self.short = False
        self.shown_from_ms: int | None = None
        self.ahead_ms: int | None = None

    @property
    def topic(self) -> Topic:
        """The topic of the room."""
        return self.lane.room.topic

    @property
    def bars_needed(self) -> int:
        """How many bars have to be in memory: in some lanes the newest ones may not be shown yet."""
        return self.bars if self.lane.mode == "live" else self.bars + _NOT_SHOWN_YET


class SubscriberGroup:
    """Members of a room that are told the same bars at the same time, in groups with the same options.

    `live`: each change; `final`: each change, the next bar after the last one's end, or `hold_s` after it opened;
    `closed`: final bars only. With `revisions` a bar counts as changed also when only its `rev` did.
    """

    __slots__ = (
        "_is_plain",
        "ahead_of_queue",
        "corrected_at",
        "corrections",
        "delivered_position",
        "groups",
        "hold_s",
        "initialized",
        "key",
        "last_texts",
        "members",
        "mode",
        "needs_snapshot",
        "pace",
        "pending_final",
        "room",
        "saw_queued_state",
        "scheduled_at",
    )

    def __init__(self, room: "Room", mode: Mode, revisions: bool, hold_s: float) -> None:
        self.room = room
        self.key = mode, revisions, hold_s  # in the room
        self.mode = mode
        self.hold_s = hold_s
        self._is_plain = mode == "live" and not revisions
        self.pace = UpdateThrottle(hold_s=hold_s, revisions=revisions)
        self.groups: dict[Options, Recipients] = {}
        self.members = 0
        self.initialized = 0  # members that have had their `initial`
        self.ahead_of_queue: dict[Membership, None] = {}
        self.saw_queued_state: dict[Membership, None] = {}  # were told a state of the last bar that waits for its turn
        self.needs_snapshot: dict[Membership, None] = {}  # need a fresh `initial`
        self.corrections: set[int] = set()  # bars that wait to be corrected
        self.corrected_at = float("-inf")
        self.pending_final: set[int] = (
            set()
        )  # bars that were told, or left out, as not final and that no update can show
        self.delivered_position: Position | None = None  # up to where everything was told when last nothing waited
        self.scheduled_at: float | None = None
        self.last_texts: dict[int, tuple[Candle, bool, str]] = {}  # of the bar told last, by fields

    def is_simple(self, bar: Candle) -> bool:
        """Whether for a bar that changed only the pace is to be asked, as it is nearly always.

        Ten thousand rooms are not in the processor's caches: what is looked at here is what an update of a room costs.
        """
        return (
            self._is_plain
            and self.initialized > 0
            and bar.open_ms > self.room.read_ms
            and not (self.ahead_of_queue or self.saw_queued_state or self.needs_snapshot or self.corrections)
        )

    @property
    def is_clean(self) -> bool:
        """Whether everything that changed was told to the members that have had their `initial`."""
        return self.pace.is_clean and not self.corrections and not self.needs_snapshot

    @property
    def is_sending(self) -> bool:
        """Whether an earlier broadcast is not through."""
        for links in self.groups.values():  # noqa: SIM110 - `any` takes four times as long, and this is asked all the time
            if links.sending:
                return True
        return False

    @property
    def is_correcting(self) -> bool:
        """Whether some member wants corrections."""
        return any(options.corrections and links for options, links in self.groups.items())

    @property
    def due_at(self) -> float | None:
        """When there is something to send; None when nothing waits."""
        at = self.pace.due_at
        if self.corrections:
            correct_at = self.corrected_at + MIN_GAP_S
            at = correct_at if at is None else min(at, correct_at)
        return at

    @property
    def is_beyond_correcting(self) -> bool:
        """Whether so many corrections wait that a fresh `initial` is better."""
        members = sum(len(links) for options, links in self.groups.items() if options.corrections)
        return len(self.corrections) > MOST_CORRECTIONS or len(self.corrections) * members > _MOST_CORRECTING

    def filled_groups(self) -> list[tuple[Options, Recipients]]:
        """The groups that have members, ready to be sent to."""
        groups = []
        for group in self.groups.items():
            group[1].compact()
            if group[1]:
                groups.append(group)
        return groups

    def initialized_members(self) -> list[Membership]:
        """Everybody who has had an `initial` and waits for no other."""
        active = [place for links in self.groups.values() for place in links.slots]
        return [*active, *self.ahead_of_queue]  # type: ignore[list-item]  # the lists of a lane hold memberships

    def add_member(self, membership: Membership) -> None:
        """A new member, which waits for its `initial`."""
        self.members += 1

    def remove_member(self, membership: Membership) -> None:
        """The end of a membership."""
        self.await_initial(membership)
        self.members -= 1

    def await_initial(self, membership: Membership) -> None:
        """The member gets nothing more before its next `initial`."""
        if membership.position >= 0:
            self.groups[membership.options].remove_slot(membership)
        self.ahead_of_queue.pop(membership, None)
        self.saw_queued_state.pop(membership, None)
        self.needs_snapshot.pop(membership, None)
        self.initialized -= membership.told
        membership.told = False
        membership.ahead_ms = None

    def admit_member(self, membership: Membership, newest_ms: int | None) -> None:
        """The member was told everything up to the bar `newest_ms`.

        From now on it has the lane's updates; but if the lane has not sent that bar yet, only from it on.
        """
        membership.told = True
        self.initialized += 1
        sent = self.pace.sent
        is_ahead = newest_ms in self.pace.queued_bars and (sent is None or sent.open_ms != newest_ms)
        if self.mode == "live" and is_ahead:
            membership.ahead_ms = newest_ms
            self.ahead_of_queue[membership] = None
        else:
            if newest_ms in self.pace.queued_bars:
                self.saw_queued_state[membership] = None
            self._activate_member(membership)

    def catch_up(self, open_ms: int) -> None:
        """The bar `open_ms` goes out: who was told no more than that has the updates from this one on."""
        self.saw_queued_state.clear()
        for membership in [one for one in self.ahead_of_queue if one.ahead_ms is not None and one.ahead_ms <= open_ms]:
            del self.ahead_of_queue[membership]
            membership.ahead_ms = None
            self._activate_member(membership)

    def _activate_member(self, membership: Membership) -> None:
        links = self.groups.get(membership.options)
        if links is None:
            links = self.groups[membership.options] = Recipients()
        links.add_slot(membership)


class Room:
    """What all lanes of a topic share. `phase`, from 0 to 1, tells rooms apart that would be due together."""

    __slots__ = ("groups", "head", "last_broadcast_ms", "name", "phase", "read_ms", "topic", "version")

    def __init__(self, topic: Topic, name: str, head: str) -> None:
        self.topic = topic
        self.name = name
        self.head = head
        self.phase = zlib.crc32(name.encode()) / 2**32
        self.groups: dict[tuple[Mode, bool, float], SubscriberGroup] = {}
        self.version = 0  # changes whenever a bar does
        self.last_broadcast_ms = 0
        self.read_ms = -1  # a bar that begins later is among no texts that were kept for an `initial`

    @property
    def member_count(self) -> int:
        """How many there are."""
        return sum(lane.members for lane in self.groups.values())

    def group_for(self, options: Options) -> SubscriberGroup:
        """The lane for members with these options."""
        mode: Mode = "closed" if options.on_close else "final" if options.fields & FINAL else "live"
        key = (mode, bool(options.fields & REV), options.hold_s if mode == "final" else 0.0)
        lane = self.groups.get(key)
        if lane is None:
            lane = self.groups[key] = SubscriberGroup(self, *key)
        return lane
