"""The number of file descriptors that clients may take, and the log lines about it."""

import asyncio
import errno
import logging
import os
import resource

import pytest

from candled.transport import descriptors
from candled.transport.descriptors import Descriptors, raise_limit, shortage
from tests import deadlines
from tests.api.stage import open_stage
from tests.clocks import ManualClock
from tests.rows import MONDAY_MS


@pytest.mark.parametrize(
    ("limit", "most", "expected"),
    [
        (20_000, 10_000, None),
        (10_200, 10_000, None),
        (10_199, 10_000, "about 9999 clients find room"),
        (60, 10_000, "about 0 clients find room"),
        (1024, 0, None),  # no limit of clients is asked for
    ],
)
def test_a_limit_that_is_too_low_is_named(limit, most, expected):
    problem = shortage(limit, most)
    assert problem is None if expected is None else expected in problem and str(most + 200) in problem


@pytest.mark.parametrize(
    ("was", "refused", "becomes"),
    [
        ((1024, 4096), (), 4096),
        ((4096, 4096), (), 4096),
        ((1024, resource.RLIM_INFINITY), (2**31,), 10_240),  # as macOS has it
        ((1024, 4096), (4096,), 1024),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (), 2**31),
    ],
)
def test_the_limit_is_raised_as_far_as_the_system_lets_us(monkeypatch, was, refused, becomes):
    now = [was]

    def setrlimit(_, limits):
        if limits[0] in refused:
            raise ValueError("not that")
        now[0] = limits

    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: now[0])
    monkeypatch.setattr(descriptors.resource, "setrlimit", setrlimit)
    assert raise_limit() == becomes
    assert now[0][1] == was[1]


@pytest.mark.parametrize(
    ("limit", "free", "has_room", "is_answered"),
    [
        (1000, 10, True, True),
        (1000, 899, True, True),
        (1000, 900, False, True),
        (1000, 949, False, True),
        (1000, 950, False, False),
        (60, 44, True, True),  # of a low limit a quarter is kept
        (60, 45, False, True),
        (60, 53, False, False),
    ],
)
def test_the_last_descriptors_are_not_for_clients(monkeypatch, limit, free, has_room, is_answered):
    monkeypatch.setattr(descriptors.os, "open", lambda *_: free)
    monkeypatch.setattr(descriptors.os, "close", lambda _: None)
    kept = Descriptors(limit)
    assert kept.has_room(0.0) == has_room
    assert kept.has_room_for_request(free, 0.0) == is_answered


def test_a_shortage_is_one_line_and_its_end_another(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "candled.transport.descriptors")
    free = [99]
    monkeypatch.setattr(descriptors.os, "open", lambda *_: free[0])
    monkeypatch.setattr(descriptors.os, "close", lambda _: None)
    kept = Descriptors(100)
    for second in range(10):
        kept.has_room(float(second))
        kept.on_exhausted(float(second))
    free[0] = 10
    for second in range(10, 200):
        assert kept.has_room(float(second))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "100" in caplog.messages[0]
    assert "20 were refused" in caplog.messages[1]


def test_a_descriptor_that_cannot_be_made_is_none_that_is_left(monkeypatch):
    def on_exhausted(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(descriptors.os, "open", on_exhausted)
    assert not Descriptors(100).has_room(0.0)


async def test_a_connection_on_one_of_the_last_descriptors_is_answered_and_closed_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(Descriptors, "is_reserved", lambda *_: True)
    clock = ManualClock(MONDAY_MS)
    async with open_stage(tmp_path, clock=clock) as one:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.server.listen())
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await deadlines.wait_for(reader.readuntil(b"}"), 5)
        assert answer.startswith(b"HTTP/1.1 200 ")
        await clock.advance(9.0)
        assert not reader.at_eof()
        await clock.advance(1.1)
        assert await deadlines.wait_for(reader.read(), 5) == b"\n"
        writer.close()


async def test_a_client_beyond_the_limit_gets_503_and_no_101(tmp_path, monkeypatch):
    monkeypatch.setattr(Descriptors, "has_room_for_request", lambda *_: False)
    async with open_stage(tmp_path) as one:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.server.listen())
        writer.write(b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await deadlines.wait_for(reader.read(), 5)
        writer.close()
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 10" in head
    assert f"Content-Length: {len(body)}".encode() in head
