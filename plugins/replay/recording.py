"""A recording as a pure function of time: looped, shifted in time, and growing within each minute."""

from collections.abc import Iterable, Mapping
from decimal import ROUND_DOWN, Context, Decimal
from typing import Self

from candled import MINUTE_MS, Candle, InvalidCandle

HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS

_NEEDED = ("time_ms", "open", "high", "low", "close", "volume")
_OPTIONAL = ("quote_volume", "trades")
# Rounded towards zero, so that a growing value never passes its final value; more digits than any exchange prints.
_CUT = Context(prec=200, rounding=ROUND_DOWN)
_REPORTED = 5  # bad lines reported per file; in a file of another kind, all lines are bad


class BadRecording(ValueError):
    """A recording that cannot be replayed. `problems` has one line per mistake, with the line number in the file."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Recording:
    """Recorded minutes, repeated forever in both directions.

    The loop is `period_ms` long, counted from the first recorded minute, `base_ms`. It is as many full weeks as the
    recording covers; full days if it covers less than a week; full hours if less than a day. Rows beyond that are not
    used.

    Minute `t` is the recorded minute `base_ms + (t - base_ms) mod period_ms`, so it always has the same values. A shift
    by full weeks keeps the hour of the day and the day of the week. A minute that was not recorded is missing in every
    loop.

    `price_decimals` and `volume_decimals` are the largest numbers of decimals in any recorded row.
    """

    def __init__(self, rows: Mapping[int, str]) -> None:
        """Keep `rows`: recorded minutes by their opening time, in ascending order and at least one.

        A minute is the texts of its open, high, low, close, volume and, if known, quote volume, between commas. So it
        takes a tenth of the memory of a `Candle`; it is read a few times a second at most.

        Raises:
            BadRecording: they cover less than an hour.
        """
        times = list(rows)
        self.base_ms = times[0]
        self.period_ms = _period(times[-1] + MINUTE_MS - self.base_ms)
        self._rows = {t - self.base_ms: row for t, row in rows.items() if t - self.base_ms < self.period_ms}
        decimals = _decimals(self._rows.values())
        self.price_decimals = max(decimals[:4])
        self.volume_decimals, self._quote_decimals = decimals[4:]

    @classmethod
    def parse(cls, lines: Iterable[str], *, checked: bool = False) -> Self:
        """Read CSV: a header that names the columns, then one row per minute, in ascending order.

        Columns are `time_ms` (UTC epoch milliseconds), `open`, `high`, `low`, `close`, `volume`, and optionally
        `quote_volume` (an empty one is missing, not 0) and `trades` (ignored). Minutes may be missing. Rows that were
        `checked` before, with the columns in this order, are not checked again: that takes most of the time.

        Raises:
            BadRecording: a wrong header, a row that is not a candle, times that do not ascend, less than an hour.
        """
        numbered = enumerate((line.strip() for line in lines), start=1)
        header = next(numbered, (1, ""))[1].split(",")
        if wrong := _wrong_columns(header):
            raise BadRecording([f"line 1: {wrong}; expected {','.join(_NEEDED)}[,quote_volume][,trades]"])
        if checked:
            split = (line.partition(",") for _, line in numbered)
            return cls({int(time_ms): row for time_ms, _, row in split})
        rows: dict[int, str] = {}
        problems: list[str] = []
        newest_ms = -1
        for number, line in numbered:
            if not line:
                continue
            try:
                candle = _read_row(header, line.split(","))
                if candle.open_ms <= newest_ms:
                    raise InvalidCandle(f"expected a time after {newest_ms}, got {candle.open_ms}")
            except InvalidCandle as error:
                problems.append(f"line {number}: {error}")
                continue
            newest_ms = candle.open_ms
            rows[newest_ms] = _row_of(candle)
        if problems:
            more = len(problems) - _REPORTED
            raise BadRecording(problems[:_REPORTED] + ([f"and {more} more bad lines"] if more > 0 else []))
        if not rows:
            raise BadRecording(["line 2: expected at least one row"])
        return cls(rows)

    @classmethod
    def of_candles(cls, candles: Iterable[Candle]) -> Self:
        """Make a recording of candles in ascending order.

        Raises:
            BadRecording: there are none, or they cover less than an hour.
        """
        rows = {candle.open_ms: _row_of(candle) for candle in candles}
        if not rows:
            raise BadRecording(["no minutes in this range"])
        return cls(rows)

    def minute_at(self, open_ms: int, now_ms: int) -> Candle | None:
        """Return the minute that opens at `open_ms` as of `now_ms` (both UTC epoch milliseconds).

        A minute that is over has the recorded values as of its end; a forming one has grown as `grown` describes.

        Returns:
            None if the minute was not recorded or has not begun.
        """
        numbers = self._rows.get((open_ms - self.base_ms) % self.period_ms)
        if numbers is None or now_ms < open_ms:
            return None
        candle = Candle.parse(open_ms, *numbers.split(","))
        end_ms = open_ms + MINUTE_MS
        if now_ms >= end_ms:
            return candle._replace(as_of_ms=end_ms)
        return grown(
            candle,
            now_ms,
            price_decimals=self.price_decimals,
            volume_decimals=self.volume_decimals,
            quote_decimals=self._quote_decimals,
        )

    def minutes_between(self, start_ms: int, end_ms: int, now_ms: int) -> list[Candle]:
        """Return the minutes with `start_ms <= open_ms < end_ms` as of `now_ms`, oldest first."""
        first_ms = -(-start_ms // MINUTE_MS) * MINUTE_MS
        last_ms = min(end_ms, now_ms + 1)
        candles = (self.minute_at(open_ms, now_ms) for open_ms in range(first_ms, last_ms, MINUTE_MS))
        return [candle for candle in candles if candle is not None]

    def versions_between(self, after_ms: int, now_ms: int) -> list[Candle]:
        """Return the candles that a feed sends at `now_ms` if it last sent any at `after_ms`, oldest first.

        These are the last versions of the minutes that ended in between, and the forming minute.
        """
        return self.minutes_between(after_ms - after_ms % MINUTE_MS, now_ms + 1, now_ms)


def grown(candle: Candle, at_ms: int, *, price_decimals: int, volume_decimals: int, quote_decimals: int = 0) -> Candle:
    """Return the recorded `candle` as it looked at `at_ms` (UTC epoch milliseconds) within its minute.

    The price moves in three straight lines, each a third of the minute long, and reaches the close at the end. It
    passes the low first in a rising minute, and the high first in a falling one. Volumes grow linearly.
    """
    elapsed_ms = min(max(at_ms - candle.open_ms, 0), MINUTE_MS)
    if candle.close >= candle.open:
        path = (candle.open, candle.low, candle.high, candle.close)
    else:
        path = (candle.open, candle.high, candle.low, candle.close)
    leg, within_ms = divmod(elapsed_ms * 3, MINUTE_MS)
    passed = path[: leg + 1]
    price = path[leg]
    if within_ms:
        price += _share(path[leg + 1] - price, within_ms, price_decimals)
    return candle._replace(
        high=max(*passed, price),
        low=min(*passed, price),
        close=price,
        volume=_part(candle.volume, elapsed_ms, volume_decimals),
        quote_volume=None if candle.quote_volume is None else _part(candle.quote_volume, elapsed_ms, quote_decimals),
        as_of_ms=at_ms,
    )


def _period(covered_ms: int) -> int:
    for unit_ms in (WEEK_MS, DAY_MS, HOUR_MS):
        if covered_ms >= unit_ms:
            return covered_ms - covered_ms % unit_ms
    raise BadRecording([f"expected an hour or more to loop over, got {covered_ms // MINUTE_MS} minutes"])


def _wrong_columns(header: list[str]) -> str | None:
    if missing := [name for name in _NEEDED if name not in header]:
        return f"no column {', '.join(missing)}"
    if unknown := [name for name in header if name not in _NEEDED + _OPTIONAL]:
        return f"unknown column {', '.join(unknown)}"
    return None


def _read_row(header: list[str], cells: list[str]) -> Candle:
    if len(cells) != len(header):
        raise InvalidCandle(f"expected {len(header)} columns, got {len(cells)}")
    row = dict(zip(header, cells, strict=True))
    quote = row.get("quote_volume") or None
    return Candle.parse(row["time_ms"], row["open"], row["high"], row["low"], row["close"], row["volume"], quote)


def _row_of(candle: Candle) -> str:
    return ",".join(format(number, "f") for number in candle.values if number is not None)


def _decimals(rows: Iterable[str]) -> list[int]:
    """Return the largest number of decimals in each of the six columns; 0 for one that is missing."""
    most = [0] * 6
    for row in rows:
        for column, text in enumerate(row.split(",")):
            _, point, places = text.partition(".")
            if point and len(places) > most[column]:
                most[column] = len(places)
    return most


def _part(whole: Decimal, elapsed_ms: int, decimals: int) -> Decimal:
    """Return the part of `whole` after `elapsed_ms` of a minute; all of it, unrounded, at the end."""
    return whole if elapsed_ms == MINUTE_MS else _share(whole, elapsed_ms, decimals)


def _share(whole: Decimal, elapsed_ms: int, decimals: int) -> Decimal:
    part = _CUT.divide(_CUT.multiply(whole, Decimal(elapsed_ms)), Decimal(MINUTE_MS))
    return _CUT.quantize(part, Decimal(1).scaleb(-decimals))
