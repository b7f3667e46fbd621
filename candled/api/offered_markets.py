"""The markets that can be started on demand, under the names that each dialect uses."""

from collections.abc import Iterable

from candled.model import MarketKey
from candled.on_demand import MarketsOnDemand

from .catalog import binance_name, tradingview_name
from .errors import UnknownSymbol


class OfferedMarkets:
    """Finds markets that are not served by their names. A name that fits several belongs to the first by symbol."""

    def __init__(self, demand: MarketsOnDemand) -> None:
        self.demand = demand
        self._version = -1  # of `demand`
        self._tickers: dict[str, MarketKey] = {}
        self._binance_names: dict[tuple[str, str], MarketKey] = {}

    def find(self, refusal: UnknownSymbol) -> MarketKey | None:
        """Return the market that a refused request is about; None if it cannot be started."""
        if refusal.kind == "symbol" and refusal.exchange is not None:
            return self.demand.find_market(refusal.exchange, refusal.name)
        self._refresh()
        name = refusal.name.upper()
        if refusal.kind == "binance" and refusal.exchange is not None:
            return self._allowed(self._binance_names.get((refusal.exchange, name)))
        return self._allowed(self._tickers.get(name))

    def _allowed(self, market: MarketKey | None) -> MarketKey | None:
        return None if market is None else self.demand.find_market(market.exchange, str(market.symbol))

    def _refresh(self) -> None:
        if self._version == self.demand.version:
            return
        self._version, self._tickers, self._binance_names = self.demand.version, {}, {}
        for market in self._all():
            for name in (tradingview_name(market.symbol), str(market.symbol).upper()):
                self._tickers.setdefault(name, market)
                self._tickers.setdefault(f"{market.exchange}:{name}".upper(), market)
            self._binance_names.setdefault((market.exchange, binance_name(market.symbol)), market)

    def _all(self) -> Iterable[MarketKey]:
        for exchange in self.demand.exchanges:
            for symbol in self.demand.offered_symbols(exchange):
                yield MarketKey(exchange, symbol)
