"""The printers of the HTTP dialects, for answers made from cached texts."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from candled.model import BarTexts, Candle, Interval, decimal_text
from candled.protocol.messages import FINAL, bar_text, final_bar_texts
from candled.rooms.encoded_bars import Printer

from .formats import csv_line, final_csv_lines


@lru_cache(maxsize=4)
def json_printer(numbers: int = 0) -> Printer:
    """Return the printer of `/api/candles`: a bar as on the WebSocket, including `final`."""

    def texts(bar: Candle, final: bool) -> tuple[str]:
        return (bar_text(bar, FINAL | numbers, final=final),)

    def many(bars: BarTexts) -> tuple[list[str]]:
        return (final_bar_texts(bars, numbers),)

    return Printer(("json", numbers), texts, cares=True, positioned=True, print_texts=many)


@lru_cache(maxsize=4)
def ndjson_printer(numbers: int = 0) -> Printer:
    """Return the printer of `format=ndjson`: the bars of `/api/candles`, one per line."""
    return replace(json_printer(numbers), name=("ndjson", numbers), separator=b"\n", positioned=False)


@lru_cache(maxsize=4)
def page_printer(numbers: int = 0) -> Printer:
    """Return the printer of `/api/pages`: the bars of `/api/candles` without the feed's position."""
    return replace(json_printer(numbers), name=("page", numbers), positioned=False)


CSV = Printer(
    "csv",
    lambda *bar: (csv_line(*bar),),
    cares=True,
    separator=b"\n",
    print_texts=lambda bars: (final_csv_lines(bars),),
)
"""Prints the lines of `format=csv`."""


@lru_cache(maxsize=64)
def klines_printer(interval: Interval, units_per_ms: int = 1) -> Printer:
    """Return the printer of Binance's rows, with times in `units_per_ms` units per millisecond.

    Values that candles don't have are 0: the number of trades, the taker volumes, and a missing quote volume.
    """

    def texts(bar: Candle, _: bool) -> tuple[str]:
        opened, high, low, close, volume = map(decimal_text, bar[1:6])
        quote = "0" if bar.quote_volume is None else decimal_text(bar.quote_volume)
        start, end = bar.open_ms * units_per_ms, (bar.open_ms + interval.ms) * units_per_ms - 1
        return (f'[{start},"{opened}","{high}","{low}","{close}","{volume}",{end},"{quote}",0,"0","0","0"]',)

    def many(bars: BarTexts) -> tuple[list[str]]:
        starts = bars.times if units_per_ms == 1 else [at_ms * units_per_ms for at_ms in bars.times]
        length = interval.ms * units_per_ms - 1
        return (
            [
                f'[{at},"{first}","{high}","{low}","{last}","{volume}",{at + length},"{quote or 0}",0,"0","0","0"]'
                for at, first, high, low, last, volume, quote in zip(starts, *bars[1:], strict=True)
            ],
        )

    return Printer(("klines", units_per_ms), texts, print_texts=many)


@lru_cache(maxsize=4)
def udf_printer(numbers: int = 0) -> Printer:
    """Return the printer of TradingView's columns: t, o, h, l, c, v."""
    quote = '"' if numbers else ""

    def texts(bar: Candle, _: bool) -> list[str]:
        return [str(bar.open_ms // 1000), *(f"{quote}{decimal_text(number)}{quote}" for number in bar[1:6])]

    def many(bars: BarTexts) -> list[Sequence[str]]:
        columns = ([f'"{text}"' for text in texts] for texts in bars[1:6]) if numbers else bars[1:6]
        return [[str(at_ms // 1000) for at_ms in bars.times], *columns]

    return Printer(("udf", numbers), texts, columns=6, print_texts=many)
