"""The replay exchange: files to recordings, and recordings to a market clock, a feed and a history."""

import gzip
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, create_model

from candled import (
    MINUTE_MS,
    Candle,
    CandledError,
    Candles,
    Clock,
    ConfigError,
    Event,
    Exchange,
    ExchangeError,
    Feed,
    Http,
    Market,
    Settings,
    StoredMinutes,
    StreamFeed,
    Subscribed,
    SubscriptionRejected,
    Symbol,
    parse_iso_ms,
    setting,
)

from .faults import Faults, FaultSettings, FaultyStream
from .recording import DAY_MS, BadRecording, Recording

BUNDLED = Path(__file__).parent / "recordings"
ANY_SYMBOL = "*"

_BUNDLED_PREFIX = "bundled:"
_STORED_PREFIX = "store:"
_STORED_MS = 14 * DAY_MS
_GZIP_MAGIC = b"\x1f\x8b"
_SNAPSHOT_MINUTES = 500
_TICKS_PER_S = 4  # at most, by the wall clock


def _check_time(text: str) -> str:
    try:
        parse_iso_ms(text or "1970-01-01")
    except ValueError:
        raise ValueError("expected a time such as 2025-03-10 or 2025-03-10T14:00Z") from None
    return text


_Time = Annotated[str, AfterValidator(_check_time)]

# `from` is no name for a field of a class statement
_Range: type[Settings] = create_model(
    "_Range",
    __base__=Settings,
    **{
        "from": (_Time, setting("", 'the start of the range that "store:" plays; by default two weeks before "to"')),
        "to": (_Time, setting("", "the end of that range; by default the end of the stored minutes")),
    },
)  # type: ignore[call-overload]


class ReplaySettings(_Range):  # type: ignore[misc,valid-type]
    """Settings under `exchanges.replay`."""

    files: Mapping[str, str] = setting(
        {"BTC/USDT": "bundled:binance-spot-btcusdt", "ETH/USDT": "bundled:bitget-futures-ethusdt"},
        'recorded candles per symbol: the path of a CSV or gzip file, "bundled:NAME", or "store:EXCHANGE" for stored '
        'minutes of an exchange; "*" serves every other symbol',
    )
    store: str = setting("sqlite:///candled.db", 'the address of the store that "store:" plays, as in store.url')
    speed: float = setting(1.0, "market seconds per second", ge=1.0)
    faults: FaultSettings = setting(FaultSettings(), "mistakes of the exchange, to test candled and its clients")


class Replay(Exchange):
    """Recorded candles, replayed at the current time in a loop. See docs/reference/replay.md.

    Raises:
        ConfigError: a symbol or a file in `files` cannot be used; one line per problem.
    """

    name: ClassVar[str] = "replay"
    Settings: ClassVar[type[ReplaySettings]] = ReplaySettings
    max_history_minutes: ClassVar[int] = 1440
    is_simulated: ClassVar[bool] = True

    def __init__(self, settings: ReplaySettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self._speed: float = settings.speed
        self._recordings = _load(settings)
        #: The faults of this exchange.
        self.faults = Faults(settings.faults)
        # the last minute in which the connection was lost on purpose
        self._disconnected_ms = -1
        self.resume_after(None)

    def resume_after(self, newest_ms: int | None) -> None:
        """Start the market clock: now, or after `newest_ms` if a faster run got further than that."""
        self._started_ms = self._origin_ms = self.clock.now_ms()
        if newest_ms is not None:
            self._origin_ms = max(self._started_ms, newest_ms + MINUTE_MS)
        self._latest_ms = self._origin_ms
        self.faults.start_script(self._origin_ms)

    def now_ms(self) -> int:
        """Return the market clock in UTC epoch ms: `speed` times as fast as the wall clock, never backwards."""
        passed_ms = int((self.clock.now_ms() - self._started_ms) * self._speed)
        self._latest_ms = max(self._latest_ms, self._origin_ms + passed_ms)
        return self._latest_ms

    @property
    def tick_s(self) -> float:
        """Wall-clock seconds between two versions of a forming minute: one market second, but at least 0.25 s."""
        return max(1.0 / self._speed, 1.0 / _TICKS_PER_S)

    def recording_of(self, symbol: Symbol) -> Recording | None:
        """Return the recording for `symbol`, or None."""
        return self._recordings.get(str(symbol)) or self._recordings.get(ANY_SYMBOL)

    async def fetch_markets(self, http: Http) -> list[Market]:
        """Return the symbols named in `files`; none with `"*"`, because then any symbol is served."""
        if ANY_SYMBOL in self._recordings:
            return []
        return [
            Market(
                symbol=Symbol.parse(text),
                price_decimals=recording.price_decimals,
                volume_decimals=recording.volume_decimals,
            )
            for text, recording in self._recordings.items()
        ]

    def make_feed(self, symbols: Sequence[Symbol]) -> Feed:
        """Return a feed for all symbols."""
        return ReplayFeed(self, symbols)

    async def fetch_history(self, http: Http, symbol: Symbol, start_ms: int, end_ms: int) -> list[Candle]:
        """Return the recorded minutes up to now, including the forming one.

        Raises:
            ExchangeError: there is no recording for `symbol`.
        """
        recording = self.recording_of(symbol)
        if recording is None:
            raise ExchangeError(_no_file(symbol))
        now_ms = self.now_ms()
        minutes = self.faults.correct_history(symbol, recording.minutes_between(start_ms, end_ms, now_ms), now_ms)
        return [candle._replace(as_of_ms=now_ms) for candle in minutes]

    def loses_connection(self, now_ms: int) -> bool:
        """Return True at the first call after a moment at which the connection is lost on purpose."""
        open_ms = now_ms - now_ms % MINUTE_MS
        at_ms = self.faults.disconnect_at(open_ms) if open_ms > self._disconnected_ms else None
        if at_ms is None or now_ms < at_ms:
            return False
        self._disconnected_ms = open_ms
        return True


class ReplayFeed(StreamFeed):
    """The recent past of every symbol, then its forming minute as it grows."""

    def __init__(self, exchange: Replay, symbols: Sequence[Symbol]) -> None:
        super().__init__(symbols)
        self._exchange = exchange

    async def stream_events(self, http: Http) -> AsyncIterator[Event]:
        """Yield events forever. A minute's last version comes before the next minute's first, and none is left out."""
        playing = {symbol: recording for symbol in self.symbols if (recording := self._exchange.recording_of(symbol))}
        for symbol in self.symbols:
            if symbol not in playing:
                yield SubscriptionRejected(symbol, _no_file(symbol))
        faults = self._exchange.faults
        now_ms = self._exchange.now_ms()
        for symbol, recording in playing.items():
            yield Subscribed(symbol)
            recent = recording.versions_between(now_ms - _SNAPSHOT_MINUTES * MINUTE_MS, now_ms)
            yield Candles(symbol, tuple(faults.correct_history(symbol, recent, now_ms)), snapshot=True)
            await self._exchange.clock.sleep(0)  # hundreds of snapshots in a row would block the loop
        streams = {symbol: FaultyStream(faults, symbol) for symbol in playing}
        while True:
            await self._exchange.clock.sleep(self._exchange.tick_s)
            previous_ms, now_ms = now_ms, self._exchange.now_ms()
            if self._exchange.loses_connection(now_ms):
                raise ConnectionError("lost on purpose, by exchanges.replay.faults")
            for symbol, recording in playing.items():
                for frame in streams[symbol].pass_on(recording.versions_between(previous_ms, now_ms), now_ms):
                    yield Candles(symbol, frame)


def _no_file(symbol: Symbol) -> str:
    return f"no recording for {symbol}: name a file for it in exchanges.replay.files"


def _load(settings: ReplaySettings) -> dict[str, Recording]:
    """Read the recordings of all symbols. A file shared by several symbols is read once.

    Raises:
        ConfigError: symbols or files cannot be used; one line per problem, with file and line.
    """
    files = settings.files
    recordings: dict[str, Recording] = {}
    problems: dict[str, None] = {}  # ordered; a bad file shared by symbols is reported once
    for text, name in files.items():
        try:
            if text != ANY_SYMBOL:
                Symbol.parse(text)
        except ValueError as error:
            problems[f"exchanges.replay.files: {error}"] = None
            continue
        try:
            if name.startswith(_STORED_PREFIX):
                recordings[text] = _read_stored(settings, text, name.removeprefix(_STORED_PREFIX))
                continue
            shared = next((recordings[other] for other in recordings if files[other] == name), None)
            recordings[text] = shared or read_recording(name)
        except BadRecording as error:
            problems.update(dict.fromkeys(f"{name}: {problem}" for problem in error.problems))
    if problems:
        raise ConfigError(list(problems))
    return recordings


def _read_stored(settings: ReplaySettings, symbol: str, exchange: str) -> Recording:
    """Read the minutes of a range from a store.

    Raises:
        BadRecording: the store cannot be read, or has too few minutes there.
    """
    if symbol == ANY_SYMBOL:
        raise BadRecording(["name each symbol; the store has minutes of some only"])
    start, end = getattr(settings, "from"), settings.to
    try:
        with StoredMinutes(settings.store) as stored:
            span = stored.span(exchange, Symbol.parse(symbol))
            if span is None:
                raise BadRecording([f"no minutes of {symbol} are stored"])
            end_ms = min(span[1], parse_iso_ms(end)) if end else span[1]
            start_ms = max(span[0], parse_iso_ms(start) if start else end_ms - _STORED_MS)
            return Recording.of_candles(stored.read(exchange, Symbol.parse(symbol), start_ms, end_ms))
    except CandledError as error:
        raise BadRecording([f"cannot be read: {error}"]) from error


def read_recording(name: str) -> Recording:
    """Read a recording, gzip or plain CSV, from a path or as `bundled:NAME`.

    Raises:
        BadRecording: the file does not exist or is not a valid recording.
    """
    try:
        data = _path(name).read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadRecording([f"cannot be read: {reason}"]) from error
    return Recording.parse(text.splitlines(), checked=name.startswith(_BUNDLED_PREFIX))


def _path(name: str) -> Path:
    """Return the path of a recording.

    Raises:
        BadRecording: no bundled recording has this name.
    """
    if not name.startswith(_BUNDLED_PREFIX):
        return Path(name).expanduser()
    path = BUNDLED / f"{name.removeprefix(_BUNDLED_PREFIX)}.csv.gz"
    bundled = sorted(found.name.removesuffix(".csv.gz") for found in BUNDLED.glob("*.csv.gz"))
    if path.name.removesuffix(".csv.gz") not in bundled:
        raise BadRecording([f"no such recording comes with candled: it has {', '.join(bundled)}"])
    return path
