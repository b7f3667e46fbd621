"""Frames and the lists of links they are sent to."""

import random

import pytest
from websockets.frames import Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

from candled.protocol.frames import Frame
from candled.rooms.recipients import NULL_CONNECTION, Recipients, RecipientSlot


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_frame_is_read_by_a_client_whatever_its_length(length):
    text = ("ä" + "x" * length)[:length]
    frame = Frame.from_text(text)
    reader = Protocol(CLIENT, state=OPEN, max_size=None)
    reader.receive_data(frame)
    (read,) = reader.events_received()
    assert (read.opcode, read.fin, bytes(read.data)) == (Opcode.TEXT, True, text.encode())
    assert frame.payload == text.encode()


def test_a_frame_names_its_bar_and_an_answer_has_none():
    topic = object()
    update, answer = Frame.from_text("{}", topic, 60_000), Frame.from_text(b"{}")
    assert (update.topic, update.open_ms) == (topic, 60_000)
    assert (answer.topic, answer.open_ms) == (None, 0)
    assert update == answer == b"\x81\x02{}"


class Socket:
    """Notes what it is sent; perhaps does something else the moment it is."""

    recipient_slots = ()

    def __init__(self, then=lambda: None) -> None:
        self.got = []
        self.then = then

    def take_frame(self, frame) -> int:
        self.got.append(frame)
        self.then()
        return len(frame)


@pytest.mark.slow
def test_a_client_that_leaves_during_a_broadcast_gets_no_more_of_it_and_no_other_is_left_out():
    """Against a plain model: a hundred members, slices, and comings and goings between the slices."""
    draw = random.Random(5)
    for _ in range(200):
        recipients, inside = Recipients(), []
        for _ in range(draw.randrange(100)):
            slot = RecipientSlot(Socket())
            recipients.add_slot(slot)
            inside.append(slot)
        count, due, gone = len(recipients), list(inside), set()
        recipients.sending += 1
        position = 0
        while position < count:
            stop = min(count, position + draw.randrange(1, 30))
            for take_frame in recipients.frame_takers[position:stop]:
                take_frame("frame")
            position = stop
            for _ in range(draw.randrange(5)):
                if inside and draw.random() < 0.6:
                    slot = inside.pop(draw.randrange(len(inside)))
                    recipients.remove_slot(slot)
                    gone.add(slot)
                else:
                    slot = RecipientSlot(Socket())
                    recipients.add_slot(slot)
                    inside.append(slot)
        recipients.sending -= 1
        recipients.compact()
        for slot in due:
            assert slot.connection.got == ["frame"] or (slot in gone and slot.connection.got == [])
        assert all(slot.connection.got == [] for slot in inside if slot not in due)
        assert sorted(map(id, recipients)) == sorted(id(slot.connection) for slot in inside)
        assert [recipients[slot.position] for slot in inside] == [slot.connection for slot in inside]
        assert recipients.frame_takers == [connection.take_frame for connection in recipients]
        assert all(slot.connection.recipient_slots == (slot,) for slot in inside)
        assert recipients.member_count == len(inside) == len(recipients.slots)


def test_who_leaves_in_the_middle_of_a_slice_leaves_a_place_that_does_nothing():
    recipients = Recipients()
    leaving = RecipientSlot(Socket())
    first = RecipientSlot(Socket(then=lambda: recipients.remove_slot(leaving)))
    for slot in (first, leaving):
        recipients.add_slot(slot)
    recipients.sending += 1
    for position in range(2):
        recipients.frame_takers[position]("frame")
    recipients.sending -= 1
    assert (leaving.connection.got, recipients[1], recipients.member_count) == ([], NULL_CONNECTION, 1)
    recipients.compact()
    assert list(recipients) == [first.connection]
