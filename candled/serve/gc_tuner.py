"""Keeps the cycle collector from stopping the daemon: what it has found alive once it does not look at again.

A full collection looks at every container there is, and the loop stands still meanwhile: with a million bars in memory
and ten thousand clients for a fifth of a second and more. Bars, links and clients are in no reference cycle; they go
when the last reference goes. So what survives a full collection is set aside (`gc.freeze`), and the next one sees only
what came since. What is set aside and ends in a cycle all the same, such as a connection to an exchange that is
replaced, stays in memory until everything is looked at again: when as much has been set aside once more.
"""

import gc
import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

# Containers made and not yet freed before the youngest are looked at. A handshake makes a hundred of them for a moment.
_THRESHOLDS = (50_000, 20, 100)
_SLACK = 500_000  # containers set aside before a second look at all of them can be worth its time
_EVERY = 16  # full collections between two counts of what was set aside, which takes milliseconds itself


class GcTuner:
    """The process's own collector, tuned from `start` to `stop`.

    With handlers that Tornado keeps nothing is set aside: only the collector frees their streams.
    """

    def __init__(self, *, keeps_handlers: bool = False) -> None:
        self._sets_aside = not keeps_handlers
        self._before = gc.get_threshold()
        self._most = 0
        self._count = 0

    def start(self) -> None:
        """Look at everything once, then at little at a time."""
        gc.collect()
        gc.set_threshold(*_THRESHOLDS)
        if self._sets_aside:
            gc.freeze()
            self._most = 2 * gc.get_freeze_count() + _SLACK
            gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        """As it was before."""
        gc.set_threshold(*self._before)
        if self._on_collection in gc.callbacks:
            gc.callbacks.remove(self._on_collection)
            gc.unfreeze()

    def _on_collection(self, phase: str, facts: Mapping[str, int]) -> None:
        if phase != "stop" or facts["generation"] != 2:
            return
        self._count += 1
        if self._count % _EVERY == 0 and gc.get_freeze_count() > self._most:
            self._most = 2 * self._most  # whatever the second look finds: not each time from now on
            gc.unfreeze()  # seen by the next full collection
        else:
            gc.freeze()
