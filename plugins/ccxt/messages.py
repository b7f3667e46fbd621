"""Convert the values that ccxt returns to candled's candles, trades and markets, without sockets or clocks.

Source: ccxt's manual ("Market Structure", "Precision And Limits", "OHLCV Structure", "Trade structure").
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Self

from candled import Candle, ExchangeError, InvalidCandle, Market, Symbol, reading, take_cells

#: candled's names of intervals that differ from ccxt's.
INTERVALS: Mapping[str, str] = {"1d": "1D", "1w": "1W"}

_DECIMAL_PLACES, _TICK_SIZE = 2, 4  # ccxt's `precisionMode`


class PrintedFloat(float):
    """A float that remembers the text it was read from. Results of calculations are ordinary floats."""

    def __new__(cls, text: str) -> Self:
        """Read the text."""
        made = super().__new__(cls, text)
        made.text = text
        return made

    #: The text of the exchange.
    text: str


def read_row(row: Any) -> Candle:
    """Return the candle in a row of ccxt: opening time in ms, open, high, low, close, volume.

    An ordinary float is refused: some of its digits may not be the exchange's.

    Raises:
        InvalidCandle: a cell is a float or missing, or the row is not a possible candle.
    """
    open_ms, *cells = (cell.text if isinstance(cell, PrintedFloat) else cell for cell in take_cells(row, 6))
    if inexact := [cell for cell in cells if not isinstance(cell, str)]:
        raise InvalidCandle(f"expected numbers as text, got {str(inexact[0])[:60]!r} in {str(row)[:200]}")
    return Candle.parse(open_ms, *cells)


def exact(value: Any) -> Decimal | None:
    """Return a number of ccxt; None if it is missing. In lists of markets it may be a float that ccxt itself wrote.

    Raises:
        ExchangeError: it is not a number.
    """
    if value is None:
        return None
    try:
        return Decimal(str(value))
    except ArithmeticError as error:
        raise ExchangeError(f"expected a number, got {str(value)[:60]!r}") from error


def read_markets(
    markets: Mapping[str, Any], tickers: Mapping[str, Any], kind: str, precision_mode: int
) -> list[Market]:
    """Return the markets of a `kind` (`spot` or `swap`) in the values of `load_markets` and `fetch_tickers`.

    Raises:
        ExchangeError: a market is not as ccxt documents it.
    """
    with reading("a market"):
        return [
            _read_market(symbol, market, tickers.get(name) or {}, precision_mode)
            for name, market in markets.items()
            if market.get("type") == kind and (symbol := _symbol_of(name)) is not None
        ]


def _symbol_of(name: str) -> Symbol | None:
    try:
        return Symbol.parse(name)
    except ValueError:
        return None


def _read_market(symbol: Symbol, market: Mapping[str, Any], ticker: Mapping[str, Any], precision_mode: int) -> Market:
    precision = market.get("precision") or {}
    price, amount = exact(precision.get("price")), exact(precision.get("amount"))
    return Market(
        symbol=symbol,
        price_decimals=_places_of(price, precision_mode),
        volume_decimals=_places_of(amount, precision_mode),
        tick_size=price if precision_mode == _TICK_SIZE else None,
        volume_step=amount if precision_mode == _TICK_SIZE else None,
        status="suspended" if market.get("active") is False else "trading",
        listed_ms=market.get("created"),
        quote_volume_24h=exact(ticker.get("quoteVolume")),
    )


def _places_of(precision: Decimal | None, precision_mode: int) -> int | None:
    """Return the decimal places; None if they follow from a step, or are unknown, as with significant digits."""
    if precision is None or not precision.is_finite() or precision_mode != _DECIMAL_PLACES:
        return None
    return int(precision)


def contract_size(market: Mapping[str, Any]) -> Decimal | None:
    """Return the base coins that an amount of 1 in a trade means; None if they depend on the price."""
    if not market.get("contract"):
        return Decimal(1)
    return exact(market.get("contractSize")) if market.get("linear") else None


def read_trade(trade: Mapping[str, Any], size: Decimal) -> tuple[int, Decimal, Decimal]:
    """Return the time in ms, the price and the amount in base coins of a trade. `size` is a contract's, in base coins.

    Raises:
        InvalidCandle: a value is missing or a float.
    """
    at_ms, price, amount = trade.get("timestamp"), trade.get("price"), trade.get("amount")
    try:
        if isinstance(at_ms, int) and isinstance(price, str) and isinstance(amount, str):
            return at_ms, Decimal(price), Decimal(amount) * size
    except ArithmeticError:
        pass
    raise InvalidCandle(f"expected a time, and price and amount as text, got {str([at_ms, price, amount])[:200]}")


class TradeNumbers:
    """Numbers for trades whose ids are not numbers. Equal names get equal numbers, and later names get higher ones.

    It remembers the newest names only.
    """

    _MOST = 20_000

    def __init__(self) -> None:
        self._by_name: dict[str, int] = {}
        self._count = 0

    def number_of(self, trade: Mapping[str, Any]) -> int:
        """Return the number of a trade. A trade without a name of its own is known by its values."""
        name = trade.get("id") or f"{trade.get('timestamp')} {trade.get('price')} {trade.get('amount')}"
        if (number := self._by_name.get(str(name))) is None:
            self._count += 1
            number = self._by_name[str(name)] = self._count
            if len(self._by_name) > self._MOST:
                del self._by_name[next(iter(self._by_name))]
        return number
