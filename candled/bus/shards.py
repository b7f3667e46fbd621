"""The assignment of markets to shards, and of shards to processes."""

from zlib import crc32

from candled.model import MarketKey


def shard_of(market: MarketKey, shards: int) -> int:
    """Return the shard of a market, 0 to `shards` - 1. It is the same on every machine and never changes."""
    return crc32(str(market).encode()) % shards


def shard_of_exchange(exchange: str, shards: int) -> int:
    """Return the shard whose leader chooses the markets of an exchange. It is the same on every machine."""
    return crc32(exchange.encode()) % shards


def fair_share(shards: int, processes: int) -> int:
    """Return the maximum number of shards for each of `processes`, so that they share the work equally."""
    return -(-shards // max(1, processes))
