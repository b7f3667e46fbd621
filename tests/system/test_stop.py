"""The daemon is asked to stop while it works: it notifies every client, stores everything and ends in time."""

import asyncio
import json
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import websockets

from candled.model import DEFAULT_INTERVALS, MINUTE, MarketKey, Symbol, parse_iso_ms
from candled.store.journal import Journal
from candled.store.sqlite.store import SqliteStore
from tests import deadlines, tiers
from tests.system.daemon import Daemon

pytestmark = pytest.mark.usefixtures("daemon")

SHORT = pytest.mark.timeout(900)
LONG = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
]
SYMBOLS = [f"S{number}/USDT" for number in range(8 if tiers.LONG else 3)]
CLIENTS = 60 if tiers.LONG else 24
SPEED = 30
# A minute whose successor opened this long ago is settled, whatever the load: 15 s of the market.
FINAL_AFTER_S = 0.5
WITHIN_S = 10.0


def settings(directory: Path, symbols: list[str] = SYMBOLS) -> dict[str, Any]:
    replay = {"symbols": symbols, "speed": SPEED, "files": {"*": "bundled:binance-spot-btcusdt"}}
    return {
        "exchanges": {"replay": replay},
        "ingest": {"backfill": "0s"},
        "store": {"url": f"sqlite:///{directory}/candled.db", "journal": str(directory / "journal")},
    }


class Client:
    """Three rooms of one connection; notes the 1m bars it receives, and when."""

    def __init__(self, number: int) -> None:
        self.symbol = SYMBOLS[number % len(SYMBOLS)]
        self.received: list[tuple[float, int, Decimal]] = []  # monotonic seconds, opening time, volume
        self.initials = 0
        self.close_code: int | None = None

    async def run(self, url: str) -> None:
        async with websockets.connect(url, max_size=None) as ws:
            for interval in ("1m", "5m", "1D"):
                await ws.send(json.dumps({"type": "subscribe", "symbol": self.symbol, "interval": interval}))
            try:
                while True:
                    self._take(json.loads(await ws.recv(), parse_float=Decimal))
            except websockets.ConnectionClosed:
                self.close_code = ws.close_code

    def _take(self, message: dict[str, Any]) -> None:
        self.initials += message["type"] == "initial"
        if message["interval"] == "1m":
            bars = message["bars"] if message["type"] == "initial" else [message["bar"]]
            now = time.monotonic()
            self.received += [(now, parse_iso_ms(bar["time"]), bar["volume"]) for bar in bars]


@contextmanager
def stored(directory: Path) -> Iterator[SqliteStore]:
    """The store after the journal went to it, as at the next start: on a busy machine rows may wait there."""
    store, journal = SqliteStore(directory / "candled.db", DEFAULT_INTERVALS), Journal(directory / "journal")
    store.open()
    journal.open()
    while rows := journal.next_rows(1000):
        store.write_minutes(rows)
        journal.mark_done()
    journal.close()
    try:
        yield store
    finally:
        store.close()


async def stop_under_load(directory: Path, daemon: Daemon, how: int, after_s: float) -> float:
    """One start, clients in many rooms, and the end; return how many seconds the end took."""
    await asyncio.to_thread(daemon.start, settings(directory))
    clients = [Client(number) for number in range(CLIENTS)]
    running = [asyncio.ensure_future(client.run(daemon.ws_url)) for client in clients]
    while not all(client.initials >= 3 for client in clients):
        await asyncio.sleep(0.05)
    await asyncio.sleep(after_s)
    asked_at, began = time.monotonic(), deadlines.now()
    status = await asyncio.to_thread(daemon.stop, how)
    took_s = deadlines.now() - began
    await deadlines.wait_for(asyncio.gather(*running), 5)
    assert status == 0, daemon.output
    assert [client.close_code for client in clients] == [1001] * CLIENTS
    with stored(directory) as store:
        for symbol in SYMBOLS:
            market = MarketKey("replay", Symbol.parse(symbol))
            minutes = {row.open_ms for row in store.read_bars_between(market, MINUTE, 0, 2**62)}
            forming = {row.open_ms: row.volume for row in store.read_forming(market)}
            for client in clients:
                if client.symbol == symbol:
                    check_stored(minutes, forming, client, asked_at)
    return took_s


def check_stored(minutes: set[int], forming: dict[int, Decimal], client: Client, asked_at: float) -> None:
    """Prove that final minutes a client received are in the store, and the forming one at least as it was sent."""
    newest_final_ms = max(open_ms for at, open_ms, _ in client.received if at < asked_at - FINAL_AFTER_S)
    assert {open_ms for _, open_ms, _ in client.received if open_ms < newest_final_ms} <= minutes
    _, newest_ms, volume = max((one for one in client.received if one[0] < asked_at), key=lambda one: one[1:])
    assert max(forming) >= newest_ms  # above it, the daemon was ahead of its client
    assert newest_ms in minutes or forming[newest_ms] >= volume


@pytest.mark.parametrize(
    ("how", "times"),
    [
        pytest.param(signal.SIGTERM, 1, id="SIGTERM", marks=SHORT),
        pytest.param(signal.SIGINT, 1, id="Ctrl-C", marks=SHORT),
        pytest.param(signal.SIGTERM, 50, id="SIGTERM-50", marks=LONG),
        pytest.param(signal.SIGINT, 50, id="Ctrl-C-50", marks=LONG),
    ],
)
async def test_every_client_is_notified_and_everything_stored_and_the_status_is_0(tmp_path, how, times):
    """Promise 16: 100 % of the clients get 1001, no row that waited is lost, 10 s at most."""
    draw = random.Random(16)
    with Daemon(tmp_path) as daemon:
        for _ in range(times):
            assert await stop_under_load(tmp_path, daemon, how, draw.uniform(FINAL_AFTER_S, 3.0)) < WITHIN_S
        assert "Traceback" not in daemon.output


def mute_client(daemon: Daemon) -> socket.socket:
    """A client that says what it wants and then neither reads nor answers."""
    peer = socket.create_connection(("127.0.0.1", daemon.port))
    peer.sendall(
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert peer.recv(12) == b"HTTP/1.1 101"
    return peer


def ask_while_a_client_is_mute(daemon: Daemon) -> None:
    """Ask a daemon to stop that waits for a client which does not answer."""
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    deadline = deadlines.now() + 10
    while "stopping" not in daemon.output:
        assert deadlines.now() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    assert daemon.running, "the daemon did not wait for the client after the first signal"


def test_a_client_that_does_not_answer_delays_the_end_briefly_and_no_client_gets_in_meanwhile(tmp_path):
    with Daemon(tmp_path) as daemon:
        daemon.start(settings(tmp_path, SYMBOLS[:1]))
        with mute_client(daemon):
            asked_at = deadlines.now()
            ask_while_a_client_is_mute(daemon)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", daemon.port))
            assert deadlines.wait_for_end(daemon.process, WITHIN_S) == 0
            assert deadlines.now() - asked_at < WITHIN_S


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_immediately(tmp_path, second):
    with Daemon(tmp_path) as daemon:
        daemon.start(settings(tmp_path, SYMBOLS[:1]))
        with mute_client(daemon):
            ask_while_a_client_is_mute(daemon)
            asked_at = deadlines.now()
            assert daemon.stop(second) == 1
            assert deadlines.now() - asked_at < 3.0
