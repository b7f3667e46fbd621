"""What else an exchange says of the time before the first minute that it is known to have."""

from dataclasses import dataclass

from candled.exchange import Exchange, Http
from candled.model import MINUTE, MINUTE_MS, Candle, Interval, Range, Symbol

_DAY = Interval.parse("1D")
# The finest of them that the exchange has shows at which bar of the first day history begins.
_FINE = tuple(Interval.parse(name) for name in ("5m", "15m", "1h"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was found out about a stretch of minutes that the exchange answers nothing for.

    At most one of the fields is set; none of them: nothing speaks for the answer and nothing against it.
    """

    #: nothing is older than this, UTC epoch milliseconds
    begins_ms: int | None = None
    #: the exchange has minutes before the stretch, so that history does not begin in it
    has_before: bool = False
    #: the exchange has longer bars within the stretch: the answer was wrong
    is_contradicted: bool = False


NOTHING = Evidence()


async def find_evidence(
    exchange: Exchange, http: Http, symbol: Symbol, stretch: Range, first: Candle, listed_ms: int | None
) -> Evidence:
    """Ask other sources about the minutes of `stretch`, before `first`, the oldest minute that is known.

    `listed_ms` is the market's listing as the list of markets says it.

    Raises:
        Unavailable, ExchangeError: as the methods of the exchange.
    """
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
    """Return whether the exchange has a minute just before a time."""
    from_ms = start_ms - exchange.max_history_minutes * MINUTE_MS
    rows = await exchange.fetch_history(http, symbol, max(0, from_ms), start_ms)
    return any(row.open_ms is not None and from_ms <= row.open_ms < start_ms for row in rows)


async def _from_bars(exchange: Exchange, http: Http, symbol: Symbol, stretch: Range, first: Candle) -> Evidence:
    """Compare with longer bars. An answer that lacks the bar of `first` proves nothing."""
    day_ms = _DAY.floor(first.open_ms)
    days = await exchange.fetch_bars(http, symbol, _DAY, _DAY.floor(stretch.start_ms), day_ms + _DAY.ms)
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
        # Within the bar the first trade tells: it is that of the first minute.
        return Evidence(begins_ms=first.open_ms if bars[0].open == first.open else bar_ms)
    return Evidence(begins_ms=day_ms)
