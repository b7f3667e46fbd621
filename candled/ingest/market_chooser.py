"""Chooses the markets of an exchange whenever its list or the rules change, and sets them in the universe."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from candled.exchange import Clock
from candled.model import Market, MarketKey, Symbol
from candled.tasks import TaskSet
from candled.universe import Universe, small_steps
from candled.universe_choice import ChoiceRules, MarketChoice, choose_markets, follow_life

logger = logging.getLogger(__name__)

_SHOWN = 10  # markets that a line of the log names


class MarketChooser:
    """Chooses the markets of one exchange: those of the rules, and those of `set_extras`.

    Of all processes, only one chooses, between `start_choosing` and `stop_choosing`. It changes the universe, which
    notifies its listeners: immediately if there are few changes, otherwise in steps that do not block the event loop. A
    delisted market stays while it `is_used` by clients.
    """

    def __init__(
        self,
        name: str,
        rules: ChoiceRules,
        universe: Universe,
        clock: Clock,
        is_used: Callable[[MarketKey], bool] = lambda market: False,
    ) -> None:
        self._name = name
        self._rules = rules
        self._universe = universe
        self._clock = clock
        self._is_used = is_used
        #: True if this process chooses for all.
        self.is_choosing = False
        #: Empty before this process chooses.
        self._choice = MarketChoice(symbols=())
        #: The newest list that was not empty, and the same by symbol.
        self._listed: Sequence[Market] = ()
        self._listed_by_symbol: dict[Symbol, Market] = {}
        #: The wanted markets of the universe, with their facts; None before this process chooses.
        self._wanted: tuple[tuple[Symbol, ...], dict[Symbol, Market]] | None = None
        #: The next markets of the universe, step by step, up to `_wanted`.
        self._steps: Iterator[tuple[Symbol, ...]] = iter(())
        #: The task that changes the universe in steps, while it has many changes.
        self._tasks = TaskSet()
        #: Markets that are wanted regardless of the rules; an ordered set.
        self._extra: dict[Symbol, None] = {}
        self._logged: set[str] = set()
        #: The reason why the list cannot be read, in words; None if it can.
        self.problem: str | None = None

    def start_choosing(self) -> None:
        """Choose from now on, beginning with the markets of the universe and the named ones."""
        self.is_choosing = True
        self._choose(self._listed)

    def stop_choosing(self) -> None:
        """Let another process choose from now on."""
        self.is_choosing, self._wanted, self._choice = False, None, MarketChoice(symbols=())

    def on_list(self, listed: Sequence[Market]) -> None:
        """Handle the exchange's newest list: choose markets if this process chooses, and update their facts."""
        self.problem = None
        if listed:
            self._listed, self._listed_by_symbol = listed, {market.symbol: market for market in listed}
        if self.is_choosing:
            self._choose(listed)
        else:
            symbols = self._universe.symbols(self._name)
            self._universe.set_markets(self._name, symbols, self._facts_of(symbols, bool(listed)))

    def on_list_failed(self, reason: str) -> None:
        """Record that the list cannot be read, if patterns need it, until the next list. The choice stays."""
        if self._rules.wildcards:
            self.problem = f"the list of markets cannot be read: {reason}"

    def set_rules(self, rules: ChoiceRules) -> None:
        """Choose by other rules from now on."""
        self._rules = rules
        if self.is_choosing:
            self._choose(self._listed)

    @property
    def extras(self) -> Collection[Symbol]:
        """The markets that are read although the rules need not choose them, in order."""
        return self._extra.keys()

    def set_extras(self, symbols: Iterable[Symbol]) -> None:
        """Replace the markets that the rules need not choose. New ones that the exchange does not list are left out."""
        wanted = dict.fromkeys(symbols)
        if self._listed:
            wanted = {one: None for one in wanted if one in self._extra or one in self._listed_by_symbol}
        if wanted.keys() == self._extra.keys():
            return
        chosen, known = self._chosen, {} if self._wanted is None else self._wanted[1]
        stays = {one: None for one in self._extra if one in wanted}
        self._extra = stays | wanted
        if self.is_choosing:
            self._set_markets(chosen, known | self._facts_of(self._extra.keys() - stays.keys()))

    def describe(self) -> dict[str, Any]:
        """Return the choice for `/health`."""
        choice = self._choice
        return {
            "trouble": self.problem,
            "unmatched": list(choice.unmatched),
            "unlisted": [str(symbol) for symbol in choice.unlisted],
            "overLimit": len(choice.over_limit),
            "leaving": len(choice.leaving),
            "onDemand": len(self._extra),
            "lacksVolumes": choice.lacks_volumes,
        }

    def _choose(self, listed: Sequence[Market]) -> None:
        former = replace(self._choice, symbols=self._chosen)
        self._choice = choose_markets(
            self._rules,
            listed,
            self._clock.now_ms(),
            former,
            is_used=lambda symbol: self._is_used(MarketKey(self._name, symbol)),
        )
        self._log_remarks(self._choice)
        self._set_markets(self._choice.symbols, self._facts_of((*self._choice.symbols, *self._extra), bool(listed)))

    @property
    def _chosen(self) -> tuple[Symbol, ...]:
        """The markets of the universe that the rules have chosen, here or in the process that led before."""
        symbols = self._universe.symbols(self._name) if self._wanted is None else self._wanted[0]
        known = frozenset(self._choice.symbols)
        return tuple(symbol for symbol in symbols if symbol not in self._extra or symbol in known)

    def _set_markets(self, chosen: Sequence[Symbol], facts: dict[Symbol, Market]) -> None:
        """Change the universe to the chosen markets and the extra ones, with their `facts` if these are new."""
        before, after = dict.fromkeys(self._universe.symbols(self._name)), dict.fromkeys((*chosen, *self._extra))
        self._log_changes("added", [symbol for symbol in after if symbol not in before])
        self._log_changes("removed", [symbol for symbol in before if symbol not in after])
        self._wanted = tuple(after), facts
        self._steps = small_steps(tuple(before), tuple(after), self._extra)  # clients wait for the extra ones
        if not self._tasks and not self._take_step():
            self._tasks.start(self._take_steps())

    async def _take_steps(self) -> None:
        await self._clock.sleep(0)
        while not self._take_step():
            await self._clock.sleep(0)

    def _take_step(self) -> bool:
        """Change some markets of the universe; return whether all are as wanted now."""
        if self._wanted is None:  # another process chooses
            return True
        symbols, facts = self._wanted
        self._universe.set_markets(self._name, next(self._steps, symbols), facts)
        return self._universe.symbols(self._name) == symbols

    def _facts_of(self, symbols: Iterable[Symbol], is_listed: bool = True) -> dict[Symbol, Market]:
        """Return the facts of markets after the newest list; none if it was empty, which is no evidence."""
        now_ms, newest = self._clock.now_ms(), self._listed_by_symbol if is_listed else {}
        followed = {
            symbol: follow_life(self._universe.facts(MarketKey(self._name, symbol)), newest.get(symbol), now_ms)
            for symbol in symbols
            if newest
        }
        return {symbol: facts for symbol, facts in followed.items() if facts is not None}

    def _log_changes(self, what: str, changed: Sequence[Symbol]) -> None:
        if changed:
            more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            logger.info("%s: markets %s: %s%s", self._name, what, ", ".join(map(str, changed[:_SHOWN])), more)

    def _log_remarks(self, choice: MarketChoice) -> None:
        """Log each remark when it appears. Unlisted symbols are logged by `MarketListing`."""
        remarks = {f"{pattern} matches no listed market" for pattern in choice.unmatched}
        remarks |= {f"the exchange has renamed {old} to {new}" for old, new in choice.renamed.items()}
        if choice.lacks_volumes:
            remarks.add("top has no effect, because the exchange lists no volumes")
        if choice.over_limit:
            remarks.add(f"some matching markets are left out, because most is {self._rules.most}")
        for remark in sorted(remarks - self._logged):
            logger.warning("exchanges.%s.symbols: %s", self._name, remark)
        self._logged = remarks
