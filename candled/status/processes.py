"""The processes that share the bus, for the status page and `/health?verbose`."""

import platform
from typing import TYPE_CHECKING, Any

import msgspec

from candled import __version__
from candled.bus.processes import ProcessFacts
from candled.model import iso_ms

if TYPE_CHECKING:
    from candled.bus.redis.processes import ProcessRegistry
    from candled.parts import Parts


class ProcessList:
    """This process, and those that `registry` knows. Without one, it is alone.

    `name` is the name of this process among those that share its port; None if there are none.
    """

    def __init__(self, parts: "Parts", name: str | None, registry: "ProcessRegistry | None") -> None:
        self._parts = parts
        self._registry = registry
        self._own = ProcessFacts(
            process="" if registry is None else registry.process,
            name=name or "",
            host=platform.node(),
            roles=tuple(parts.config.roles),
            version=__version__,
            since=iso_ms(parts.clock.now_ms()),
            clients=0,
            rooms=0,
        )

    def describe_own(self) -> ProcessFacts:
        """Return this process as it is now."""
        return msgspec.structs.replace(
            self._own,
            clients=self._parts.server.connection_count,
            rooms=self._parts.hub.room_count,
            stopping=self._parts.server.reports.is_stopping(),
        )

    def describe(self, *, shows_details: bool) -> dict[str, list[dict[str, Any]]]:
        """Return all processes as JSON has them, those that ingest first.

        Without details, the names of machines are left out.
        """
        others = () if self._registry is None else self._registry.others
        every = sorted([self.describe_own(), *others], key=lambda one: (one.roles, one.host, one.name, one.process))
        found: list[dict[str, Any]] = [msgspec.to_builtins(one) for one in every]
        for one in found:
            if not shows_details:
                del one["host"]
        return {"processes": found}
