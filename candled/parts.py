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

    config: "Config"
    clock: "Clock"
    health: "Health"
    #: None if this process only serves.
    ingest: "ShardedIngest | None"
    store: "Store"
    upkeep: "StoreUpkeep"
    writer: "Writer"
    history: "HistoryReader"
    bus: "Bus"
    bars: "LiveBars"
    hub: "Hub"
    server: "Server"
    cache: "EncodedBarCache"
    watchdog: "LoopWatchdog"
    lag: "LoopLag"
    hooks: "PluginHooks"
