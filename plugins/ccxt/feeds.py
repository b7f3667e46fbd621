"""Live candles over ccxt's own sockets: of `watchOHLCV`, or made from the trades of `watchTrades`."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from candled import (
    Event,
    ExchangeError,
    Http,
    InvalidCandle,
    StreamFeed,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    TradeBars,
    merge_iterators,
    read_candles,
)

from .client import translate_error
from .messages import TradeNumbers, contract_size, read_row, read_trade

if TYPE_CHECKING:
    from .exchange import Ccxt


class WatchFeed(StreamFeed):
    """Watches each symbol with ccxt. A lost connection interrupts the feed; a refused symbol affects no other one."""

    def __init__(self, exchange: "Ccxt", symbols: Sequence[Symbol]) -> None:
        super().__init__(symbols)
        self._exchange = exchange

    async def stream_events(self, http: Http) -> AsyncIterator[Event]:
        """Yield the events of all symbols."""
        client = await self._exchange.make_watcher(http)
        try:
            async for event in merge_iterators([self._watch_symbol(client, symbol) for symbol in self.symbols]):
                yield event
        finally:
            await client.close()

    async def _watch_symbol(self, client: Any, symbol: Symbol) -> AsyncIterator[Event]:
        """Yield the events of a symbol, until it is refused.

        Raises:
            Unavailable: the connection is lost.
        """
        is_subscribed = False
        try:
            async for event in self._watch(client, symbol):
                if not is_subscribed:
                    is_subscribed = True
                    yield Subscribed(symbol)
                yield event
        except Exception as error:
            problem = translate_error(error, client.errors)
            if not isinstance(problem, ExchangeError):
                raise problem from error
            yield SubscriptionRejected(symbol, str(problem))

    @abstractmethod
    def _watch(self, client: Any, symbol: Symbol) -> AsyncIterator[Event]:
        """Yield the events of a symbol."""


class CandleFeed(WatchFeed):
    """Candles of `watchOHLCV`. ccxt keeps neither the time of sending nor a mark of the last version."""

    async def _watch(self, client: Any, symbol: Symbol) -> AsyncIterator[Event]:
        while True:
            rows = await client.watch_ohlcv(str(symbol), "1m")
            yield read_candles(symbol, list(map(list, rows)), read_row)


class TradeFeed(WatchFeed):
    """Candles made from the trades of `watchTrades`."""

    async def _watch(self, client: Any, symbol: Symbol) -> AsyncIterator[Event]:
        bars, numbers, now_ms = TradeBars(symbol), TradeNumbers(), self._exchange.now_ms
        size = contract_size(client.market(str(symbol)))
        if size is None:
            raise ExchangeError(f"the trades of {symbol} have no amount in base coins")
        bars.begin_at(now_ms())
        while True:
            for trade in await client.watch_trades(str(symbol)):
                try:
                    bars.add_trade(*read_trade(trade, size), numbers.number_of(trade))
                except InvalidCandle:  # the minute lacks a trade now
                    bars.begin_at(now_ms())
            for event in bars.take_candles(now_ms()):
                yield event
