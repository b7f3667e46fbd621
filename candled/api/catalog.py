"""The served markets and intervals, under the names that each dialect uses."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from candled.model import DAY_MS, Interval, MarketKey, Symbol
from candled.protocol.requests import choice_text

from .errors import ApiError, UnknownSymbol, shown

#: Binance's units of times, and how many are in a millisecond.
TIME_UNITS = {"MILLISECOND": 1, "MICROSECOND": 1000}


class MarketCatalog:
    """The served markets and intervals. Pure. The first exchange is the default.

    A short name that fits several markets belongs to the first of them. It stays reserved while that market is not
    served, so that a chart never continues with the bars of another market.
    """

    def __init__(self, markets: Mapping[str, Sequence[Symbol]], intervals: Iterable[Interval]) -> None:
        self.default = next(iter(markets))
        self._binance: dict[str, BinanceMarkets] = {}
        #: changes with the markets and the intervals
        self.version = 0
        #: By name, shortest first. The object stays the same when intervals are added.
        self.intervals: dict[str, Interval] = {}
        #: the intervals by TradingView's names
        self.resolutions: dict[str, Interval] = {}
        self.add_intervals(intervals)
        #: the owner of each ticker, and of each other spelling in upper case: a market that is or was served
        self._ticker_owners: dict[str, MarketKey] = {}
        self._spelling_owners: dict[str, MarketKey] = {}
        self._named_version = -1  # that of the names below
        self._by_symbol: dict[tuple[str, str], MarketKey] = {}
        self._tickers: dict[MarketKey, str] = {}
        self._by_ticker: dict[str, MarketKey] = {}
        self._spellings: list[tuple[MarketKey, tuple[str, ...]]] = []
        self.markets: tuple[MarketKey, ...] = ()
        self.set_markets(markets)

    def add_intervals(self, intervals: Iterable[Interval]) -> None:
        """Serve further intervals."""
        self.version += 1
        served = sorted({*self.intervals.values(), *intervals})
        self.intervals.clear()
        self.intervals.update((str(interval), interval) for interval in served)
        self.resolutions = {resolution(interval): interval for interval in served}

    def set_markets(
        self, markets: Mapping[str, Sequence[Symbol]], renamed: Mapping[MarketKey, MarketKey] | None = None
    ) -> None:
        """Replace the markets and the exchanges. The first exchange stays the same.

        `renamed` has the markets that an exchange has renamed, by their former names, which no market has now. Requests
        with former names are answered too.
        """
        before = self.markets
        now = tuple(MarketKey(name, symbol) for name, symbols in markets.items() for symbol in symbols)
        if not {*before}.difference(now) <= self._tickers.keys():
            self._refresh()  # those that leave keep their names
        self.version += 1
        self.renamed = dict(renamed or {})
        self.exchanges, self.markets = tuple(markets), now

    def _refresh(self) -> None:
        """Name the markets, if they have changed. Thousands take several milliseconds, and may change in many steps."""
        if self._named_version == self.version:
            return
        self._named_version = self.version
        self._by_symbol = {(key.exchange, str(key.symbol)): key for key in self.markets}
        self._by_symbol |= {(former.exchange, str(former.symbol)): key for former, key in self.renamed.items()}
        self._tickers = self._make_tickers()
        self._by_ticker = {name: key for key, name in self._tickers.items()}
        self._spellings = [(key, (*_spellings(key.symbol), self._tickers[key].upper())) for key in self.markets]
        for key in (*self.markets, *self.renamed):
            for name in _spellings(key.symbol):
                self._spelling_owners.setdefault(name, key)
                self._spelling_owners.setdefault(f"{key.exchange}:{name}".upper(), key)

    @property
    def spellings(self) -> Sequence[tuple[MarketKey, tuple[str, ...]]]:
        """Each market with the names that a search compares."""
        self._refresh()
        return self._spellings

    def find_market(self, exchange: str | None, symbol: str) -> MarketKey:
        """Return the market of a symbol, as candled writes it, at an exchange, by default the first one.

        Raises:
            ApiError: the exchange or the symbol is not served.
        """
        name = self.find_exchange(exchange)
        self._refresh()
        market = self._by_symbol.get((name, symbol))
        if market is None:
            symbols = [str(key.symbol) for key in self.markets if key.exchange == name]
            raise UnknownSymbol(
                404,
                "unknown_symbol",
                f"Invalid symbol: {shown(symbol)[1:-1]}. {choice_text(symbols)}",
                kind="symbol",
                name=symbol,
                exchange=name,
            )
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

    def binance_markets(self, exchange: str) -> "BinanceMarkets":
        """Return the markets of an exchange by Binance's names, the same object for all paths."""
        return self._binance.setdefault(exchange, BinanceMarkets(self, exchange))

    # ------------------------------------------------------------ TradingView: BITGET:BTCUSDT

    def find_resolution(self, name: str) -> Interval | None:
        """Return the interval of a resolution, or None. `D` is `1D`."""
        return self.resolutions.get(name) or self.resolutions.get(f"1{name}")

    def ticker_of(self, market: MarketKey) -> str:
        """Return a market's name for charts: the exchange, a colon, and `tradingview_name` of its symbol.

        If another market has that name, the symbol itself follows the colon.
        """
        self._refresh()
        return self._tickers[market]

    def by_ticker(self, name: str) -> MarketKey | None:
        """Return the market of a ticker, or None.

        Other spellings are found too: in another case, without the exchange, or with candled's symbol in place of
        `tradingview_name`.
        """
        self._refresh()
        found = self._by_ticker.get(name) or self._spelling_owners.get(name.upper())
        return found if found is None or found in self._tickers else self.renamed.get(found)

    def _make_tickers(self) -> dict[MarketKey, str]:
        tickers: dict[MarketKey, str] = {}
        taken = {str(market) for market in self.markets}  # each market's last resort, which no other market may have
        for market in self.markets:
            prefix = market.exchange.upper()
            names = (f"{prefix}:{name}" for name in _spellings(market.symbol))
            free = (name for name in names if name not in taken and self._ticker_owners.get(name, market) == market)
            tickers[market] = next(free, str(market))
            self._ticker_owners[tickers[market]] = market
            taken.add(tickers[market])
        return tickers


class BinanceMarkets:
    """The markets of one exchange and the intervals by Binance's names: `BTCUSDT`, `1d`. Pure.

    If two symbols have the same name (`AB/USDT` and `A/BUSDT`), the second becomes `A-BUSDT`. It keeps that name when
    the first is not served any more.
    """

    def __init__(self, catalog: MarketCatalog, exchange: str) -> None:
        self._catalog = catalog
        #: Its name in the settings.
        self.exchange = exchange
        self._version = -1  # of the catalog
        self._markets: dict[str, MarketKey] = {}
        self._stream_names: dict[str, str] = {}
        #: the owner of each name in lower case: a market that is or was served
        self._owners: dict[str, MarketKey] = {}
        #: the markets by their former names, which no market has now
        self._renamed: dict[str, MarketKey] = {}
        self._intervals: dict[str, Interval] = {}

    def find_market(self, name: str) -> MarketKey | None:
        """Return the market of a name, or of the former name of a market that was renamed; None if there is none."""
        return self.markets.get(name) or self._renamed.get(name)

    def find_stream(self, name: str) -> tuple[MarketKey, str] | None:
        """Return the market of a stream's name, and the symbol in its events; None if there is none."""
        symbol = self.stream_names.get(name)
        if symbol is not None:
            return self.markets[symbol], symbol
        former = self._renamed.get(name.upper()) if name == name.lower() else None
        return None if former is None else (former, name.upper())

    @property
    def intervals(self) -> Mapping[str, Interval]:
        """The intervals by name."""
        self._refresh()
        return self._intervals

    @property
    def markets(self) -> Mapping[str, MarketKey]:
        """The markets by name, in the order of the catalog."""
        self._refresh()
        return self._markets

    @property
    def stream_names(self) -> Mapping[str, str]:
        """The names by their lower-case form, which streams use."""
        self._refresh()
        return self._stream_names

    def _refresh(self) -> None:
        if self._version != self._catalog.version:
            self._version = self._catalog.version
            self._markets, self._stream_names = {}, {}
            self._intervals = {binance_interval(interval): interval for interval in self._catalog.intervals.values()}
            for market in self._catalog.markets:
                if market.exchange == self.exchange:
                    self._add_market(market)
            renamed = {former: key for former, key in self._catalog.renamed.items() if former.exchange == self.exchange}
            for former in renamed:
                self._owners.setdefault(binance_name(former.symbol).lower(), former)
            # the names that no other market has taken; a symbol with a slash is not found by former names
            owned = ((name, owner) for name, owner in self._owners.items() if owner in renamed and "/" not in name)
            self._renamed = {name.upper(): renamed[owner] for name, owner in owned}

    def _add_market(self, market: MarketKey) -> None:
        signs = ("", "-", "_", ".")  # the characters that Binance allows in a name besides letters and digits
        names = (binance_name(market.symbol, sign) for sign in signs)
        # A symbol has a slash, so it differs from all other names; it keeps its case, so it differs from other symbols.
        free = (name for name in names if self._owners.get(name.lower(), market) == market)
        name = next(free, str(market.symbol))
        self._owners[name.lower()] = market
        self._markets[name] = market
        self._stream_names[name if "/" in name else name.lower()] = name


def tradingview_name(symbol: Symbol) -> str:
    """Return a symbol as TradingView writes it: `BTCUSDT`, a perpetual `BTCUSDT.P`; a dated contract `BTCUSD_261225`.

    TradingView has several forms for dated contracts; this one is Binance's.
    """
    return _joined(symbol, "", ".P")


def binance_name(symbol: Symbol, sign: str = "") -> str:
    """Return Binance's form of a symbol, with `sign` after the base.

    Spot pairs and dated contracts are `BTCUSDT` and `BTCUSD_261225`. A perpetual contract is `BTCUSDT_PERP`. Binance
    uses this form if the margin is a coin (`BTCUSD_PERP`); other perpetuals have the spot pair's name, on another host.
    """
    return _joined(symbol, sign, "_PERP")


def _joined(symbol: Symbol, sign: str, perpetual: str) -> str:
    contract = f"_{symbol.expiry}" if symbol.expiry else perpetual if symbol.settle else ""
    return f"{symbol.base}{sign}{symbol.quote}{contract}".upper()


@lru_cache(maxsize=16_384)  # the catalog is made again at every change of the markets
def _spellings(symbol: Symbol) -> tuple[str, str]:
    """Return the names of a symbol in upper case: TradingView's and candled's."""
    return tradingview_name(symbol), str(symbol).upper()


def resolution(interval: Interval) -> str:
    """Return TradingView's name of an interval: the number of minutes, `1D` or `1W`."""
    return str(interval.ms // 60_000) if interval.ms < DAY_MS else str(interval)


def binance_interval(interval: Interval) -> str:
    """Return Binance's name of an interval: `1m`, `4h`, `1d`, `1w`."""
    return str(interval).lower()
