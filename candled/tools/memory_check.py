"""Compares stored bars with those that a running daemon shows its clients."""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from itertools import product

from candled.client import Bar, Client, ConnectionEnded, RequestRejected
from candled.model import END_OF_TIME_MS, MINUTE, Candle, Interval, MarketKey
from candled.store.interface import Store

from .compare import Difference, compare
from .report import Report

_BARS = 1000
_ANSWER_S = 60.0  # a daemon that is still starting delays the answer
_READS = 3


async def check_memory(
    store: Store, url: str, markets: Sequence[MarketKey], intervals: Sequence[Interval], report: Report
) -> None:
    """Compare the newest 1000 bars of each interval that the daemon at `url` shows, except those that are not over."""
    async with Client(url, reconnect=False) as client:
        with report.show_progress(f"ask {url}", len(markets) * len(intervals)) as advance:
            for market, interval in product(markets, intervals):
                try:
                    report.add_differences(await _differences(store, client, market, interval))
                except ConnectionEnded as error:
                    report.add_unchecked(url, error)
                    return
                except RequestRejected as error:
                    report.add_unchecked(f"{market} {interval}", error)
                advance(1)


async def _differences(store: Store, client: Client, market: MarketKey, interval: Interval) -> list[Difference]:
    """Return the differences that several reads agree on: the daemon may write between two reads."""
    wrong: list[Difference] = []
    for _ in range(_READS):
        shown = await _shown_bars(client, market, interval)
        wrong = _compare(store, market, interval, shown)
        if not wrong:
            break
    return wrong


def _compare(store: Store, market: MarketKey, interval: Interval, shown: Sequence[Candle]) -> list[Difference]:
    newest = store.read_bars(market, MINUTE, before_ms=END_OF_TIME_MS, limit=1)
    over_ms = newest[0].open_ms + MINUTE.ms if newest else 0  # memory may be ahead of the store, never behind
    closed = [bar for bar in shown if bar.open_ms + interval.ms <= over_ms]
    limit = len(closed) if len(shown) >= _BARS else _BARS
    expected = store.read_bars(market, interval, before_ms=over_ms - interval.ms + 1, limit=limit)
    served_ms = store.served_from(market)  # a bar that begins before is cut: a daemon does not show it
    whole = [bar for bar in expected if served_ms is not None and bar.open_ms >= served_ms]
    return compare("memory", market, interval, whole, closed)


async def _shown_bars(client: Client, market: MarketKey, interval: Interval) -> list[Candle]:
    subscription = client.bars(str(market.symbol), str(interval), exchange=market.exchange, initial_bars=_BARS)
    try:
        with closing(subscription) as stream:
            async with asyncio.timeout(_ANSWER_S):
                async for _ in stream.changes():
                    if stream.is_loaded:
                        break
                return [_candle(bar) for bar in stream.bars]
    except TimeoutError:
        raise RequestRejected(f"no bars within {_ANSWER_S:.0f} s") from None


def _candle(bar: Bar) -> Candle:
    open_ms = round(bar.time.timestamp() * 1000)
    return Candle(open_ms, bar.open, bar.high, bar.low, bar.close, bar.volume, bar.quote_volume)
