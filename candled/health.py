"""The health of the daemon: the answers of `/health` and `/readyz`."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from candled import __version__
from candled.aggregate.live_bars import LiveBars
from candled.bus import Bus
from candled.config import Config
from candled.errors import StoreRejected, StoreUnavailable
from candled.exchange import Clock
from candled.loop_watchdog import LoopWatchdog
from candled.model import HEALTHY_STATES, MINUTE, NOT_TRADED, MarketKey, StateCounts, Symbol
from candled.plugins import Plugins, PluginStatus
from candled.rooms.hub import Hub
from candled.serve.health_handlers import HealthReports
from candled.store.history import HistoryReader
from candled.store.interface import Store
from candled.store.upkeep import StoreUpkeep
from candled.store.writer import Writer
from candled.tasks import Pace
from candled.universe import Universe

if TYPE_CHECKING:
    from candled.ingest.measures import IngestMeasures
    from candled.ingest_side import ShardedIngest

_READY_S = 2.0
_FEED_US, _MARKET_US, _ROOM_US = 10, 60, 10  # to describe a feed, a market and a room, on a slow machine
_ANY_MARKET = MarketKey("none", Symbol("NONE", "NONE"))  # read to see whether the store answers


@dataclass(eq=False)
class Health:
    """Reads the states of the daemon's parts."""

    #: The settings at the start, for the roles of the process.
    config: Config
    #: All plugins that were found, with the outcome of loading each.
    plugins: Plugins
    #: The daemon's clock.
    clock: Clock
    #: The store, for its description.
    store: Store
    #: The opening of the store, and conflicts with other daemons.
    upkeep: StoreUpkeep
    #: The queue of candles for the store.
    writer: Writer
    #: The reads of the store, and their problem.
    history: HistoryReader
    #: The bus between ingest and serve.
    bus: Bus
    #: The newest bars of all served markets, and the states of their feeds.
    bars: LiveBars
    #: The blockages of the event loop by plugins.
    watchdog: LoopWatchdog
    #: The markets of all exchanges.
    universe: Universe
    #: None if this process only serves.
    ingest: "ShardedIngest | None"
    #: Returns what the hooks of a plugin add to its part of `/health?verbose`.
    describe_hooks: Callable[[str], Mapping[str, Any]]
    #: True once the store is open.
    is_reading: bool = False

    def __post_init__(self) -> None:
        """Begin to count the time."""
        self._started = self.clock.monotonic()
        self._was_loaded = False

    async def summarize(self) -> Mapping[str, Any]:
        """Return the body of `/health`: it has no error texts, addresses or symbols. No slice holds the loop."""
        measures = {} if self.ingest is None else await self.ingest.measure(Pace(self.clock))
        return self.summarize_measures(measures)

    def summarize_measures(self, measures: "Mapping[str, IngestMeasures]") -> Mapping[str, Any]:
        """Do the same, given the exchanges that this process reads, as `ShardedIngest.measure` returned them."""
        exchanges, writer, bus = self._summarize_exchanges(measures), self.describe_writer(), self.bus.describe()
        is_store_well, is_bus_well = self._is_store_well(writer), "trouble" not in bus
        is_well = all(one["status"] == "pass" for one in exchanges.values()) and not self.bus.unpublished_markets()
        return {
            "status": _status(is_well and is_store_well and is_bus_well),
            **self._describe_process(),
            "exchanges": exchanges,
            "store": {"status": _status(is_store_well), "state": writer["state"]},
            "bus": {"status": _status(is_bus_well), "connected": bus["connected"]},
        }

    async def report(self) -> Mapping[str, Any]:
        """Return the body of `/health?verbose`. No slice holds the loop."""
        exchanges = await self._report_exchanges(Pace(self.clock))
        writer, bus = self.describe_writer(), self.bus.describe()
        is_well = all(map(is_healthy, exchanges.values())) and self._is_store_well(writer) and "trouble" not in bus
        return {
            "status": _status(is_well),
            **self._describe_process(),
            "exchanges": exchanges,
            "store": {
                **self.store.describe(),
                "conflicts": list(self.upkeep.conflicts),
                "readError": self.history.problem,
                **writer,
            },
            "bus": bus,
            "bars": self.bars.describe_recovery(),
            "plugins": {status.name: self._report_plugin(status) for status in self.plugins.statuses},
        }

    async def count_clients(self, hub: Hub) -> Mapping[str, Any]:
        """Return the body of `/health/ws-stats`. No slice holds the loop."""
        rooms = [one async for one in Pace(self.clock).spread(hub.describe_rooms(), _ROOM_US)]
        return {"broadcaster": {**hub.describe(), "rooms": rooms}, "aggregator": self.bars.describe()}

    def _describe_process(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "uptimeSeconds": round(self.clock.monotonic() - self._started, 1),
            "roles": list(self.config.roles),
        }

    def describe_writer(self) -> dict[str, Any]:
        """Return `Writer.describe`, with the store as unavailable before it was opened."""
        writer = self.writer.describe()
        if self.is_reading:
            return writer
        # nothing was written yet, so the writer has no errors to report
        return {**writer, "state": "unavailable", "lastError": self.upkeep.problem or None}

    def _is_store_well(self, writer: Mapping[str, Any]) -> bool:
        return writer["state"] == "ok" and not self.history.problem and not self.upkeep.conflicts

    def count_states(self, measures: "Mapping[str, IngestMeasures]") -> dict[str, StateCounts]:
        """Return the number of markets in each state, by exchange: those that are read here, and those on the bus."""
        result = {name: StateCounts() for name in self.universe.exchanges}
        served = self.bars.count_states(() if self.ingest is None else self.ingest.markets)
        for name, counts in result.items():
            read = [measures[name].states] if name in measures else []
            counts.add_counts([*read, *([served[name]] if name in served else [])])
        return result

    def _summarize_exchanges(self, measures: "Mapping[str, IngestMeasures]") -> dict[str, dict[str, Any]]:
        """Return the number of markets in each state, and whether all is well, by exchange."""
        problems = set() if self.ingest is None else set(self.ingest.problems)
        problems |= {name for name, one in measures.items() if not one.is_rest_available}
        return {
            name: {
                "status": _status(not counts.unhealthy and name not in problems),
                **self._describe_origin(name),
                "symbols": counts.states.total(),
                "states": dict(sorted(counts.states.items())),
                "reasons": dict(sorted(counts.reasons.items())),
            }
            for name, counts in self.count_states(measures).items()
        }

    def _report_plugin(self, status: PluginStatus) -> dict[str, Any]:
        facts: dict[str, Any] = {"status": "ok" if status.ok else "broken", "error": status.error}
        facts |= self.describe_hooks(status.name)
        blocked = self.watchdog.describe(status.name)
        return facts if blocked is None else {**facts, "blocked": blocked}

    async def report_readiness(self) -> Mapping[str, str | None]:
        """Return the requirements for serving, each with its problem or None.

        A reachable exchange is not a requirement.
        """
        bus = self.bus.describe()
        if not self._was_loaded:  # markets that are added later do not make a running process unready
            markets = self.universe.markets if "serve" in self.config.roles else ()
            self._was_loaded = self.is_reading and all(self.bars.is_loaded(key, MINUTE, 1) for key in markets)
        return {
            "store": await self._store_problem(),
            "bus": None if bus["connected"] else str(bus.get("trouble", "is not connected")),
            "bars": None if self._was_loaded else "are being loaded",
        }

    async def _store_problem(self) -> str | None:
        """Return why the store is not usable at this moment, or None."""
        if not self.is_reading:
            return self.upkeep.problem or "is being opened"
        writer = self.writer.describe()
        if writer["state"] != "ok":
            return f"{writer['state']}: {writer['lastError']}"
        try:
            async with asyncio.timeout(_READY_S):
                await self.history.complete_from(next(iter(self.universe.markets), _ANY_MARKET))
        except TimeoutError:
            return f"did not answer within {_READY_S} s"
        except (StoreUnavailable, StoreRejected) as error:
            return str(error)
        return None

    async def _report_exchanges(self, pace: Pace) -> dict[str, dict[str, Any]]:
        """Return the state of each feed, with all details for feeds that this process reads."""
        feeds = {key: facts async for key, facts in pace.spread(self.bars.describe_feeds(), _FEED_US)}
        if self.ingest is not None:
            feeds |= {key: facts async for key, facts in pace.spread(self.ingest.describe_symbols(), _MARKET_US)}
        for market, problem in self.bus.unpublished_markets().items():
            if market in feeds:  # read here, but other processes receive nothing
                feeds[market] |= {"state": "stale", "reason": "not_published", "trouble": problem}
        described = {} if self.ingest is None else self.ingest.describe()
        exchanges: dict[str, dict[str, Any]] = {
            name: {**self._describe_origin(name), **described.get(name, {}), "symbols": {}}
            for name in self.universe.exchanges
        }
        for key, facts in feeds.items():
            if key in self.universe:  # it may have been removed meanwhile
                exchanges[key.exchange]["symbols"][str(key.symbol)] = facts
        return exchanges

    def _describe_origin(self, exchange: str) -> dict[str, Any]:
        return {"simulated": True} if exchange in self.universe.simulated else {}


def make_reports(
    health: Health,
    hub: Hub,
    process: Mapping[str, str],
    *,
    describe_processes: Callable[[], Mapping[str, Any]],
    is_stopping: Callable[[], bool],
) -> HealthReports:
    """Return the sources of all answers about health. `process` has the process's name, if it shares its port."""

    async def summarize() -> Mapping[str, Any]:
        return {**await health.summarize(), **process}

    async def report() -> Mapping[str, Any]:
        return {**await health.report(), **process, **describe_processes()}

    async def count_clients() -> Mapping[str, Any]:
        return {**await health.count_clients(hub), **process}

    return HealthReports(
        summarize=summarize,
        report=report,
        check_readiness=health.report_readiness,
        count_clients=count_clients,
        is_stopping=is_stopping,
    )


def _status(is_well: bool) -> str:
    return "pass" if is_well else "warn"


def is_healthy(exchange: Mapping[str, Any]) -> bool:
    """Return whether an exchange's part of `/health` contains no problems."""
    problem = exchange.get("historyTrouble") or exchange.get("choice", {}).get("trouble")
    return not problem and all(map(_is_ready, exchange["symbols"].values()))


def _is_ready(symbol: Mapping[str, Any]) -> bool:
    if symbol.get("reason") in NOT_TRADED:  # the exchange's decision, or a mistake in the settings that is named
        return True
    beginning = symbol.get("beginning")
    is_known = beginning is None or beginning["reason"] != "unconfirmed"
    return symbol["state"] in HEALTHY_STATES and is_known and not symbol.get("trouble")
