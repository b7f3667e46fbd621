"""The description is OpenAPI 3.1, and what it says is what the server does."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from candled.api import operations
from candled.model import Gap
from tests import deadlines
from tests.api.stage import BTC, ETH, FUTURE
from tests.rows import MONDAY_MS, minute
from tests.system.daemon import Daemon
from tests.tiers import LONG

DESCRIPTION = "/api/openapi.json"
DOCS = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text("utf-8")


several_markets = pytest.mark.stage(minutes={BTC: [], ETH: [], FUTURE: []})


@pytest.mark.slow
@pytest.mark.gen_test
@several_markets
async def test_the_description_is_valid(fetch):
    document = json.loads((await fetch(DESCRIPTION)).body)
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        "/api/candles", "/api/pages", "/api/symbols", "/api/intervals", "/api/exchanges", "/api/coverage", "/api/gaps",
        DESCRIPTION,
    }  # fmt: skip
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert used == set(document["components"]["schemas"])


@pytest.mark.gen_test
@several_markets
async def test_it_names_the_served_symbols_exchanges_and_intervals(fetch):
    document = json.loads((await fetch(DESCRIPTION)).body)
    found = {one["name"]: one["schema"] for one in document["paths"]["/api/candles"]["get"]["parameters"]}
    assert found["symbol"]["enum"] == ["BTC/USDT", "ETH/USDT"]
    assert found["exchange"]["enum"] == ["replay", "bitget-futures"]
    assert found["interval"]["enum"] == ["1m", "5m", "15m", "1h", "4h", "1D", "1W"]
    assert (found["limit"]["minimum"], found["limit"]["maximum"]) == (1, 1000)


@pytest.mark.gen_test
@several_markets
async def test_every_parameter_and_error_code_is_on_the_page(fetch):
    document = json.loads((await fetch(DESCRIPTION)).body)
    for path, operation in document["paths"].items():
        assert path in DOCS
        for parameter in operation["get"]["parameters"]:
            assert f"{parameter['name']}=" in DOCS or f"`{parameter['name']}`" in DOCS
    sources = [path.read_text("utf-8") for path in (Path(__file__).parents[2] / "candled" / "api").glob("*.py")]
    codes = {
        code for text in sources for code in re.findall(r'(?:ApiError|UnknownSymbol)\(\s*\d+,\s*"([a-z_]+)"', text)
    }
    codes |= set(re.findall(r'\d{3}: "([a-z_]+)"', "".join(sources)))
    assert {"unavailable", "method_not_allowed", "unknown_symbol"} <= codes
    assert {code for code in codes if f"`{code}`" not in DOCS} == {"unknown_resolution", "unknown_group"}  # of /udf


@pytest.mark.usefixtures("daemon")
def test_schemathesis_finds_no_5xx_and_no_undocumented_answer(tmp_path):
    """Against a whole daemon with two exchanges; the limiter is off, and tested elsewhere with its real numbers.

    The short form tries each edge of the schema, and nothing drawn at random.
    """
    config = {
        "exchanges": {
            "replay": {"symbols": ["BTC/USDT", "ETH/USDT"]},
            "other": {"plugin": "replay", "symbols": ["BTC/USDT"]},
        },
        "ingest": {"backfill": "1d"},
        "store": {"url": f"sqlite:///{tmp_path}/candled.db", "journal": str(tmp_path / "journal")},
        "limits": {"api_requests": 0},
    }
    command = [
        str(Path(sys.executable).with_name("st")), "run", "--max-examples", "30" if LONG else "10",
        "--phases", "examples,coverage,fuzzing,stateful" if LONG else "examples,coverage",
        "--generation-database", "none", "--request-timeout", "20", "--no-color",
    ]  # fmt: skip
    with Daemon(tmp_path) as daemon:
        daemon.start(config)
        deadline = deadlines.now() + 30
        while not daemon.get("/api/candles?symbol=BTC/USDT&interval=1m").get("bars"):
            assert deadlines.now() < deadline, daemon.output
            time.sleep(0.1)
        ended = subprocess.run(
            [*command, daemon.url + DESCRIPTION], cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        output = daemon.output
    assert ended.returncode == 0, ended.stdout
    passed = re.search(r"(\d+) generated, (\d+) passed", ended.stdout)
    assert passed, ended.stdout
    assert int(passed[1]) == int(passed[2]) >= (300 if LONG else 80)
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/api/symbols", operations.Symbols),
        ("/api/intervals", operations.Intervals),
        ("/api/exchanges", operations.Exchanges),
        ("/api/coverage?symbol=BTC/USDT", operations.Coverage),
        ("/api/gaps", operations.Gaps),
        ("/api/candles?symbol=BTC/USDT&interval=5m", operations.Candles),
        ("/api/candles?symbol=BTC/USDT&interval=5m&numbers=string", operations.Candles),
        ("/api/candles?symbol=BTC/USDT&interval=5m&limit=2&from=0", operations.Candles),
        ("/api/candles?symbol=BTC/USDT&interval=5m&to=60000", operations.Candles),
        ("/api/candles?symbol=BTC/USDT", operations.Error),
        ("/api/candles?symbol=ETH/USDT&interval=5m", operations.Error),
        ("/api/elsewhere", operations.Error),
    ],
)
@pytest.mark.stage(
    minutes={BTC: [minute(number, final=True) for number in range(60) if not 10 <= number < 20]},
    now_ms=MONDAY_MS + 3_700_000,
)
@pytest.mark.gen_test
async def test_answers_fit_their_types_and_schemas(stage, fetch, path, form):
    """What the replay does not have: holes, a next try, a quote volume."""
    start_ms, end_ms = MONDAY_MS + 600_000, MONDAY_MS + 900_000
    gap = Gap(start_ms=start_ms, end_ms=end_ms, reason="no_trades", attempts=2, retry_ms=MONDAY_MS)
    stage.store.save_known_gaps(BTC, [gap])
    document = json.loads((await fetch(DESCRIPTION)).body)
    reply = await fetch(path)
    assert msgspec.json.decode(reply.body, type=form)  # no key more or less
    responses = document["paths"].get(path.partition("?")[0], document["paths"]["/api/candles"])["get"]["responses"]
    schema = responses[str(reply.code)]["content"]["application/json"]["schema"]
    assert schema == {"$ref": f"#/components/schemas/{form.__name__}"}
    answer = json.loads(reply.body)
    validator = Draft202012Validator({**schema, "components": document["components"]})
    validator.validate(answer)
    assert list(validator.iter_errors({**answer, "surprise": 1}))
