"""The material of the checks about one plugin and one recording: exchanges, feeds, forms of frames and pages."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from candled.exchange import Event, Exchange, SocketFeed
from candled.ingest.coverage import Coverage
from candled.ingest.market import MarketIngest
from candled.ingest.market_status import Rules
from candled.model import MINUTE, Candle, MarketKey, Symbol

from .modules import make_exchange
from .recording import Received, Recording
from .replayed import RecordedClock, Replay, prepare_feed, replay_recording
from .scripted_frames import FrameForm, Material, candles_in, find_form, open_feed, read_material, read_quietly
from .scripted_pages import Page, PageRule, Script, ScriptedHttp, learn_rule, list_pages

if TYPE_CHECKING:
    from asyncio import Runner

_SECONDS_INTO_MINUTE_MS = 30_000
_NOW_MS = 1_788_000_000_000  # in 2026


class CheckFailed(Exception):
    """The plugin, or its description of the exchange, is wrong. The text names the mistake."""


class NotShown(Exception):
    """The recording does not have the material of a check."""


def require(is_right: object, mistake: str) -> None:
    """Raise `CheckFailed` with the mistake if something is not right."""
    if not is_right:
        raise CheckFailed(mistake)


@dataclass(frozen=True)
class Stage:
    """One plugin and one recording."""

    #: The plugin's class.
    kind: type[Exchange]
    #: The recording that the plugin is tested with.
    recording: Recording
    #: Settings of the exchange, each as `KEY=VALUE`.
    settings: tuple[str, ...]
    #: Runs the calls of the plugin.
    runner: "Runner"

    # ------------------------------------------------------------ the plugin

    def make_exchange(self, now_ms: int | None = None) -> Exchange:
        """Return an exchange of the plugin, by default at the time of the newest page."""
        made = make_exchange(self.kind, self.settings, RecordedClock(self.now_ms if now_ms is None else now_ms))
        made.resume_after(None)
        return made

    def open_feed(self, *symbols: Symbol, now_ms: int | None = None) -> SocketFeed:
        """Return a feed that has subscribed, and that has read the recorded frames before the form.

        Raises:
            NotShown: the plugin's feed is no `SocketFeed`.
        """
        exchange = self.make_exchange(now_ms)
        feed = open_feed(exchange, symbols or (self.recording.symbol,))
        if feed is None:
            raise NotShown("the feed is no SocketFeed")
        self.runner.run(prepare_feed(feed, self.recording))
        feed.subscribe(feed.symbols)
        for frame, events in self.material.frames:
            if not candles_in(events, self.recording.symbol):
                read_quietly(feed, frame)
        return feed

    @cached_property
    def now_ms(self) -> int:
        """The time of the recording: of its newest page, or its newest frame."""
        times = [page.times[-1] for page in list_pages(self.recording)]
        times += [one.at_ms for one in self.recording.select(Received) if one.at_ms]
        return MINUTE.floor(max(times, default=_NOW_MS)) + _SECONDS_INTO_MINUTE_MS

    # ------------------------------------------------------------ the recording

    @cached_property
    def replay(self) -> Replay:
        """The recording, as the plugin reads it."""
        clock = RecordedClock()
        exchange = make_exchange(self.kind, self.settings, clock)
        return self.runner.run(replay_recording(self.recording, exchange, clock))

    @cached_property
    def versions(self) -> dict[int, list[Candle]]:
        """The versions of each minute of the stream, in the order of arrival."""
        return self.replay.versions(self.recording.symbol)

    @cached_property
    def material(self) -> Material:
        """The recorded frames."""
        feed = open_feed(self.make_exchange(), [self.recording.symbol])
        if feed is None:
            return Material(())
        self.runner.run(prepare_feed(feed, self.recording))
        feed.subscribe(feed.symbols)
        return read_material(self.recording, feed)

    @cached_property
    def is_refusal(self) -> bool:
        """True if the exchange refused the symbol, so that the recording has no candle."""
        return bool(self.material.refusals) and not self.versions

    @cached_property
    def form(self) -> FrameForm:
        """The form of a frame with one candle.

        Raises:
            NotShown: no recorded frame can be written for other minutes.
        """
        symbol = self.recording.symbol
        form = find_form(self.material, self.open_feed(), symbol)
        if form is None:
            raise NotShown(f"no recorded frame is JSON with a candle of {symbol} and its time")
        return form

    @cached_property
    def pages(self) -> list[Page]:
        """The recorded pages of minutes."""
        read = {call.number: {row.open_ms for row in rows} for call, rows in self.replay.pages}
        pages = [page.with_opening_times(read.get(page.call.number, ())) for page in list_pages(self.recording)]
        if any(page.after_open_ms for page in pages):  # those that the plugin could not read have closing times too
            pages = [page if read.get(page.call.number) else page.with_opening_times() for page in pages]
        return pages

    @property
    def page(self) -> Page:
        """The page with the most rows.

        Raises:
            NotShown: no page was recorded.
        """
        if not self.pages:
            raise NotShown("no answer to fetch_history with rows of minutes was recorded")
        return max(self.pages, key=lambda page: len(page.rows))

    @cached_property
    def rule(self) -> PageRule:
        """The rule of the recorded pages."""
        return learn_rule(self.pages, (at for at, found in self.versions.items() if found[-1].volume))

    # ------------------------------------------------------------ the scripted exchange

    def script(self, **changes: Any) -> Script:
        """Return a script with the recorded rule."""
        return Script(self.rule, self.now_ms, **changes)

    def fetch(self, script: Script, start_ms: int, end_ms: int) -> tuple[list[Any], ScriptedHttp]:
        """Return the rows that the plugin fetches from a scripted exchange, and the requests that it made.

        Raises:
            Exception: the plugin raised it.
        """
        http = ScriptedHttp(self.page, script, self.recording)
        http.span = (start_ms, end_ms)
        exchange = self.make_exchange(script.now_ms)
        rows = self.runner.run(exchange.fetch_history(http, self.recording.symbol, start_ms, end_ms))
        return list(rows), http

    def make_market(self, from_ms: int) -> MarketIngest:
        """Return the ingest of a market that has nothing yet, as the daemon makes it."""
        kind = self.kind
        absence = "exchange_outage" if kind.publishes_empty_candles else "no_trades"
        coverage = Coverage(present=[], known_gaps=[], since_ms=None, from_ms=from_ms, absence=absence)  # type: ignore[arg-type]
        rules = Rules(
            grace_period_ms=2_000,
            quiet_after_ms=60_000,
            confirm=False,
            max_history_minutes=kind.max_history_minutes,
            opens_at_previous_close=False,
            publishes_empty_candles=kind.publishes_empty_candles,
            closed_flag=kind.closed_flag,
        )
        market = MarketIngest(MarketKey(kind.name, self.recording.symbol), coverage, rules)
        market.presence.connected = True
        return market


def read_events(feed: SocketFeed, frame: str | bytes) -> list[Event]:
    """Return the events of a frame.

    Raises:
        CheckFailed: the plugin raises an exception.
    """
    try:
        return list(feed.read_frame(frame))
    except Exception as error:
        raise CheckFailed(f"the plugin raises {error!r} for {frame[:200]!r}") from error
