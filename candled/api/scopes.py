"""The candles that a request to one of the dialects asks for, to compare them with a token's claims."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from candled.model import DAY_MS, Symbol
from candled.serve.grants import Arguments, Asked

from .catalog import BinanceMarkets, MarketCatalog

T = TypeVar("T")

_API = frozenset({"/api/candles", "/api/pages", "/api/coverage", "/api/gaps"})
_UDF = frozenset({"/udf/history", "/udf/quotes", "/udf/marks", "/udf/timescale_marks"})
_KLINES = ("/api/v3/klines", "/api/v3/uiKlines")
_ALL_MARKETS = frozenset({"/status.json", "/health/ws-stats"})  # the states and the rooms of all markets


class Scopes:
    """Finds the markets and intervals in queries. `klines` are Binance's names and the prefix of its paths, if enabled.

    A name that no market has is left out: the handler answers it with an error.
    """

    def __init__(self, catalog: MarketCatalog, klines: tuple[BinanceMarkets, str] | None) -> None:
        self._catalog = catalog
        self._klines = {} if klines is None else {f"{klines[1]}{path}": klines[0] for path in _KLINES}
        self._version = -1  # of the catalog
        self._symbols: dict[str, set[Symbol]] = {}

    def find_asked(self, path: str, arguments: Arguments) -> Asked | None:
        """Return the candles that a request asks for; None if it asks for none, as for the list of markets."""
        if path in _API:
            if self._version != self._catalog.version:
                self._version = self._catalog.version
                self._symbols = {str(market.symbol): {market.symbol} for market in self._catalog.markets}
                for former, market in self._catalog.renamed.items():  # another exchange may still have that symbol
                    self._symbols.setdefault(str(former.symbol), set()).add(market.symbol)
            return Asked(
                [symbol for found in _found(arguments, "symbol", self._symbols.get) for symbol in found],
                [str(one) for one in _found(arguments, "interval", self._catalog.intervals.get)],
                needs_symbol=path == "/api/gaps",
            )
        if path in _ALL_MARKETS:
            return Asked((), (), needs_symbol=True)
        if path in _UDF:
            return self._find_of_udf(path, arguments)
        names = self._klines.get(path)
        if names is None:
            return None
        markets = _found(arguments, "symbol", names.find_market)
        intervals = _found(arguments, "interval", names.intervals.get)
        return Asked([market.symbol for market in markets], [str(one) for one in intervals])

    def _find_of_udf(self, path: str, arguments: Arguments) -> Asked:
        markets = _found(arguments, "symbol", self._catalog.by_ticker)
        intervals = _found(arguments, "resolution", self._catalog.find_resolution)
        if path == "/udf/quotes":
            names = [name for text in _texts(arguments, "symbols") for name in text.split(",")]
            markets = [market for market in map(self._catalog.by_ticker, names) if market is not None]
            intervals = [one for one in self._catalog.intervals.values() if one.ms == DAY_MS]
        return Asked([market.symbol for market in markets], [str(one) for one in intervals])


def _texts(arguments: Arguments, name: str) -> Sequence[str]:
    return [value.decode("utf-8", "replace") for value in arguments.get(name, ())]


def _found(arguments: Arguments, name: str, find: Callable[[str], T | None]) -> list[T]:
    """Return the objects that all values of a parameter name."""
    return [found for found in map(find, _texts(arguments, name)) if found is not None]
