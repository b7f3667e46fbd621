"""The interface of an exchange plugin. To write one you need this file, `candled.hookspecs` and docs/how-to/plugins.md.

A plugin translates between its exchange and candled. It owns no socket and no clock, and it knows nothing about
storage, buses or clients. The daemon does the rest, in the same way for all exchanges: reconnects, backoff, watchdogs,
the request budget, ordering, duplicates and the repair of gaps.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from candled.errors import ExchangeError, InvalidCandle
from candled.evidence import Evidence
from candled.model import MINUTE, Candle, Interval, Market, Symbol, are_valid

# ---------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row from the exchange that is not a valid candle.

    The daemon counts the row and uses the rest of the page or frame. If a minute of history has no other row, it
    becomes a gap with the reason `invalid`, and the daemon requests it again after growing pauses.
    """

    #: The opening time in the row, UTC epoch milliseconds; None if the row contains none.
    open_ms: int | None
    #: The problem, in words.
    reason: str


Row = Candle | InvalidRow
"""A row of a page or frame, once it was read."""

#: The most rows of one page or frame.
MAX_ROWS = 5000


ReadAll = Callable[[Sequence[Any]], list[Candle] | None]


def read_rows(
    rows: Sequence[Any],
    read: Callable[[Any], Candle],
    *,
    open_ms: Callable[[Any], int] | None = None,
    read_all: ReadAll | None = None,
) -> list[Row]:
    """Read each row of a page or frame, turning every row that `read` rejects into an `InvalidRow`.

    `open_ms` extracts the opening time of such a row. By default, this is the row's first cell. `read_all` may read
    many rows in a faster way, without checking them. It returns the same candles as `read`, or None if a row is
    unusual.

    Raises:
        ExchangeError: `rows` is not a list, or has more than `MAX_ROWS` rows.
    """
    _check_rows(rows)
    if read_all is not None and len(rows) >= _MANY and (candles := read_all(rows)) is not None and are_valid(candles):
        return list(candles)
    found: list[Row] = []
    for row in rows:
        try:
            found.append(read(row))
        except _UNREADABLE as error:
            reason = str(error) if isinstance(error, InvalidCandle) else f"{repr(error)[:200]} in {_excerpt(row)}"
            found.append(InvalidRow(_opening(row, open_ms or _first_cell), reason))
    return found


async def read_rows_in_slices(
    rows: Sequence[Any],
    read: Callable[[Any], Candle],
    clock: "Clock",
    *,
    open_ms: Callable[[Any], int] | None = None,
    read_all: ReadAll | None = None,
) -> list[Row]:
    """Do the same as `read_rows` for a page of many rows, and let other tasks run in between.

    Raises:
        ExchangeError: as `read_rows`.
    """
    _check_rows(rows)
    found: list[Row] = []
    most = _SLICE if read_all is None else _FAST_SLICE
    for start in range(0, len(rows), most):
        if start:
            await clock.sleep(0)
        found += read_rows(rows[start : start + most], read, open_ms=open_ms, read_all=read_all)
    return found


def rows_within(rows: Iterable[Row], start_ms: int, end_ms: int) -> list[Row]:
    """Return the rows that open in `[start_ms, end_ms)`, and those whose time could not be read."""
    return [row for row in rows if row.open_ms is None or start_ms <= row.open_ms < end_ms]


def _strict_candles(rows: Iterable[Row], interval: Interval) -> list[Candle]:
    """Return the bars of an answer, oldest first. Each row must be a bar on a boundary of `interval` in UTC.

    Raises:
        ExchangeError: a row is not a valid candle, or the exchange's days begin at another hour.
    """
    candles: list[Candle] = []
    for row in rows:
        if isinstance(row, InvalidRow):
            raise ExchangeError(row.reason)
        if row.open_ms != interval.floor(row.open_ms):
            raise ExchangeError(f"expected bars of {interval} on their boundaries in UTC, got one at {row.open_ms}")
        candles.append(row)
    return sorted(candles)


def _check_rows(rows: Any) -> None:
    if not isinstance(rows, list) and (isinstance(rows, str) or not isinstance(rows, Sequence)):
        raise ExchangeError(f"expected a list of rows, got {_excerpt(rows)}")
    if len(rows) > MAX_ROWS:
        raise ExchangeError(f"expected at most {MAX_ROWS} rows, got {len(rows)}")


_SLICE = 100  # rows; about 1 ms
_FAST_SLICE = 500  # rows that are read together; about 3 ms
_MANY = 4  # rows; fewer are read faster one by one

_UNREADABLE = (InvalidCandle, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


def _excerpt(row: Any) -> str:
    try:
        return str(row)[:200]
    except (ValueError, RecursionError):  # a whole number of thousands of digits, lists within lists
        return "a row that cannot be printed"


def _opening(row: Any, open_ms: Callable[[Any], int]) -> int | None:
    try:
        return open_ms(row)
    except _UNREADABLE:
        return None


def _first_cell(row: Any) -> int:
    return int(row[0])


# ---------------------------------------------------------------- feed events


@dataclass(frozen=True, slots=True)
class Candles:
    """Versions of 1-minute candles of one symbol, oldest first."""

    #: The market of the candles.
    symbol: Symbol
    #: A candle's `as_of_ms` is the time at which the exchange sent the frame. Leave it 0 if the frame contains no such
    #: time; the daemon then fills in its own estimate of the exchange's clock. Set `final` only if the exchange itself
    #: marks the minute as closed; `Exchange.closed_flag` is the meaning of that mark.
    candles: tuple[Candle, ...]
    #: True for the recent history that an exchange sends after a subscription.
    snapshot: bool = False
    #: The rows of the frame that are not valid candles.
    invalid: tuple[InvalidRow, ...] = ()
    #: True if the candles were made from trades. Their `src` is then `trades`, otherwise `live`.
    from_trades: bool = False


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The exchange acknowledged a subscription. This is not yet proof that data arrives."""

    #: The market that was subscribed to.
    symbol: Symbol


@dataclass(frozen=True, slots=True)
class SubscriptionRejected:
    """The exchange rejected a subscription. The daemon tries again after growing pauses. Others are not affected."""

    #: The market whose subscription was rejected.
    symbol: Symbol
    #: The exchange's reason, in words.
    reason: str


@dataclass(frozen=True, slots=True)
class Pong:
    """The exchange answered the feed's ping."""


@dataclass(frozen=True, slots=True)
class FeedError:
    """The exchange reported a problem with the connection as a whole."""

    #: The problem, in words.
    reason: str
    #: True if the daemon must replace the connection.
    reconnect: bool = False


@dataclass(frozen=True, slots=True)
class ClosingSoon:
    """The exchange announced that it will close the connection, for instance to restart its server.

    The daemon opens another connection first, and drops this one when the other one is open.
    """

    #: The announcement, in words.
    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The exchange greeted the connection. A feed with `awaits_ready` subscribes now."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The exchange expects an answer, for instance to a ping of its own. The daemon sends it before other frames."""

    #: The text frame to send.
    text: str


Event = Candles | Subscribed | SubscriptionRejected | Pong | FeedError | ClosingSoon | Ready | Reply

# ---------------------------------------------------------------- feeds

Compression = Literal["gzip", "zlib", "deflate"]
"""How an exchange compresses its binary frames: RFC 1952, RFC 1950, or RFC 1951 without a header."""


class SocketFeed(ABC):
    """The protocol of one WebSocket connection that carries `symbols`. The daemon owns the socket.

    The symbols change while the connection is open: the daemon calls `set_symbols`, and sends the frames of `subscribe`
    or `unsubscribe` for the difference.

    The daemon accepts frames of at most 1 MB, also after decompression, and on average at most 1,000 a second plus 50
    for each symbol. If the exchange sends more, the daemon replaces the connection. It follows redirects only to the
    same host, port and scheme.
    """

    #: A text frame that the daemon sends as a ping. None: the daemon relies on protocol pings.
    ping: ClassVar[str | None] = None
    #: The seconds between two pings. `prepare_connection` may set it for one feed.
    ping_every_s: float = 20.0
    #: True if the daemon pings only a connection on which nothing arrived for `ping_every_s`.
    pings_when_idle: ClassVar[bool] = False
    #: The daemon replaces the connection if neither a `Pong` nor another frame arrives within this many seconds.
    pong_within_s: float = 10.0
    #: How the exchange compresses its binary frames; the daemon decompresses them. None: not at all.
    compression: ClassVar[Compression | None] = None
    #: True if the daemon must wait for a `Ready` before it sends anything.
    awaits_ready: ClassVar[bool] = False
    #: With `awaits_ready`, the daemon replaces a connection that is not ready within this many seconds.
    ready_within_s: ClassVar[float] = 10.0
    #: The maximum age of a connection. The daemon replaces it at that age, before the exchange closes it. None: no
    #: limit.
    lifetime_s: ClassVar[float | None] = None
    #: True if candles follow each subscription immediately.
    snapshot: ClassVar[bool] = False
    #: With `snapshot`, the daemon renews a subscription that delivers no candles within this many seconds.
    snapshot_within_s: ClassVar[float] = 10.0

    def __init__(self, url: str, symbols: Sequence[Symbol]) -> None:
        self.url = url
        self.set_symbols(symbols)

    def set_symbols(self, symbols: Sequence[Symbol]) -> None:
        """Carry `symbols` from now on, and keep them by the exchange's names in `by_name`."""
        self.symbols = tuple(symbols)
        self.by_name: dict[str, Symbol] = {self.name_symbol(symbol): symbol for symbol in symbols}

    def name_symbol(self, symbol: Symbol) -> str:
        """Return the name that the exchange's frames have for a symbol. The default is candled's (`BTC/USDT`)."""
        return str(symbol)

    async def prepare_connection(self, http: "Http") -> str:
        """Return the address of the next connection. The daemon calls this before each one.

        The default returns `url`. Override it if the exchange gives out addresses or tokens over REST. Such an address
        must be a public one, unless its host is that of `url`.

        Raises:
            Unavailable, ExchangeError: as in `Http.get_json`. The daemon tries again after a pause.
        """
        return self.url

    def make_ping(self) -> str | None:
        """Return the next ping. The default returns `ping`; override it if each ping differs."""
        return self.ping

    @abstractmethod
    def subscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """Return the frames that subscribe to `symbols`, in order."""

    def unsubscribe(self, symbols: Sequence[Symbol]) -> list[str]:
        """Return the frames that unsubscribe from `symbols`, in order. The default returns none.

        Without such frames, the exchange continues to send candles of removed symbols, which the daemon ignores.
        """
        return []

    @abstractmethod
    def read_frame(self, frame: str | bytes) -> list[Event]:
        """Read one frame: text, or the bytes of a binary frame after decompression.

        Raises:
            ExchangeError: the frame does not have the documented form. The daemon counts and skips it and keeps the
                connection. It logs the first frame of a series of errors, and the number of them when the series ends.
        """


class StreamFeed(ABC):
    """A feed that does not use a WebSocket, or that brings its own: an iterator of events for `symbols`.

    If the iterator ends or raises, the daemon starts it again, with the same backoff as for a socket. It creates
    another feed for symbols that are added later, and ignores events of symbols that were removed.
    """

    def __init__(self, symbols: Sequence[Symbol]) -> None:
        self.symbols = tuple(symbols)

    @abstractmethod
    def stream_events(self, http: "Http") -> AsyncIterator[Event]:
        """Yield events without ever ending."""


Feed = SocketFeed | StreamFeed


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """The exchange's limits for WebSocket connections. The daemon keeps them; None means that there is no limit."""

    #: The most symbols on one connection. The daemon opens as many connections as the symbols need.
    symbols_per_connection: int | None = None
    #: The most connections from one address. Symbols beyond it are read over REST.
    connections: int | None = None
    #: The most frames that the daemon sends on one connection in a second, including pings.
    frames_per_s: float = 10.0
    #: The most frames of `subscribe` and `unsubscribe` that it sends on one connection in an hour.
    subscribes_per_hour: int | None = None
    #: The most attempts to connect in a minute. Two thirds of them may follow each other without a pause.
    attempts_per_minute: float = 30.0


# ---------------------------------------------------------------- services that the daemon gives to a plugin


class Clock(Protocol):
    """The daemon's clock. Tests replace it with one that they set by hand."""

    def now_ms(self) -> int:
        """Return the wall-clock time, UTC epoch milliseconds."""

    def monotonic(self) -> float:
        """Return the seconds of a clock that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBudget:
    """The exchange's limit for some of its requests from one address, in a unit of its own ("weight").

    All processes of one installation share it.
    """

    #: The most weight in each period.
    limit: float
    #: The length of a period. Periods begin at multiples of it.
    period_s: float = 60.0
    #: The share of the limit that the daemon uses. The rest is left to other programs at the address.
    share: float = 0.5
    #: A header of the responses with the weight used in this period by all programs at the address.
    used_header: str | None = None
    #: A header of the responses with the weight that is left in this period.
    remaining_header: str | None = None


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer over HTTP as text, for libraries that read answers themselves."""

    #: The HTTP status code.
    status: int
    #: The response headers by name.
    headers: Mapping[str, str]
    #: The decompressed body.
    text: str


class Http(Protocol):
    """The daemon's HTTP client. It keeps the request budgets of each host and follows no redirects.

    It obeys 429, 418 and `Retry-After`, which counts as an hour if it is longer. A request costs `weight` of the named
    `budget`, one of `Exchange.request_budgets`; without a name, it counts against `Exchange.requests_per_s`.
    """

    async def get_json(
        self, url: str, params: Mapping[str, str] | None = None, *, weight: float = 1.0, budget: str = ""
    ) -> Any:
        """Fetch `url` with GET and return the parsed JSON body, with decimal numbers as `decimal.Decimal`.

        Raises:
            Unavailable: no connection, timeout, 429, 418, 5xx, or a body of more than 4 MB, also after decompression.
                The daemon tries again later.
            ExchangeError: another status, or a body that is not JSON. `HttpRejected` contains the status and the body.
        """

    async def post_json(self, url: str, body: Any = None, *, weight: float = 1.0, budget: str = "") -> Any:
        """Send `body` as JSON with POST, and return the answer as `get_json` does. None sends no body.

        Raises:
            Unavailable, ExchangeError: as in `get_json`.
        """

    async def fetch_text(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        weight: float = 1.0,
        budget: str = "",
    ) -> HttpAnswer:
        """Send a request of any method, and return the answer if its status is below 500 and neither 429 nor 418.

        Raises:
            Unavailable: as in `get_json`.
            ExchangeError: the body has more than 200,000 lists and objects, or 400,000 commas.
        """

    def find_proxy(self, url: str) -> str | None:
        """Return the proxy from the settings, with its password, for a socket that a `StreamFeed` opens to `url`."""

    def pause_requests(self, url: str, seconds: float) -> None:
        """Send no requests to the host of `url` for some time, an hour at most, in all processes.

        Call this if the exchange reports too many requests in a way of its own. Then raise `Unavailable`.
        """


# ---------------------------------------------------------------- the exchange

ClosedFlag = Literal["final", "advisory", "ignored"]
"""The meaning of `Candle.final` in a candle of the stream.

`final`: the minute never changes after it. `advisory`: the minute has ended, but late versions may follow, so that its
grace period begins, as with the next minute. `ignored`: the flag may be wrong; only the next minute and REST count.
"""


class Exchange(ABC):
    """One exchange. The daemon creates an instance per configured exchange, with its parsed settings."""

    #: The plugin's name in the settings.
    name: ClassVar[str]
    #: A subclass of `candled.Settings`. Its fields are the keys that you can write under the exchange, next to the
    #: daemon's own keys `symbols` and `plugin`.
    Settings: ClassVar[type[Any]]
    #: The request budget for each host that the plugin contacts.
    requests_per_s: ClassVar[float] = 5.0
    #: Further budgets of each host by name, for requests that the exchange limits in another way.
    request_budgets: ClassVar[Mapping[str, RequestBudget]] = {}
    #: The limits for WebSocket connections. A setting `symbols_per_connection` replaces that limit, and the constructor
    #: may replace all of them.
    limits: ConnectionLimits = ConnectionLimits()
    #: The class of a feed, which `make_feed` creates with the setting `ws_url`.
    feed_class: ClassVar[type[SocketFeed] | None] = None
    #: The longest range that `fetch_history` accepts, in minutes. `fetch_rows` accepts as many bars.
    max_history_minutes: ClassVar[int] = 200
    #: The intervals that `fetch_rows` can fetch: the exchange's name of each by candled's (`1m`, `1h`, `1D`). Leave out
    #: days that do not begin at 00:00 UTC, and weeks that do not begin on Monday.
    intervals: ClassVar[Mapping[str, str]] = {}
    #: How far back the exchange's minutes go, in minutes before the present; None: to the listing of each market. Older
    #: minutes are not requested: those that are missing count as an outage of the exchange.
    history_minutes: ClassVar[int | None] = None
    #: The meaning of `final` in candles of the stream.
    closed_flag: ClassVar[ClosedFlag] = "advisory"
    #: True if the exchange publishes a candle for a minute without trades.
    publishes_empty_candles: ClassVar[bool] = False
    #: True if its candles are not the market's present ones. The page, the API and `/health` show this.
    is_simulated: ClassVar[bool] = False
    #: True if every candle opens at the close of the previous one. A difference then reveals a missed push.
    opens_at_previous_close: ClassVar[bool] = False
    #: The evidence that there is for the exchange; `candled plugins` shows the level.
    evidence: ClassVar[Evidence] = Evidence()
    #: The reasons for which checks of `candled plugin test` cannot be run, by the names of the checks.
    bypass_reasons: ClassVar[Mapping[str, str]] = {}

    def __init__(self, settings: Any, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        if (most := getattr(settings, "symbols_per_connection", None)) is not None:
            self.limits = replace(self.limits, symbols_per_connection=most)

    def resume_after(self, newest_ms: int | None) -> None:  # noqa: B027 - most exchanges need nothing here
        """Receive the newest completed minute in the store.

        The daemon calls this once, before any other method but `fetch_markets`.

        `newest_ms` is the largest value over all symbols of this exchange: the newest final minute, or the one before a
        stored forming minute. It is an opening time in UTC epoch milliseconds, or None if the store has no data of this
        exchange.
        """

    def now_ms(self) -> int:
        """Return the exchange's clock, UTC epoch milliseconds.

        Real exchanges keep this default: the daemon measures the difference between the clocks.
        """
        return self.clock.now_ms()

    @abstractmethod
    async def fetch_markets(self, http: Http) -> list[Market]:
        """List the markets of the exchange.

        The daemon reads the list regularly, to find new markets and those that were delisted. If the exchange has no
        such list, return an empty one: the daemon then tries every symbol.

        Raises:
            Unavailable, ExchangeError: as in `Http.get_json`.
        """

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return a feed that carries `symbols`, at most `limits.symbols_per_connection`.

        The daemon calls this once for each connection. The default creates `feed_class` with the setting `ws_url`.
        """
        if self.feed_class is None:
            raise NotImplementedError(f"{type(self).__name__} has no feed_class and does not implement make_feed")
        return self.feed_class(self.settings.ws_url, symbols)

    async def fetch_history(self, http: Http, symbol: Symbol, start_ms: int, end_ms: int) -> Sequence[Row]:
        """Return every 1-minute candle with `start_ms <= open_ms < end_ms`, as the exchange has it now, in any order.

        Return a row that is not a valid candle as an `InvalidRow`, so that the other rows are still used; `read_rows`
        does this. An empty list means that the exchange has no candles in the range.

        Both ends are minute boundaries, at most `max_history_minutes` apart. You may include the forming minute. Each
        candle's `as_of_ms` is the exchange's clock when it answered, or 0 if the answer does not contain it: the daemon
        then uses its own clock.

        The default takes them from `fetch_rows`.

        Raises:
            Unavailable: the request may succeed later.
            ExchangeError: the response does not have the documented form (another window than requested, another
                interval).
        """
        return rows_within(await self.fetch_rows(http, symbol, MINUTE, start_ms, end_ms), start_ms, end_ms)

    async def fetch_rows(
        self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int
    ) -> Sequence[Row]:
        """Return the exchange's bars of `interval`, in any order. It is 1m or one of `intervals`.

        Implement it in place of `fetch_history` if the exchange has longer bars, and name those in `intervals`. The
        rules of `fetch_history` apply to these bars too. Bars that open outside of the range are dropped.

        Raises:
            Unavailable, ExchangeError: as in `fetch_history`.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither fetch_history nor fetch_rows")

    async def fetch_bars(
        self, http: Http, symbol: Symbol, interval: Interval, start_ms: int, end_ms: int
    ) -> list[Candle] | None:
        """Return the exchange's own bars of `interval` with `start_ms <= open_ms < end_ms`, oldest first.

        The daemon uses these bars to confirm where history begins, because an empty answer from `fetch_history` alone
        is not enough evidence. `candled verify` compares them with bars made from minutes. Both ends of the range are
        boundaries of `interval`, which begin at 00:00 UTC for days, and on Monday at 00:00 UTC for weeks.

        The default takes the bars from `fetch_rows`, page by page. It returns None if `intervals` does not have the
        interval.

        Raises:
            Unavailable, ExchangeError: as in `fetch_history`; also if a row is not a valid candle, or if the exchange's
                days begin at another hour.
        """
        if str(interval) not in self.intervals:
            return None
        page_ms = self.max_history_minutes * interval.ms
        found: list[Candle] = []
        for from_ms in range(start_ms, end_ms, page_ms):
            until_ms = min(end_ms, from_ms + page_ms)
            rows = await self.fetch_rows(http, symbol, interval, from_ms, until_ms)
            found += _strict_candles(rows_within(rows, from_ms, until_ms), interval)
        return found
