"""The daemon on a market that runs faster than the wall: minutes pass in seconds, but not what waits for machines.

python -m tests.chaos.daemon FILE SPEED START_MS STARTED [REDIS_SPEED]
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from candled import app, config
from candled.aggregate import resume
from candled.bus import factory
from candled.bus.factory import RedisParts
from candled.plugins import discover
from tests.clocks import ScaledClock


class RedisClock(ScaledClock):
    """The market's time of day, and by default the seconds of the machine.

    Everything about Redis runs on it: Redis counts a lease in real seconds, and what is promised of links is real too.
    """

    def __init__(self, market: ScaledClock, speed: float) -> None:
        super().__init__(speed)
        self._market = market

    def now_ms(self) -> int:
        return self._market.now_ms()


def main(path: Path, speed: float, start_ms: float, started: float, redis_speed: float = 1.0) -> int:
    """Run until SIGTERM; it was `start_ms` on the market when this machine's monotonic clock was at `started`."""
    plugins = discover()
    market = ScaledClock(speed, int(start_ms + (time.monotonic() - started) * speed * 1000))

    def make(url: str, clock: Any, *rest: Any, **more: Any) -> RedisParts:
        return RedisParts(url, RedisClock(clock, redis_speed), *rest, **more)

    factory.RedisParts = make
    resume._LOGGED_WITHIN_S *= speed  # the store is no faster than it is
    return app.run(lambda: config.load(path, os.environ, plugins), plugins, market)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(float, sys.argv[2:])))
