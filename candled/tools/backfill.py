"""`candled backfill`: fetches the history of markets from their exchange, as far back as it goes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from candled.config import Config
from candled.errors import CandledError, ConfigError
from candled.exchange import Clock
from candled.model import DAY_MS, MINUTE, MINUTE_MS, Gap, MarketKey, Range, iso_ms

from .backfiller import Backfiller, BackfillEstimate, print_failures, revised_text
from .history_start import EARLIEST_MS, find_any, find_beginning
from .progress import show_progress
from .session import ExchangeSource, Session, open_session, print_remark

# The length of a request that finds out if an exchange that publishes minutes without trades has history. On other
# exchanges a minute may have had no trades, so a full request is needed.
_PROBE_MS = 180 * MINUTE_MS
# The time before the oldest minute in which longer bars are compared, and the time until the daemon does it again.
_COMPARED_MS = 60 * DAY_MS
_EXAMINED_MS = DAY_MS


async def backfill(
    config: Config,
    markets: Sequence[MarketKey],
    bounds: Range,
    clock: Clock,
    *,
    reread: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run `candled backfill`; return the exit status."""
    if bounds.start_ms >= bounds.end_ms:
        raise ConfigError("--from: expected a time before --to")
    results: list[dict[str, Any]] = []
    async with open_session(config, {market.exchange for market in markets}, clock) as session:
        for market in markets:
            one = _Backfill(
                session=session,
                source=session.sources[market.exchange],
                market=market,
                bounds=bounds,
                reread=reread,
                dry_run=dry_run,
                quiet=quiet or as_json,
            )
            results.append(await one.run())
            if not as_json:
                _print(market, results[-1], is_dry=dry_run)
    if as_json:
        print(json.dumps({"dryRun": dry_run, "markets": results}))
    return 1 if any(result["trouble"] or result.get("failed") for result in results) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backfill:
    """One market."""

    #: The store and the exchanges of the command.
    session: Session
    #: The exchange of the market.
    source: ExchangeSource
    #: The market to fetch.
    market: MarketKey
    #: The range of `--from` and `--to`, UTC epoch milliseconds.
    bounds: Range
    #: True to fetch stored minutes as well, and to replace those with other values.
    reread: bool
    #: True to count the missing minutes, and to store nothing.
    dry_run: bool
    #: True to show no progress.
    quiet: bool

    async def run(self) -> dict[str, Any]:
        """Fetch the missing minutes, or count them for a dry run; return the result for the report."""
        until_ms = self.source.until_ms()
        end_ms = min(MINUTE.floor(self.bounds.end_ms), until_ms)
        asked = self.source.request_count
        facts: dict[str, Any] = {**self.market.describe(), "trouble": None}
        try:
            start_ms = await self._find_start(end_ms)
        except CandledError as error:
            return {**facts, "trouble": str(error)}
        if start_ms is None:
            return {**facts, "trouble": "the exchange has no history of it"}
        span = Range(min(start_ms, end_ms), end_ms)
        facts |= {"from": iso_ms(span.start_ms), "to": iso_ms(span.end_ms)}
        backfiller = Backfiller(self.session, self.source, self.market, rereads=self.reread)
        estimate = await backfiller.estimate(span)
        if self.dry_run:
            return facts | self._make_plan(estimate) | {"requestsMade": self.source.request_count - asked}
        with show_progress(f"backfill {self.market}", estimate.minutes, quiet=self.quiet) as advance:
            await backfiller.fill_span(span, advance, to_present=end_ms == until_ms)
        requests = self.source.request_count - asked
        result = backfiller.result
        return facts | {"windows": result.windows, "requests": requests} | result.describe()

    def _make_plan(self, estimate: BackfillEstimate) -> dict[str, Any]:
        seconds = round(estimate.windows / self.source.requests_per_s)
        return {"windows": estimate.windows, "minutes": estimate.minutes, "secondsAtLeast": seconds}

    # ------------------------------------------------------------ where to begin

    async def _find_start(self, end_ms: int) -> int | None:
        """Return the time to fetch from: `--from`, or the beginning of the exchange's history if that is later."""
        wanted_ms = MINUTE.floor(self.bounds.start_ms + MINUTE_MS - 1)
        earliest_ms = max(wanted_ms, EARLIEST_MS)
        begins_ms = await self._known_beginning(earliest_ms)
        if begins_ms is not None:
            return begins_ms
        there = await self.session.read_store(self.session.store.span, self.market, MINUTE)
        if wanted_ms and (self.dry_run or (there is not None and there.start_ms <= wanted_ms)):
            return wanted_ms
        return await self._search_start(earliest_ms, end_ms, None if there is None else there.start_ms)

    async def _known_beginning(self, earliest_ms: int) -> int | None:
        """Return the beginning of the exchange's history if it is stored and not older than `earliest_ms`."""
        store, now_ms = self.session.store, self.source.exchange.now_ms()
        for gap in await self.session.read_store(
            store.known_gaps, self.market, Range(earliest_ms, earliest_ms + MINUTE_MS)
        ):
            if gap.reason == "beyond_history" and (gap.retry_ms is None or gap.retry_ms > now_ms):
                return gap.end_ms
        return None

    async def _search_start(self, earliest_ms: int, end_ms: int, known_ms: int | None) -> int | None:
        """Ask the exchange where its history begins, and remember the answer."""
        width_ms = self.source.exchange.max_history_minutes * MINUTE_MS
        if self.source.exchange.publishes_empty_candles:
            width_ms = min(width_ms, _PROBE_MS)
        if self.bounds.start_ms and await self._oldest_stored(Range(earliest_ms, earliest_ms + width_ms)) is not None:
            return earliest_ms
        if known_ms is None:
            known_ms = await find_any(self._oldest_stored, earliest_ms, end_ms, width_ms)
        if known_ms is None:
            return None
        begins_ms = await find_beginning(self._oldest_stored, earliest_ms, known_ms, width_ms)
        if not self.dry_run and begins_ms > earliest_ms:
            is_contradicted = await self._is_contradicted(earliest_ms, begins_ms)
            await self._store_start(0 if earliest_ms == EARLIEST_MS else earliest_ms, begins_ms, is_contradicted)
        return begins_ms

    async def _is_contradicted(self, earliest_ms: int, begins_ms: int) -> bool:
        """Return True if the exchange has longer bars from before the oldest minute that it answers with."""
        stretch = Range(max(earliest_ms, begins_ms - _COMPARED_MS), begins_ms)
        answer = await self.source.fetch_range(self.market.symbol, Range(begins_ms, begins_ms + MINUTE_MS))
        if not answer.candles:
            return False
        evidence = await self.source.evidence(self.market.symbol, stretch, answer.candles[0])
        if evidence.is_contradicted:
            print_remark(
                f"{self.market}: the exchange answers with no minutes before {iso_ms(begins_ms)}, "
                "but has longer bars from before: they are asked for again"
            )
        return evidence.is_contradicted

    async def _store_start(self, start_ms: int, begins_ms: int, is_contradicted: bool) -> None:
        """Store the reason why there are no older minutes; the daemon examines it again."""
        before, retry_ms = Range(start_ms, begins_ms), self.source.exchange.now_ms() + _EXAMINED_MS
        reason = "unconfirmed" if is_contradicted else "beyond_history"
        gap = Gap(**before._asdict(), reason=reason, attempts=1, retry_ms=retry_ms)
        await self.session.write_store(self.session.store.save_known_gaps, self.market, [gap], before)

    async def _oldest_stored(self, span: Range) -> int | None:
        answer = await self.source.fetch_range(self.market.symbol, span)
        there = [candle.open_ms for candle in answer.candles[:1]]
        there += [MINUTE.floor(row.open_ms) for row in answer.invalid if row.open_ms is not None]
        return min(there, default=None)


def _print(market: MarketKey, result: dict[str, Any], *, is_dry: bool) -> None:
    if "from" in result:
        span = f"{market}: {result['from']} to {result['to']}"
        if is_dry:
            print(
                f"{span}: {result['minutes']:,} minutes to ask for, in {result['windows']:,} windows of one or more "
                f"requests, at least {_duration(result['secondsAtLeast'])}"
            )
        else:
            print(
                f"{span}: {result['stored']:,} minutes stored{revised_text(result['revised'])}, "
                f"{result['absent']:,} the exchange does not have, "
                f"{result['requests']:,} requests"
            )
    print_failures(market, result)


def _duration(seconds: int) -> str:
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"
