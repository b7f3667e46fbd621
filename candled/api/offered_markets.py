"""The markets that can be started on demand, under the names that each dialect uses."""

from collections.abc import Mapping, Sequence

from candled.model import MarketKey
from candled.on_demand import MarketsOnDemand

from .catalog import binance_name, tradingview_name
from .errors import UnknownSymbol


class OfferedMarkets:
    """Finds, by name, the markets that are not served but can be. If a name fits several, it finds the first."""

    def __init__(self, demand: MarketsOnDemand) -> None:
        self.demand = demand
        self._version = -1  # of `demand`
        self._tickers: dict[str, MarketKey] = {}
        self._binance_names: dict[tuple[str, str], MarketKey] = {}
        self._ticker_of: dict[MarketKey, str] = {}

    def find(self, refusal: UnknownSymbol) -> MarketKey | None:
        """Return the market that a refused request is about; None if it cannot be started."""
        if refusal.kind == "symbol" and refusal.exchange is not None:
            return self.demand.find_market(refusal.exchange, refusal.name)
        if refusal.kind == "binance" and refusal.exchange is not None:
            return self.find_binance(refusal.exchange, refusal.name)
        self._refresh()
        return self._allowed(self._tickers.get(refusal.name.upper()))

    def awaited_lists(self, refusal: UnknownSymbol) -> Sequence[str]:
        """Return the exchanges whose lists are not known yet, and that may list the market of a refused request."""
        demand, exchange = self.demand, refusal.exchange
        if exchange is None:  # a ticker begins with the exchange, or not
            prefix = refusal.name.partition(":")[0].upper()
            exchanges = [one for one in demand.exchanges if one.upper() == prefix] or demand.exchanges
        elif refusal.kind == "symbol" and demand.find_candidate(exchange, refusal.name) is None:
            return ()
        else:
            exchanges = (exchange,)
        return [one for one in exchanges if not demand.is_list_known(one)]

    def find_binance(self, exchange: str, name: str) -> MarketKey | None:
        """Return the market that Binance's name means at an exchange; None if it cannot be started."""
        self._refresh()
        return self._allowed(self._binance_names.get((exchange, name.upper())))

    @property
    def tickers(self) -> Mapping[MarketKey, str]:
        """The tickers by which TradingView's charts find the markets."""
        self._refresh()
        return self._ticker_of

    def _allowed(self, market: MarketKey | None) -> MarketKey | None:
        return None if market is None else self.demand.find_market(market.exchange, str(market.symbol))

    def _refresh(self) -> None:
        if self._version == self.demand.version:
            return
        self._version = self.demand.version
        self._tickers, self._binance_names, self._ticker_of = {}, {}, {}
        demand = self.demand
        offered = (MarketKey(name, symbol) for name in demand.exchanges for symbol in demand.offered_symbols(name))
        for market in offered:
            for name in (tradingview_name(market.symbol), str(market.symbol).upper()):
                self._tickers.setdefault(name, market)
                ticker = f"{market.exchange}:{name}".upper()
                if self._tickers.setdefault(ticker, market) == market:
                    self._ticker_of.setdefault(market, ticker)
            self._binance_names.setdefault((market.exchange, binance_name(market.symbol)), market)
