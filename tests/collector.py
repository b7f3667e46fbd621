"""The cycle collector of a test run. It looks at what tests make, and not at the run, which would take half a second.

A daemon in the test's own process collects at its start, and so does whatever measures memory or pauses.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (5_000, 10, 10)

_unfreeze = gc.unfreeze
_is_thawed = True


def install() -> None:
    """Collect more rarely, and notice from now on that everything was unfrozen."""
    gc.set_threshold(*_THRESHOLDS)
    gc.unfreeze = _on_unfreeze


@contextmanager
def pause() -> Iterator[None]:
    """Collect nothing meanwhile: reading the tests makes a million objects that stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def set_aside() -> None:
    """Freeze everything there is but young garbage, unless it is frozen already."""
    global _is_thawed
    if _is_thawed:
        gc.collect(1)
        gc.freeze()
        _is_thawed = False


def _on_unfreeze() -> None:
    global _is_thawed
    _is_thawed = True
    _unfreeze()
