"""Render messages as frames, each once for all subscribers that receive the same one."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from candled.model import Candle, MarketKey, Position, RangeSet, Topic
from candled.protocol import messages
from candled.protocol.frames import BarUpdate, Frame
from candled.protocol.messages import SEQ, VALUES, bar_text, position_text

from .encoded_bars import BARS_PER_TURN, BarSource, EncodedBarCache, EncodedBars, fields_printer
from .room import Membership, SubscriberGroup

MOST_RESUMED = 2000
_NEWER = 8  # bars that may be newer than the last one sent to a group


class Snapshot(NamedTuple):
    """An `initial` frame and its contents. Times are opening times in ms; `bars` is the number of bars.

    `open` are the forming bars before the last one; `final` is the finality of the last one.
    """

    frame: Frame
    first_ms: int | None
    last_ms: int | None
    bars: int
    open: tuple[int, ...] = ()
    final: bool = False


class MessageRenderer:
    """Renders frames from the bars in memory, and from encoded bars where possible."""

    def __init__(self, bars: BarSource, texts: EncodedBarCache) -> None:
        self._bars = bars
        self._texts = texts
        self._finality_counts: Counter[MarketKey] = Counter()

    def note_finality(self, market: MarketKey) -> None:
        """Note that bars of a market may have become final."""
        self._finality_counts[market] += 1

    def changed_bars(self, group: SubscriberGroup, bars: Sequence[Candle]) -> list[Candle]:
        """Return the bars whose current values differ from the ones subscribers were sent, oldest first.

        Finality is ignored here: it is sent when it becomes known.
        """
        topic = group.room.topic
        forms = [self._texts.find_form(topic, one.fields, one.on_close) for one in group.groups]
        if not bars or not any(form is not None and form.last_ms >= bars[0].open_ms for form in forms):
            return list(bars)
        changed = [bar for bar in bars if not all(form is not None and form.is_current(bar) for form in forms)]
        revision = self._bars.revision_of(*topic)
        for form in forms:
            if form is not None:
                form.drop_from(bars[0].open_ms, revision)
        return changed

    def render_bar(
        self, kind: Literal["update", "correction"], group: SubscriberGroup, bar: Candle, fields: int, *, final: bool
    ) -> Frame:
        """Return the `update` with the bar that the group's throttle has just released, or a `correction`."""
        position = self._position_text(group) if fields & SEQ else None
        update = BarUpdate(kind, ((bar, final),), position)
        if fields & VALUES:
            return _values_frame(group, update, bar.open_ms)
        text = bar_text(bar, fields, final=final)
        message = messages.bar_message(kind, group.room.head, text, position_text(position))
        frame = Frame.from_text(message, group.room.topic, bar.open_ms)
        frame.update = update
        if kind == "update":
            group.last_texts[fields] = bar, final, text
        else:
            frame.corrects = True
        return frame

    def is_final(self, group: SubscriberGroup, bar: Candle) -> bool:
        """Return True if the group may present the bar as final.

        The last bar sent counts as final only once it was sent as final.
        """
        sent = group.throttle.sent
        if group.mode != "live" and sent is not None and sent.open_ms == bar.open_ms:
            return group.throttle.sent_final
        return self._bars.is_final(*group.room.topic, bar)

    def encode_some(self, membership: Membership) -> bool:
        """Encode some bars of a member's next snapshot; return True once only a few are left."""
        group, options, count = membership.group, membership.options, max(1, membership.bars)
        if options.fields & VALUES:
            return True
        topic = group.room.topic
        if membership.resume is not None and membership.prepared is not None:
            newest = self._bars.newest_times(*topic, MOST_RESUMED)
            count = max(count, len(newest) - bisect_left(newest, membership.resume.time_ms))
        form = self._texts.get_form(topic, fields_printer(options.fields), options.on_close)
        more = 0 if group.mode == "live" else _NEWER
        while True:
            times, finality_count = self._bars.newest_times(*topic, count + more), self._finality_counts[topic.market]
            if not form.encode_bars(self._bars, times, max(0, len(times) - 1), finality_count, BARS_PER_TURN):
                self._texts.mark_used(form)
                return False
            if not more or len(times) < count + more or form.count_bars(times[0], times[-1]) >= count - 1:
                return True
            more *= 8

    def render_initial(self, membership: Membership) -> Snapshot:
        """Return the `initial` of a member as of now, with `recovered: false` if it could not be resumed."""
        group, options, count = membership.group, membership.options, membership.bars
        if options.fields & VALUES:
            return self._initial_values(group, count)
        topic, recovers = group.room.topic, membership.resume is not None
        position = self._position_text(group) if options.fields & SEQ or recovers else None
        form = self._texts.get_form(topic, fields_printer(options.fields), options.on_close)
        sent = None if group.mode == "live" else group.throttle.sent
        state = (
            group.room.version,
            self._bars.revision_of(*topic),
            self._finality_counts[topic.market],
            sent and (sent.open_ms, group.throttle.sent_final),
            position,
        )
        group.room.read_ms = max(group.room.read_ms, form.last_ms)
        snapshot: Snapshot | None = form.kept_message((count, recovers), state)
        if snapshot is None:
            more = ',"recovered":false' if recovers else ""
            snapshot = self._make_initial(group, form, count, f"{more}{position_text(position)}")
            if position is not None:
                still_open = () if options.on_close else snapshot.open
                snapshot.frame.update = self._update_of(topic, snapshot, still_open, position)
            if group.members > 1:
                form.keep_message((count, recovers), state, snapshot)
            self._texts.mark_used(form)
        return snapshot

    def render_resumed(
        self, membership: Membership, time_ms: int, became_final: RangeSet, changed: Sequence[Candle]
    ) -> Snapshot | None:
        """Return the `resumed` of a member; None if there are too many changes or they don't fit the group.

        Args:
            membership: the returning member.
            time_ms: opening time of the newest bar it received.
            became_final: time ranges in which bars may have become final since. These bars count as changed for members
                that asked for finality.
            changed: the bars whose values have changed since.
        """
        group, options, count = membership.group, membership.options, membership.bars
        topic, resume = group.room.topic, membership.resume
        position = self._position_text(group, None if resume is None else Position(resume.epoch, resume.seq))
        form = self._texts.get_form(topic, fields_printer(options.fields), options.on_close)
        since_ms, last_ms = self._load_bars(group, form, max(1, count))
        changes = {bar.open_ms: bar for bar in changed}
        if group.mode != "live":
            if last_ms is None or topic.interval.floor(time_ms) > last_ms:
                return None  # it has received a bar that this group has not been sent yet
            changes = self._bars_in(group, became_final, last_ms) | changes
            changes = {at: bar for at, bar in changes.items() if at <= last_ms}
            if group.mode == "closed":
                changes = {at: bar for at, bar in changes.items() if self.is_final(group, bar)}
        if len(changes) > MOST_RESUMED:
            return None
        texts = [self._older_text(group, form, changes[open_ms]) for open_ms in sorted(changes)]
        still_open = {at for at, bar in changes.items() if group.mode != "live" and not self.is_final(group, bar)}
        frame = Frame.from_text(messages.resumed(group.room.head, texts, position_text(position)), topic)
        bars = tuple((changes[at], group.mode != "live" and at not in still_open) for at in sorted(changes))
        frame.update = BarUpdate("resumed", bars, position)
        self._texts.mark_used(form)
        if last_ms is None or not count:
            return Snapshot(frame, None, last_ms, 0)
        first_ms, older_count, older = form.newest_text(count - 1, since_ms, last_ms)
        older.release()
        skipped = tuple(at for at in still_open.union(form.open) if at < last_ms)  # an update covers the last one
        return Snapshot(frame, last_ms if first_ms is None else first_ms, last_ms, older_count + 1, skipped)

    # ------------------------------------------------------------ inside

    def _make_initial(self, group: SubscriberGroup, form: EncodedBars, count: int, more: str) -> Snapshot:
        topic, head = group.room.topic, group.room.head
        since_ms, last_ms = self._load_bars(group, form, max(1, count))
        last = None if last_ms is None else self._bars.get_bar(*topic, last_ms)
        if last is None or not count:
            return Snapshot(Frame.from_parts(messages.initial(head, (), more), topic), None, last_ms, 0)
        final = group.mode != "live" and self.is_final(group, last)
        text = self._last_text(group, last, final, form.printer.fields)
        first_ms, older_count, texts = form.newest_text(count - 1, since_ms, last.open_ms)
        with texts:
            frame = Frame.from_parts(messages.initial(head, (texts, text.encode()), more), topic)
        still_open = tuple(open_ms for open_ms in form.open if since_ms <= open_ms < last.open_ms)
        return Snapshot(frame, last_ms if first_ms is None else first_ms, last_ms, older_count + 1, still_open, final)

    def _initial_values(self, group: SubscriberGroup, count: int) -> Snapshot:
        topic, sent = group.room.topic, group.throttle.sent
        times = self._bars.newest_times(*topic, count + _NEWER)
        stop = 0 if sent is None else bisect_right(times, sent.open_ms)
        bars = [self._bars.get_bar(*topic, open_ms) for open_ms in times[:stop][-count:]]
        states = tuple((bar, self.is_final(group, bar)) for bar in bars if bar is not None)
        frame = _values_frame(group, BarUpdate("initial", states))
        if not states:
            return Snapshot(frame, None, None, 0)
        still_open = tuple(bar.open_ms for bar, final in states[:-1] if not final)
        last, final = states[-1]
        return Snapshot(frame, states[0][0].open_ms, last.open_ms, len(states), still_open, final)

    def _update_of(self, topic: Topic, snapshot: Snapshot, still_open: Sequence[int], position: Position) -> BarUpdate:
        """Return the values of an `initial`, without the final bars before its last one."""
        if snapshot.first_ms is None or snapshot.last_ms is None:
            return BarUpdate("initial", (), position)
        states = [(open_ms, False) for open_ms in still_open if open_ms >= snapshot.first_ms]
        states.append((snapshot.last_ms, snapshot.final))
        bars = ((self._bars.get_bar(*topic, open_ms), final) for open_ms, final in states)
        return BarUpdate("initial", tuple((bar, final) for bar, final in bars if bar is not None), position)

    def _bars_in(self, group: SubscriberGroup, spans: RangeSet, last_ms: int) -> dict[int, Candle]:
        """Return the newest bars that overlap one of `spans`, up to the bar at `last_ms`, by opening time."""
        topic = group.room.topic
        times = self._bars.newest_times(*topic, MOST_RESUMED)
        stop = bisect_right(times, last_ms)
        prepared = []
        for start_ms, end_ms in spans:
            start = bisect_right(times, start_ms - topic.interval.ms)
            prepared += [self._bars.get_bar(*topic, at) for at in times[start : bisect_left(times, end_ms, hi=stop)]]
        return {bar.open_ms: bar for bar in prepared if bar is not None}

    def _load_bars(self, group: SubscriberGroup, form: EncodedBars, count: int) -> tuple[int, int | None]:
        """Encode the bars for a snapshot of `count` bars, except the last one.

        Returns:
            The opening times of the first and the last bar; 0 and None if there are none.
        """
        topic, sent = group.room.topic, group.throttle.sent
        more = 0 if group.mode == "live" else _NEWER
        while True:
            times = self._bars.newest_times(*topic, count + more)
            stop = len(times)
            if group.mode != "live":
                stop = 0 if sent is None else bisect_right(times, sent.open_ms)
            if not stop:
                return 0, None
            last_ms = times[stop - 1]
            form.encode_bars(self._bars, times, stop - 1, self._finality_counts[topic.market])
            group.room.read_ms = max(group.room.read_ms, form.last_ms)
            if not more or len(times) < count + more or form.count_bars(times[0], last_ms) >= count - 1:
                return times[0], last_ms
            more *= 8

    def _last_text(self, group: SubscriberGroup, bar: Candle, final: bool, fields: int) -> str:
        """Return the text of the last bar of a group, from the cache if it has not changed."""
        known = group.last_texts.get(fields)
        if known is not None and known[0] == bar and known[1] is final:
            return known[2]
        text = bar_text(bar, fields, final=final)
        group.last_texts[fields] = bar, final, text
        return text

    def _older_text(self, group: SubscriberGroup, form: EncodedBars, bar: Candle) -> bytes:
        sent = group.throttle.sent
        text = None if sent is not None and sent.open_ms == bar.open_ms else form.bar_text(bar.open_ms)
        if text is None:
            text = bar_text(bar, form.printer.fields, final=group.mode != "live" and self.is_final(group, bar)).encode()
        return text

    def _position_text(self, group: SubscriberGroup, known: Position | None = None) -> Position | None:
        """Return the position up to which a group has been sent every change: the feed's, unless something is queued.

        If something is queued, it is the last position at which nothing was, or seq 0. A returning member keeps its
        `known` position if that is newer.
        """
        position = self._bars.feed_position(group.room.topic.market)
        if position is not None and not group.is_clean:
            position = group.delivered_position or position._replace(seq=0)
            if known is not None and known.epoch == position.epoch:
                position = max(position, known)
        return position


def _values_frame(group: SubscriberGroup, update: BarUpdate, open_ms: int = 0) -> Frame:
    frame = Frame()
    frame.topic, frame.open_ms, frame.update = group.room.topic, open_ms, update
    frame.corrects = update.kind == "correction"
    return frame
