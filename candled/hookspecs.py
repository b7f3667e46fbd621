"""The hooks that a plugin can implement. The entry-point group is `candled`.

The section "Hooks" of docs/how-to/plugins.md is made of the docstrings.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from candled.exchange import Clock, Exchange
from candled.model import Candle, Interval, Symbol

if TYPE_CHECKING:
    from candled.settings import Settings
    from candled.store.interface import Store

hookspec = pluggy.HookspecMarker("candled")
hookimpl = pluggy.HookimplMarker("candled")

MakeStore = Callable[[str, Sequence[Interval] | None], "Store"]
"""Makes the store at an address, for a daemon that keeps bars of some intervals, or for a command (None)."""

Route = tuple[str, type[Any], dict[str, Any]]
"""A pattern for the whole path, a subclass of Tornado's `RequestHandler`, and the arguments of its `initialize`."""


@dataclass(frozen=True, slots=True)
class RouteContext:
    """The services of the daemon for routes."""

    #: The daemon's clock.
    clock: Clock
    #: Returns the newest bars of a market, oldest first, and with the forming one last: `await read_bars(exchange,
    #: symbol, interval, limit)`. It raises `Unavailable` if the store cannot be read, and KeyError for a market or an
    #: interval that is not served.
    read_bars: Callable[[str, Symbol, Interval, int], Awaitable[Sequence[Candle]]]


@hookspec
def candled_exchanges() -> Sequence[type[Exchange]]:  # type: ignore[empty-body]
    """Return exchange classes, each with a unique `name`. Called once at startup."""


@hookspec
def candled_settings() -> "type[Settings]":  # type: ignore[empty-body]
    """Return the class of the plugin's own settings, which you write under `plugins.NAME`. Called once at startup.

    NAME is the name of the entry point. Other hooks get the instance as the argument `settings`; it is None for a
    plugin without this hook. The settings of an exchange belong to its class instead.
    """


@hookspec
def candled_stores() -> Mapping[str, MakeStore]:  # type: ignore[empty-body]
    """Return stores by the scheme of `store.url`. Called once at startup.

    A store is called with the address and the intervals of the daemon, and returns an implementation of `Store`, not
    yet opened. Its methods run in threads. The schemes of candled's own stores are taken.
    """


@hookspec
def candled_routes(settings: Any, context: RouteContext) -> Sequence[Route]:  # type: ignore[empty-body]
    """Return routes for the port of the clients. Called once in each process that serves.

    A route is a pattern for the whole path, a subclass of Tornado's `RequestHandler`, and its arguments. The paths of
    candled come first, among them `/api/…` and `/udf/…`. The handlers run in the event loop, so they must not wait or
    compute for long. Requests to them do not count against the limits.
    """


@hookspec
def candled_commands() -> Any:
    """Return a `typer.Typer` with the commands `candled NAME …`. Called when such a command or the help is asked for.

    NAME is the name of the entry point. A command returns its exit status, or None for 0.
    """


@hookspec
def candled_closed_bar(settings: Any, exchange: str, symbol: Symbol, interval: Interval, bar: Candle) -> None:
    """Handle a bar that has become final. Called once for each closed bar of each served interval.

    This covers bars that close while the daemon runs, in the order of time for each market, and those that become final
    after a newer one. A later revision is not reported. With several processes, the one that reads the market calls
    it. The calls of a plugin run one after the other in a thread of its own, so they may wait. An error is logged with
    the plugin's name, and the bar is not repeated. A call of more than a second is logged. While 10,000 bars wait,
    further ones are dropped, and the log has their number.
    """
