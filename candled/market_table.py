"""Facts about markets that a plugin needs before it can subscribe or read a volume."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from candled.errors import ExchangeError
from candled.exchange import Http

K = TypeVar("K")
V = TypeVar("V")


class MarketTable(Generic[K, V]):
    """A fact about each market of an exchange, for instance the size of a contract. It is read when first needed.

    `fetch` reads the facts of all markets. They are read again for a market that is not among them.
    """

    def __init__(self, fetch: Callable[[Http], Awaitable[Mapping[K, V]]]) -> None:
        self._fetch = fetch
        #: The facts. Empty until they are read.
        self.known: dict[K, V] = {}

    async def load(self, http: Http) -> None:
        """Read the facts, unless they are known.

        Raises:
            Unavailable, ExchangeError: as `fetch`.
        """
        if not self.known:
            self.known |= await self._fetch(http)

    async def find(self, http: Http, key: K) -> V:
        """Return the fact about a market.

        Raises:
            Unavailable, ExchangeError: as `fetch`; the exchange has no such market.
        """
        if key not in self.known:
            self.known |= await self._fetch(http)
        if key not in self.known:
            raise ExchangeError(f"the exchange has no market {key}")
        return self.known[key]
