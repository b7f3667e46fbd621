"""Which markets one lease covers, and how many leases one process should hold."""

from zlib import crc32

from candled.model import MarketKey


def shard_of(market: MarketKey, shards: int) -> int:
    """The shard of a market, 0 to `shards` - 1: the same on every machine, and for ever."""
    return crc32(str(market).encode()) % shards


def fair_share(shards: int, processes: int) -> int:
    """How many shards one of `processes` leads at most, so that none hoards what others could do."""
    return -(-shards // max(1, processes))
