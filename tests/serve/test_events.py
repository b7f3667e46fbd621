"""Server-sent events on real sockets: the messages of the protocol, an id that resumes, an orderly end."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.clock import SystemClock
from candled.config.sections import ServerSettings
from candled.model import MINUTE_MS, parse_iso_ms
from candled.rooms import encoded_bars
from candled.serve import events
from candled.serve.events import resume_of
from tests import deadlines
from tests.api.raw import ask_all
from tests.rows import MONDAY_MS, minute

PATH = "/events?symbol=BTC/USDT&interval=1m&initialBars=5"
pytestmark = [pytest.mark.gen_test, pytest.mark.usefixtures("http_server"), pytest.mark.stage(clock=SystemClock())]


class Source:
    """What a browser's EventSource does with one answer."""

    def __init__(self, reader, writer, head: str) -> None:
        self._reader = reader
        self._writer = writer
        self.head = head
        self.last_id = ""
        self.retry_ms = 0
        self._rest = b""

    async def event(self, within_s: float = 3.0) -> dict:
        """The next message."""
        return await deadlines.wait_for(self._event(), within_s)

    async def _event(self) -> dict:
        while True:
            data = []
            for line in (await self._block()).split("\n"):
                name, _, value = line.partition(": ")
                if name == "data":
                    data.append(value)
                elif name == "id":
                    self.last_id = value
                elif name == "retry":
                    self.retry_ms = int(value)
            if data:
                return json.loads("\n".join(data))

    async def _block(self) -> str:
        while b"\n\n" not in self._rest:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            if not size:
                raise EOFError
            self._rest += (await self._reader.readexactly(size + 2))[:-2]
        block, _, self._rest = self._rest.partition(b"\n\n")
        return block.decode()

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def source(http_port: int, path: str = PATH, **headers):
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Accept: text/event-stream"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    head = (await deadlines.wait_for(reader.readuntil(b"\r\n\r\n"), 3)).decode()
    try:
        yield Source(reader, writer, head)
    finally:
        writer.close()


def numbers(bars) -> list[int]:
    return [(parse_iso_ms(bar["time"]) - MONDAY_MS) // MINUTE_MS for bar in bars]


async def test_events_are_the_messages_of_the_protocol(stage, http_port):
    async with source(http_port) as chart:
        assert " 200 " in chart.head
        assert "Content-Type: text/event-stream" in chart.head
        assert "Access-Control-Allow-Origin: *" in chart.head
        initial = await chart.event()
        assert (initial["type"], initial["symbol"], initial["interval"]) == ("initial", "BTC/USDT", "1m")
        assert numbers(initial["bars"]) == [55, 56, 57, 58, 59]
        assert chart.retry_ms == 2000
        stage.push(minute(60, volume="2"))
        update = await chart.event()
        assert (update["type"], update["bar"]["volume"], update["bar"]["final"]) == ("update", 2, False)
        assert chart.last_id == f"one:1:{MONDAY_MS + 60 * MINUTE_MS}"


async def test_the_bars_of_initial_are_encoded_once_for_all_charts(stage, http_port, monkeypatch):
    printed = []
    real = encoded_bars.bar_text
    monkeypatch.setattr(
        encoded_bars, "bar_text", lambda bar, *args, **more: printed.append(bar) or real(bar, *args, **more)
    )
    initials, counts = [], []
    for _ in range(3):
        async with source(http_port, PATH.replace("=5", "=50")) as chart:
            initials.append(await chart.event())
        counts.append(len(printed))
    assert initials[0] == initials[1] == initials[2]
    assert len(initials[0]["bars"]) == 50
    assert counts[0] >= 49
    assert counts[2] == counts[0]


@pytest.mark.slow
async def test_the_last_id_resumes_with_what_changed_since(stage, http_port):
    async with source(http_port) as chart:
        await chart.event()
        stage.push(minute(60, volume="2"))
        await chart.event()
        left = chart.last_id
    stage.push(minute(60, volume="3", final=True))
    stage.push(minute(61, volume="4"))
    async with source(http_port, Last_Event_ID=left) as chart:
        resumed = await chart.event()
        assert (resumed["type"], resumed["recovered"]) == ("resumed", True)
        assert [(bar["volume"], bar["final"]) for bar in resumed["bars"]] == [(3, True), (4, False)]
    async with source(http_port, f"{PATH}&lastEventId={left}") as chart:  # as clients do that cannot set a header
        assert (await chart.event())["type"] == "resumed"
    async with source(http_port, Last_Event_ID=f"another:7:{MONDAY_MS}") as chart:
        initial = await chart.event()
        assert (initial["type"], initial["recovered"], len(initial["bars"])) == ("initial", False, 5)
    for malformed in ("", "x", "a:b:c", "one:-1:5", f"one:{'9' * 40}:1", ":1:1"):
        async with source(http_port, Last_Event_ID=malformed) as chart:
            initial = await chart.event()
            assert (initial["type"], "recovered" in initial) == ("initial", False)


@given(st.text(min_size=1, max_size=20), st.integers(0, 10**15), st.integers(0, 10**14))
def test_an_id_can_be_read_back_whatever_the_feed_is_called(epoch, seq, time_ms):
    assert resume_of(f"{epoch}:{seq}:{time_ms}") == {"epoch": epoch, "seq": seq, "time": time_ms}


@given(st.text(max_size=40))
def test_any_id_is_read_or_ignored(text):
    resume = resume_of(text)
    assert resume is None or f"{resume['epoch']}:" == text[: len(resume["epoch"]) + 1]


async def test_options_are_those_of_a_subscription(stage, http_port):
    async with source(http_port, f"{PATH}&mode=closed&status=true&fields=rev,src") as chart:
        messages = {message["type"]: message for message in [await chart.event() for _ in range(2)]}
        assert set(messages) == {"status", "initial"}
        assert {"rev", "src", "final"} <= set(messages["initial"]["bars"][0])
        stage.push(minute(60, volume="2"))
        stage.push(minute(60, volume="3", final=True))
        update = await chart.event()
        assert (update["bar"]["volume"], update["bar"]["final"]) == (3, True)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "Invalid message format"),
        ("symbol=BTC/USDT&interval=10m", "Invalid interval: 10m. Valid: 1m, 5m, 15m, 1h, 4h, 1D, 1W"),
        ("symbol=X&interval=1m", "Invalid symbol: X. Only BTC/USDT is supported."),
        (
            "symbol=BTC/USDT&interval=1m&initialBars=-5",
            'Invalid initialBars: "-5". Expected a whole number from 0 to 1000',
        ),
        ("symbol=BTC/USDT&interval=1m&status=maybe", 'Invalid status: "maybe". Expected true or false'),
        ("symbol=BTC/USDT&interval=1m&fields=x", 'Invalid fields: ["final","seq","x"]. Valid: '),
        ("symbol=BTC/USDT&interval=1m&exchange=x", "Invalid exchange: x. Valid: replay"),
    ],
)
async def test_a_mistake_is_400_with_the_error_of_the_protocol(get, http_port, query, message):
    (answer,) = await ask_all(http_port, [(f"/events?{query}", {})])
    statistics = await get("/health/ws-stats")
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["message"].startswith(message)
    assert statistics["connections"] == 0


async def test_the_closed_bars_of_a_pattern_and_its_markets_are_events_without_ids(stage, http_port):
    path = "/events?symbol=*/USDT&interval=1m&mode=closed&markets=true"
    async with source(http_port, path) as one:
        assert (await one.event())["symbols"] == ["BTC/USDT"]
        stage.push(minute(60, final=True))
        update = await one.event()
        assert (update["pattern"], update["symbol"], update["bar"]["final"]) == ("*/USDT", "BTC/USDT", True)
        assert one.last_id == ""


async def test_the_end_of_the_server_is_sent_and_the_answer_ends(stage, http_port):
    async with source(http_port) as chart:
        await chart.event()
        stopping = asyncio.ensure_future(stage.server.stop())
        bye = await chart.event()
        assert bye["type"] == "bye"
        with pytest.raises(EOFError):
            await chart.event()
        await deadlines.wait_for(stopping, 3)


@pytest.mark.stage(server=ServerSettings(max_connections_per_ip=2))
async def test_a_client_that_left_is_in_no_room_and_counts_no_more(stage, http_port):
    async with source(http_port) as first, source(http_port) as second:
        await first.event()
        await second.event()
        (refused,) = await ask_all(http_port, [(PATH, {})])
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (429, 429)
    for _ in range(100):
        if not stage.hub.describe()["totalRooms"] and not stage.server.connection_count:
            break
        await asyncio.sleep(0.02)
    assert (stage.hub.describe()["totalRooms"], stage.server.connection_count) == (0, 0)
    async with source(http_port) as third:
        await third.event()


def from_pages(*origins: str) -> dict:
    return {"server": ServerSettings(allowed_origins=origins)}


@pytest.mark.parametrize(
    ("stage_options", "origin", "status", "readable"),
    [
        (from_pages("*"), "https://a.example", 200, "*"),
        (from_pages("https://a.example"), "https://a.example", 200, "https://a.example"),
        (from_pages("https://a.example"), "https://b.example", 403, None),
        (from_pages("https://a.example"), None, 200, None),
    ],
)
async def test_which_pages_may_listen(http_port, origin, status, readable):
    headers = {"Origin": origin} if origin else {}
    async with source(http_port, **headers) as chart:
        assert f" {status} " in chart.head
        found = [line for line in chart.head.split("\r\n") if line.startswith("Access-Control-Allow-Origin")]
        assert found == ([f"Access-Control-Allow-Origin: {readable}"] if readable else [])


@pytest.mark.slow
async def test_a_silent_room_keeps_the_connection_alive_with_comments(stage, http_port, monkeypatch):
    monkeypatch.setattr(events, "_ALIVE_S", 0.1)
    async with source(http_port) as chart:
        await chart.event()
        await asyncio.sleep(0.35)
        stage.push(minute(60))
        block = await deadlines.wait_for(chart._block(), 2)
        comments, _, event = block.partition("id:")
        assert comments.count(":\n") >= 2
        assert comments.strip(":\n") == ""
        assert '"type":"update"' in event


@pytest.mark.slow
async def test_no_event_is_empty_neither_the_first_nor_between_others(stage, http_port, monkeypatch):
    """A blank line ends an event, for some clients also where no data came before it."""
    monkeypatch.setattr(events, "_ALIVE_S", 0.05)
    async with source(http_port) as chart:
        blocks = []
        for volume in "123":
            blocks.append(await deadlines.wait_for(chart._block(), 3))
            await asyncio.sleep(0.2)
            stage.push(minute(60, volume=volume))
    names = [[line.partition(":")[0] for line in block.split("\n")] for block in blocks]
    assert [block.count("data") for block in names] == [1, 1, 1]
    assert [block.count("retry") for block in names] == [1, 0, 0]


@pytest.mark.slow
@pytest.mark.stage(minutes=1000, server=ServerSettings(slow_client_timeout=timedelta(seconds=1)))
async def test_a_client_that_stops_reading_costs_bounded_memory_and_is_cut_off(stage, http_port):
    mute = socket.socket()
    mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    mute.connect(("127.0.0.1", http_port))
    mute.sendall(f"GET {PATH.replace('=5', '=1000')} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    while not stage.server._context.connections:
        await asyncio.sleep(0.01)
    (connection,) = stage.server._context.connections
    most = 0
    for _ in range(2000):  # each `initial` is 100 kB
        if stage.server.connection_count == 0:
            break
        for topic in list(getattr(connection.client, "_memberships", ())):
            connection.client.on_fell_behind(topic)
        await asyncio.sleep(0.005)
        stream = connection._handler and connection._handler.request.connection.stream
        most = max(most, len(stream._write_buffer) if stream and stream._write_buffer else 0)
    assert stage.server.connection_count == 0
    assert 50_000 < most < 500_000  # one of them is under way, the rest was never made
    mute.close()
