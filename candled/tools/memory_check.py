"""Compares stored bars with those that a running daemon shows its clients."""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import product
from typing import Any

from tornado.httpclient import HTTPError
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

from candled.model import MINUTE, Candle, Interval, MarketKey, parse_iso_ms
from candled.store.interface import Store

from . import store_access as stored
from .compare import Difference, compare
from .report import Report

_BARS = 1000
_ANSWER_S = 60.0  # a daemon that is still starting delays the answer
_FAREWELL_S = 2.0
_READS = 3


class _NotShown(Exception):
    """The daemon answered with an error or not at all."""


async def check_memory(
    store: Store, url: str, markets: Sequence[MarketKey], intervals: Sequence[Interval], report: Report
) -> None:
    """Compare the newest 1000 bars of each interval that the daemon at `url` shows, if they are over."""
    try:
        socket = await websocket_connect(url, connect_timeout=_ANSWER_S)
    except (OSError, HTTPError, WebSocketError) as error:
        report.add_unchecked(url, error)
        return
    try:
        with report.show_progress(f"ask {url}", len(markets) * len(intervals)) as advance:
            for market, interval in product(markets, intervals):
                try:
                    report.add_differences(await _differences(store, socket, market, interval))
                except _NotShown as error:
                    report.add_unchecked(f"{market} {interval}", error)
                advance(1)
    finally:
        await _close(socket)


async def _close(socket: WebSocketClientConnection) -> None:
    """Close, and wait until the server has closed too, so that no task outlives the loop."""
    socket.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            while await socket.read_message() is not None:
                pass


async def _differences(
    store: Store, socket: WebSocketClientConnection, market: MarketKey, interval: Interval
) -> list[Difference]:
    """Return the differences that several reads agree on: the daemon may write between two reads."""
    wrong: list[Difference] = []
    for _ in range(_READS):
        shown = await _subscribe(socket, market, interval)
        wrong = _compare(store, market, interval, shown)
        if not wrong:
            break
    return wrong


def _compare(store: Store, market: MarketKey, interval: Interval, shown: Sequence[Candle]) -> list[Difference]:
    newest = store.read_bars(market, MINUTE, before_ms=stored.END_OF_TIME_MS, limit=1)
    over_ms = newest[0].open_ms + MINUTE.ms if newest else 0  # memory may be ahead of the store, never behind
    closed = [bar for bar in shown if bar.open_ms + interval.ms <= over_ms]
    limit = len(closed) if len(shown) >= _BARS else _BARS
    expected = store.read_bars(market, interval, before_ms=over_ms - interval.ms + 1, limit=limit)
    served_ms = store.served_from(market)  # a bar that begins before is cut: a daemon does not show it
    whole = [bar for bar in expected if served_ms is not None and bar.open_ms >= served_ms]
    return compare("memory", market, interval, whole, closed)


async def _subscribe(socket: WebSocketClientConnection, market: MarketKey, interval: Interval) -> list[Candle]:
    topic = {"exchange": market.exchange, "symbol": str(market.symbol), "interval": str(interval)}
    await socket.write_message(json.dumps({"type": "subscribe", "initialBars": _BARS, **topic}))
    try:
        bars = await asyncio.wait_for(_initial(socket, topic), _ANSWER_S)
    except TimeoutError:
        raise _NotShown(f"no bars within {_ANSWER_S:.0f} s") from None
    await socket.write_message(json.dumps({"type": "unsubscribe", **topic}))
    return bars


async def _initial(socket: WebSocketClientConnection, topic: Mapping[str, str]) -> list[Candle]:
    while (text := await socket.read_message()) is not None:
        message = json.loads(text, parse_float=Decimal, parse_int=Decimal)
        if message["type"] == "error":
            raise _NotShown(message["message"])
        if message["type"] == "initial" and message["interval"] == topic["interval"]:
            return [_bar(bar) for bar in message["bars"]]
    raise _NotShown("the connection was closed")


def _bar(bar: Mapping[str, Any]) -> Candle:
    numbers = (bar["open"], bar["high"], bar["low"], bar["close"], bar["volume"], bar.get("quoteVolume"))
    return Candle(parse_iso_ms(bar["time"]), *numbers)
