"""The served markets and intervals, under the names that each dialect uses."""

from collections.abc import Iterable, Mapping, Sequence

from candled.model import DAY_MS, Interval, MarketKey, Symbol

from .errors import ApiError, shown

_LISTED = 20  # names that a message lists


class MarketCatalog:
    """The served markets and intervals. Pure. The first exchange is the default."""

    def __init__(self, markets: Mapping[str, Sequence[Symbol]], intervals: Iterable[Interval]) -> None:
        self.exchanges = tuple(markets)
        self.default = self.exchanges[0]
        self.intervals = {str(interval): interval for interval in intervals}
        #: the intervals by TradingView's names
        self.resolutions = {resolution(interval): interval for interval in self.intervals.values()}
        self.markets = tuple(MarketKey(name, symbol) for name, symbols in markets.items() for symbol in symbols)
        self._by_symbol = {(key.exchange, str(key.symbol)): key for key in self.markets}
        self._tickers = self._make_tickers()
        self._by_ticker = {name: key for key, name in self._tickers.items()}
        #: each market with the names that a search compares
        self.spellings = [
            (key, (joined(key.symbol), str(key.symbol).upper(), self.ticker_of(key).upper())) for key in self.markets
        ]

    def find_market(self, exchange: str | None, symbol: str) -> MarketKey:
        """Return the market of a symbol (`BASE/QUOTE`) at an exchange, by default the first one.

        Raises:
            ApiError: the exchange or the symbol is not served.
        """
        exchange = self.find_exchange(exchange)
        market = self._by_symbol.get((exchange, symbol))
        if market is None:
            symbols = [str(key.symbol) for key in self.markets if key.exchange == exchange]
            raise ApiError(404, "unknown_symbol", f"Invalid symbol: {shown(symbol)[1:-1]}. {_choice(symbols)}")
        return market

    def find_exchange(self, name: str | None) -> str:
        """Return an exchange's name after checking it; the first exchange for None.

        Raises:
            ApiError: the exchange is not served.
        """
        if name is None:
            return self.default
        if name not in self.exchanges:
            raise ApiError(
                404, "unknown_exchange", f"Invalid exchange: {shown(name)[1:-1]}. Valid: {', '.join(self.exchanges)}"
            )
        return name

    # ------------------------------------------------------------ TradingView: BITGET:BTCUSDT

    def ticker_of(self, market: MarketKey) -> str:
        """Return a market's name for charts: `BITGET:BTCUSDT`, with the slash if two names would otherwise be equal."""
        return self._tickers[market]

    def by_ticker(self, name: str) -> MarketKey | None:
        """Return the market of a ticker, or None. The exchange is optional, and so is the slash."""
        found = self._by_ticker.get(name)
        if found is not None:
            return found
        prefix, colon, rest = name.rpartition(":")
        for market in self.markets:
            if colon and prefix.upper() != market.exchange.upper():
                continue
            if rest.upper() in (str(market.symbol).upper(), joined(market.symbol)):
                return market
        return None

    def _make_tickers(self) -> dict[MarketKey, str]:
        tickers: dict[MarketKey, str] = {}
        taken: set[str] = set()
        for market in self.markets:
            prefix = market.exchange.upper()
            spellings = (
                f"{prefix}:{joined(market.symbol)}",
                f"{prefix}:{str(market.symbol).upper()}",
                f"{market.exchange}:{market.symbol}",
            )
            tickers[market] = next(name for name in spellings if name not in taken)
            taken.add(tickers[market])
        return tickers


class BinanceMarkets:
    """The markets of one exchange and the intervals by Binance's names: `BTCUSDT`, `1d`. Pure.

    If two symbols have the same name (`AB/USDT` and `A/BUSDT`), the second becomes `A-BUSDT`.
    """

    def __init__(self, catalog: MarketCatalog, exchange: str) -> None:
        self.markets: dict[str, MarketKey] = {}
        for market in catalog.markets:
            if market.exchange == exchange:
                self.markets[self._free_name(market.symbol)] = market
        self.intervals = {binance_interval(interval): interval for interval in catalog.intervals.values()}

    def _free_name(self, symbol: Symbol) -> str:
        for sign in ("", "-", "_", "."):  # the characters that Binance allows in a name besides letters and digits
            name = joined(symbol, sign)
            if name not in self.markets:
                return name
        return f"{symbol.base}/{symbol.quote}"


def joined(symbol: Symbol, sign: str = "") -> str:
    """Return a symbol as Binance and TradingView write it: `BTCUSDT`."""
    return f"{symbol.base}{sign}{symbol.quote}".upper()


def resolution(interval: Interval) -> str:
    """Return TradingView's name of an interval: the number of minutes, `1D` or `1W`."""
    return str(interval.ms // 60_000) if interval.ms < DAY_MS else str(interval)


def binance_interval(interval: Interval) -> str:
    """Return Binance's name of an interval: `1m`, `4h`, `1d`, `1w`."""
    return str(interval).lower()


def _choice(symbols: Sequence[str]) -> str:
    if len(symbols) == 1:
        return f"Only {symbols[0]} is supported."
    more = f" and {len(symbols) - _LISTED} more" if len(symbols) > _LISTED else ""
    return f"Valid: {', '.join(symbols[:_LISTED])}{more}"
