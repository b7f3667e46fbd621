"""The Binance plugin: spot pairs, and perpetual contracts settled in USDT or USDC (USD-M)."""

from candled import Exchange, hookimpl

from .exchange import Binance, BinanceUsdm


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return Binance's spot market and its USD-M contracts. They have different hosts, so they are two exchanges."""
    return [Binance, BinanceUsdm]
