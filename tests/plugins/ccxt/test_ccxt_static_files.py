"""Recorded answers of ccxt's own tests, which are no part of this project: CCXT_STATIC_FILES names their folder."""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from candled import ConfigError
from candled_plugins.ccxt.messages import read_row
from tests.clocks import ManualClock
from tests.plugins.ccxt.known import require_ccxt
from tests.plugins.local import FakeHttp

FOLDER = os.environ.get("CCXT_STATIC_FILES")
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="CCXT_STATIC_FILES does not name the folder ts/src/test/static of ccxt's repository"
)
NAMES = [path.stem for path in sorted(Path(FOLDER or ".").glob("response/*.json"))] if FOLDER else ["none"]


def entries(name, kind):
    """The entries about candles in a file, for an exchange that the plugin reads."""
    require_ccxt()
    from candled_plugins.ccxt.exchange import Ccxt, CcxtSettings

    file, markets = Path(FOLDER) / kind / f"{name}.json", Path(FOLDER) / "markets" / f"{name}.json"
    if not file.exists() or not markets.exists():
        pytest.skip(f"there is no {kind} of {name}, or there are no markets")
    found = json.loads(file.read_text("utf-8"))["methods"].get("fetchOHLCV", ())
    try:
        exchange = Ccxt(CcxtSettings(exchange=name), ManualClock())
    except ConfigError as error:
        pytest.skip(str(error))
    if not found:
        pytest.skip(f"{name} has no candles in its {kind}")
    exchange._client.set_markets(list(json.loads(markets.read_text("utf-8")).values()))
    return exchange._client, found


@pytest.mark.parametrize("name", NAMES)
async def test_recorded_answers_are_read_as_ccxt_reads_them_and_exactly(name):
    client, found = entries(name, "response")
    for entry in found:
        client.http = FakeHttp(lambda path, query, entry=entry: json.dumps(entry["httpResponse"]))
        rows = await client.fetch_ohlcv(*entry["input"])
        candles = [read_row([row[0] // 60_000 * 60_000, *row[1:]]) for row in rows]
        assert [[row[0], *map(float, candle[1:6])] for row, candle in zip(rows, candles, strict=True)] == [
            [row[0], *(float(cell) for cell in row[1:6])] for row in entry["parsedResponse"]
        ], entry["description"]


@pytest.mark.parametrize("name", NAMES)
async def test_requests_are_those_of_ccxt(name):
    client, found = entries(name, "request")
    for entry in found:
        asked = []
        client.http = FakeHttp(lambda path, query, asked=asked: asked.append((path, query)) or "[]")
        try:
            await client.fetch_ohlcv(*entry["input"])
        except Exception:  # the answer is none of this exchange
            assert asked, entry["description"]
        assert asked[0][0] == urlsplit(entry["url"]).path, entry["description"]
