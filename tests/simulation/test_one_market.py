"""Days of one `MarketIngest` alone, whose exchange has holes of its own: no minute is missing, wrong or invented."""

import os
import random
from decimal import Decimal

import pytest

from candled.exchange import Candles
from candled.ingest.coverage import Coverage
from candled.ingest.market import MarketIngest
from candled.ingest.market_status import Rules
from candled.model import MINUTE, MINUTE_MS, Candle, MarketKey, RangeSet, Symbol
from tests.rows import MONDAY_MS

BTC = Symbol.parse("BTC/USDT")
LONG = "CANDLED_TEST_LONG" in os.environ
SEEDS, MINUTES = (1000, 10_000) if LONG else (1, 2_000)
STEP_MS = 15_000
RULES = Rules(
    grace_period_ms=2_000,
    quiet_after_ms=60_000,
    confirm=True,
    max_history_minutes=300,
    opens_at_previous_close=True,
    publishes_empty_candles=True,
)
FAULTS = ("cut", "cut_without_snapshot", "silent", "rest_down", "store_full", "restart")


class Exchange:
    """A market as a pure function of time: each minute opens at the close of the one before, some are quiet."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.closes = [Decimal(1000)]
        self.volumes = []
        for _ in range(MINUTES + 600):
            quiet = draw.random() < 0.1
            self.closes.append(self.closes[-1] + (0 if quiet else Decimal(draw.randint(-50, 50)) / 10))
            self.volumes.append(Decimal(0) if quiet else Decimal(draw.randint(1, 10**6)) / 1000)
        self.known_gaps = {draw.randrange(100, MINUTES - 100) for _ in range(5)}

    def version(self, number: int, at_ms: int) -> Candle | None:
        """What the exchange says of a minute at a time; nothing of minutes to come and of its own holes."""
        open_ms = MONDAY_MS + number * MINUTE_MS
        if number in self.known_gaps or at_ms < open_ms or number < 0:
            return None
        part = Decimal(min(at_ms - open_ms, MINUTE_MS)) / MINUTE_MS
        start, end = self.closes[number], self.closes[number + 1]
        close = start + ((end - start) * part).quantize(Decimal("0.01"))
        volume = (self.volumes[number] * part).quantize(Decimal("0.001"))
        return Candle(open_ms, start, max(start, close), min(start, close), close, volume, None, at_ms)

    def between(self, start_ms: int, end_ms: int, at_ms: int) -> list[Candle]:
        numbers = range((start_ms - MONDAY_MS) // MINUTE_MS, (end_ms - MONDAY_MS) // MINUTE_MS)
        return [candle for number in numbers if (candle := self.version(number, at_ms)) is not None]


class Daemon:
    """`MarketIngest` with a store that keeps the newest version of each final minute."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.stored: dict[int, Candle] = {}
        self.store_full = False
        self.start(MONDAY_MS)

    def start(self, now_ms: int) -> None:
        present = RangeSet((open_ms, open_ms + MINUTE_MS) for open_ms in sorted(self.stored))
        coverage = Coverage(present=present, known_gaps=[], since_ms=None, from_ms=MONDAY_MS, absence="exchange_outage")
        coverage.recheck_since(now_ms - 86_400_000)
        self.market = MarketIngest(MarketKey("x", BTC), coverage, RULES)

    def put(self, candle: Candle) -> None:
        if not candle.final:
            return
        if self.store_full:
            self.market.mark_missing(candle.open_ms)
            return
        kept = self.stored.get(candle.open_ms)
        if kept is None or candle.supersedes(kept):
            self.stored[candle.open_ms] = candle

    def push(self, candles: list[Candle], now_ms: int, *, snapshot: bool = False) -> None:
        outcome = self.market.on_push(Candles(BTC, tuple(candles), snapshot), now_ms)
        for candle in [*outcome.live, *outcome.past]:
            self.put(candle)

    def step(self, now_ms: int, *, rest_down: bool) -> None:
        for candle in self.market.finalize_minutes(now_ms):
            self.put(candle)
        for _ in range(4):
            window = None if rest_down or self.store_full else self.market.next_request(now_ms)
            if window is None:
                return
            rows = self.exchange.between(window.start_ms, window.end_ms, now_ms)
            outcome = self.market.on_history(window, rows, now_ms)
            for candle in [*outcome.live, *outcome.past]:
                self.put(candle)


def simulate(seed: int) -> tuple[int, int]:
    """Run one market; return the faults injected and the minutes that differ at the end."""
    draw = random.Random(seed)
    exchange = Exchange(seed)
    daemon = Daemon(exchange)
    faults: dict[str, int] = {}  # fault → until when
    injected, reported, late = 0, -1, []
    end_ms = MONDAY_MS + MINUTES * MINUTE_MS
    for now_ms in range(MONDAY_MS, end_ms + 120 * MINUTE_MS, STEP_MS):
        number = (now_ms - MONDAY_MS) // MINUTE_MS
        was_cut = any(fault in faults for fault in ("cut", "cut_without_snapshot"))
        snapshot = "cut_without_snapshot" not in faults
        faults = {fault: until_ms for fault, until_ms in faults.items() if until_ms > now_ms and now_ms < end_ms}
        if now_ms < end_ms and draw.random() < 0.004:
            fault = draw.choice(FAULTS)
            injected += 1
            if fault == "restart":
                daemon.start(now_ms)
            else:
                faults[fault] = now_ms + draw.choice([60_000, 600_000, 3 * 3_600_000])
            if fault.startswith("cut"):
                daemon.market.on_interrupted()
        daemon.store_full = "store_full" in faults
        cut = any(fault in faults for fault in ("cut", "cut_without_snapshot"))
        daemon.market.presence.connected = not cut
        if was_cut and not cut and snapshot:
            daemon.push(
                exchange.between(now_ms - 500 * MINUTE_MS, MINUTE.floor(now_ms) + 1, now_ms), now_ms, snapshot=True
            )
        if not cut and "silent" not in faults:
            pushes = [exchange.version(number, now_ms)]
            if number != reported and draw.random() < 0.7:  # else the last push of the minute is skipped
                last = exchange.version(number - 1, MONDAY_MS + number * MINUTE_MS - 1)
                late += [last._replace(as_of_ms=now_ms)] if last else []
            if late and draw.random() < 0.8:
                pushes.insert(draw.choice([0, 1]), late.pop(0))  # before or after the next minute's first row
            if draw.random() < 0.1:
                pushes = pushes * 2
            pushes = [candle for candle in pushes if candle is not None]
            if pushes:
                for candle in pushes:
                    daemon.push([candle], now_ms)
            reported = number
        daemon.step(now_ms, rest_down="rest_down" in faults)
    truth = {
        MONDAY_MS + number * MINUTE_MS: exchange.version(number, end_ms + 10**9).values
        for number in range(MINUTES)
        if number not in exchange.known_gaps
    }
    stored = {open_ms: candle.values for open_ms, candle in daemon.stored.items() if open_ms < end_ms}
    return injected, sum(truth.get(key) != stored.get(key) for key in set(truth) | set(stored))


@pytest.mark.slow
@pytest.mark.timeout(7200 if LONG else 900)
def test_no_minute_is_missing_wrong_or_extra_after_days_of_faults():
    """Promise 1; long form: 1,000 seeds of 10,000 minutes."""
    faults = 0
    for seed in range(SEEDS):
        injected, wrong = simulate(seed)
        assert injected >= 20, f"seed {seed} injected {injected} faults, which is too few"
        assert wrong == 0, f"seed {seed}: {wrong} minutes differ after {injected} faults"
        faults += injected
    print(f"{SEEDS} seeds, {SEEDS * MINUTES} minutes, {faults} faults: 0 missing, wrong or extra")
