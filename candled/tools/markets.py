"""The markets that the settings choose today, and the cost of reading them, for `check-config --markets`."""

import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from textwrap import wrap

from candled.config import Config, ExchangeConfig, make_exchanges
from candled.exchange import Clock, Exchange
from candled.ingest.http import HttpClient
from candled.model import DAY_MS, MINUTE_MS, WEEK, Market
from candled.plugins import reason_of
from candled.settings import plain_text, redacted
from candled.universe_choice import ChoiceRules, MarketChoice, choose_markets

from .budgets import request_budgets

# The memory of the daemon per market, from bench/README.md ("How much does the whole daemon need?"): `bench.ingest`
# with 1,000 markets once they are complete, and while they are being filled.
_COMPLETE_MIB, _FILLING_MIB = 0.2, 0.6
_WIDTH = 100


async def check_markets(config: Config, clock: Clock) -> int:
    """Read the list of each exchange, and print the chosen markets and their cost; return the exit status.

    Raises:
        ConfigError: an exchange cannot be created.
    """
    failures = 0
    async with request_budgets(config, clock) as budget:
        for one, exchange in zip(config.exchanges, make_exchanges(config, clock), strict=True):
            http = HttpClient(clock, exchange.requests_per_s, budget, one.proxies, exchange.request_budgets)
            try:
                listed = await exchange.fetch_markets(http)
            except Exception as error:  # a plugin may raise anything
                failures += 1
                print(f"candled: exchanges.{one.name}: {redacted(reason_of(error))}", file=sys.stderr)
                continue
            finally:
                http.close()
            print("\n".join(describe_markets(one, exchange, listed, config.ingest.backfill, exchange.now_ms())))
    return 1 if failures else 0


def describe_markets(
    config: ExchangeConfig, exchange: Exchange, listed: Sequence[Market], backfill: timedelta, now_ms: int
) -> Iterator[str]:
    """Yield the lines about one exchange. `now_ms` is the time in UTC epoch milliseconds."""
    choice = choose_markets(config.choice, listed, now_ms)
    chosen, unlisted = len(choice.symbols), len(choice.unlisted)
    more = f", and {unlisted:,} that it does not list" if unlisted else ""
    yield f"{config.name}: {chosen - unlisted:,} of {len(listed):,} listed markets{more}"
    yield from _describe_rules(config.choice, choice, listed)
    yield from _describe_cost(len(choice.symbols), exchange, backfill, now_ms)
    named = "  ".join(map(str, choice.symbols))
    yield from wrap(named, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _describe_rules(rules: ChoiceRules, choice: MarketChoice, listed: Sequence[Market]) -> Iterator[str]:
    width = max(len(str(one)) for one in rules.patterns)
    for pattern in rules.patterns:
        count = sum(pattern.matches(market.symbol) for market in listed)
        if pattern.symbol is not None and not pattern.is_exclusion:
            remark = "named" if count or not listed else "named, but the exchange does not list it"
        elif not count:
            remark = "matches no listed market"
        else:
            remark = f"{'excludes' if pattern.is_exclusion else 'matches'} {count:,}"
        yield f"  {pattern!s:<{width}}  {remark}"
    if choice.lacks_volumes:
        yield "  top: no effect, because the exchange lists no volumes"
    elif rules.top is not None:
        yield f"  top: only the {rules.top:,} with the largest volume of 24 hours"
    if rules.min_age:
        yield f"  min_age: only markets that have been traded for {plain_text(rules.min_age)}"
    if choice.over_limit:
        yield f"  most: {len(choice.over_limit):,} more are left out, because most is {rules.most:,}"


def _describe_cost(count: int, exchange: Exchange, backfill: timedelta, now_ms: int) -> Iterator[str]:
    """Yield the requests, the time and the memory that a new store needs."""
    limits = exchange.limits
    week_ms = max(now_ms - WEEK.floor(now_ms), MINUTE_MS)
    past_ms = max(round(backfill.total_seconds() * 1000) - week_ms, 0)
    week, past = (count * _pages(span_ms, exchange) for span_ms in (week_ms, past_ms))
    if limits.symbols_per_connection is not None:
        connections = -(-count // limits.symbols_per_connection)
        beyond = ""
        if limits.connections is not None and connections > limits.connections:
            beyond = f"; the exchange allows {limits.connections}, so the other markets are read over REST"
        yield f"  connections: {connections:,} of {limits.symbols_per_connection:,} markets{beyond}"
    yield f"  this week: {week:,} requests, {_time(week, exchange)} at {exchange.requests_per_s:g} a second"
    yield f"  ingest.backfill, {plain_text(backfill)}: {past:,} more requests, {_time(past, exchange)}"
    complete, filling = (round(count * size) for size in (_COMPLETE_MIB, _FILLING_MIB))
    yield f"  memory: about {complete:,} MiB, and {filling:,} MiB while history is being read"


def _pages(span_ms: int, exchange: Exchange) -> int:
    return -(-span_ms // (exchange.max_history_minutes * MINUTE_MS))


def _time(requests: int, exchange: Exchange) -> str:
    """Return the time that requests need within the budget, rounded up to minutes."""
    minutes = -(-requests // max(round(exchange.requests_per_s * 60), 1))
    days, rest = divmod(minutes, DAY_MS // MINUTE_MS)
    hours, minutes = divmod(rest, 60)
    parts = [f"{number} {unit}" for number, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if number]
    return " ".join(parts[:2]) or "0 min"
