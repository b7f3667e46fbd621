"""A thread that notices plugins which block the event loop, and names them."""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

_CHECK_S = 0.2
_BLOCKED_S = 0.5
_OWN = "candled"
# they call a plugin, or work for it
_HELPERS = ("candled.exchange", "candled.frames", "candled.market_table", "candled.polling", "candled.trade_bars")


@dataclass(slots=True)
class Blockage:
    """A summary of the calls in which a plugin has blocked the event loop."""

    #: The number of these calls.
    count: int = 0
    #: The longest one, in seconds.
    longest_s: float = 0.0
    #: The last call that blocked, and the line that it was in.
    last_call: str = ""


@dataclass(frozen=True, slots=True)
class _Call:
    #: The plugin's name.
    plugin: str
    #: The frame of the function that candled called.
    frame: FrameType
    #: The function, and the line that it is in.
    text: str


class LoopWatchdog:
    """Watches the loop of the thread that calls `start`. `plugins` are the plugins' names by package.

    While a callback runs for more than half a second, the thread looks up which plugin's code is running. It names the
    plugin in the log while the loop is still blocked, and logs the duration afterwards. Code of candled and of
    libraries that a plugin did not call is not reported.
    """

    def __init__(self, plugins: Mapping[str, str], blocked_s: float = _BLOCKED_S) -> None:
        self._plugins = plugins
        self._blocked_s = blocked_s
        self._stopped = threading.Event()
        self._beat_at = 0.0
        self._watched = 0
        self._timer: asyncio.TimerHandle | None = None
        #: By the names of plugins.
        self.blockages: dict[str, Blockage] = {}

    def start(self) -> None:
        """Watch the running loop from now on."""
        self._watched = threading.get_ident()
        self._beat()
        threading.Thread(target=self._watch_loop, name="loop watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def describe(self, plugin: str) -> dict[str, Any] | None:
        """Return a plugin's part of `/health`; None if it has not blocked the loop."""
        found = self.blockages.get(plugin)
        if found is None:
            return None
        return {"count": found.count, "longestSeconds": round(found.longest_s, 1), "lastCall": found.last_call}

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(_CHECK_S, self._beat)

    def _watch_loop(self) -> None:
        while not self._stopped.wait(_CHECK_S):
            blocked_at = self._beat_at
            if time.monotonic() - blocked_at < self._blocked_s + _CHECK_S:
                continue
            first = self._find_plugin()
            # the same call twice: on a busy machine a short one may be found once
            if first is None or self._stopped.wait(_CHECK_S) or self._beat_at != blocked_at:
                continue
            found = self._find_plugin()
            if found is not None and found.frame is first.frame:
                self._follow_blockage(blocked_at, found)
            del first, found  # they keep the local variables of the plugin

    def _follow_blockage(self, blocked_at: float, found: "_Call") -> None:
        """Report a blockage, and its length when it ends."""
        plugin, call = found.plugin, found.text
        blockage = self.blockages.setdefault(plugin, Blockage())
        blockage.count += 1
        blockage.last_call = call
        logger.warning(
            "plugin %s blocks the event loop, so that everything waits: %s; it must not wait or compute for long",
            plugin,
            call,
        )
        while self._beat_at == blocked_at and not self._stopped.wait(_CHECK_S):
            blockage.longest_s = max(blockage.longest_s, time.monotonic() - blocked_at)
        blockage.longest_s = max(blockage.longest_s, self._beat_at - blocked_at)
        logger.warning("plugin %s blocked the event loop for %.1f s: %s", plugin, self._beat_at - blocked_at, call)

    def _find_plugin(self) -> "_Call | None":
        """Return the call of a plugin that the watched thread runs; None if it runs other code."""
        frame = sys._current_frames().get(self._watched)
        inner: FrameType | None = None
        outer: FrameType | None = None
        plugin = ""
        while frame is not None:
            module = str(frame.f_globals.get("__name__", ""))
            name = self._plugin_of(module)
            if name is not None:
                plugin, inner, outer = name, inner or frame, frame
            elif module.partition(".")[0] == _OWN and module not in _HELPERS and inner is None:
                return None
            frame = frame.f_back
        if inner is None or outer is None:
            return None
        return _Call(plugin, outer, f"{outer.f_code.co_qualname} ({inner.f_globals.get('__name__')}:{inner.f_lineno})")

    def _plugin_of(self, module: str) -> str | None:
        while module:
            if module in self._plugins:
                return self._plugins[module]
            module = module.rpartition(".")[0]
        return None
