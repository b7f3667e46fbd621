"""An answer about all markets leaves the loop to others after every few of them."""

import json

import pytest

from candled.config.sections import KlinesSettings
from candled.model import Decimals, MarketKey, Symbol
from tests.api.stage import Stage

MARKETS = [MarketKey("bitget", Symbol(f"COIN{number:03}", "USDT")) for number in range(300)]
pytestmark = [
    pytest.mark.gen_test,
    pytest.mark.stage(minutes=dict.fromkeys(MARKETS, ()), klines=KlinesSettings(enabled=True)),
]


@pytest.fixture
def slices(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the number of markets that were described before each turn of the loop; the first turn removes one."""
    found: list[int] = []
    count, sleep = 0, stage.clock.sleep

    def describe(market: MarketKey) -> Decimals:
        nonlocal count
        count += 1
        return Decimals(2, 3)

    async def turn(seconds: float) -> None:
        nonlocal count
        if count:
            found.append(count)
            count = 0
            stage.universe.set_markets("bitget", [one.symbol for one in MARKETS[:-1]])
        await sleep(seconds)

    source = next(more["source"] for _, _, more in stage.server._make_routes() if "source" in more)
    object.__setattr__(source, "decimals", describe)
    object.__setattr__(source, "seen_decimals", lambda market: Decimals())
    monkeypatch.setattr(stage.clock, "sleep", turn)
    return found


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/api/symbols", lambda body: [one["symbol"] for one in body["symbols"]]),
        ("/udf/symbol_info?group=BITGET", lambda body: body["description"]),
        ("/api/v3/exchangeInfo", lambda body: [f"{one['baseAsset']}/USDT" for one in body["symbols"]]),
    ],
)
async def test_all_markets_are_described_in_slices_although_one_is_removed_meanwhile(fetch, slices, path, names):
    described = names(json.loads((await fetch(path)).body))
    assert described == [str(one.symbol) for one in MARKETS]
    assert len(slices) >= 4
    assert max(slices) <= 130  # two calls for a market of /udf/symbol_info
