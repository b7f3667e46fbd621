"""Markets on demand: an exchange lists them, the settings do not choose them, and they run while clients use them."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from candled.errors import ClientError, Unavailable
from candled.exchange import Clock
from candled.model import MarketKey, Symbol
from candled.universe import Universe
from candled.universe_choice import REPORTED_S, DemandRules

#: How long a client waits for an exchange's list, and for a market to belong to the universe.
START_S = 5.0
_LOOK_S = 0.05  # between two looks for a market that starts
#: How often `renew` is called. A market is kept for a minute or more.
RENEW_S = 5.0


class DemandRefused(ClientError):
    """A market that cannot be started for this client now. The text is the limit."""


class DemandBook(Protocol):
    """The markets on demand, each with the time of its last use. Processes may share it.

    Each method raises `Unavailable` if the book cannot be reached.
    """

    async def request_market(self, market: MarketKey, rules: DemandRules) -> bool:
        """Add a market, or renew it; return False if there is no space for it."""

    async def renew_markets(self, exchange: str, symbols: Sequence[Symbol]) -> None:
        """Record that markets of the book are still used."""

    async def read_markets(self, exchange: str, rules: DemandRules) -> list[Symbol]:
        """Return the markets of an exchange, least recently used first. Those unused for long leave the book."""

    async def write_listed(self, exchange: str, symbols: Iterable[Symbol]) -> None:
        """Share the symbols of an exchange's newest list with the processes that do not read it."""

    async def read_listed(self, exchange: str) -> list[Symbol]:
        """Return the shared symbols; none if they are not known."""

    async def report_delisted(self, exchange: str, symbols: Sequence[Symbol]) -> None:
        """Record that clients still use delisted markets, on demand or not, so that their feeds continue."""

    async def read_delisted(self, exchange: str) -> list[Symbol]:
        """Return the delisted markets of an exchange that were reported in the last `REPORTED_S` seconds."""


class MemoryBook:
    """The book of a process that shares nothing with others. A restart empties it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: By exchange: when each market was used last, monotonic seconds.
        self._used_at: dict[str, dict[Symbol, float]] = {}
        #: The same for delisted markets.
        self._delisted_at: dict[str, dict[Symbol, float]] = {}
        self._listed: dict[str, list[Symbol]] = {}

    async def request_market(self, market: MarketKey, rules: DemandRules) -> bool:
        """See `DemandBook`."""
        known = await self.read_markets(market.exchange, rules)
        if market.symbol not in known and len(known) >= rules.most:
            return False
        self._used_at.setdefault(market.exchange, {})[market.symbol] = self._clock.monotonic()
        return True

    async def renew_markets(self, exchange: str, symbols: Sequence[Symbol]) -> None:
        """See `DemandBook`."""
        used_at = self._used_at.get(exchange, {})
        used_at |= {symbol: self._clock.monotonic() for symbol in symbols if symbol in used_at}

    async def read_markets(self, exchange: str, rules: DemandRules) -> list[Symbol]:
        """See `DemandBook`."""
        return self._forget_unused(self._used_at, exchange, rules.keep_s)

    async def write_listed(self, exchange: str, symbols: Iterable[Symbol]) -> None:
        """See `DemandBook`."""
        self._listed[exchange] = list(symbols)

    async def read_listed(self, exchange: str) -> list[Symbol]:
        """See `DemandBook`."""
        return self._listed.get(exchange, [])

    async def report_delisted(self, exchange: str, symbols: Sequence[Symbol]) -> None:
        """See `DemandBook`."""
        self._delisted_at.setdefault(exchange, {}).update(dict.fromkeys(symbols, self._clock.monotonic()))

    async def read_delisted(self, exchange: str) -> list[Symbol]:
        """See `DemandBook`."""
        return self._forget_unused(self._delisted_at, exchange, REPORTED_S)

    def _forget_unused(self, book: dict[str, dict[Symbol, float]], exchange: str, keep_s: float) -> list[Symbol]:
        """Remove the markets that were unused for long; return the others, least recently used first."""
        since, used_at = self._clock.monotonic() - keep_s, book.get(exchange, {})
        kept = {symbol: at for symbol, at in sorted(used_at.items(), key=lambda one: one[1]) if at > since}
        book[exchange] = kept
        return list(kept)


class MarketsOnDemand:
    """Starts markets for the clients of this process, and keeps those that its clients use.

    The process that leads the exchange reads the same `book`, and adds its markets to the universe. `is_used` returns
    whether a market has subscribers here. The rules limit the markets of one client address, so that no client can take
    all places.
    """

    def __init__(
        self,
        universe: Universe,
        clock: Clock,
        book: DemandBook,
        is_used: Callable[[MarketKey], bool],
        rules: Mapping[str, DemandRules],
    ) -> None:
        self._universe = universe
        self._clock = clock
        self._book = book
        self._is_used = is_used
        #: The rules of the exchanges that have markets on demand.
        self._rules: dict[str, DemandRules] = {}
        #: The symbols that each exchange lists; empty before the list was read.
        self._listed: dict[str, frozenset[Symbol]] = {}
        #: Incremented when `_listed` changes.
        self.version = 0
        #: The markets that clients of this process have started, each with its client's address, until they end.
        self._started_by: dict[MarketKey, str] = {}
        #: When markets on demand were started here, monotonic seconds, while they may lack their first bars.
        self._started_at: dict[MarketKey, float] = {}
        #: Markets with requests since the last renewal.
        self._requested: set[MarketKey] = set()
        #: The markets refused since the start of the process.
        self.refused = 0
        self.set_rules(rules)

    def set_rules(self, rules: Mapping[str, DemandRules]) -> None:
        """Replace the rules, by exchange."""
        self._rules = {name: one for name, one in rules.items() if one.most}

    @property
    def exchanges(self) -> Sequence[str]:
        """The exchanges that have markets on demand."""
        return tuple(self._rules)

    def on_list(self, exchange: str, symbols: Iterable[Symbol]) -> None:
        """Store the symbols of an exchange's newest list. An empty list is ignored: it is no evidence."""
        listed = frozenset(symbols)
        if listed and listed != self._listed.get(exchange):
            self._listed[exchange] = listed
            self.version += 1

    def offered_symbols(self, exchange: str) -> list[Symbol]:
        """Return the symbols that can be started at an exchange, sorted; none without markets on demand."""
        rules = self._rules.get(exchange)
        return [] if rules is None else sorted(filter(rules.allows, self._listed.get(exchange, ())))

    def find_market(self, exchange: str, symbol: str) -> MarketKey | None:
        """Return the market of a symbol, as candled writes it, if it can be started."""
        market = self.find_candidate(exchange, symbol)
        return market if market is not None and market.symbol in self._listed.get(exchange, ()) else None

    def find_candidate(self, exchange: str, symbol: str) -> MarketKey | None:
        """Return the market of a symbol, if it can be started or the exchange's list is not known yet."""
        rules = self._rules.get(exchange)
        if rules is None:
            return None
        try:
            parsed = Symbol.parse(symbol)
        except ValueError:
            return None
        is_unlisted = exchange in self._listed and parsed not in self._listed[exchange]
        return None if is_unlisted or not rules.allows(parsed) else MarketKey(exchange, parsed)

    def is_list_known(self, exchange: str) -> bool:
        """Return whether the list of an exchange is known, or it has no markets on demand."""
        return exchange not in self._rules or exchange in self._listed

    async def wait_for_lists(self, exchanges: Collection[str]) -> None:
        """Wait, at most `START_S`, until the lists of exchanges with markets on demand are known after a start."""
        await self._wait_until(lambda: all(map(self.is_list_known, exchanges)))

    def note_request(self, market: MarketKey) -> None:
        """Record a request for a market, which keeps it if it runs on demand."""
        if market.exchange in self._rules:
            self._requested.add(market)

    def is_starting(self, market: MarketKey) -> bool:
        """Return whether a market may lack its first bars, because it was started a moment ago."""
        if not self._started_at:
            return False
        at = self._started_at.get(market)
        if at is not None and self._clock.monotonic() - at > START_S:
            del self._started_at[market]
        return market in self._started_at

    async def start_market(self, market: MarketKey, address: str) -> None:
        """Start a market; return once it belongs to the universe.

        Raises:
            DemandRefused: this client has started too many, or there is no space for another one.
            Unavailable: the process that leads the exchange does not answer.
        """
        self.note_request(market)
        if market in self._universe:
            return
        rules = self._rules[market.exchange]
        self._check_address(market, address, rules)
        self._started_by.setdefault(market, address)
        try:
            if not await self._book.request_market(market, rules):
                raise DemandRefused(f"at most {rules.most} of {market.exchange} at a time")
            if not await self._wait_until(lambda: market in self._universe):  # perhaps it was delisted a moment ago
                raise Unavailable(f"{market} cannot be started: the leader has not added it within {START_S:g} s")
        except (DemandRefused, Unavailable):
            self._started_by.pop(market, None)
            self.refused += 1
            raise
        self._started_at[market] = self._clock.monotonic()

    def _check_address(self, market: MarketKey, address: str, rules: DemandRules) -> None:
        started = sum(by == address and one.exchange == market.exchange for one, by in self._started_by.items())
        if market not in self._started_by and started >= rules.most_per_address:
            self.refused += 1
            raise DemandRefused(f"at most {rules.most_per_address} of {market.exchange} from one address")

    async def _wait_until(self, is_reached: Callable[[], bool]) -> bool:
        """Wait, at most `START_S`, until `is_reached` returns True; return False if it never did."""
        deadline = self._clock.monotonic() + START_S
        while not is_reached() and self._clock.monotonic() < deadline:
            await self._clock.sleep(_LOOK_S)
        return is_reached()

    async def renew(self) -> None:
        """Keep the markets that are used, and forget those that have ended. Report delisted ones that are used."""
        for exchange in self._universe.exchanges:
            with contextlib.suppress(Unavailable):
                await self._report_delisted(exchange)
        for exchange, rules in list(self._rules.items()):
            with contextlib.suppress(Unavailable):  # the book logs it; the markets are kept for long enough
                await self._renew(exchange, rules)

    async def _report_delisted(self, exchange: str) -> None:
        """Report the delisted markets that clients of this process use. Unused ones end a day after their delisting."""
        delisted = self._universe.delisted(exchange)
        if used := [symbol for symbol in delisted if self._is_used(MarketKey(exchange, symbol))]:
            await self._book.report_delisted(exchange, used)

    async def _renew(self, exchange: str, rules: DemandRules) -> None:
        self.on_list(exchange, await self._book.read_listed(exchange))
        requested, self._requested = self._requested, {one for one in self._requested if one.exchange != exchange}
        known = [MarketKey(exchange, symbol) for symbol in await self._book.read_markets(exchange, rules)]
        used = [one.symbol for one in known if one in requested or self._is_used(one)]
        if used:
            await self._book.renew_markets(exchange, used)
        ended = [one for one in self._started_by if one.exchange == exchange and one not in known]
        for market in ended:
            self._started_by.pop(market, None)
            self._started_at.pop(market, None)
