"""The parts of a running daemon from which metrics and the status page take their numbers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from candled.aggregate.live_bars import LiveBars
    from candled.bus import Bus
    from candled.config import Config
    from candled.exchange import Clock
    from candled.health import Health
    from candled.ingest_side import ShardedIngest
    from candled.loop_watchdog import LoopWatchdog
    from candled.metrics.loop_lag import LoopLag
    from candled.plugin_hooks import PluginHooks
    from candled.rooms.encoded_bars import EncodedBarCache
    from candled.rooms.hub import Hub
    from candled.serve.server import Server
    from candled.store.history import HistoryReader
    from candled.store.interface import Store
    from candled.store.upkeep import StoreUpkeep
    from candled.store.writer import Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of the daemon."""

    #: The settings at the start of the process; a reload does not change them here.
    config: "Config"
    #: The daemon's clock.
    clock: "Clock"
    #: The reader of the other parts' states, for `/health`.
    health: "Health"
    #: None if this process only serves.
    ingest: "ShardedIngest | None"
    #: The store of candles, for its description.
    store: "Store"
    #: The opening and tidying of the store.
    upkeep: "StoreUpkeep"
    #: The queue of candles for the store.
    writer: "Writer"
    #: The reads of the store, their counts and their problem.
    history: "HistoryReader"
    #: The bus between ingest and serve.
    bus: "Bus"
    #: The newest bars of all served markets.
    bars: "LiveBars"
    #: All rooms of the process, with the clients in them.
    hub: "Hub"
    #: The server, with its connections.
    server: "Server"
    #: The encoded bars, which rooms and answers share.
    cache: "EncodedBarCache"
    #: The blockages of the event loop by plugins.
    watchdog: "LoopWatchdog"
    #: The sample of the loop's lag.
    lag: "LoopLag"
    #: The hooks of all plugins, for the counts of their calls.
    hooks: "PluginHooks"
