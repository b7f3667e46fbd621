"""REST answers that cost too much: each ends with an error, before its body is built."""

import asyncio
import gzip
import math

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from candled.clock import SystemClock
from candled.errors import ExchangeError, Unavailable
from candled.exchange import MAX_ROWS, InvalidRow, read_rows
from candled.ingest.http import HttpClient, _retry_after_s
from candled.tasks import LoopTurns
from tests.plugins.local import web_server

HOUR_S = 3600.0
MB = 1024 * 1024
BODIES = {
    "small": (b"[1]", {}, [1]),
    "long": (b"[" + b" " * 5 * MB + b"]", {}, Unavailable),
    "a small gzip of 90 MB": (None, {"Content-Encoding": "gzip"}, Unavailable),
    "many lists": (b"[" + b"[]," * 1_000_000 + b"[]]", {}, ExchangeError),
    "many numbers": (b"[" + b"1.1," * 1_000_000 + b"1]", {}, ExchangeError),
    "lists within lists": (b"[" * 100_000, {}, ExchangeError),
    "a long whole number": (b"9" * 5000, {}, ExchangeError),
    "a redirect with a body": (b"[1]", {"Location": "/small", ":status": "302"}, ExchangeError),
}


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        (None, None),
        ("7", 7.0),
        ("-7", 0.0),
        ("1e308", HOUR_S),
        ("inf", HOUR_S),
        ("nan", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:09 GMT", 9.0),
        ("Thu, 01 Jan 2099 00:00:00 GMT", HOUR_S),
        ("Thu, 01 Jan 99999 00:00:00 GMT", None),
    ],
)
def test_a_pause_that_an_exchange_asks_for_is_an_hour_at_most(header, wait_s):
    assert _retry_after_s(header, 0) == wait_s
    assert wait_s is None or math.isfinite(wait_s)


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_is_bounded_before_and_after_decompression(name):
    body, headers, expected = BODIES[name]

    class Handler(RequestHandler):
        def get(self) -> None:
            for key, value in headers.items():
                self.set_status(int(value)) if key == ":status" else self.set_header(key, value)
            self.finish(gzip.compress(b"[" + b" " * 90 * MB + b"]", 1) if body is None else body)

    socket, port = bind_unused_port()
    server, client = HTTPServer(Application([("/", Handler)])), HttpClient(SystemClock(), 100.0)
    server.add_socket(socket)
    try:
        if isinstance(expected, list):
            assert await client.get_json(f"http://127.0.0.1:{port}/") == expected
            return
        with pytest.raises(expected) as error:
            await client.get_json(f"http://127.0.0.1:{port}/")
        assert len(str(error.value)) < 300
    finally:
        client.close()
        server.stop()


async def test_a_long_body_is_parsed_in_a_turn_and_a_short_one_without():
    class Handler(RequestHandler):
        def get(self) -> None:
            self.finish(b"[" + b" " * int(self.get_query_argument("spaces")) + b"1]")

    client = HttpClient(SystemClock(), 100.0)
    try:
        async with web_server(("/", Handler)) as url:
            async with LoopTurns(SystemClock()).take():
                long = asyncio.create_task(client.get_json(f"{url}/?spaces=20000"))
                while client.statuses["200"] < 1:
                    await asyncio.sleep(0.01)
                assert await client.get_json(f"{url}/?spaces=10") == [1]
                assert not long.done()
            assert await long == [1]
    finally:
        client.close()


async def test_a_host_that_refuses_thousands_of_requests_is_asked_again_after_two_minutes():
    class Handler(RequestHandler):
        def get(self) -> None:
            self.set_status(429)

    socket, port = bind_unused_port()
    server, client = HTTPServer(Application([("/", Handler)])), HttpClient(SystemClock(), 100.0)
    server.add_socket(socket)
    client._host(f"127.0.0.1:{port}").penalties = 2000  # 2**2000 is no float
    try:
        with pytest.raises(Unavailable) as error:
            await client.get_json(f"http://127.0.0.1:{port}/")
        assert error.value.retry_after_s == 120.0
    finally:
        client.close()
        server.stop()


def nested(depth: int) -> list:
    row: list = []
    for _ in range(depth):
        row = [row]
    return row


@pytest.mark.parametrize(
    "row", [[], None, nested(100_000), [10**5000], ["x" * 10_000], [{"a": 1}]], ids=lambda row: str(type(row))
)
def test_a_row_that_cannot_be_read_costs_little(row):
    (found,) = read_rows([row], lambda row: int(row[0]) + row)
    assert isinstance(found, InvalidRow)
    assert len(found.reason) < 500


def test_a_page_has_a_bounded_number_of_rows():
    with pytest.raises(ExchangeError):
        read_rows([[]] * (MAX_ROWS + 1), lambda row: row)
