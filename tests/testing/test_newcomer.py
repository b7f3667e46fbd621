"""The way of a new author: the template, filled in from a page with mistakes, a recording, and the kit's findings."""

import asyncio
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from candled import Symbol
from candled.testing.kit import run_checks
from candled.testing.modules import choose_exchange
from candled.testing.recording import Recording, read_recording
from candled.testing.template import render_files
from candled.tools.plugin_record import record_exchange
from tests.clocks import START_MS, ScaledClock
from tests.testing.brinemark import Brinemark

BTC = Symbol("BTC", "USDT")

FILLED_IN = {
    'return f"{symbol.base}{symbol.quote}"': 'return f"{symbol.base}_{symbol.quote}"',
    "return int(row[0])": 'return 1000 * int(row["t"] if isinstance(row, dict) else row[0])',
    """    _, opened, high, low, close, volume, quote_volume = row
    return Candle.parse(opening_time(row), opened, high, low, close, volume, quote_volume, as_of_ms=sent_ms)
""": """    values = [row[name] for name in "ohlcv"] if isinstance(row, dict) else row[1:]
    is_final = isinstance(row, dict) and row["x"]
    return Candle.parse(opening_time(row), *values, as_of_ms=sent_ms, final=is_final)
""",
    'raise NotImplementedError("fill in subscribe")': (
        'return [json.dumps({"type": "sub", "ids": [market_name(one) for one in symbols]})]'
    ),
    'raise NotImplementedError("fill in read_frame")': """message = parse_object(frame)
        if message.get("type") == "hb":
            return [Reply(json.dumps({"type": "hb.ack", "n": message["n"]}))]
        symbol = self.by_name.get(message.get("id"))
        if symbol is None:
            raise ExchangeError(f"expected a frame of a market, got {frame[:200]!r}")
        if message["type"] == "sub.ok":
            return [Subscribed(symbol)]
        if message["type"] == "sub.err":
            return [SubscriptionRejected(symbol, message["why"])]
        sent_ms = message["sent_ms"]
        return [read_candles(symbol, [message["bar"]], lambda row: read_row(row, sent_ms), open_ms=opening_time)]""",
    'raise NotImplementedError("fill in fetch_markets")': """body = await http.get_json(f"{self.settings.rest_url}/ids")
        if "ids" not in body:
            raise ExchangeError(f"expected markets, got {str(body)[:200]}")
        return [Market(symbol=Symbol(one["base"], one["quote"]), tick_size=Decimal(one["step"])) for one in body["ids"]]
""",
    'raise NotImplementedError("fill in fetch_history")': """found = []
        while start_ms < end_ms:
            query = {"id": market_name(symbol), "from": str(start_ms // 1000), "to": str(end_ms // 1000 - 60)}
            body = await http.get_json(f"{self.settings.rest_url}/bars", query)
            if "bars" not in body:
                raise ExchangeError(f"expected bars, got {str(body)[:200]}")
            read = lambda row: read_row(row, body["sent_ms"])
            rows = await read_rows_in_slices(body["bars"], read, self.clock, open_ms=opening_time)
            found += rows_within(rows, start_ms, end_ms)
            if len(rows) < 100:
                break
            start_ms = opening_time(body["bars"][-1]) + 60_000
        return found""",
    "import json\n": "import json\nfrom decimal import Decimal\n",
    'closed_flag = "advisory"': 'closed_flag = "final"',
    "publishes_empty_candles = False": "publishes_empty_candles = True",
}
"""What the page says, in the template's functions."""

OPENING_TIME = {
    'row["t"] if isinstance(row, dict) else row[0])': 'row["t"] if isinstance(row, dict) else row[0]) - 60_000'
}
OTHERS = {
    "else row[1:]": "else [*row[1:5], row[6], row[5]]",
    'closed_flag = "final"': 'closed_flag = "advisory"',
    'start_ms = opening_time(body["bars"][-1]) + 60_000': 'end_ms = opening_time(body["bars"][-1])',
}
"""What the exchange does, in the places where the page is wrong."""


def write_plugin(folder: Path, *changes: Mapping[str, str]) -> str:
    """Write the files of the template with functions filled in; return the name of the module."""
    for path, text in render_files("newcomer").items():
        for old, new in {key: one for change in changes for key, one in change.items()}.items():
            if path.endswith("exchange.py"):
                assert old in text, old
                text = text.replace(old, new)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    forget_plugin()
    return "candled_newcomer"


def forget_plugin() -> None:
    importlib.invalidate_caches()
    for name in [one for one in sys.modules if one.startswith("candled_newcomer")]:
        del sys.modules[name]


def record(module: str, folder: Path) -> tuple[dict[str, Recording], list[str]]:
    """Record the exchange through the plugin; return the recordings and the settings."""
    clock = ScaledClock(120.0, START_MS - 1000)
    server = Brinemark(clock)
    paths = {name: folder / f"{name}.jsonl" for name in ("BTC", "NOCOIN")}

    async def record_one(name: str, path: Path) -> int:
        path.unlink(missing_ok=True)
        symbol = Symbol(name, "USDT")
        return await record_exchange(module, symbol, clock, minutes=2, path=path, assignments=server.settings)

    async def record_both() -> None:
        async with server.serve():
            assert await asyncio.gather(*map(record_one, paths, paths.values())) == [0, 0]

    asyncio.run(record_both())
    return {name: read_recording(path) for name, path in paths.items()}, server.settings


def find_mistakes(module: str, recordings: Mapping[str, Recording], settings: list[str]) -> dict[str, str]:
    """Return the mistakes that the kit finds, by its checks, in their order."""
    results = run_checks(choose_exchange(module), recordings, settings)
    return {one.check.name: one.detail for one in results if one.outcome == "failed"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the same file has other text within a second
    yield tmp_path
    forget_plugin()


@pytest.mark.slow
def test_the_mistakes_of_a_page_are_named_one_after_the_other(folder):
    module = write_plugin(folder, FILLED_IN)
    recorded = record(module, folder)
    check, mistake = next(iter(find_mistakes(module, *recorded).items()))
    assert check == "candles arrive in their minute"
    assert "The plugin takes the closing time for the opening time" in mistake

    found = find_mistakes(write_plugin(folder, FILLED_IN, OPENING_TIME), *recorded)
    for check, mistake in {
        "volumes fit the prices": "is no price between .*: the two volumes are interchanged",
        "no version follows the final one": r'the closed flag lies: \d of \d changed: .* Set closed_flag = "advisory"',
        "the minutes of the stream are those of REST": "The first has in the stream volume .* and over REST ",
        "volumes of the stream and of REST agree": "the volume of REST is in quote currency",
        "every range is complete": "a page has the newest 100 rows, and the plugin does not ask for the others",
    }.items():
        assert re.search(mistake, found[check]), found[check]

    module = write_plugin(folder, FILLED_IN, OPENING_TIME, OTHERS)
    assert find_mistakes(module, *record(module, folder)) == {}
