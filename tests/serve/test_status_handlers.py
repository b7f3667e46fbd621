"""The data of the status page: who may read it, how often it is made, and what a daemon writes into it."""

import json
import re
from typing import Any

import pytest
import yaml

from candled.access.token_file import Entry, digest_of, make_token, write_entries
from candled.app import Daemon
from candled.clock import SystemClock
from candled.config import load
from candled.config.sections import ServerSettings
from candled.plugins import discover
from candled.serve.internal import InternalServer
from tests.clocks import ManualClock
from tests.metrics.scrape import running
from tests.serve.peers import echo_harness, make_reports

SECRET = "could not connect to 10.0.0.3"


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("setting", "ports"), [("internal", {"internal"}), ("public", {"internal", "public"}), ("off", set())]
)
async def test_the_setting_chooses_the_ports(tmp_path, setting, ports):
    async with running(tmp_path, status=setting) as deployment:
        found = {
            name
            for name in ("internal", "public")
            if '"markets"' in await deployment.get("/status.json", public=name == "public")
        }
        assert found == ports


@pytest.fixture
def port() -> str:
    """The port that is asked: `public` or `internal`."""
    return "public"


@pytest.fixture
def app(enter, port):
    """Give pytest-tornado the handlers of a port."""

    async def render() -> bytes:
        return b'{"markets":[]}\n'

    if port == "public":
        return enter(echo_harness(render_status=render)).server.application
    settings = ServerSettings(internal_port=0)
    return InternalServer(settings, make_reports(), lambda: b"", ManualClock(), render).application


@pytest.mark.gen_test
@pytest.mark.parametrize("port", ["public", "internal"])
@pytest.mark.parametrize("path", ["/status", "/status.json"])
async def test_head_is_get_without_the_body_and_other_methods_are_refused(fetch, path):
    get, head, post = await fetch(path), await fetch(path, "HEAD"), await fetch(path, "POST")
    assert (get.code, head.code, head.body, post.code) == (200, 200, b"", 405)
    names = ("Content-Type", "Content-Length", "Cache-Control", "Etag", "Content-Security-Policy")
    assert [head.headers.get(name) for name in names] == [get.headers.get(name) for name in names]


@pytest.mark.gen_test
@pytest.mark.parametrize(("port", "has_chart"), [("public", "yes"), ("internal", "no")])
async def test_the_page_has_the_policy_of_the_other_page_and_its_files(fetch, port, has_chart):
    page = await fetch("/status")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert page.headers["X-Frame-Options"] == "DENY"
    assert f'data-chart="{has_chart}"' in page.body.decode()
    files = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert all(path.startswith("static/") for path in files)  # relative, for a page behind a path
    assert {(await fetch(f"/{path}")).code for path in files} == {200}
    data = await fetch("/status.json", headers={"Origin": "http://localhost"})
    assert data.headers["Cache-Control"] == "no-store"
    assert ("Access-Control-Allow-Origin" in data.headers) is (port == "public")


async def status_of(deployment: Any, **how: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(await deployment.get("/status.json", **how))
    return document


@pytest.mark.usefixtures("daemon")
async def test_a_daemon_describes_its_markets_itself_and_its_last_hour(tmp_path):
    async with running(tmp_path, status="public") as deployment:
        await deployment.until("feed_state", 1, exchange="replay", state="live")
        status = deployment.daemon.status
        status.take_sample()
        document = await status_of(deployment)
        assert [(row["symbol"], row["state"]) for row in document["markets"]] == [("BTC/USDT", "live")]
        assert re.fullmatch(r"([fqsmn]\d+)+", document["markets"][0]["days"])
        assert (
            document["exchanges"]["replay"]["connections"] == document["exchanges"]["replay"]["connectionsWanted"] == 1
        )
        assert document["process"]["roles"] == ["ingest", "serve"]
        assert document["store"]["state"] == "ok"
        lists = [values for name, values in document["lastHour"].items() if name != "everySeconds"]
        assert len(lists) == 6
        assert len({len(values) for values in lists}) == 1
        assert max(document["lastHour"]["candlesPerSecond"]) > 0


@pytest.mark.usefixtures("daemon")
async def test_strangers_see_words_and_no_error_texts(tmp_path):
    async with running(tmp_path, status="public") as deployment:
        deployment.daemon.health.is_reading = False
        deployment.daemon._upkeep.problem = SECRET
        inside, outside = await status_of(deployment), await status_of(deployment, public=True)
        for document in (inside, outside):
            assert "CandledStoreUnavailable" in [problem["id"] for problem in document["problems"]]
            assert document["status"] == "warn"
        assert inside["store"]["error"] == SECRET
        assert SECRET not in json.dumps(outside)
        assert "hosts" in inside["exchanges"]["replay"]
        assert "hosts" not in outside["exchanges"]["replay"]


@pytest.mark.gen_test
async def test_a_process_that_only_ingests_shows_its_page_to_tokens_too(tmp_path, http_client):
    token = make_token("all")
    write_entries(tmp_path / "tokens.yaml", {"all": Entry(sha256=digest_of(token))})
    document = {
        "server": {"host": "127.0.0.1", "port": 0, "status": "public"},
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": ""},
        "access": {"tokens_file": str(tmp_path / "tokens.yaml")},
    }
    (tmp_path / "candled.yaml").write_text(yaml.safe_dump(document))
    settings = load(tmp_path / "candled.yaml", {}, plugins := discover())
    daemon = Daemon(settings.model_copy(update={"roles": ("ingest",)}), plugins, SystemClock())
    try:
        await daemon.start()
        for query, status in (("", 401), (f"?token={token}", 200)):
            address = f"http://127.0.0.1:{daemon.port}/status.json{query}"
            assert (await http_client.fetch(address, raise_error=False)).code == status
    finally:
        await daemon.stop()
