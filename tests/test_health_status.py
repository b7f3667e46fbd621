"""`/health` is `pass` only where nothing of any exchange is in doubt."""

import pytest

from candled.health import is_healthy

LIVE = {"state": "live", "trouble": None, "beginning": None}

EXCHANGES = [
    pytest.param({}, {}, True, id="live"),
    pytest.param({}, {"state": "quiet"}, True, id="quiet"),
    pytest.param({}, {"state": "polling"}, False, id="polling"),
    pytest.param({}, {"beginning": {"reason": "beyond_history"}}, True, id="a known beginning"),
    pytest.param({}, {"beginning": {"reason": "unconfirmed"}}, False, id="an unconfirmed beginning"),
    pytest.param({}, {"trouble": "rows of another market"}, False, id="live with trouble"),
    pytest.param({}, {"state": "quiet", "trouble": "no answer"}, False, id="quiet with trouble"),
    pytest.param({}, {"state": "stale", "reason": "not_listed", "trouble": "no such symbol"}, True, id="not listed"),
    pytest.param({}, {"state": "quiet", "reason": "delisted", "trouble": "no answer"}, True, id="delisted"),
    pytest.param({}, {"state": "quiet", "reason": "no_trades", "trouble": "no answer"}, False, id="no trades"),
    pytest.param({"choice": {"trouble": None, "unmatched": ["*/EUR"]}}, {}, True, id="a pattern without a market"),
    pytest.param({"choice": {"trouble": "down"}}, {}, False, id="the list cannot be read"),
    pytest.param({"historyTrouble": None}, {}, True, id="history can be read"),
    pytest.param({"historyTrouble": "no route to host"}, {}, False, id="history cannot be read"),
]


@pytest.mark.parametrize(("exchange", "symbol", "expected"), EXCHANGES)
def test_a_problem_of_an_exchange_or_of_a_market_is_a_warning_in_any_state(exchange, symbol, expected):
    symbols = {"BTC/USDT": LIVE, "ETH/USDT": LIVE | symbol}
    assert is_healthy({"symbols": symbols, **exchange}) is expected
