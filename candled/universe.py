"""The markets that candled reads and serves now. They change while it runs."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from candled.model import Market, MarketKey, Symbol

#: The most markets that one step of a larger change adds, and the most that it removes.
STEP_MARKETS = 25


@dataclass(frozen=True, slots=True)
class MarketsChanged:
    """A change of the markets of one exchange."""

    #: The name of the exchange.
    exchange: str
    #: The markets that are new, in order of choice.
    added: tuple[Symbol, ...] = ()
    #: The markets that do not belong to the universe any more.
    removed: tuple[Symbol, ...] = ()
    #: The other markets with new facts, such as another status.
    changed: tuple[Symbol, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything changed."""
        return bool(self.added or self.removed or self.changed)


Listener = Callable[[MarketsChanged], None]


class Universe:
    """The markets of all exchanges. Pure.

    `exchanges` are the names in the order of the settings; the first one is the default. The candles of `simulated`
    ones are not the markets' present candles.
    """

    def __init__(self, exchanges: Sequence[str], simulated: Collection[str] = ()) -> None:
        self.exchanges = tuple(exchanges)
        self.simulated = frozenset(simulated)
        self.default = self.exchanges[0]
        self._symbols: dict[str, tuple[Symbol, ...]] = dict.fromkeys(self.exchanges, ())
        #: By exchange: its markets, each with its facts; None before the exchange's list was read.
        self._facts: dict[str, dict[Symbol, Market | None]] = {name: {} for name in self.exchanges}
        self._listeners: list[Listener] = []

    @property
    def markets(self) -> tuple[MarketKey, ...]:
        """All markets, in the order of the exchanges, then in order of choice."""
        return tuple(MarketKey(name, symbol) for name in self.exchanges for symbol in self._symbols[name])

    def symbols(self, exchange: str) -> tuple[Symbol, ...]:
        """Return the markets of an exchange, in order of choice; none for an unknown exchange."""
        return self._symbols.get(exchange, ())

    @property
    def symbols_by_exchange(self) -> dict[str, tuple[Symbol, ...]]:
        """The markets of each exchange, in order of choice."""
        return {name: self.symbols(name) for name in self.exchanges}

    def __contains__(self, key: MarketKey) -> bool:
        return key.symbol in self._facts.get(key.exchange, {})

    def facts(self, key: MarketKey) -> Market | None:
        """Return the newest facts from the exchange's list; None if it has not listed the market so far."""
        return self._facts.get(key.exchange, {}).get(key.symbol)

    @property
    def renamed(self) -> dict[MarketKey, MarketKey]:
        """The renamed markets by their former symbols, if those are not served any more."""
        by_former = {
            MarketKey(name, facts.former): MarketKey(name, symbol)
            for name, markets in self._facts.items()
            for symbol, facts in markets.items()
            if facts is not None and facts.former is not None
        }
        return {former: key for former, key in by_former.items() if former not in self}

    def delisted(self, exchange: str) -> list[Symbol]:
        """Return the markets of an exchange that are not traded any more and keep their history."""
        known = self._facts.get(exchange, {})
        return [symbol for symbol, facts in known.items() if facts is not None and facts.status == "delisted"]

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` for every later change, after the earlier listeners. It must not change the universe."""
        self._listeners.append(listener)

    def set_exchanges(self, exchanges: Sequence[str], simulated: Collection[str] = ()) -> None:
        """Add and remove exchanges, and set their order. New ones have no markets yet. The default stays the first.

        Raises:
            ValueError: the default would change, or a removed exchange still has markets.
        """
        if exchanges[0] != self.default:
            raise ValueError(f"expected {self.default} as the first exchange, got {exchanges[0]}")
        if kept := [name for name, symbols in self._symbols.items() if symbols and name not in exchanges]:
            raise ValueError(f"expected no markets of removed exchanges, got some of {', '.join(kept)}")
        self.exchanges, self.simulated = tuple(exchanges), frozenset(simulated)
        self._symbols = {name: self._symbols.get(name, ()) for name in exchanges}
        self._facts = {name: self._facts.get(name, {}) for name in exchanges}

    def set_markets(
        self, exchange: str, symbols: Sequence[Symbol], facts: Mapping[Symbol, Market] | None = None
    ) -> MarketsChanged:
        """Replace the markets of an exchange, and notify the listeners if anything changed.

        A market without new `facts` keeps those that are known, because a delisted market may be missing from the list.

        Raises:
            ValueError: the exchange is unknown.
        """
        if exchange not in self._symbols:
            raise ValueError(f"expected one of the exchanges {', '.join(self.exchanges)}, got {exchange!r}")
        wanted, facts = tuple(dict.fromkeys(symbols)), facts or {}
        before = self._facts[exchange]
        after = {symbol: facts.get(symbol, before.get(symbol)) for symbol in wanted}
        self._symbols[exchange], self._facts[exchange] = wanted, after
        change = MarketsChanged(
            exchange,
            added=tuple(symbol for symbol in wanted if symbol not in before),
            removed=tuple(symbol for symbol in before if symbol not in after),
            changed=tuple(symbol for symbol, known in before.items() if _differs(known, after.get(symbol, known))),
        )
        if change:
            for listener in self._listeners:
                listener(change)
        return change


def _differs(known: Market | None, newest: Market | None) -> bool:
    return newest is not known and newest != known


def small_steps(
    symbols: Sequence[Symbol], wanted: Sequence[Symbol], urgent: Collection[Symbol] = ()
) -> Iterator[tuple[Symbol, ...]]:
    """Yield the markets after each step from `symbols` to `wanted`, which is the last one.

    A step adds and removes at most `STEP_MARKETS`, so that its listeners do not block the event loop for long. Those
    that are `urgent` are added first.
    """
    before, after = dict.fromkeys(symbols), dict.fromkeys(wanted)
    removed = [symbol for symbol in before if symbol not in after]
    added = sorted((symbol for symbol in after if symbol not in before), key=lambda symbol: symbol not in urgent)
    for start in range(0, max(len(removed), len(added)) - STEP_MARKETS, STEP_MARKETS):
        for symbol in removed[start : start + STEP_MARKETS]:
            del before[symbol]
        before |= dict.fromkeys(added[start : start + STEP_MARKETS])
        yield tuple(before)
    yield tuple(wanted)
