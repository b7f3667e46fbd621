"""The work of rooms and clients without a socket: read a request, join, make `initial` and `update`, keep a client.

    python -m bench.rooms [--runs 7]

CPU time of this process. `initial` warm: the running bar has changed since the last one, so that the message is
new; cold: no bar's text is kept. It is compared with encoding the same bars again, by `json` and by msgspec, both
from objects that are ready, and both with binary floats, which are not exact.
"""

import argparse
import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from bench.process import spread
from candled.model import MINUTE, BarChange, Candle, iso_ms
from candled.protocol.frames import Frame
from candled.protocol.messages import PLAIN
from candled.rooms.encoded_bars import fields_printer
from candled.rooms.recipients import RecipientSlot
from candled.serve.client import ClientSession
from tests.rooms.stage import BTC, ETH, PROTOCOL, Stage, Stored, topic
from tests.rows import minute

BARS = (100, 1000)
_HISTORY = 1500
_REQUEST = '{"type":"subscribe","symbol":"BTC/USDT","interval":"1m","initialBars":100}'
_EXTENDED = (
    '{"type":"subscribe","id":7,"symbol":"BTC/USDT","interval":"1m","initialBars":100,"fields":["final","seq"],'
    '"corrections":true,"status":true}'
)


class Nowhere:
    """A connection that takes everything, and whose turn has always come."""

    client: ClientSession
    recipient_slots: tuple[RecipientSlot, ...] = ()
    grant = None

    def send_frame(self, frame: bytes) -> int:
        return len(frame)

    take_frame = send_frame

    def send_reply(self, frame: Frame) -> None:
        pass

    def charge_work(self, cost: float) -> float:
        return 0.0

    def charge_refusal(self) -> None:
        pass

    def request_snapshot(self, topic: Any) -> None:
        self.client.make_initial(topic)

    def cancel_topic(self, topic: Any) -> None:
        pass

    def cork(self, many: bool) -> None:
        pass

    def disconnect(self, code: int, reason: str) -> None:
        pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.rooms", description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--times", type=int, default=2000)
    options = parser.parse_args(arguments)
    asyncio.run(measure(options.runs, options.times))


async def measure(runs: int, times: int) -> None:
    """All figures."""
    one = await stage()

    def us(act: Callable[[], object], count: int = times) -> list[float]:
        return [cpu_us(act, max(1, count)) for _ in range(runs)]

    print("microseconds of CPU, minimum / median / maximum")
    connection = connect(one)
    others = [connect(one) for _ in range(10)]  # in an empty room every subscription would begin it
    for other in others:
        other.client.on_client_message(_REQUEST)
    print(f"reading a subscribe message {spread(us(lambda: PROTOCOL.decode_request(_REQUEST)), '.2f')}, ", end="")
    print(f"with every extension {spread(us(lambda: PROTOCOL.decode_request(_EXTENDED)), '.2f')}")
    joining = us(lambda: connection.client.on_client_message(_REQUEST))
    print(f"reading it, joining and making its initial {spread(joining, '.1f')}")
    for count in BARS:
        measure_initial(one, count, us, times)
    measure_updates(one, us)
    print(f"bytes per client in one room, without its socket: {client_bytes(one, 500):,.0f}")


def measure_initial(one: Stage, count: int, us: Callable[..., list[float]], times: int) -> None:
    """An `initial` of so many bars: copied, new, and from nothing."""
    connection = Nowhere()
    member = one.hub.join_room(Silent(), connection, topic("1m"), count, PLAIN)
    volume = iter(range(2, 10**9))

    def change() -> None:
        bar = running(next(volume))
        one.bars._markets[BTC].aggregator.apply_minute(bar)
        one.hub.on_bars_changed(BTC, [BarChange(MINUTE, bar)])

    def warm() -> None:
        change()
        one.hub.render_snapshot(member)

    def cold() -> None:
        one.hub._renderer._texts.get_form(topic("1m"), fields_printer(0), False).drop_from(0, -1)
        warm()

    one.hub.render_snapshot(member)
    changing = us(change)
    kept, new = us(lambda: one.hub.render_snapshot(member)), us(warm)
    new = [max(0.0, with_it - without) for with_it, without in zip(new, changing, strict=True)]
    cold_us = us(cold, times // 100)
    bars = one.bars.newest_bars(BTC, MINUTE, count)
    rows = [as_floats(bar) for bar in bars]
    ready = [Bar(**row) for row in rows]
    by_json = us(lambda: json.dumps({"type": "initial", "bars": rows}), times // 20)
    by_msgspec = us(lambda: msgspec.json.encode({"type": "initial", "bars": ready}), times // 4)
    print(
        f"initial of {count} bars: warm {spread(new, '.1f')}, unchanged {spread(kept, '.1f')}, "
        f"cold {spread(cold_us, ',.0f')}"
    )
    print(f"  json.dumps {spread(by_json, ',.0f')}, msgspec {spread(by_msgspec, ',.0f')}")
    one.hub.leave_room(member)


def measure_updates(one: Stage, us: Callable[..., list[float]]) -> None:
    """A changed bar, to one member whose second is over, to one whose second is not, and to an empty room."""
    numbers = iter(range(2, 10**9))

    def sent() -> None:
        one.clock._now += 2.0
        queue()

    def queue() -> None:
        one.hub.on_bars_changed(BTC, [BarChange(MINUTE, running(next(numbers)))])

    making = us(lambda: BarChange(MINUTE, running(next(numbers))))
    at_once = [whole - part for whole, part in zip(us(sent), making, strict=True)]
    print(f"a changed bar, sent to one room of 11: {spread(at_once, '.1f')}, ", end="")
    later = [whole - part for whole, part in zip(us(queue), making, strict=True)]
    empty = us(lambda: one.hub.on_bars_changed(ETH, [BarChange(MINUTE, running(2))]))
    empty = [whole - part for whole, part in zip(empty, making, strict=True)]
    print(f"queued {spread(later, '.1f')}, in a room without members {spread(empty, '.2f')}")


# ---------------------------------------------------------------- parts


class Bar(msgspec.Struct):
    """A bar of binary floats."""

    time: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    quoteVolume: float


class Silent:
    """A member that is asked for nothing."""

    def request_initial(self, membership: Any) -> None:
        pass


async def stage() -> Stage:
    """A day of minutes in memory, with the digits of a real market."""
    minutes = [running(number)._replace(open_ms=minute(number).open_ms, final=True) for number in range(_HISTORY)]
    one = await Stage(Stored(minutes)).start()
    await one.bars.load_bars(BTC, MINUTE, max(BARS), 0)
    one.push(running(1))
    return one


def running(volume: int) -> Candle:
    """A version of the running minute."""
    price = Decimal("67234.51") + volume % 100
    bar = minute(_HISTORY, as_of=volume % 60_000)
    return bar._replace(
        open=price, high=price + 1, low=price - 1, close=price, volume=Decimal(volume) + Decimal("0.1234"),
        quote_volume=Decimal("9772345.67") + volume,
    )  # fmt: skip


def as_floats(bar: Candle) -> dict[str, Any]:
    return {
        "time": iso_ms(bar.open_ms), "open": float(bar.open), "high": float(bar.high), "low": float(bar.low),
        "close": float(bar.close), "volume": float(bar.volume), "quoteVolume": float(bar.quote_volume or 0),
    }  # fmt: skip


def connect(one: Stage) -> Nowhere:
    connection = Nowhere()
    connection.client = ClientSession(connection, one.session_context())
    return connection


def client_bytes(one: Stage, count: int) -> float:
    """Measure the memory of a subscribed client without its socket."""
    connections, context = [Nowhere() for _ in range(count)], one.session_context()
    gc.collect()
    tracemalloc.start()
    for connection in connections:
        connection.client = ClientSession(connection, context)
        connection.client.on_client_message(_REQUEST)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / count


def cpu_us(act: Callable[[], object], count: int) -> float:
    """Microseconds of CPU for one of `count` calls."""
    began = time.process_time_ns()
    for _ in range(count):
        act()
    return (time.process_time_ns() - began) / count / 1000


if __name__ == "__main__":
    main()
