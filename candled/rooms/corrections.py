"""Send changes that no `update` can show: as corrections, or as new snapshots to members without corrections."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from candled.model import Candle
from candled.protocol.frames import Frame
from candled.protocol.messages import FINAL

from .recipients import Recipients, filled

if TYPE_CHECKING:
    from .encoded_bars import BarSource
    from .renderer import MessageRenderer
    from .room import SubscriberGroup


class Corrections:
    """Corrects older bars of a group, or requests new snapshots for its members."""

    def __init__(
        self, bars: "BarSource", renderer: "MessageRenderer", publish: Callable[[Recipients, Frame], None]
    ) -> None:
        self._bars = bars
        self._renderer = renderer
        self._publish = publish

    def on_past_changed(self, group: "SubscriberGroup", times: Sequence[int]) -> None:
        """Correct bars that no `update` can show, or request new snapshots for members without corrections."""
        if not times:
            return
        if group.is_correcting:
            group.corrections.update(times)
        newest_ms = max(times)
        stale = []
        for one in group.initialized_members():
            corrected = one.options.corrections and one.ahead_ms is None
            if not corrected and one.sent_from_ms is not None and one.sent_from_ms <= newest_ms:
                stale.append(one)
        group.request_snapshots(stale)

    def fill_up(self, group: "SubscriberGroup") -> None:
        """Request new snapshots for members whose snapshot was shorter than requested, if there are more bars now."""
        firsts: dict[int, int | None] = {}
        stale = []
        for one in group.initialized_members():
            if not one.is_short:
                continue
            if one.bars not in firsts:
                firsts[one.bars] = next(iter(self._bars.newest_times(*group.room.topic, one.bars)), None)
            first_ms = firsts[one.bars]
            if first_ms is not None and (one.sent_from_ms is None or first_ms < one.sent_from_ms):
                stale.append(one)
        group.request_snapshots(stale)

    def send_due(self, group: "SubscriberGroup", now: float) -> None:
        """Send the queued corrections, or request new snapshots if there are too many."""
        group.corrected_at = now
        if group.is_beyond_correcting:
            group.corrections.clear()
            group.request_snapshots([one for one in group.initialized_members() if one.options.corrections])
            return
        for open_ms in sorted(group.corrections):
            # one by one: only the last one may have the position that confirms all of them
            group.corrections.discard(open_ms)
            bar = self._bars.get_bar(*group.room.topic, open_ms)
            if bar is not None and self._may_correct(group, bar):
                self._send_correction(group, bar)

    def _may_correct(self, group: "SubscriberGroup", bar: Candle) -> bool:
        """Return True if a correction may be sent now. Note a bar that is not final: it is corrected once it is."""
        if group.mode == "live" or self._renderer.is_final(group, bar):
            return True
        group.pending_final.add(bar.open_ms)
        return group.mode == "final"

    def _send_correction(self, group: "SubscriberGroup", bar: Candle) -> None:
        frames = dict[int, Frame]()
        for options, recipients in filled(group.groups):
            fields = options.fields
            if not options.corrections:
                continue
            if fields not in frames:
                final = bool(fields & FINAL) and self._renderer.is_final(group, bar)
                frames[fields] = self._renderer.render_bar("correction", group, bar, fields, final=final)
            self._publish(recipients, frames[fields])
