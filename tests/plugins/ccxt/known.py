"""Exchanges of ccxt with markets that were not asked for."""

from typing import Any

import pytest

from candled import Symbol
from tests.clocks import START_MS, ManualClock


def require_ccxt() -> None:
    pytest.importorskip("ccxt.pro", reason="needs ccxt: pip install -e '.[test]'")


SPOT, SWAP = Symbol("BTC", "USDT"), Symbol("BTC", "USDC", "USDC")


def market_of(client: Any, symbol: Symbol) -> dict[str, Any]:
    """A market as ccxt describes it."""
    is_swap = bool(symbol.settle)
    return client.safe_market_structure(
        {
            "id": f"{symbol.base}{symbol.quote}", "symbol": str(symbol), "base": symbol.base, "quote": symbol.quote,
            "baseId": symbol.base, "quoteId": symbol.quote, "settle": symbol.settle or None,
            "baseName": symbol.base, "type": "swap" if is_swap else "spot", "spot": not is_swap, "swap": is_swap,
            "contract": is_swap, "linear": is_swap or None, "inverse": False if is_swap else None, "active": True,
            "option": False, "future": False, "contractSize": "0.5" if is_swap else None,
            "precision": {"price": "0.01", "amount": "0.0001"}, "created": 1_600_000_000_000,
        }
    )  # fmt: skip


def make(exchange: str, symbol: Symbol = SPOT, **settings: Any) -> Any:
    """The plugin for an exchange with one market, as ccxt knows it after it read the list."""
    require_ccxt()
    from candled_plugins.ccxt.exchange import Ccxt, CcxtSettings

    kind = "swap" if symbol.settle else "spot"
    made = Ccxt(CcxtSettings(exchange=exchange, kind=kind, **settings), ManualClock(START_MS + 150_000))
    made._client.set_markets([market_of(made._client, symbol)])
    return made
