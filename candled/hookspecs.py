"""What a plugin may implement. Entry-point group: `candled`."""

from collections.abc import Sequence

import pluggy

from candled.exchange import Exchange

hookspec = pluggy.HookspecMarker("candled")
hookimpl = pluggy.HookimplMarker("candled")


@hookspec
def candled_exchanges() -> Sequence[type[Exchange]]:  # type: ignore[empty-body]
    """Offer exchanges, each a class with a `name` of its own. Called once at start."""
