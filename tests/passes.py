"""Work that leaves the loop to others now and then, done in a test without waiting."""

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_through(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work that waits for nothing but its next pass of the loop."""
    while True:
        try:
            waits_for = work.send(None)
        except StopIteration as end:
            return end.value
        assert waits_for is None, "it waits for more than a pass of the loop"
