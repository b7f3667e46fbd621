"""Connections to Redis: finds the server for a key or channel and runs commands and scripts there, without retries.

redis-py's own retries and reconnects are off, because they hide failures that a bus must know about. A failed client is
replaced, and the servers are looked up again. TCP keepalive is off too: redis-py mistakes its timeout for "no message
yet", reads again without end, and blocks the event loop. Loopback messages detect dead connections instead.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis import asyncio as aioredis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.maint_notifications import MaintNotificationsConfig

from candled.addresses import with_port
from candled.errors import ConfigError, Unavailable
from candled.tasks import TaskSet

from .address import RedisAddress
from .lua import Script

logger = logging.getLogger(__name__)

REDIS_ERRORS = (RedisError, OSError, TimeoutError)
_TIMEOUT_S = 2.0  # for connecting, and for each response
_PIPELINE_TIMEOUT_S = 3.0  # for all responses of a pipeline together
_SHARDED_SINCE = 7  # from this version of Redis on, a cluster can keep channels where their slots are
_CONNECTIONS = 8  # per caller; calls that arrive at the same moment share them
# Responses of a server that is no longer, or not yet, the right one.
_ELSEWHERE = (MovedError, AskError, TryAgainError, ClusterDownError, ReadOnlyError)


_SCRIPT = re.compile(r" script: [0-9a-f]{40}, on @user_script:\d+\.$")  # the location in one of our scripts


class Node(NamedTuple):
    """A server: host and port, or the path of its socket and 0."""

    host: str
    port: int

    def __str__(self) -> str:
        return with_port(self.host, self.port) if self.port else self.host


class Topology:
    """The assignment of keys and channels to servers."""

    def __init__(self, slots: Sequence[tuple[int, int, Node]], *, sharded: bool = False) -> None:
        self._slots = tuple(slots)
        self.sharded = sharded  # True if channels live where their slot is (Redis Cluster from version 7)

    def owner_of(self, name: str) -> Node:
        """Return the server of a key or channel.

        Raises:
            Unavailable: no server has it at this moment.
        """
        if len(self._slots) == 1:
            return self._slots[0][2]
        slot = key_slot(name.encode())
        for first, last, node in self._slots:
            if first <= slot <= last:
                return node
        raise Unavailable(f"no node of the cluster has the slot {slot}")

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All servers."""
        return tuple(dict.fromkeys(node for _, _, node in self._slots))


def check_files(address: RedisAddress) -> None:
    """Check that the TLS files can be used, so that an error in them is found before connecting.

    Raises:
        ConfigError: they cannot be used. The text names the file.
    """
    ca, certificate, key = (address.files.get(f"ssl_{name}") for name in ("ca_certs", "certfile", "keyfile"))
    if key and not certificate:
        raise ConfigError("bus.url: key: needs cert too")
    context = ssl.create_default_context()
    try:
        names, files = "ca", [ca]
        if ca:
            context.load_verify_locations(ca)
        names, files = ("cert, key", [certificate, key]) if key else ("cert", [certificate])
        if certificate:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        why = error.strerror or str(error)
        if isinstance(error, ssl.SSLError):
            why = "no certificate in it" if names == "ca" else f"not a certificate and its key ({error.reason})"
        raise ConfigError(f"bus.url: {names}: {', '.join(map(str, files))}: {why}") from error


class Servers:
    """The servers behind an address, and the clients for them."""

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self._topology: Topology | None = None
        self._known_nodes: tuple[Node, ...] = ()
        self._sentinels = address.hosts  # in the order in which they are asked
        self._topology_source: Node | None = None  # the node or sentinel that reported the current topology
        if address.kind in ("server", "socket"):
            node = Node(address.path, 0) if address.kind == "socket" else Node(*address.hosts[0])
            self._topology = Topology([(0, 16383, node)])

    @property
    def is_fixed(self) -> bool:
        """True if the address itself names the only server."""
        return self.address.kind in ("server", "socket")

    async def find_topology(self) -> Topology:
        """Return the current topology, asking for it if it is unknown.

        Raises:
            Unavailable: no server with this information can be reached.
        """
        if self._topology is None:
            query = self._query_sentinels if self.address.kind == "sentinel" else self._query_cluster
            self._topology = await query()
        return self._topology

    def suspect_topology(self, suspect: Node | None = None) -> None:
        """Forget the topology after a failure, so that it is looked up again. `suspect` is asked last."""
        if self.is_fixed:
            return
        self._topology = None
        if suspect in self._known_nodes:
            self._known_nodes = (*(node for node in self._known_nodes if node != suspect), suspect)

    def reject_topology(self) -> None:
        """Forget a topology that named a wrong server. The node that reported it is asked last for the next one."""
        if self._topology_source is not None:
            host = tuple(self._topology_source)
            self._sentinels = tuple(sorted(self._sentinels, key=lambda one: one == host))
        self.suspect_topology(self._topology_source)

    def make_client(self, node: Node) -> "aioredis.Redis":
        """Return a new client of one server, without retries."""
        address = self.address
        where: dict[str, Any] = {"host": node.host, "port": node.port} if node.port else {"unix_socket_path": node.host}
        return self._make_client(where, db=address.database, username=address.username, password=address.password)

    def _make_client(self, where: dict[str, Any], **more: Any) -> "aioredis.Redis":
        options = {**where, **more, **self.address.files}
        return aioredis.Redis(
            **options,
            ssl=self.address.tls,
            protocol=3,
            retry=Retry(NoBackoff(), 0, supported_errors=()),
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            socket_keepalive=False,
            health_check_interval=0,
            client_name="candled",
            driver_info=None,  # otherwise every connection sends a command that an account may not be allowed
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )

    async def _query_sentinels(self) -> Topology:
        address, problem = self.address, "no sentinel"
        for host, port in self._sentinels:
            sentinel = self._make_client(
                {"host": host, "port": port}, username=address.sentinel_username, password=address.sentinel_password
            )
            try:
                found = await _command(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
            except REDIS_ERRORS as error:
                problem = reason_of(error)
                continue
            finally:
                await close(sentinel)
            if found:
                self._topology_source = Node(host, port)
                return Topology([(0, 16383, Node(_text(found[0]), int(found[1])))])
            problem = f"the sentinels do not know {address.service}"
        raise Unavailable(f"the server cannot be found: {problem}")

    async def _query_cluster(self) -> Topology:
        problem = "no node"
        for node in dict.fromkeys((*self._known_nodes, *(Node(*host) for host in self.address.hosts))):
            client = self.make_client(node)
            try:
                slots = await _command(client, "CLUSTER", "SLOTS")
                info = await _command(client, "INFO", "server")
            except REDIS_ERRORS as error:
                problem = reason_of(error)
                self.suspect_topology(node)
                continue
            finally:
                await close(client)
            topology = Topology(list(_ranges(slots, node)), sharded=_version(info) >= _SHARDED_SINCE)
            self._known_nodes = tuple(dict.fromkeys((node, *self._known_nodes, *topology.nodes)))
            self._topology_source = node
            return topology
        raise Unavailable(f"no node of the cluster answers: {problem}")


def _ranges(slots: Any, asked: Node) -> Iterable[tuple[int, int, Node]]:
    """Yield the first slot, last slot and server of each range in redis-py's reply to CLUSTER SLOTS.

    The reply is a mapping, or has the rows that the server sent.
    """
    if isinstance(slots, dict):
        for (first, last), owner in slots.items():
            host, port = owner["primary"][:2]
            yield int(first), int(last), Node(_text(host) or asked.host, int(port))
        return
    for first, last, owner, *_ in slots:
        yield int(first), int(last), Node(_text(owner[0]) or asked.host, int(owner[1]))


def _version(info: Any) -> int:
    return int(str(info.get("redis_version", "0")).partition(".")[0])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


class Call(NamedTuple):
    """A command or script for the server that has `key`."""

    key: str
    command: tuple[Any, ...] = ()
    script: Script | None = None
    keys: tuple[str, ...] = ()
    arguments: tuple[Any, ...] = ()

    @classmethod
    def of_script(cls, script: Script, keys: Sequence[str], *arguments: Any) -> "Call":
        """Return a call of a script."""
        return cls(keys[0], (), script, tuple(keys), arguments)

    def as_command(self, *, whole: bool = False) -> tuple[Any, ...]:
        """Return the command; with `whole`, it contains the script's text instead of its hash."""
        if self.script is None:
            return self.command
        head = ("EVAL", self.script.text) if whole else ("EVALSHA", self.script.sha)
        return (*head, len(self.keys), *self.keys, *self.arguments)


class Caller:
    """Runs calls on the servers that have their keys. Calls for one server go into one pipeline, in order."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._clients: dict[Node, _Client] = {}
        self._closing = TaskSet()
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._is_closed = False

    async def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """Return the reply to each call: a value, `Unavailable` or a `ResponseError`. Errors are not raised.

        After `Unavailable` it is unknown whether the call was executed.
        """
        if self._is_closed:
            return [Unavailable("the connection is closed")] * len(calls)
        answers: list[Any] = [None] * len(calls)
        groups: dict[Node, list[int]] = {}
        try:
            topology = await self._servers.find_topology()
            for index, call in enumerate(calls):
                groups.setdefault(topology.owner_of(call.key), []).append(index)
        except Unavailable as error:
            self._servers.suspect_topology()
            return [error] * len(calls)
        await asyncio.gather(*(self._call_node(node, calls, indexes, answers) for node, indexes in groups.items()))
        return answers

    def renew_connections(self) -> None:
        """Use new connections from now on, because another connection to these servers has failed."""
        for node, client in list(self._clients.items()):
            self._drop_client(node, client)
            if not client.uses:
                self._closing.start(close(client.redis))

    async def close(self) -> None:
        """Close the connections. Every later call is `Unavailable`."""
        self._is_closed = True
        self.renew_connections()
        await self._closing.wait()

    async def _call_node(self, node: Node, calls: Sequence[Call], indexes: Sequence[int], answers: list[Any]) -> None:
        async with self._free:
            found = await self._call_pipeline(node, calls, indexes)
        for index, answer in zip(indexes, found, strict=True):
            answers[index] = self._checked_answer(node, answer)

    async def _call_pipeline(self, node: Node, calls: Sequence[Call], indexes: Sequence[int]) -> list[Any]:
        client = self._clients.get(node)
        if client is None:
            client = self._clients[node] = _Client(self._servers.make_client(node))
        client.uses += 1
        try:
            async with asyncio.timeout(_PIPELINE_TIMEOUT_S):
                found = await _pipeline(client.redis, [calls[index].as_command() for index in indexes])
                unknown = [at for at, answer in enumerate(found) if isinstance(answer, NoScriptError)]
                if unknown:
                    again = await _pipeline(client.redis, [calls[indexes[at]].as_command(whole=True) for at in unknown])
                    for at, answer in zip(unknown, again, strict=True):
                        found[at] = answer
                return found
        except REDIS_ERRORS as error:
            self._drop_client(node, client)
            return [Unavailable(f"{node}: {reason_of(error)}")] * len(indexes)
        finally:
            client.uses -= 1
            if client.is_dropped and not client.uses:
                self._closing.start(close(client.redis))

    def _checked_answer(self, node: Node, answer: Any) -> Any:
        if isinstance(answer, _ELSEWHERE):
            self._servers.reject_topology()
            return Unavailable(f"{node} is not the right server: {reason_of(answer)}")
        if isinstance(answer, Exception) and not isinstance(answer, ResponseError | Unavailable):
            return Unavailable(f"{node}: {reason_of(answer)}")
        return answer

    def _drop_client(self, node: Node, client: "_Client") -> None:
        """Use a new client for a server from now on: other connections of this one may be half open too."""
        self._servers.suspect_topology(node)
        client.is_dropped = True
        if self._clients.get(node) is client:
            del self._clients[node]


class _Client:
    """A client and the number of its calls in progress. Close it only after the last one: each may open connections."""

    def __init__(self, redis: "aioredis.Redis") -> None:
        self.redis = redis
        self.uses = 0
        self.is_dropped = False


async def _command(client: "aioredis.Redis", *words: Any) -> Any:
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]


async def _pipeline(client: "aioredis.Redis", commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    answers: list[Any] = await pipeline.execute(raise_on_error=False)
    return answers


_closing = TaskSet()


async def close(client: "aioredis.Redis | PubSub") -> None:
    """Close a client or a subscription in any state. It is closed even if this call is cancelled."""
    await asyncio.shield(_closing.start(_close(client)))


async def _close(client: "aioredis.Redis | PubSub") -> None:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await client.aclose()
    except REDIS_ERRORS as error:
        logger.debug("a client of Redis could not be closed: %s", error)


def reason_of(error: BaseException) -> str:
    """Return the reason of a failed command in words, with Redis's error code."""
    text = _SCRIPT.sub("", str(error)) or type(error).__name__
    code = getattr(error, "status_code", None)  # redis-py removes it from the text
    return f"{code} {text}" if code else text
