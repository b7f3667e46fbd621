"""What clients notice of a database that is away: the way of a candle, as in `bench.latency`, with and without it.

    python -m bench.outage [--markets 200] [--pushes 20] [--rounds 3]

A PostgreSQL server of its own is killed and started in turns; pushes are timed meanwhile, all of the same kind taken
together, so that the neighbours of a shared machine disturb both alike.
"""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from bench.latency import Exchange, inst_id, now_ms, percentiles, subscribed, timed, wait_for_candles
from bench.process import Daemon, scratch, symbols
from tests.servers import Database, PostgresServer, own_postgres


async def measure(server: PostgresServer, url: str, options: argparse.Namespace, directory: Path) -> None:
    """Measure and print."""
    markets, pushes = options.markets, options.pushes
    exchange, names = Exchange(), symbols(markets)
    ids = [inst_id(name) for name in names]
    ws_url, rest_url = f"ws://127.0.0.1:{exchange.port}/v2/ws/public", f"http://127.0.0.1:{exchange.port}"
    exchanges = {"bitget": {"symbols": names, "ws_url": ws_url, "rest_url": rest_url}}
    store = {"url": url, "journal": str(directory / "journal")}
    ingest = {"backfill": "1h", "confirm": False}
    with Daemon(directory, exchanges, now_ms(), ingest=ingest, store=store) as daemon:
        await wait_for_candles(daemon, exchange, names)
        socket = await subscribed(daemon.port, names)
        await asyncio.sleep(options.settle)
        there: list[float] = []
        away: list[float] = []
        for number in range(options.rounds):
            there += await timed(socket, exchange, ids, pushes, 1000 + 2 * number * pushes * markets)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(options.away)
            away += await timed(socket, exchange, ids, pushes, 1000 + (2 * number + 1) * pushes * markets)
            state = (await asyncio.to_thread(daemon.get, "/health?verbose"))["store"]["state"]
            if state != "unavailable":
                raise RuntimeError(f"the store was {state} after {options.away:g} s without a server")
            server.start()  # not in a thread, with which it would end
            while (await asyncio.to_thread(daemon.get, "/health?verbose"))["store"]["state"] != "ok":
                await asyncio.sleep(0.5)
            await asyncio.sleep(options.settle)
    print(f"{markets} markets together, the database there: {percentiles(there)}")
    print(f"  the database away: {percentiles(away)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with a server of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.outage", description=__doc__)
    parser.add_argument("--markets", type=int, default=200)
    parser.add_argument("--pushes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--away", type=float, default=8.0, help="seconds; the journal is used after about 6")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds")
    options = parser.parse_args(arguments)
    server = own_postgres()
    try:
        with Database(server.dsn) as database, scratch() as directory:
            asyncio.run(measure(server, database.url(), options, directory))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
