"""Tune the cycle collector so that full collections don't block the loop.

A full collection visits every container while the loop waits: with a million bars in memory and 10,000 clients, that
takes 0.2 s and more. Bars, connections and clients are in no reference cycle; they are freed with their last reference.
So the survivors of a full collection are frozen (`gc.freeze`), and the next one visits only newer objects.

A frozen object that later becomes part of a garbage cycle, such as a replaced connection to an exchange, stays in
memory until everything is unfrozen and visited again. That happens when the number of frozen objects has doubled.
"""

import gc
import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

# The first threshold is the number of new containers before a collection. A container takes up to 1 µs, and 2 if it is
# garbage. A connection has 60, so hundreds that come together are visited in several collections of a few milliseconds
# each. The second is the number of collections before one that also visits the survivors of the last ones. The third
# keeps collections of all containers rare. If the survivors are frozen, a full collection visits only newer containers,
# so it may come more often: after about 50,000 new ones.
_THRESHOLDS = (1_000, 4, 3_000)
_THIRD_IF_FROZEN = 10
_SLACK = 500_000  # frozen containers on top of the doubling, before a second visit can be worth its time
_EVERY = 256  # full collections between two counts of the frozen objects, because counting takes milliseconds


class GcTuner:
    """Tunes the process's collector between `start` and `stop`.

    If Tornado keeps the handlers of connections, nothing is frozen: only the collector frees their streams.
    """

    def __init__(self, *, keeps_handlers: bool = False) -> None:
        self._sets_aside = not keeps_handlers
        self._before = gc.get_threshold()
        self._most = 0
        self._count = 0

    def start(self) -> None:
        """Collect everything once, then freeze it and raise the thresholds."""
        gc.collect()
        gc.set_threshold(*_THRESHOLDS)
        if self._sets_aside:
            gc.set_threshold(*_THRESHOLDS[:2], _THIRD_IF_FROZEN)
            gc.freeze()
            self._most = 2 * gc.get_freeze_count() + _SLACK
            gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        """Restore the former thresholds and unfreeze everything."""
        gc.set_threshold(*self._before)
        if self._on_collection in gc.callbacks:
            gc.callbacks.remove(self._on_collection)
            gc.unfreeze()

    def _on_collection(self, phase: str, facts: Mapping[str, int]) -> None:
        if phase != "stop" or facts["generation"] != 2:
            return
        self._count += 1
        if self._count % _EVERY == 0 and gc.get_freeze_count() > self._most:
            self._most = 2 * self._most  # doubled even if little is freed, so that this stays rare
            gc.unfreeze()  # the next full collection visits everything
        else:
            gc.freeze()
