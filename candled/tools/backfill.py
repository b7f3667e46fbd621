"""`candled backfill`: the history of markets from the exchange to the store, as far back as it goes."""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from candled.clock import SystemClock
from candled.config import Config
from candled.errors import CandledError, ConfigError
from candled.exchange import Clock
from candled.model import MINUTE, MINUTE_MS, MarketKey, Range, iso_ms
from candled.store.interface import KnownGap
from candled.tools import Commands

from . import store_access as stored
from .backfiller import Backfiller, BackfillEstimate
from .history_start import EARLIEST_MS, find_any, find_beginning
from .progress import Progress
from .session import Console, ExchangeSource, Session, open_session

# Where quiet minutes are published, so few tell whether there is history; elsewhere a whole request is needed.
_PROBE_MS = 180 * MINUTE_MS
# Longer bars of so many days before the oldest minute are compared; a day later the daemon looks again.
_COMPARED_MS = 60 * 86_400_000
_EXAMINED_MS = 86_400_000

_HELP = """\
Fetches every minute that is missing, newest first. What is stored is the progress: killed at any moment and started
again, it goes on where it was. It may run beside the daemon, whose live repair keeps half of the request budget.
Without --from it finds out where the exchange's history begins, and remembers it.
"""
_STATUS = """\
exit status:
  0  everything was asked for, and stored where the exchange has it
  1  the exchange or the store failed for minutes on end, or some answers were not usable: run it again
  2  a mistake in settings or arguments
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "backfill",
        run,
        help="fetch the history of markets from their exchange",
        description=_HELP,
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_markets(parser)
    stored.add_range(parser)
    add_reread(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be asked for, and store nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def shown(options: argparse.Namespace) -> bool | None:
    """Whether progress is shown; None leaves it to the terminal."""
    return False if options.quiet or options.json else None


def add_reread(parser: argparse.ArgumentParser) -> None:
    """Add `--reread`."""
    parser.add_argument(
        "--reread",
        action="store_true",
        help="ask for stored minutes too, and replace those that the exchange has otherwise",
    )


def add_markets(parser: argparse.ArgumentParser) -> None:
    """Add `SYMBOL…` and `--exchange`."""
    parser.add_argument(
        "symbols", nargs="*", type=stored.symbol, metavar="SYMBOL", help="which markets (default: all in the settings)"
    )
    parser.add_argument("--exchange", metavar="X", help="only those of this exchange")


def run(options: argparse.Namespace, config: Config, clock: Clock | None = None) -> int:
    """Run the command; return the exit status."""
    return asyncio.run(backfill(options, config, clock or SystemClock()))


async def backfill(options: argparse.Namespace, config: Config, clock: Clock) -> int:
    """The command on the loop that runs."""
    markets = stored.markets_of(config, options.symbols, options.exchange)
    if options.start_ms >= options.end_ms:
        raise ConfigError("--from: expected a time before --to")
    speaker = Console()
    results: list[dict[str, Any]] = []
    async with open_session(config, {market.exchange for market in markets}, clock, speaker) as session:
        for market in markets:
            one = _Backfill(session, session.sources[market.exchange], market, options, speaker)
            results.append(await one.run())
            if not options.json:
                _print(results[-1], is_dry=options.dry_run)
    if options.json:
        print(json.dumps({"dryRun": options.dry_run, "markets": results}))
    return 1 if any(result["trouble"] or result.get("failed") for result in results) else 0


@dataclass
class _Backfill:
    """One market."""

    session: Session
    source: ExchangeSource
    market: MarketKey
    options: argparse.Namespace
    speaker: Console

    async def run(self) -> dict[str, Any]:
        """Do it, or count what there is to do; return the facts."""
        until_ms = self.source.until_ms()
        end_ms = min(MINUTE.floor(self.options.end_ms), until_ms)
        asked = self.source.request_count
        facts: dict[str, Any] = {"exchange": self.market.exchange, "symbol": str(self.market.symbol), "trouble": None}
        try:
            start_ms = await self._find_start(end_ms)
        except CandledError as error:
            return {**facts, "trouble": str(error)}
        if start_ms is None:
            return {**facts, "trouble": "the exchange has no history of it"}
        span = Range(min(start_ms, end_ms), end_ms)
        facts |= {"from": iso_ms(span.start_ms), "to": iso_ms(span.end_ms)}
        filler = Backfiller(self.session, self.source, self.market, rereads=self.options.reread)
        tally = await filler.estimate(span)
        if self.options.dry_run:
            return facts | self._make_plan(tally) | {"requestsMade": self.source.request_count - asked}
        progress = Progress(f"backfill {self.market}", tally.minutes, enabled=shown(self.options))
        self.speaker.progress = progress
        await filler.fill_span(span, progress.advance, to_present=end_ms == until_ms)
        progress.finish_line()
        self.speaker.progress = None
        result = filler.result
        return facts | {
            "windows": result.windows,
            "requests": self.source.request_count - asked,
            "stored": result.stored,
            "revised": result.revised,
            "absent": result.absent,
            "failed": [{"from": iso_ms(one.start_ms), "to": iso_ms(one.end_ms)} for one in result.failed],
            "trouble": result.trouble,
        }

    def _make_plan(self, tally: BackfillEstimate) -> dict[str, Any]:
        seconds = round(tally.windows / self.source.requests_per_s)
        return {"windows": tally.windows, "minutes": tally.minutes, "secondsAtLeast": seconds}

    # ------------------------------------------------------------ where to begin

    async def _find_start(self, end_ms: int) -> int | None:
        """From when on to ask: `--from`, or the beginning of the exchange's history if that is later."""
        wanted_ms = MINUTE.floor(self.options.start_ms + MINUTE_MS - 1)
        earliest_ms = max(wanted_ms, EARLIEST_MS)
        begins_ms = await self._known_beginning(earliest_ms)
        if begins_ms is not None:
            return begins_ms
        there = await self.session.run_read(self.session.store.span, self.market, MINUTE)
        if wanted_ms and (self.options.dry_run or (there is not None and there.start_ms <= wanted_ms)):
            return wanted_ms
        return await self._search_start(earliest_ms, end_ms, None if there is None else there.start_ms)

    async def _known_beginning(self, earliest_ms: int) -> int | None:
        """The end of the time before the exchange's history, if that was found out and nothing older is wanted."""
        store = self.session.store
        for hole in await self.session.run_read(
            store.known_gaps, self.market, Range(earliest_ms, earliest_ms + MINUTE_MS)
        ):
            if hole.reason == "beyond_history" and (hole.retry_ms is None or hole.retry_ms > self.source.now_ms()):
                return hole.end_ms
        return None

    async def _search_start(self, earliest_ms: int, end_ms: int, there_ms: int | None) -> int | None:
        """Ask the exchange where its history begins, and remember the answer."""
        width_ms = self.source.most_minutes * MINUTE_MS
        if self.source.has_quiet_minutes:
            width_ms = min(width_ms, _PROBE_MS)
        if self.options.start_ms and await self._oldest_stored(Range(earliest_ms, earliest_ms + width_ms)) is not None:
            return earliest_ms
        if there_ms is None:
            there_ms = await find_any(self._oldest_stored, earliest_ms, end_ms, width_ms)
        if there_ms is None:
            return None
        begins_ms = await find_beginning(self._oldest_stored, earliest_ms, there_ms, width_ms)
        if not self.options.dry_run and begins_ms > earliest_ms:
            is_contradicted = await self._is_contradicted(earliest_ms, begins_ms)
            await self._remember_start(0 if earliest_ms == EARLIEST_MS else earliest_ms, begins_ms, is_contradicted)
        return begins_ms

    async def _is_contradicted(self, earliest_ms: int, begins_ms: int) -> bool:
        """Return whether longer bars of the exchange are older than the oldest minute it answers with."""
        stretch = Range(max(earliest_ms, begins_ms - _COMPARED_MS), begins_ms)
        answer = await self.source.fetch_history(self.market.symbol, Range(begins_ms, begins_ms + MINUTE_MS))
        if not answer.candles:
            return False
        evidence = await self.source.evidence(self.market.symbol, stretch, answer.candles[0])
        if evidence.is_contradicted:
            self.speaker.print_remark(
                f"{self.market}: the exchange answers with no minutes before {iso_ms(begins_ms)}, "
                "but has longer bars from before: they are asked for again"
            )
        return evidence.is_contradicted

    async def _remember_start(self, start_ms: int, begins_ms: int, is_contradicted: bool) -> None:
        """Store what is known of the time before the oldest minute; the daemon examines it again."""
        before, retry_ms = Range(start_ms, begins_ms), self.source.now_ms() + _EXAMINED_MS
        reason = "unconfirmed" if is_contradicted else "beyond_history"
        hole = KnownGap(**before._asdict(), reason=reason, attempts=1, retry_ms=retry_ms)
        await self.session.run_write(self.session.store.save_known_gaps, self.market, [hole], before)

    async def _oldest_stored(self, span: Range) -> int | None:
        answer = await self.source.fetch_history(self.market.symbol, span)
        there = [candle.open_ms for candle in answer.candles[:1]]
        there += [MINUTE.floor(row.open_ms) for row in answer.invalid if row.open_ms is not None]
        return min(there, default=None)


def _print(result: dict[str, Any], *, is_dry: bool) -> None:
    name = f"{result['exchange']}:{result['symbol']}"
    if result["trouble"]:
        print(f"{name}: given up: {result['trouble']}", file=sys.stderr)
    if "from" not in result:
        return
    span = f"{name}: {result['from']} to {result['to']}"
    if is_dry:
        print(
            f"{span}: {result['minutes']:,} minutes to ask for, in {result['windows']:,} windows of one or more "
            f"requests, at least {_duration(result['secondsAtLeast'])}"
        )
        return
    print(
        f"{span}: {result['stored']:,} minutes stored{revised_text(result)}, "
        f"{result['absent']:,} the exchange does not have, "
        f"{result['requests']:,} requests"
    )
    for one in result["failed"]:
        print(f"{name}: no usable answer for {one['from']} to {one['to']}", file=sys.stderr)


def revised_text(result: Mapping[str, Any]) -> str:
    """Say how many stored minutes were replaced, if any were."""
    return f", {result['revised']:,} revised" if result["revised"] else ""


def _duration(seconds: int) -> str:
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"
