"""The ccxt plugin: any exchange that ccxt knows, as far as ccxt can read its candles."""

from candled import Exchange, hookimpl

from .exchange import Ccxt


@hookimpl
def candled_exchanges() -> list[type[Exchange]]:
    """Return the exchange whose setting `exchange` names one of ccxt's."""
    return [Ccxt]
