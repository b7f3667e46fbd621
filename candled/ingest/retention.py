"""The minutes that an exchange still keeps, if it drops older ones."""

from collections.abc import Sequence

from candled.exchange import Exchange, Http, InvalidRow
from candled.model import MINUTE, MINUTE_MS, Candle, Range, Symbol


def kept_since(history_minutes: int | None, now_ms: int) -> int:
    """Return the oldest minute that an exchange with `Exchange.history_minutes` keeps; 0 if it keeps all.

    `now_ms` is the exchange's clock. Both times are UTC epoch milliseconds.
    """
    return 0 if history_minutes is None else MINUTE.floor(now_ms) - history_minutes * MINUTE_MS


async def fetch_kept(
    exchange: Exchange, http: Http, symbol: Symbol, span: Range, now_ms: int
) -> Sequence[Candle | InvalidRow]:
    """Return the minutes of `span` that the exchange keeps, and ask for no others.

    Raises:
        Unavailable, ExchangeError: as `Exchange.fetch_history`.
    """
    start_ms = max(span.start_ms, kept_since(exchange.history_minutes, now_ms))
    return await exchange.fetch_history(http, symbol, start_ms, span.end_ms) if start_ms < span.end_ms else []
