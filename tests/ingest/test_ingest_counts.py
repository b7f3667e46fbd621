"""Counts of ingest: few values of each label, and counters that never fall."""

import ast

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from candled.clock import SystemClock
from candled.errors import CandledError, Unavailable
from candled.ingest.feeds import INTERRUPTION_KINDS, INTERRUPTIONS, interruption_kind
from candled.ingest.http import HttpClient, _status_name
from candled.model import MINUTE_MS
from tests.ingest.test_measures import measure
from tests.ingest.virtual import BTC, START_MS, started
from tests.rows import MONDAY_MS
from tests.sources import ROOT, nodes


def reasons() -> set[str]:
    """The fixed beginnings of the texts in the modules that end feeds."""
    files = [ROOT / "candled" / "ingest" / f"{name}.py" for name in ("feeds", "connection")]
    texts = [node for path in files for node in nodes(path) if isinstance(node, ast.Return | ast.Assign)]
    constants = [one for node in texts for one in ast.walk(node) if isinstance(one, ast.Constant)]
    return {one.value for one in constants if isinstance(one.value, str) and " " in one.value}


@pytest.mark.parametrize("beginning", INTERRUPTIONS)
def test_every_kind_of_interruption_begins_a_reason_of_the_program(beginning):
    assert any(reason.startswith(beginning) for reason in reasons())
    assert interruption_kind(f"{beginning} …", was_connected=True) == INTERRUPTIONS[beginning]


def test_any_other_reason_is_one_kind_and_so_is_a_failed_attempt():
    assert interruption_kind("OSError: x", was_connected=True) == "failed"
    assert interruption_kind("connection closed", was_connected=False) == "not_connected"
    assert {*INTERRUPTIONS.values(), "failed", "not_connected"} == set(INTERRUPTION_KINDS)


@pytest.mark.parametrize(
    ("code", "name"), [(200, "200"), (429, "429"), (599, "none"), (99, "invalid"), (10**9, "invalid")]
)
def test_a_status_that_an_exchange_invents_makes_no_series(code, name):
    assert _status_name(code) == name


async def test_requests_are_counted_by_the_status_of_their_answer():
    class Handler(RequestHandler):
        def get(self, status: str) -> None:
            self.set_status(int(status))
            self.finish("[1]")

    socket, port = bind_unused_port()
    server, client = HTTPServer(Application([("/(.*)", Handler)])), HttpClient(SystemClock(), 100.0)
    server.add_socket(socket)
    for status in (200, 200, 404, 503):
        try:
            await client.get_json(f"http://127.0.0.1:{port}/{status}")
        except CandledError:
            continue
    server.stop()
    await server.close_all_connections()
    socket.close()
    with pytest.raises(Unavailable):
        await client.get_json(f"http://127.0.0.1:{port}/200")
    client.close()
    assert client.statuses == {"200": 2, "404": 1, "503": 1, "none": 1}


@pytest.mark.slow
async def test_lags_repairs_and_audits_are_counted():
    harness = await started()
    await harness.run(60)
    counts = harness.ingest._counts
    assert counts.connects == 1
    assert counts.candle_events > 50
    assert 0 < counts.lag_s.count < counts.candle_events  # a snapshot is no message of this moment
    week = (START_MS - MONDAY_MS) // MINUTE_MS
    assert week - 500 <= counts.repaired <= week  # the snapshot had the rest
    assert counts.checked > 0
    assert counts.mismatched == 0
    harness.exchange.stream = "down"
    await harness.run(10)
    assert counts.interruptions["failed"] >= 1
    before = counts.repaired
    lost = START_MS - 100 * MINUTE_MS
    del harness.store.rows[lost]
    await harness.leap(400)
    assert (counts.store_audits, counts.lost_minutes) >= (1, 1)
    await harness.leap(60)
    assert counts.repaired > before
    assert lost in harness.store.rows
    await harness.stop()


@pytest.mark.slow
async def test_a_market_that_is_removed_leaves_its_counts():
    harness = await started()
    await harness.run(30)
    harness.ingest._markets[BTC].revisions = before = 3
    harness.ingest.remove_markets([BTC])
    assert harness.ingest._counts.closed_revisions == before
    assert measure(harness.ingest).revisions == 0
    await harness.stop()
