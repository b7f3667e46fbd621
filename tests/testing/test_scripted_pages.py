"""Pages of the scripted exchange, where the rows of the real one have closing times."""

import asyncio
import json

from candled.model import MINUTE_MS
from candled.testing.recording import VERSION, Call, Header, Recording, Request
from candled.testing.scripted_pages import Script, ScriptedHttp, learn_rule, list_pages
from tests.clocks import START_MS

END_MS = START_MS + 5 * MINUTE_MS
OPENING = range(START_MS, END_MS, MINUTE_MS)


def recorded() -> Recording:
    """One page of an exchange whose rows have the time at which a minute ends."""
    url = f"https://x.example/rows?from={START_MS}&to={END_MS - 1}"
    rows = [[open_ms + MINUTE_MS, "1.5"] for open_ms in OPENING]
    call = Call(number=1, method="fetch_history", start_ms=START_MS, end_ms=END_MS)
    events = (call, Request(call=1, url=url, status=200, answer=json.dumps({"rows": rows})))
    return Recording(Header(version=VERSION, exchange="x", symbol="BTC/USDT"), events)


def test_rows_have_opening_times_unless_the_plugin_reads_others():
    [page] = list_pages(recorded())
    closing = [at + MINUTE_MS for at in OPENING]
    assert list(page.with_opening_times(set(closing[:-1])).times) == closing  # it read all but the last, out of range
    assert list(page.with_opening_times(set(OPENING)).times) == list(OPENING)
    assert page.with_opening_times(()) is page


def test_the_scripted_exchange_writes_closing_times_as_the_real_one():
    recording = recorded()
    page = list_pages(recording)[0].with_opening_times(set(OPENING))
    http = ScriptedHttp(page, Script(learn_rule([page], OPENING), END_MS + 100 * MINUTE_MS), recording)
    later = START_MS + 60 * MINUTE_MS
    http.span = (later, later + 2 * MINUTE_MS)
    query = {"from": str(later), "to": str(later + 2 * MINUTE_MS - 1)}
    body = asyncio.run(http.get_json("https://x.example/rows", query))
    assert [row[0] for row in body["rows"]] == [later + MINUTE_MS, later + 2 * MINUTE_MS]
    assert http.served == {later, later + MINUTE_MS}
