"""An exchange as a function of time that errs and lies as the weather has it."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from decimal import Decimal
from random import Random
from typing import Any

from candled.errors import ExchangeError, Unavailable
from candled.exchange import Candles, Event, Exchange, Feed, FeedError, InvalidRow, StreamFeed, SubscriptionRejected
from candled.model import MINUTE, MINUTE_MS, Candle, Market, Symbol
from tests.fakes.tapes import Row, Synthetic, grown
from tests.simulation.faults import REST_STAMPS, STAMPS, Weather
from tests.simulation.virtual_time import Machine

BTC = Symbol.parse("BTC/USDT")
ETH = Symbol.parse("ETH/USDT")
_SNAPSHOT = 500
_LATE_MS = 30_000

AnyRow = Candle | InvalidRow


class Truth:
    """All that was ever traded: `begins_ms` is the first minute; revised minutes have other values from then on."""

    def __init__(self, seed: int, begins_ms: int) -> None:
        self.begins_ms = begins_ms
        self._tape = Synthetic(seed)
        self.revised: dict[int, Row] = {}

    def row(self, open_ms: int) -> Row:
        return self.revised.get(open_ms) or self._tape.row(open_ms)

    def version(self, open_ms: int, at_ms: int, as_of_ms: int) -> Candle:
        """A minute as it stands at a time, stated at `as_of_ms`."""
        return grown(self.row(open_ms), at_ms - open_ms).candle(open_ms, as_of_ms=as_of_ms)

    def revise(self, open_ms: int) -> None:
        row = self.row(open_ms)
        self.revised[open_ms] = row._replace(volume=row.volume + 7, quote_volume=row.quote_volume + 7 * row.open)


class LyingFeed(StreamFeed):
    """The stream: a snapshot, then the forming minute every few seconds."""

    def __init__(self, exchange: "LyingExchange") -> None:
        super().__init__([BTC])
        self._exchange = exchange

    async def stream_events(self, http: Any) -> AsyncIterator[Event]:
        one, weather, draw = self._exchange, self._exchange.weather, self._exchange.draw
        sent_ms = MINUTE.floor(one.clock.true_ms)
        if weather.has("stream refuses the subscription"):
            yield SubscriptionRejected(BTC, "no such channel")
            await asyncio.sleep(20)
            return
        if not weather.has("stream cut, no snapshot after it"):
            one.connects()
            first_ms = max(one.truth.begins_ms, sent_ms - _SNAPSHOT * MINUTE_MS)
            yield one.frame(range(first_ms, sent_ms + 1, MINUTE_MS), snapshot=True)
        frames = 0
        while True:
            one.connects()
            frames += 1
            if weather.has("stream complains"):
                yield FeedError("30004: too many messages")
            minute_ms = MINUTE.floor(one.clock.true_ms)
            opens = [minute_ms]
            if sent_ms < minute_ms and not weather.has("stream drops the last version of minutes"):
                opens = [sent_ms, minute_ms]
            is_dropped = frames % 2 and weather.has("stream drops each second frame")
            if not is_dropped and not weather.has("stream silent"):
                sent_ms = minute_ms
                for event in one.lie_about(opens):
                    yield event
            await asyncio.sleep(draw.uniform(*one.pace_s))


class LyingExchange(Exchange):
    """One market that publishes a candle for every minute, and opens at the last close."""

    name = "lying"
    Settings = dict
    requests_per_s = 10.0
    max_history_minutes = 200
    publishes_empty_candles = True
    opens_at_previous_close = True

    clock: Machine

    def __init__(self, clock: Machine, truth: Truth, weather: Weather, draw: Random) -> None:
        super().__init__({}, clock)
        self.truth = truth
        self.weather = weather
        self.draw = draw
        self.pace_s = (2.0, 5.0)
        self.pushed_late: list[int] = []  # minutes of the past to be sent once more

    # ------------------------------------------------------------ the stream

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        return LyingFeed(self)

    def connects(self) -> None:
        if any(map(self.weather.has, ("stream cut", "stream cut, no snapshot after it", "network down"))):
            raise ConnectionError("the stream is cut")

    def frame(self, opens: Sequence[int], *, snapshot: bool = False) -> Candles:
        now_ms = self.clock.true_ms
        stamp = self.weather.any_of(STAMPS)(now_ms)
        return Candles(BTC, tuple(self.truth.version(one, now_ms, stamp) for one in opens), snapshot)

    def revise(self, open_ms: int) -> None:
        """Change a minute, and send it."""
        self.truth.revise(open_ms)
        self.pushed_late.append(open_ms)

    def lie_about(self, opens: list[int]) -> Iterator[Event]:
        weather, newest_ms = self.weather, opens[-1]
        if weather.has("stream sends rows that cannot be read"):
            yield Candles(BTC, (), invalid=(InvalidRow(newest_ms, "null where a price was expected"),))
            return
        if weather.has("stream sends impossible rows"):
            (row,) = self.frame([newest_ms]).candles
            yield Candles(BTC, (row._replace(low=row.high + 5),))
            return
        if weather.has("stream sends rows off the grid"):
            (row,) = self.frame([newest_ms]).candles
            yield Candles(BTC, (row._replace(open_ms=row.open_ms + 1234),))
        if weather.has("stream sends minutes to come"):
            (row,) = self.frame([newest_ms]).candles
            ahead = self.draw.choice((1, 60, 525_600))
            yield Candles(BTC, (row._replace(open_ms=newest_ms + ahead * MINUTE_MS, volume=Decimal(1)),))
        if self.pushed_late:
            open_ms = self.pushed_late.pop()
            (row,) = self.frame([open_ms]).candles
            yield Candles(BTC, (row._replace(final=True),))
        if weather.has("stream sends older minutes after newer ones"):
            opens = [*opens, newest_ms - 2 * MINUTE_MS, newest_ms - MINUTE_MS]
        for open_ms in opens:
            frame = self.frame([open_ms])
            yield frame
            if weather.has("stream sends each frame twice"):
                yield frame

    # ------------------------------------------------------------ REST

    async def fetch_markets(self, http: Any) -> list[Market]:
        await self._travel(http)
        if self.weather.has("list of markets is down"):
            raise Unavailable("the list cannot be had")
        if self.weather.has("list of markets is empty"):
            return []
        symbol = ETH if self.weather.has("list of markets lacks the symbol") else BTC
        return [Market(symbol=symbol, price_decimals=2, volume_decimals=3, listed_ms=self.truth.begins_ms)]

    async def fetch_history(self, http: Any, symbol: Symbol, start_ms: int, end_ms: int) -> list[AnyRow]:
        await self._travel(http)
        weather = self.weather
        if weather.has("REST answers another status"):
            raise ExchangeError("the exchange answered 400: it does not like the question")
        if weather.has("REST answer crashes the plugin"):
            raise KeyError("data")
        if weather.has("REST answers with nothing"):
            return []
        now_ms = self.clock.true_ms
        stamp = weather.any_of(REST_STAMPS)(now_ms)
        first_ms = max(start_ms, self.truth.begins_ms)
        if weather.has("REST knows no minute before now"):
            first_ms = max(first_ms, MINUTE.floor(now_ms) - 3 * MINUTE_MS)
        opens = range(first_ms, min(end_ms, MINUTE.floor(now_ms) + MINUTE_MS), MINUTE_MS)
        return self._lie([self.truth.version(open_ms, now_ms, stamp) for open_ms in opens])

    def _lie(self, rows: list[Candle]) -> list[AnyRow]:
        weather, draw, size = self.weather, self.draw, len(rows)
        if not size:
            return []
        answer: list[AnyRow] = list(rows)
        if weather.has("REST sends one impossible row"):
            at = draw.randrange(size)
            answer[at] = rows[at]._replace(low=rows[at].high + 5)
        if weather.has("REST sends rows that cannot be read"):
            for at in draw.sample(range(size), min(size, 5)):
                answer[at] = InvalidRow(rows[at].open_ms, "an object where a price was expected")
        if weather.has("REST sends a row without a time"):
            answer[draw.randrange(size)] = InvalidRow(None, "a row of nulls")
        if weather.has("REST leaves out rows"):
            answer = [row for row in answer if draw.random() < 0.8]
        if weather.has("REST cuts pages short at their end"):
            answer = answer[: size // 2]
        if weather.has("REST cuts pages short at their beginning"):
            answer = answer[size // 2 :]
        if weather.has("REST sends rows twice, with different values"):
            row = rows[draw.randrange(size)]
            answer.append(row._replace(volume=row.volume + 1))
        if weather.has("REST sends rows off the grid"):
            answer.append(rows[0]._replace(open_ms=rows[0].open_ms + 777, volume=Decimal(3)))
        if weather.has("REST sends rows of another time"):
            answer += [row._replace(open_ms=row.open_ms - 86_400_000) for row in rows[:3]]
            answer += [row._replace(open_ms=row.open_ms + 86_400_000) for row in rows[:3]]
        if weather.has("REST sends rows in descending order"):
            answer.reverse()
        return answer

    async def _travel(self, http: Any) -> None:
        """The way of a question and its answer."""
        asked, weather = self.clock.monotonic(), self.weather
        await asyncio.sleep(self.draw.uniform(0.02, 0.2))
        if weather.has("REST answers late"):
            await asyncio.sleep(self.draw.uniform(3, 15))
        if weather.has("network down") or weather.has("REST down"):
            raise Unavailable("no route to the exchange")
        for kind, pause_s in (("REST answers 429", 10.0), ("REST answers 418", 60.0)):
            if weather.has(kind):
                raise Unavailable(f"{kind}, too many requests", retry_after_s=pause_s)
        date_ms = self.clock.true_ms // 1000 * 1000
        if weather.has("REST dates an hour ahead"):
            date_ms += 3_600_000
        if http.on_date is not None:
            http.on_date(date_ms, round(asked * 1000), round(self.clock.monotonic() * 1000))
