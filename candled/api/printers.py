"""The printers of the HTTP dialects, for answers made from cached texts."""

from dataclasses import replace
from functools import lru_cache

from candled.model import BarTexts, Candle, Interval, decimal_text
from candled.protocol.messages import FINAL, NumberText, bar_text
from candled.rooms.encoded_bars import Printer

from .formats import csv_line


@lru_cache(maxsize=4)
def json_printer(numbers: int = 0) -> Printer:
    """Return the printer of `/api/candles`: a bar as on the WebSocket, including `final`."""

    def texts(bar: Candle | BarTexts, final: bool, number_text: NumberText = decimal_text) -> tuple[str]:
        return (bar_text(bar, FINAL | numbers, final=final, number_text=number_text),)

    return Printer(("json", numbers), texts, cares=True, positioned=True)


@lru_cache(maxsize=4)
def ndjson_printer(numbers: int = 0) -> Printer:
    """Return the printer of `format=ndjson`: the bars of `/api/candles`, one in a line."""
    return replace(json_printer(numbers), name=("ndjson", numbers), separator=b"\n", positioned=False)


@lru_cache(maxsize=4)
def page_printer(numbers: int = 0) -> Printer:
    """Return the printer of `/api/pages`: the bars of `/api/candles` without the feed's position."""
    return replace(json_printer(numbers), name=("page", numbers), positioned=False)


CSV = Printer("csv", lambda *bar: (csv_line(*bar),), cares=True, separator=b"\n")
"""Prints the lines of `format=csv`."""


@lru_cache(maxsize=64)
def klines_printer(interval: Interval, units_per_ms: int = 1) -> Printer:
    """Return the printer of Binance's rows, with times in `units_per_ms` units per millisecond.

    Values that candles don't have are 0: the number of trades, the taker volumes, and a missing quote volume.
    """

    def texts(bar: Candle | BarTexts, _: bool, number_text: NumberText = decimal_text) -> tuple[str]:
        open_ms, opened, high, low, close, volume, quote = bar[:7]
        if number_text is not str:
            opened, high, low, close, volume = map(number_text, bar[1:6])
            quote = None if quote is None else number_text(quote)
        start, end = open_ms * units_per_ms, (open_ms + interval.ms) * units_per_ms - 1
        return (f'[{start},"{opened}","{high}","{low}","{close}","{volume}",{end},"{quote or 0}",0,"0","0","0"]',)

    return Printer(("klines", units_per_ms), texts)


@lru_cache(maxsize=4)
def udf_printer(numbers: int = 0) -> Printer:
    """Return the printer of TradingView's columns: t, o, h, l, c, v."""
    quote = '"' if numbers else ""

    def texts(bar: Candle | BarTexts, _: bool, number_text: NumberText = decimal_text) -> list[str]:
        return [str(bar.open_ms // 1000), *(f"{quote}{number_text(number)}{quote}" for number in bar[1:6])]

    return Printer(("udf", numbers), texts, columns=6)
