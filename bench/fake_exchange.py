"""The fake Bitget of the tests in a process of its own, one push a second for every market.

python -m bench.fake_exchange PORT MARKETS START_MS [DELAY_S]

MARKETS is their number, or groups with a letter each such as A=300,B=700: A000/USDT, A001/USDT and on. DELAY_S is the
time that REST takes for each answer.
"""

import asyncio
import signal
import sys

from candled.model import Symbol
from tests.clocks import ScaledClock
from tests.fakes.bitget import FakeBitget, FakeMarket, synthetic_markets
from tests.fakes.tapes import Synthetic


async def main(port: int, markets: list[FakeMarket], start_ms: int, delay_s: float) -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    fake = FakeBitget(ScaledClock(start_ms=start_ms), markets, push_interval_s=1.0)
    fake.rest_delay_s = delay_s
    await fake.start(port)
    await stopped.wait()
    await fake.close()


def markets_of(text: str) -> list[FakeMarket]:
    """Return the markets of the argument."""
    if "=" not in text:
        return synthetic_markets(int(text))
    groups = (group.split("=") for group in text.split(","))
    names = [f"{letter}{number:03}" for letter, count in groups for number in range(int(count))]
    return [FakeMarket(symbol=Symbol(name, "USDT"), tape=Synthetic(number)) for number, name in enumerate(names)]


if __name__ == "__main__":
    delay_s = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    asyncio.run(main(int(sys.argv[1]), markets_of(sys.argv[2]), int(sys.argv[3]), delay_s))
