"""Other evidence from an exchange about the time before its first known minute."""

from dataclasses import dataclass

from candled.exchange import Exchange, Http
from candled.model import DAY, MINUTE, MINUTE_MS, Candle, Interval, Range, Symbol

# The finest of these that the exchange offers shows at which bar of the first day history begins.
_FINE = tuple(Interval.parse(name) for name in ("5m", "15m", "1h"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Evidence about a range of minutes for which the exchange returns nothing.

    At most one field is set. If none is, there is no evidence for or against the exchange's answer.
    """

    #: The exchange has nothing older than this, UTC epoch milliseconds.
    begins_ms: int | None = None
    #: The exchange has minutes before the range, so history does not begin in it.
    has_before: bool = False
    #: The exchange has longer bars within the range, so its answer was wrong.
    is_contradicted: bool = False


NOTHING = Evidence()


async def find_evidence(
    exchange: Exchange,
    http: Http,
    symbol: Symbol,
    stretch: Range,
    first: Candle,
    listed_ms: int | None,
    kept_ms: int = 0,
) -> Evidence:
    """Return the evidence of other sources about the minutes of `stretch`, before `first`, the oldest known minute.

    `listed_ms` is the start of trading from the list of markets, `kept_ms` the oldest minute that the exchange keeps.

    Raises:
        Unavailable, ExchangeError: as in the methods of the exchange.
    """
    if stretch.end_ms <= kept_ms:
        return Evidence(begins_ms=first.open_ms)
    if listed_ms is not None and stretch.start_ms < MINUTE.floor(listed_ms) <= first.open_ms:
        stretch = Range(MINUTE.floor(listed_ms), stretch.end_ms)
        if stretch.start_ms == first.open_ms:
            return Evidence(begins_ms=first.open_ms)
    elif await _has_before(exchange, http, symbol, stretch.start_ms):
        return Evidence(has_before=True)
    found = await _from_bars(exchange, http, symbol, stretch, first)
    if found is NOTHING and listed_ms is not None and stretch.start_ms == MINUTE.floor(listed_ms):
        return Evidence(begins_ms=stretch.start_ms)
    return found


async def _has_before(exchange: Exchange, http: Http, symbol: Symbol, start_ms: int) -> bool:
    """Return whether the exchange has a minute shortly before a time."""
    from_ms = start_ms - exchange.max_history_minutes * MINUTE_MS
    rows = await exchange.fetch_history(http, symbol, max(0, from_ms), start_ms)
    return any(row.open_ms is not None and from_ms <= row.open_ms < start_ms for row in rows)


async def _from_bars(exchange: Exchange, http: Http, symbol: Symbol, stretch: Range, first: Candle) -> Evidence:
    """Compare with longer bars. An answer without the bar of `first` proves nothing."""
    day_ms = DAY.floor(first.open_ms)
    days = await exchange.fetch_bars(http, symbol, DAY, DAY.floor(stretch.start_ms), day_ms + DAY.ms)
    if not days or days[-1].open_ms != day_ms:
        return NOTHING
    if days[0].open_ms < day_ms:
        return Evidence(is_contradicted=True)
    for interval in _FINE:
        bar_ms, from_ms = interval.floor(first.open_ms), max(day_ms, interval.floor(stretch.start_ms))
        bars = await exchange.fetch_bars(http, symbol, interval, from_ms, bar_ms + interval.ms)
        if bars is None:
            continue
        if not bars or bars[-1].open_ms != bar_ms:
            return NOTHING
        if bars[0].open_ms < bar_ms:
            return Evidence(is_contradicted=True)
        # history begins with the first minute if the bar opens at the same price
        return Evidence(begins_ms=first.open_ms if bars[0].open == first.open else bar_ms)
    return Evidence(begins_ms=day_ms)
