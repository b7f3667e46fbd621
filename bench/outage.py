"""What clients notice of a database that is away: the way of a candle, as in `bench.latency`, with and without it.

    python -m bench.outage [--markets 200] [--pushes 20] [--rounds 3]

A PostgreSQL server of its own is killed and started in turns; pushes are timed meanwhile, all of the same kind taken
together, so that the neighbours of a shared machine disturb both alike.
"""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from bench.latency import Exchange, heard, inst_id, now_ms, percentiles, subscribed, timed
from bench.process import Daemon, scratch, symbols
from tests.servers import Database, PostgresServer, own_postgres

SETTLE_S = 5.0
AWAY_S = 8.0  # until candles have gone to the journal for the first time


async def measure(server: PostgresServer, url: str, markets: int, pushes: int, rounds: int, directory: Path) -> None:
    """Measure and print."""
    exchange, names = Exchange(), symbols(markets)
    ids = [inst_id(name) for name in names]
    ws_url, rest_url = f"ws://127.0.0.1:{exchange.port}/v2/ws/public", f"http://127.0.0.1:{exchange.port}"
    exchanges = {"bitget": {"symbols": names, "ws_url": ws_url, "rest_url": rest_url}}
    store = {"url": url, "journal": str(directory / "journal")}
    ingest = {"backfill": "1h", "confirm": False}
    with Daemon(directory, exchanges, now_ms(), ingest=ingest, store=store) as daemon:
        await heard(daemon, exchange, names)
        socket = await subscribed(daemon.port, names)
        await asyncio.sleep(SETTLE_S)
        there: list[float] = []
        away: list[float] = []
        for number in range(rounds):
            there += await timed(socket, exchange, ids, pushes, 1000 + 2 * number * pushes * markets)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(AWAY_S)
            away += await timed(socket, exchange, ids, pushes, 1000 + (2 * number + 1) * pushes * markets)
            state = (await asyncio.to_thread(daemon.get, "/health"))["store"]["state"]
            if state != "away":
                raise RuntimeError(f"the store was {state} after {AWAY_S:.0f} s without a server")
            server.start()  # not in a thread, with which it would end
            while (await asyncio.to_thread(daemon.get, "/health"))["store"]["state"] != "ok":
                await asyncio.sleep(0.5)
            await asyncio.sleep(SETTLE_S)
    print(f"{markets} markets at once, the database there: {percentiles(there)}")
    print(f"  the database away: {percentiles(away)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with a server of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.outage", description=__doc__)
    parser.add_argument("--markets", type=int, default=200)
    parser.add_argument("--pushes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    server = own_postgres()
    try:
        with Database(server.dsn) as database, scratch() as directory:
            work = measure(server, database.url(), options.markets, options.pushes, options.rounds, directory)
            asyncio.run(work)
    finally:
        server.remove()


if __name__ == "__main__":
    main()
