"""No line of the log has a token or a password of a request, whatever happens to the request."""

import logging

import pytest

from candled.config.sections import KlinesSettings
from candled.errors import StoreUnavailable
from candled.logs import BoundedHandler, JsonFormatter
from tests.test_logs import handler_to_text, written

pytestmark = [pytest.mark.gen_test, pytest.mark.stage(klines=KlinesSettings(enabled=True))]
SECRETS = "token=s3cret&auth=s3cret&sig=s3cret&api_key=s3cret&password=s3cret"
KNOWN = "symbol=BTC/USDT&interval=1m"


@pytest.fixture
def lines():
    """Return the lines of both formats that were logged so far, from debug on."""
    root, level = logging.getLogger(), logging.getLogger().level
    texts = [handler_to_text(), (BoundedHandler(JsonFormatter()), None)]
    texts[1] = texts[1][0], handler_to_text()[1]
    for handler, stream in texts:
        handler.setStream(stream)
        root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lambda: [line for _, stream in texts for line in written(stream)]
    root.setLevel(level)
    for handler, _ in texts:
        root.removeHandler(handler)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/api/candles?{KNOWN}&{SECRETS}", 400),
        (f"/nowhere?{SECRETS}", 404),
        (f"/static/%00?{SECRETS}", 404),
        (f"/ws?{SECRETS}", 400),
        (f"/events?symbol=NONE/USDT&interval=1m&{SECRETS}", 400),
        (f"/api/v3/klines?symbol=BTCUSDT&interval=1m&{SECRETS}", 400),
    ],
)
async def test_a_request_leaves_none(stage, fetch, lines, path, status):
    answer = await fetch(path)
    assert answer.code == status, answer.body
    assert not [line for line in lines() if "s3cret" in line]


@pytest.mark.parametrize(("error", "status"), [(StoreUnavailable("gone"), 503), (LookupError("a bug"), 500)])
async def test_a_request_that_fails_leaves_none(stage, fetch, lines, monkeypatch, error, status):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(stage.pages, "written_now", fail)
    answer = await fetch(f"/udf/history?symbol=REPLAY:BTCUSDT&resolution=1&from=0&to=99&countback=2&{SECRETS}")
    assert answer.code == status
    found = lines()
    assert not [line for line in found if "s3cret" in line]
    assert status == 503 or any("/udf/history" in line for line in found)


@pytest.mark.parametrize(
    ("given", "is_taken"), [("", False), ("f00-1", True), ("x" * 100, True), ("\xe9", False), ("a\tb", False)]
)
async def test_a_fault_has_an_id_in_the_log_and_in_the_answer(stage, fetch, lines, monkeypatch, given, is_taken):
    def fail(*_, **__):
        raise LookupError("a bug")

    monkeypatch.setattr(stage.pages, "written_now", fail)
    headers = {"X-Request-Id": given} if given else {}
    answers = [await fetch(f"/api/candles?{KNOWN}", headers=headers) for _ in range(2)]
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert [answer.code for answer in answers] == [500, 500]
    assert ids == [given[:64]] * 2 if is_taken else len(set(ids)) == 2
    logged = [line for line in lines() if f"/api/candles: 500 (request {ids[0]})" in line]
    assert logged
    assert "X-Request-Id" not in (await fetch("/nowhere", headers=headers)).headers
