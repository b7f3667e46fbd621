"""A process that leads when it may and publishes: `python -m tests.bus.leader URL PREFIX LEASE_S`."""

import asyncio
import sys

from candled.clock import SystemClock
from tests.bus.rig import process

EVERY_S = 0.02


async def lead(url: str, prefix: str, lease_s: float) -> None:
    """Publish until killed; every state of the lease is a line."""
    async with process(url, prefix, ingests=True, lease_s=lease_s, clock=SystemClock()) as one:
        number, state = 0, None
        while True:
            if one.state is not state:
                state = one.state
                print(state.value, one.leases.all[0].epoch, flush=True)
            if one.leases.all[0].must_ingest:
                number += 1
                one.publish(number=number // 50)
            await asyncio.sleep(EVERY_S)


if __name__ == "__main__":
    asyncio.run(lead(sys.argv[1], sys.argv[2], float(sys.argv[3])))
