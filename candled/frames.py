"""Steps that plugins share when they read frames and answers: JSON, rows, commands, and numbered requests."""

import json
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from operator import attrgetter
from typing import Any, ClassVar

import msgspec

from candled.errors import ExchangeError, InvalidCandle, Unavailable
from candled.exchange import (
    Candles,
    Event,
    FeedError,
    InvalidRow,
    SocketFeed,
    Subscribed,
    SubscriptionRejected,
    read_rows,
)
from candled.model import Candle, Symbol

_decoder = msgspec.json.Decoder(float_hook=Decimal)  # a number keeps its digits
_EXCERPT = 200
_MOST_REQUESTS = 10_000
_MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


def parse_object(frame: str | bytes) -> dict[str, Any]:
    """Parse a frame as a JSON object, with decimal numbers as `decimal.Decimal`.

    Raises:
        ExchangeError: the frame is anything else.
    """
    try:
        message = _decoder.decode(frame)
    except (ValueError, RecursionError) as error:
        raise ExchangeError(f"expected a JSON object, got {frame[:_EXCERPT]!r}") from error
    if not isinstance(message, dict):
        raise ExchangeError(f"expected a JSON object, got {frame[:_EXCERPT]!r}")
    return message


def write_object(message: Mapping[str, Any]) -> str:
    """Return a JSON object as a text frame, without blanks."""
    return json.dumps(message, separators=(",", ":"))


@contextmanager
def reading(part: str) -> Iterator[None]:
    """Turn the errors of a block that reads `part` of an answer, for instance "a market", into an `ExchangeError`.

    These are missing fields, values of other types, and texts that are no numbers.
    """
    try:
        yield
    except _MALFORMED as error:
        raise ExchangeError(f"{part} is not as documented: {error!r}") from error


def check_code(
    body: Any, exchange: str, success: str, retry_later: Collection[str], *, code: str = "code", text: str = "msg"
) -> None:
    """Check the code in an answer over REST, for exchanges that answer with 200 and explain an error in the body.

    `code` and `text` are the names of the fields with the code and the explanation.

    Raises:
        Unavailable: the code is one of `retry_later`, after which another attempt may succeed.
        ExchangeError: the code is another one than `success`, or there is none.
    """
    if not isinstance(body, dict) or code not in body:
        raise ExchangeError(f"expected an object with a {code}, got {str(body)[:_EXCERPT]}")
    found = str(body[code])
    if found != success:
        problem = f"{exchange} answered {found}: {body.get(text)}"
        raise Unavailable(problem) if found in retry_later else ExchangeError(problem)


def read_candles(
    symbol: Symbol,
    rows: Any,
    read: Callable[[Any], Candle],
    *,
    open_ms: Callable[[Any], int] | None = None,
    snapshot: bool = False,
) -> Candles:
    """Return the event of a frame with `rows` of `symbol`, in any order. Rows that `read` rejects are `invalid`.

    The arguments are those of `read_rows`.

    Raises:
        ExchangeError: `rows` is not a list, or too long.
    """
    if not isinstance(rows, list):
        raise ExchangeError(f"expected rows of {symbol}, got {str(rows)[:_EXCERPT]}")
    found = read_rows(rows, read, open_ms=open_ms)
    candles = sorted((row for row in found if isinstance(row, Candle)), key=attrgetter("open_ms"))
    return Candles(symbol, tuple(candles), snapshot, tuple(row for row in found if isinstance(row, InvalidRow)))


def take_cells(row: Any, count: int) -> list[Any]:
    """Return the first `count` cells of a row, for a function that `read_rows` calls.

    Raises:
        InvalidCandle: the row is not a list, or has fewer cells.
    """
    if not isinstance(row, list) or len(row) < count:
        raise InvalidCandle(f"expected a row of {count} columns or more, got {str(row)[:_EXCERPT]}")
    return row[:count]


def take_list(value: Any) -> list[Any]:
    """Return a list of an answer.

    Raises:
        ExchangeError: the value is not a list.
    """
    if not isinstance(value, list):
        raise ExchangeError(f"expected a list, got {str(value)[:_EXCERPT]}")
    return value


def find_symbol(symbols: Mapping[str, Symbol], name: Any) -> Symbol:
    """Return the symbol that has a name in the exchange's frames. `symbols` is `SocketFeed.by_name`.

    Raises:
        ExchangeError: the feed does not carry it.
    """
    symbol = symbols.get(str(name))
    if symbol is None:
        raise ExchangeError(f"got a message about {str(name)[:_EXCERPT]!r}, which was not subscribed")
    return symbol


def reject_symbol(symbols: Mapping[str, Symbol], name: Any, reason: str) -> Event:
    """Return the event of a refusal: of the symbol that has a name in frames, or a `FeedError` if none has it."""
    symbol = symbols.get(str(name))
    return FeedError(reason) if symbol is None else SubscriptionRejected(symbol, reason)


def base_volume(contracts: Any, size: Decimal) -> str:
    """Return the base volume of a number of contracts with `size` base coins each, as text for `Candle.parse`.

    Raises:
        InvalidCandle: it is no number.
    """
    try:
        return str(Decimal(contracts) * size)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise InvalidCandle(f"expected a number of contracts, got {str(contracts)[:60]!r}") from error


class CommandFeed(SocketFeed):
    """A feed whose subscribe and unsubscribe frames differ in one word only."""

    #: The exchange's words for subscribing and unsubscribing.
    commands: ClassVar[tuple[str, str]] = ("subscribe", "unsubscribe")
    #: The most symbols in one frame.
    symbols_per_frame: ClassVar[int] = 1

    def __init__(self, url: str, symbols: Sequence[Symbol]) -> None:
        super().__init__(url, symbols)
        #: The numbers of frames, for exchanges that answer with them.
        self.requests = SubscribeRequests()

    def subscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """Return the frames that subscribe to `symbols`, in order."""
        return self._make_commands(self.commands[0], symbols)

    def unsubscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """Return the frames that unsubscribe from `symbols`, in order."""
        return self._make_commands(self.commands[1], symbols)

    def _make_commands(self, command: str, symbols: Sequence[Symbol]) -> list[str]:
        most = self.symbols_per_frame
        return [self.make_command(command, symbols[first : first + most]) for first in range(0, len(symbols), most)]

    @abstractmethod
    def make_command(self, command: str, symbols: Sequence[Symbol]) -> str:
        """Return the frame of a command, one of `commands`, for at most `symbols_per_frame` symbols."""


class SubscribeRequests:
    """Remembers the symbols of each subscribe frame by its number, for exchanges that answer with that number.

    A refusal of a frame with several symbols names none of them: it becomes a `FeedError`. The daemon then subscribes
    to each of these symbols by itself, so that the next refusal names one.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, tuple[Symbol, ...]] = OrderedDict()
        self._count = 0

    def add_request(self, symbols: Sequence[Symbol] = ()) -> int:
        """Return the number of the next frame, which subscribes to `symbols`."""
        self._count += 1
        self._waiting[self._count] = tuple(symbols)
        if len(self._waiting) > _MOST_REQUESTS:
            self._waiting.popitem(last=False)
        return self._count

    def accept(self, number: Any) -> list[Event]:
        """Return the events of an acknowledgement."""
        return [Subscribed(symbol) for symbol in self._take(number)]

    def reject(self, number: Any, reason: str) -> list[Event]:
        """Return the event of a refusal."""
        symbols = self._take(number)
        return [SubscriptionRejected(symbols[0], reason)] if len(symbols) == 1 else [FeedError(reason)]

    def _take(self, number: Any) -> tuple[Symbol, ...]:
        """Forget a request and return its symbols. Exchanges repeat the number as a number or as text."""
        try:
            return self._waiting.pop(int(number), ())
        except (TypeError, ValueError):
            return ()
