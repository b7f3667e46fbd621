"""The parameters that all parts of the bus over one Redis share."""

from dataclasses import dataclass

from candled.bus.codec import Names
from candled.bus.failures import FailureLog
from candled.exchange import Clock

from .connections import Servers


@dataclass(frozen=True, slots=True)
class RedisContext:
    """One process and its Redis."""

    servers: Servers
    names: Names
    clock: Clock
    failures: FailureLog
    #: The number of shards of the markets.
    shards: int
    #: The name of this process. It must differ between starts.
    process: str
