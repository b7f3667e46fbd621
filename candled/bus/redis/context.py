"""The parameters that all parts of the bus over one Redis share."""

from dataclasses import dataclass

from candled.bus.codec import Names
from candled.bus.failures import FailureLog
from candled.exchange import Clock

from .connections import Servers


@dataclass(frozen=True, slots=True)
class RedisContext:
    """One process and its Redis."""

    #: The servers of the Redis, and the clients for them.
    servers: Servers
    #: The names of channels and keys.
    names: Names
    #: The daemon's clock.
    clock: Clock
    #: The record of failures, by kind of work.
    failures: FailureLog
    #: The number of shards of the markets.
    shards: int
    #: The name of this process. It must differ between starts.
    process: str
