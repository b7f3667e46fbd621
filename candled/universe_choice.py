"""The choice of an exchange's markets: by symbol, by pattern, by volume and by age. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from functools import cached_property

from candled.model import DAY_MS, Market, Symbol
from candled.symbol_pattern import SymbolPattern

#: How long a chosen market may miss the conditions before it leaves.
LEAVES_AFTER_MS = DAY_MS
#: How long a delisted market counts as used after a process has reported it, seconds.
REPORTED_S = 60.0
_RECALLED_MS = DAY_MS // 24
# A chosen market stays until its place by volume is beyond this multiple of `top`.
_STAYS_WITHIN = Decimal("1.2")


@dataclass(frozen=True, kw_only=True)
class ChoiceRules:
    """The rules by which an operator chooses markets; see the settings of an exchange."""

    #: Symbols, patterns and exclusions, in the order of the settings.
    patterns: tuple[SymbolPattern, ...]
    #: The number of markets with the largest volume that are chosen from those that match; None for all.
    top: int | None = None
    #: The shortest time since the start of trading.
    min_age: timedelta = timedelta(0)
    #: The most markets. Named symbols are chosen beyond it too.
    most: int = 500

    @cached_property
    def named(self) -> tuple[Symbol, ...]:
        """The symbols that are named one by one. They are always chosen, listed or not, unless they were renamed."""
        return tuple(one.symbol for one in self.patterns if one.symbol is not None and not one.is_exclusion)

    @cached_property
    def named_set(self) -> frozenset[Symbol]:
        """The symbols of `named` as a set, for fast lookups."""
        return frozenset(self.named)

    @cached_property
    def wildcards(self) -> tuple[SymbolPattern, ...]:
        """The patterns that add markets. Without any, the choice needs no list."""
        return tuple(one for one in self.patterns if one.symbol is None and not one.is_exclusion)

    @cached_property
    def exclusions(self) -> tuple[SymbolPattern, ...]:
        """The patterns that exclude markets, except for named symbols."""
        return tuple(one for one in self.patterns if one.is_exclusion)

    def matches(self, symbol: Symbol) -> bool:
        """Return whether a symbol is named, or fits a pattern and no exclusion."""
        if symbol in self.named_set:
            return True
        return any(one.matches(symbol) for one in self.wildcards) and not any(
            one.matches(symbol) for one in self.exclusions
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandRules:
    """The operator's rules for the markets on demand of one exchange."""

    #: The most of them; 0 for none.
    most: int = 0
    #: How long an unused one is kept, seconds.
    keep_s: float = 3600.0
    #: The most that one client address may have started.
    most_per_address: int = 10
    #: The symbols that the operator has excluded. They are never started.
    exclusions: tuple[SymbolPattern, ...] = ()

    def allows(self, symbol: Symbol) -> bool:
        """Return whether a symbol may be started."""
        return not any(one.matches(symbol) for one in self.exclusions)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketChoice:
    """The chosen markets, and the remarks for the operator."""

    #: Named symbols first, then earlier choices, then new ones from the largest volume down.
    symbols: tuple[Symbol, ...]
    #: The chosen markets that miss the conditions, with the UTC epoch milliseconds since which each misses them.
    leaving: Mapping[Symbol, int] = field(default_factory=dict)
    #: The new symbols of named markets that the exchange has renamed. They are chosen instead.
    renamed: Mapping[Symbol, Symbol] = field(default_factory=dict)
    #: Patterns and exclusions that match no listed market.
    unmatched: tuple[str, ...] = ()
    #: Named symbols that the exchange does not list.
    unlisted: tuple[Symbol, ...] = ()
    #: Markets that are left out only because there are more than `most`.
    over_limit: tuple[Symbol, ...] = ()
    #: True if `top` has no effect, because the exchange lists no volumes.
    lacks_volumes: bool = False


def choose_markets(
    rules: ChoiceRules,
    listed: Sequence[Market],
    now_ms: int,
    former: MarketChoice | None = None,
    is_used: Callable[[Symbol], bool] = lambda symbol: False,
) -> MarketChoice:
    """Choose from an exchange's list at the time `now_ms`, UTC epoch milliseconds.

    A market is chosen while it trades, is old enough, and has one of the `top` largest volumes. It leaves after
    24 hours in which it was delisted, missing from the list, or not among the first 1.2 * `top`. One that is not traded
    any more stays longer while clients use it, according to `is_used`. A market that the rules do not match any more
    leaves immediately. A renamed one is replaced by its new symbol, and stays too while clients use it. An empty list
    is no evidence, so the former choice stays.
    """
    former = former or MarketChoice(symbols=())
    facts = {market.symbol: market for market in listed}
    renamed = _renamed(rules, facts, former)
    first = _first(rules, renamed, is_used)
    if not facts:
        kept = [symbol for symbol in former.symbols if rules.matches(symbol)]
        return MarketChoice(symbols=_unique(first, kept), leaving=former.leaving, renamed=renamed)
    matching = [market for market in facts.values() if rules.matches(market.symbol)]
    listed_matches = {market.symbol for market in matching}
    ranks, lacks_volumes = _ranks(market for market in matching if market.status in ("trading", "suspended"))
    top = None if lacks_volumes else rules.top
    stays_within = None if top is None else int(top * _STAYS_WITHIN)
    leaving: dict[Symbol, int] = {}
    kept = []
    for symbol in former.symbols:
        if symbol in rules.named_set or not (symbol in listed_matches or rules.matches(symbol)):
            continue
        if symbol not in ranks or (stays_within is not None and ranks[symbol] >= stays_within):
            since_ms = former.leaving.get(symbol, now_ms)
            if now_ms - since_ms >= LEAVES_AFTER_MS and (symbol in ranks or not is_used(symbol)):
                continue
            leaving[symbol] = since_ms
        kept.append(symbol)
    new = [
        symbol
        for symbol, rank in ranks.items()
        if (top is None or rank < top) and _is_open(facts[symbol], rules.min_age, now_ms)
    ]
    wanted = _unique(first, kept, new)
    most = max(rules.most, len(first))
    chosen = dict.fromkeys(wanted[:most])
    return MarketChoice(
        symbols=tuple(chosen),
        leaving={symbol: since_ms for symbol, since_ms in leaving.items() if symbol in chosen},
        renamed=renamed,
        unmatched=tuple(str(one) for one in (*rules.wildcards, *rules.exclusions) if not any(map(one.matches, facts))),
        unlisted=tuple(symbol for symbol in rules.named if symbol not in facts),
        over_limit=wanted[most:],
        lacks_volumes=lacks_volumes and rules.top is not None,
    )


def _renamed(rules: ChoiceRules, facts: Mapping[Symbol, Market], former: MarketChoice) -> dict[Symbol, Symbol]:
    """Return the new symbols of named markets. The exchange may list the former symbol only for a while."""
    renamed = {**former.renamed, **{one.former: one.symbol for one in facts.values() if one.former is not None}}
    traded = {symbol for symbol, one in facts.items() if one.status != "delisted"}
    return {old: renamed[old] for old in rules.named if old in renamed and old not in traded}


def recall_markets(rules: ChoiceRules, newest: Mapping[Symbol, int]) -> tuple[Symbol, ...]:
    """Return the markets with which a process begins after a restart, until the exchange has listed its markets.

    `newest` has the newest minute of each stored market, UTC epoch milliseconds. The named markets are returned, and
    those that match a pattern and have a minute in the last hour before the restart.
    """
    if not rules.wildcards:
        return rules.named
    since_ms = max(newest.values(), default=0) - _RECALLED_MS
    recalled = sorted(symbol for symbol, at_ms in newest.items() if at_ms >= since_ms and rules.matches(symbol))
    return _unique(rules.named, recalled)[: max(rules.most, len(rules.named))]


def _first(
    rules: ChoiceRules, renamed: Mapping[Symbol, Symbol], is_used: Callable[[Symbol], bool]
) -> tuple[Symbol, ...]:
    """Return the markets that are chosen in any case: the named ones, under their new symbols if they have some."""
    named = (symbol for symbol in rules.named if symbol not in renamed or is_used(symbol))
    return _unique(named, renamed.values())


def follow_life(known: Market | None, listed: Market | None, now_ms: int) -> Market | None:
    """Return the facts of a market after a list that contains it as `listed`, given those `known` before.

    A market that was listed and is missing now is delisted. A renamed market keeps its former symbol, because the
    exchange may publish it only for a while. The result is None if the market was never listed.
    """
    if listed is not None and listed.former is None and known is not None:
        listed = replace(listed, former=known.former)
    if listed is None:
        if known is None or known.status == "delisted":
            return known
        return replace(known, status="delisted", delisted_ms=now_ms)
    if listed.status != "delisted" or listed.delisted_ms is not None:
        return listed
    was_delisted = known is not None and known.status == "delisted"
    return replace(listed, delisted_ms=known.delisted_ms if known is not None and was_delisted else now_ms)


def has_been_delisted(facts: Market, now_ms: int) -> bool:
    """Return whether a market has been delisted for a day, so that its feed is not needed any more."""
    since_ms = facts.delisted_ms
    return facts.status == "delisted" and since_ms is not None and now_ms - since_ms >= LEAVES_AFTER_MS


def _ranks(markets: Iterable[Market]) -> tuple[dict[Symbol, int], bool]:
    """Return the places of markets, by volume from the largest down, and whether no volume is known."""
    ordered = sorted(markets, key=_volume, reverse=True)
    return {market.symbol: rank for rank, market in enumerate(ordered)}, all(_volume(one) < 0 for one in ordered)


def _volume(market: Market) -> Decimal:
    """Return the volume of the last 24 hours, or -1 if it is not known."""
    volume = market.quote_volume_24h
    return Decimal(-1) if volume is None or not volume.is_finite() else max(volume, Decimal(0))


def _is_open(market: Market, min_age: timedelta, now_ms: int) -> bool:
    is_old_enough = market.listed_ms is None or now_ms - market.listed_ms >= min_age.total_seconds() * 1000
    return market.active and is_old_enough


def _unique(*groups: Iterable[Symbol]) -> tuple[Symbol, ...]:
    return tuple(dict.fromkeys(symbol for group in groups for symbol in group))
