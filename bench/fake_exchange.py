"""The fake Bitget of the tests in a process of its own, one push a second for every market.

python -m bench.fake_exchange PORT MARKETS START_MS
"""

import asyncio
import signal
import sys

from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget, synthetic_markets


async def main(port: int, count: int, start_ms: int) -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    fake = FakeBitget(ScaledClock(start_ms=start_ms), synthetic_markets(count), push_interval_s=1.0)
    await fake.start(port)
    await stopped.wait()
    await fake.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
