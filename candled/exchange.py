"""What an exchange plugin is made of. An author needs this file, `candled.hookspecs` and docs/how-to/plugins.md.

A plugin knows its exchange's language and nothing else: it holds no socket and no clock of its own, and hears
nothing of storage, buses or clients. Connecting again, backoff, watchdogs, the request budget, order, duplicates
and the repair of gaps are the daemon's, once for all exchanges.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from candled.errors import InvalidCandle
from candled.model import Candle, Interval, Market, Symbol

# ---------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row of the exchange that cannot be a candle.

    The daemon counts it and takes the rest of the page or frame. A minute of history that has no other row is a gap
    with the reason `invalid`, and is asked for again after growing pauses.
    """

    #: the opening time that the row names, UTC epoch milliseconds; None where it names none
    open_ms: int | None
    #: the problem, in words
    reason: str


def read_rows(
    rows: Iterable[Any], read: Callable[[Any], Candle], *, open_ms: Callable[[Any], int] | None = None
) -> list[Candle | InvalidRow]:
    """Read each row of a page or frame; one that `read` cannot make a candle of becomes an `InvalidRow`.

    `open_ms` finds the opening time of such a row; by default it is the row's first cell.
    """
    found: list[Candle | InvalidRow] = []
    for row in rows:
        try:
            found.append(read(row))
        except _UNREADABLE as error:
            reason = str(error) if isinstance(error, InvalidCandle) else f"{error!r} in {str(row)[:200]}"
            found.append(InvalidRow(_opening(row, open_ms or _first_cell), reason))
    return found


_UNREADABLE = (InvalidCandle, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


def _opening(row: Any, open_ms: Callable[[Any], int]) -> int | None:
    try:
        return open_ms(row)
    except _UNREADABLE:
        return None


def _first_cell(row: Any) -> int:
    return int(row[0])


# ---------------------------------------------------------------- what a feed reports


@dataclass(frozen=True, slots=True)
class Candles:
    """Versions of 1-minute candles of one symbol, oldest first.

    A candle's `as_of_ms` is the exchange's send time of the frame; leave it 0 where the exchange prints none, and
    the daemon puts its own estimate of the exchange's clock there. `final` is set only where the exchange itself
    says that the minute is closed. `snapshot` marks the recent past that an exchange sends after a subscription.
    `invalid` are the rows of the frame that cannot be candles.
    """

    symbol: Symbol
    candles: tuple[Candle, ...]
    snapshot: bool = False
    invalid: tuple[InvalidRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The exchange acknowledged the subscription of `symbol`. That is not yet proof of data."""

    symbol: Symbol


@dataclass(frozen=True, slots=True)
class SubscriptionRejected:
    """The exchange refused the subscription of `symbol`: it is asked again after growing pauses, the others go on."""

    symbol: Symbol
    reason: str


@dataclass(frozen=True, slots=True)
class Pong:
    """The exchange answered the feed's ping."""


@dataclass(frozen=True, slots=True)
class FeedError:
    """The exchange complained about the connection as a whole; with `reconnect` it must be replaced."""

    reason: str
    reconnect: bool = False


Event = Candles | Subscribed | SubscriptionRejected | Pong | FeedError

# ---------------------------------------------------------------- feeds


class SocketFeed(ABC):
    """The language of one WebSocket connection that carries `symbols`. The daemon owns the socket.

    `ping` is the text frame sent every `ping_every_s` seconds; without a `Pong` within `pong_within_s` the
    connection is replaced. None: the daemon relies on protocol pings. At most `frames_per_s` frames are sent a
    second, pings included. `lifetime_s` is how long a connection may live before it is replaced on our own
    schedule, before the exchange cuts it; None: for ever. `snapshot` says that candles follow each subscription
    at once, so that their absence within `snapshot_within_s` means a dead subscription.
    """

    ping: ClassVar[str | None] = None
    ping_every_s: ClassVar[float] = 20.0
    pong_within_s: ClassVar[float] = 10.0
    frames_per_s: ClassVar[float] = 10.0
    lifetime_s: ClassVar[float | None] = None
    snapshot: ClassVar[bool] = False
    snapshot_within_s: ClassVar[float] = 10.0

    def __init__(self, url: str, symbols: Sequence[Symbol]) -> None:
        self.url = url
        self.symbols = tuple(symbols)

    @abstractmethod
    def subscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """The frames that subscribe `symbols`, in order."""

    @abstractmethod
    def unsubscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """The frames that unsubscribe `symbols`, in order."""

    @abstractmethod
    def read_frame(self, frame: str) -> list[Event]:
        """Read one text frame.

        Raises:
            ExchangeError: the frame is not as documented. It is counted and skipped; the connection stays. The
                first of a series is logged, and the end of the series with its number.
        """


class StreamFeed(ABC):
    """A feed that is no WebSocket, or brings its own: an iterator of events for `symbols`.

    When it ends or raises, the daemon starts it again, with the same backoff as for a socket.
    """

    def __init__(self, symbols: Sequence[Symbol]) -> None:
        self.symbols = tuple(symbols)

    @abstractmethod
    def stream_events(self) -> AsyncIterator[Event]:
        """Yield events for ever."""


Feed = SocketFeed | StreamFeed

# ---------------------------------------------------------------- what the daemon lends to a plugin


class Clock(Protocol):
    """The daemon's clock, so that tests can turn it."""

    def now_ms(self) -> int:
        """Wall clock, UTC epoch milliseconds."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class Http(Protocol):
    """The daemon's HTTP client: it holds the request budget of each host and obeys `Retry-After`, 429 and 418."""

    async def get_json(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        """GET `url` and return the parsed JSON body, numbers with a point as `decimal.Decimal`.

        Raises:
            Unavailable: no connection, timeout, 429, 418 or 5xx: the daemon tries again later.
            ExchangeError: another status, or a body that is not JSON. `HttpRefused` carries status and body.
        """


# ---------------------------------------------------------------- the exchange


class Exchange(ABC):
    """One exchange. An instance is made per configured exchange, with its parsed settings.

    `name` is the plugin's name in the settings. `Settings` is a frozen dataclass made with `candled.setting`; the
    keys an operator may write under the exchange are its fields (beside `symbols` and `plugin`, which are the
    daemon's). `requests_per_s` is the request budget for each host the plugin asks. `history_minutes` is the
    most minutes one call of `history` may be asked for. `quiet_minutes` says whether the exchange publishes
    a candle for a minute without trades. `opens_at_close` says that every candle opens at the close of the one
    before it, so that a difference betrays a missed push.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Any]]
    requests_per_s: ClassVar[float] = 5.0
    max_history_minutes: ClassVar[int] = 200
    publishes_empty_candles: ClassVar[bool] = False
    opens_at_previous_close: ClassVar[bool] = False

    def __init__(self, settings: Any, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock

    def resume_after(self, newest_ms: int | None) -> None:  # noqa: B027 - most exchanges need nothing here
        """Called once before anything else, with the newest minute that is over as far as the store knows.

        Of all symbols of this exchange: the newest final minute, or the one before a running one that was put aside.
        UTC epoch milliseconds of its opening; None where the store has nothing of it.
        """

    def now_ms(self) -> int:
        """The exchange's clock, UTC epoch milliseconds. Real exchanges keep the default: the daemon measures skew."""
        return self.clock.now_ms()

    @abstractmethod
    async def fetch_markets(self, http: Http) -> list[Market]:
        """List the markets the exchange offers; while a configured symbol is not among them the list is read again.

        An empty list says that the exchange cannot tell: every symbol is tried.

        Raises:
            Unavailable, ExchangeError: as `Http.get_json`.
        """

    @abstractmethod
    def make_feeds(self, symbols: Sequence[Symbol]) -> list[Feed]:
        """Spread `symbols` over as many feeds as the exchange's limits ask for, each symbol in exactly one."""

    @abstractmethod
    async def fetch_history(
        self, http: Http, symbol: Symbol, start_ms: int, end_ms: int
    ) -> Sequence[Candle | InvalidRow]:
        """Return every 1-minute candle with `start_ms <= open_ms < end_ms`, as the exchange has it now.

        A row that cannot be a candle is returned as an `InvalidRow`, so that it does not cost the others; `read_rows`
        does that. Rows may come in any order.

        Both ends are on the minute and at most `history_minutes` apart. The minute in progress may be included. Each
        candle's `as_of_ms` is the exchange's clock when it answered (0 if it does not say: the daemon then takes
        its own). An empty list says that the exchange has nothing there.

        Raises:
            Unavailable: try again later.
            ExchangeError: the answer as a whole is not as documented (another window than asked for, another period).
        """

    async def fetch_bars(
        self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int
    ) -> list[Candle] | None:
        """Return the exchange's own bars of `interval` with `start_ms <= open_ms < end_ms`, oldest first.

        They confirm where history begins: an empty answer of `history` alone is no evidence of it. `candled verify`
        compares them with those made from minutes, so days have to begin 00:00 UTC and weeks Monday
        00:00 UTC; both ends are on such a boundary. None, the default, says that the exchange has no such bars.

        Raises:
            Unavailable, ExchangeError: as `history`.
        """
        return None
