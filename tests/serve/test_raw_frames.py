"""What the Autobahn suite asks of a server, in frames sent by hand; both ways to keep a connection answer alike."""

import asyncio
import struct

import pytest

from tests.serve.peers import BINARY, CLOSE, PING, PONG, TEXT, echo_harness, frame

WAYS = pytest.mark.parametrize("own_sockets", [True, False], ids=["own socket", "Tornado's"])
EURO = "€κόσμε".encode()


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


ECHOED = {
    "empty text": (frame(TEXT), [(0x81, b"")]),
    "short text": (frame(TEXT, b"*" * 125), [(0x81, b"*" * 125)]),
    "text with a 16-bit length": (frame(TEXT, b"*" * 126), [(0x81, b"*" * 126)]),
    "text of 16 KiB": (frame(TEXT, b"*" * 16384), [(0x81, b"*" * 16384)]),
    "binary": (frame(BINARY, bytes(range(256))), [(0x82, bytes(range(256)))]),
    "two messages": (frame(TEXT, b"a") + frame(BINARY, b"b"), [(0x81, b"a"), (0x82, b"b")]),
    "ping without payload": (frame(PING), [(0x8A, b"")]),
    "ping with payload": (frame(PING, b"\x00\xff\xfe"), [(0x8A, b"\x00\xff\xfe")]),
    "ping of 125 bytes": (frame(PING, b"x" * 125), [(0x8A, b"x" * 125)]),
    "ten pings": (b"".join(frame(PING, b"%d" % n) for n in range(10)), [(0x8A, b"%d" % n) for n in range(10)]),
    "an unasked pong is ignored": (frame(PONG, b"x") + frame(PING), [(0x8A, b"")]),
    "two fragments": (frame(TEXT, b"a", fin=False) + frame(0, b"b"), [(0x81, b"ab")]),
    "empty fragments": (frame(TEXT, fin=False) + frame(0, fin=False) + frame(0), [(0x81, b"")]),
    "a ping among fragments": (
        frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(0, b"b"),
        [(0x8A, b"p"), (0x81, b"ab")],
    ),
    "a character across fragments": (
        frame(TEXT, EURO[:1], fin=False) + frame(0, EURO[1:]),
        [(0x81, EURO)],
    ),
    "binary fragments": (frame(BINARY, b"\xff", fin=False) + frame(0, b"\xfe"), [(0x82, b"\xff\xfe")]),
    "valid UTF-8": (frame(TEXT, EURO), [(0x81, EURO)]),
}

REFUSED = {
    "RSV1": (frame(TEXT, b"x", rsv=4), 1002),
    "RSV2": (frame(TEXT, b"x", rsv=2), 1002),
    "RSV3 on a ping": (frame(PING, rsv=1), 1002),
    "opcode 3": (frame(3), 1002),
    "opcode 7": (frame(7, b"x"), 1002),
    "opcode 11": (frame(11), 1002),
    "opcode 15": (frame(15, b"x"), 1002),
    "a fragmented ping": (frame(PING, b"x", fin=False), 1002),
    "a fragmented close": (frame(CLOSE, fin=False), 1002),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a continuation of nothing": (frame(0, b"x"), 1002),
    "a message within a message": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "a frame that is not masked": (frame(TEXT, b"x", masked=False), 1002),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "overlong": (frame(TEXT, b"\xc0\xaf"), 1007),
    "beyond Unicode": (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "a cut character": (frame(TEXT, EURO[:2]), 1007),
    "bad text in the second fragment": (frame(TEXT, b"a", fin=False) + frame(0, b"\xff"), 1007),
    "too large": (frame(TEXT, b"x" * 16385), 1009),
    "too large, by its header alone": (frame(TEXT, size=2**40), 1009),
    "too large in fragments": (frame(TEXT, b"x" * 16000, fin=False) + frame(0, b"x" * 1000), 1009),
    "a normal end": (closing(1000), 1000),
    "an end without a code": (frame(CLOSE), 1005),
    "an end with a reason": (closing(1000, b"bye"), 1000),
    "a code of the application": (closing(4999), 4999),
    "an end among fragments": (frame(TEXT, b"a", fin=False) + closing(1000), 1000),
    "bad text, then more of it": (frame(TEXT, b"\xff", fin=False) + frame(0), 1007),
    "close code 0": (closing(0), 1002),
    "close code 999": (closing(999), 1002),
    "close code 1004": (closing(1004), 1002),
    "close code 1005": (closing(1005), 1002),
    "close code 1006": (closing(1006), 1002),
    "close code 1016": (closing(1016), 1002),
    "close code 2999": (closing(2999), 1002),
    "half a code": (frame(CLOSE, b"x"), 1002),
    "a reason that is not UTF-8": (closing(1000, b"\xff"), 1007),
}

# Where Tornado's own protocol differs: it drops the connection, without a close frame, on broken frames;
DROPPED_BY_TORNADO = {1002, 1007}
# and these it lets pass.
TAKEN_BY_TORNADO = {"a frame that is not masked", "half a code"}


@WAYS
@pytest.mark.parametrize("case", ECHOED)
async def test_what_is_right_is_answered(case, own_sockets):
    sent, expected = ECHOED[case]
    async with echo_harness(own_sockets=own_sockets) as harness:
        peer = await harness.connect()
        peer.send(sent)
        assert [await peer.receive() for _ in expected] == expected


@pytest.mark.slow
@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "one byte"])
async def test_a_message_has_a_bounded_number_of_fragments(payload):
    async with echo_harness() as harness:
        peer = await harness.connect()
        part = frame(0, payload, fin=False)
        peer.send(frame(TEXT, payload, fin=False) + part * 1022 + frame(0))
        assert await peer.receive() == (0x81, payload * 1023)
        peer.send(frame(TEXT, payload, fin=False) + part * 1024)
        assert await peer.closed_with() == 1009


@pytest.mark.parametrize(
    "case", ["ten pings", "a ping among fragments", "text of 16 KiB", "a character across fragments"]
)
async def test_it_does_not_matter_how_the_bytes_are_cut(case):
    sent, expected = ECHOED[case]
    async with echo_harness() as harness:
        peer = await harness.connect()
        for at in range(0, len(sent), 997 if len(sent) > 1000 else 1):
            peer.send(sent[at : at + (997 if len(sent) > 1000 else 1)])
            await peer.writer.drain()
            await asyncio.sleep(0)
        assert [await peer.receive() for _ in expected] == expected


@WAYS
@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_wrong_ends_with_its_code(case, own_sockets):
    sent, code = REFUSED[case]
    if not own_sockets and case in TAKEN_BY_TORNADO:
        pytest.skip("Tornado accepts these frames")
    async with echo_harness(own_sockets=own_sockets) as harness:
        peer = await harness.connect()
        peer.send(sent)
        assert await peer.closed_with() in ({code} if own_sockets or code not in DROPPED_BY_TORNADO else {code, None})
        while not harness.clients[0].ends:
            await asyncio.sleep(0.005)
        await harness.wait_until_empty()
        assert harness.clients[0].ends == 1
