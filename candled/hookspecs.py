"""The hooks that a plugin can implement. The entry-point group is `candled`."""

from collections.abc import Sequence

import pluggy

from candled.exchange import Exchange

hookspec = pluggy.HookspecMarker("candled")
hookimpl = pluggy.HookimplMarker("candled")


@hookspec
def candled_exchanges() -> Sequence[type[Exchange]]:  # type: ignore[empty-body]
    """Return exchange classes, each with a unique `name`. Called once at startup."""
