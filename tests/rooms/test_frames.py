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


def test_a_frame_says_which_bar_it_shows_and_an_answer_shows_none():
    topic = object()
    update, answer = Frame.from_text("{}", topic, 60_000), Frame.from_text(b"{}")
    assert (update.topic, update.open_ms) == (topic, 60_000)
    assert (answer.topic, answer.open_ms) == (None, 0)
    assert update == answer == b"\x81\x02{}"


class Socket:
    """Notes what it is sent; perhaps does something else the moment it is."""

    places = ()

    def __init__(self, then=lambda: None) -> None:
        self.got = []
        self.then = then

    def write(self, frame) -> int:
        self.got.append(frame)
        self.then()
        return len(frame)


def test_whoever_leaves_during_a_broadcast_gets_no_more_of_it_and_nobody_else_is_left_out():
    """Against a plain model: a hundred members, slices, and comings and goings between the slices."""
    draw = random.Random(5)
    for _ in range(200):
        recipients, inside = Recipients(), []
        for _ in range(draw.randrange(100)):
            place = RecipientSlot(Socket())
            recipients.add_slot(place)
            inside.append(place)
        count, due, gone = len(recipients), list(inside), set()
        recipients.sending += 1
        position = 0
        while position < count:
            stop = min(count, position + draw.randrange(1, 30))
            for write in recipients.writes[position:stop]:
                write("frame")
            position = stop
            for _ in range(draw.randrange(5)):
                if inside and draw.random() < 0.6:
                    place = inside.pop(draw.randrange(len(inside)))
                    recipients.remove_slot(place)
                    gone.add(place)
                else:
                    place = RecipientSlot(Socket())
                    recipients.add_slot(place)
                    inside.append(place)
        recipients.sending -= 1
        recipients.compact()
        for place in due:
            assert place.link.got == ["frame"] or (place in gone and place.link.got == [])
        assert all(place.link.got == [] for place in inside if place not in due)
        assert sorted(map(id, recipients)) == sorted(id(place.link) for place in inside)
        assert [recipients[place.position] for place in inside] == [place.link for place in inside]
        assert recipients.writes == [link.write for link in recipients]
        assert all(place.link.places == (place,) for place in inside)
        assert recipients.member_count == len(inside) == len(recipients.slots)


def test_who_leaves_in_the_middle_of_a_slice_leaves_a_place_that_does_nothing():
    recipients = Recipients()
    leaving = RecipientSlot(Socket())
    first = RecipientSlot(Socket(then=lambda: recipients.remove_slot(leaving)))
    for place in (first, leaving):
        recipients.add_slot(place)
    recipients.sending += 1
    for position in range(2):
        recipients.writes[position]("frame")
    recipients.sending -= 1
    assert (leaving.link.got, recipients[1], recipients.member_count) == ([], NULL_CONNECTION, 1)
    recipients.compact()
    assert list(recipients) == [first.link]
