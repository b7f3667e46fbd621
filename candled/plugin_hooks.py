"""The hooks of plugins that the daemon calls while it runs: routes, and closed bars."""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tornado.web import RequestHandler

from candled.api.catalog import MarketCatalog
from candled.api.queries import HistoryRequest
from candled.closed_bar_hooks import ClosedBarReporter, HookThread
from candled.config import Config
from candled.exchange import Clock
from candled.hookspecs import Route, RouteContext
from candled.model import Candle, Interval, MarketKey, Symbol
from candled.plugins import Offers, PluginError, Plugins, one_line
from candled.universe import MarketsChanged

if TYPE_CHECKING:
    from candled.aggregate.live_bars import LiveBars
    from candled.api.pages import BarReader

logger = logging.getLogger(__name__)


class PluginHooks:
    """The hooks of all plugins, with the plugins' settings."""

    def __init__(self, plugins: Plugins, config: Config) -> None:
        self._plugins = plugins
        self._settings = config.plugins
        #: The thread of each plugin that handles closed bars, filled by `start`.
        self.threads: dict[str, HookThread] = {}
        self._reporter: ClosedBarReporter | None = None
        #: The problem of each plugin whose routes are not served.
        self.problems: dict[str, str] = {}

    @property
    def want_bars(self) -> bool:
        """True if a plugin handles closed bars."""
        return bool(self._plugins.with_hook("candled_closed_bar"))

    def start(
        self, bars: "LiveBars", catalog: MarketCatalog, clock: Clock, is_read: Callable[[MarketKey], bool]
    ) -> None:
        """Call the hooks for bars that close from now on, in markets that this process reads."""
        for name, offers in self._plugins.with_hook("candled_closed_bar").items():
            self.threads[name] = HookThread(name, partial(self._call_hook, offers, self._settings.get(name)))
        if self.threads:
            self._reporter = ClosedBarReporter(
                bars, lambda: tuple(catalog.intervals.values()), clock, self._report, is_read
            )
            bars.add_listener(self._reporter)

    def on_markets_changed(self, change: MarketsChanged) -> None:
        """Forget the bars of removed markets."""
        if self._reporter is not None:
            for symbol in change.removed:
                self._reporter.forget_market(MarketKey(change.exchange, symbol))

    async def stop(self, within_s: float) -> None:
        """Wait for the queued calls, for `within_s` seconds at most."""
        await asyncio.gather(*(asyncio.to_thread(one.stop, within_s) for one in self.threads.values()))

    def describe(self, plugin: str) -> dict[str, Any]:
        """Return more facts for a plugin's part of `/health?verbose`."""
        facts: dict[str, Any] = {}
        if plugin in self.problems:
            facts |= {"status": "broken", "error": self.problems[plugin]}
        if plugin in self.threads:
            facts["closedBars"] = self.threads[plugin].describe()
        return facts

    def make_routes(self, pages: "BarReader", catalog: MarketCatalog, clock: Clock) -> list[Route]:
        """Return the routes of all plugins. Those of a plugin that breaks a rule are left out, with an error line."""

        async def read_bars(exchange: str, symbol: Symbol, interval: Interval, limit: int) -> Sequence[Candle]:
            market = MarketKey(exchange, symbol)
            if market not in catalog.markets or interval not in catalog.intervals.values():
                raise KeyError(f"{market} {interval} is not served")
            return (await pages.read_page(market, interval, HistoryRequest(limit))).bars

        context = RouteContext(clock, read_bars)
        found: list[Route] = []
        for name, offers in self._plugins.with_hook("candled_routes").items():
            try:
                answer = offers.call_hook("candled_routes", settings=self._settings.get(name), context=context)
                found += _checked_routes(answer)
            except BaseException as error:  # a plugin may raise anything, even SystemExit
                self.problems[name] = str(error) if isinstance(error, PluginError) else one_line(error)
                logger.error("plugin %s: its routes are not served: %s", name, self.problems[name])
                logger.debug("plugin %s:", name, exc_info=error)
        return found

    def _report(self, market: MarketKey, interval: Interval, bar: Candle) -> None:
        for thread in self.threads.values():
            thread.put(market, interval, bar)

    @staticmethod
    def _call_hook(offers: Offers, settings: Any, market: MarketKey, interval: Interval, bar: Candle) -> None:
        offers.call_hook(
            "candled_closed_bar",
            settings=settings,
            exchange=market.exchange,
            symbol=market.symbol,
            interval=interval,
            bar=bar,
        )


def _checked_routes(answer: object) -> list[Route]:
    if not isinstance(answer, list | tuple):
        raise PluginError(f"candled_routes returned {type(answer).__name__}, expected a list of routes")
    for route in answer:
        match route:
            case (str(pattern), type() as kind, dict()) if issubclass(kind, RequestHandler):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise PluginError(f"candled_routes: {pattern!r} is not a regular expression: {error}") from error
            case _:
                raise PluginError("candled_routes: expected (pattern, RequestHandler, arguments) for each route")
    return list(answer)
