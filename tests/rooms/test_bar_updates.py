"""The values of a frame: other dialects encode them, so they must be those of the frame's own text."""

import inspect
import json

import pytest

from candled.api.kline_streams import KlineRoom
from candled.model import iso_ms
from candled.protocol.frames import Frame
from candled.protocol.messages import FINAL, SEQ, VALUES, Options, bar_text
from candled.serve import events
from tests.rooms.stage import Joined, stage, topic
from tests.rows import minute


class Recorded(Joined):
    """A member that keeps its frames unread."""

    def send_frame(self, frame) -> int:
        self.frames.append(frame)
        return len(frame)


async def frames_of(options: Options) -> list[Frame]:
    """The frames of a member with these options: its `initial`, updates and corrections."""
    one = await stage()
    one.push(minute(60, volume="0", as_of=0), 60)
    member = Recorded(one.hub)
    member.request_initial(one.hub.join_room(member, member, topic("1m"), 5, options))
    one.push(minute(60, volume="1", as_of=1), 60)
    await one.wait(1.5)
    one.push(minute(60, volume="2", as_of=60_000, final=True), 61)
    await one.wait(3)
    one.push(minute(61, volume="3", as_of=0), 61)
    await one.wait(3)
    one.push(minute(58, volume="77", as_of=60_000, final=True)._replace(rev=1), 61)
    await one.wait(3)
    return member.frames


@pytest.mark.parametrize("mode", ["all", "closed"])
async def test_the_values_of_a_frame_are_those_of_its_text(mode):
    options = Options(FINAL | SEQ, on_close=mode == "closed", corrections=True)
    frames = await frames_of(options)
    assert {frame.update.kind for frame in frames} == {"initial", "update", "correction"}
    for frame in frames:
        text, update = json.loads(frame.payload), frame.update
        assert update.kind == text["type"]
        assert update.position == (text["epoch"], text["seq"])
        shown = {bar["time"]: bar for bar in text.get("bars", [text.get("bar")])}
        assert update.bars[-1][0].open_ms == max(bar.open_ms for bar, _ in update.bars)
        assert iso_ms(update.bars[-1][0].open_ms) == max(shown)
        for bar, final in update.bars:
            assert json.loads(bar_text(bar, FINAL, final=final)) == shown[iso_ms(bar.open_ms)]


async def test_a_member_that_reads_values_gets_the_same_ones_without_a_text():
    texts = await frames_of(Options(FINAL, corrections=True))
    values = await frames_of(Options(FINAL | VALUES, corrections=True))
    assert not any(values)
    assert [frame.update for frame in values[1:]] == [frame.update for frame in texts[1:]]
    assert (values[0].update.kind, len(values[0].update.bars)) == ("initial", 5)


@pytest.mark.parametrize("encoder", [KlineRoom, events], ids=["klines", "events"])
def test_no_encoder_parses_a_message_of_candled(encoder):
    source = inspect.getsource(encoder)
    assert not [word for word in ("loads", "json.decode", "json.encode(self", ".payload)") if word in source]
