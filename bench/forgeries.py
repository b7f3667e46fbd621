"""What somebody on the machine does to the database file, and a publisher on Redis to processes that serve."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.abuse_deployment import HEALTHY, HOSTILE, STARTED_MS, Deployment, get
from bench.process import Daemon
from candled.bus.codec import Names
from candled.model import MINUTE_MS, MarketKey, Symbol
from tests.redis_servers import RedisServer, own_redis
from tests.servers import own_postgres

FORGED = 666  # the price
_FAR = "9999-12-31T23:59:00Z"
_HUGE = 10**22
_STEP_S = 0.05
_NOTICED_S = 10.0


@dataclass(frozen=True)
class FileAct:
    """Something that happens to the file, and is undone at the end unless it `spoils` the file."""

    before: str
    begin: Callable[[Deployment], contextlib.AbstractContextManager[object]]
    spoils: bool = False


@contextlib.contextmanager
def move(deployment: Deployment) -> Iterator[None]:
    """Rename the file, and give it its name back at the end."""
    path, kept = deployment.directory / "candled.db", deployment.directory / "kept.db"
    path.rename(kept)
    try:
        _until(lambda: _store_state(deployment) == "unavailable", "the missing file is not noticed")
        yield
    finally:
        kept.rename(path)


@contextlib.contextmanager
def overwrite(deployment: Deployment) -> Iterator[None]:
    """Write over the file."""
    with (deployment.directory / "candled.db").open("r+b") as file:
        file.write(bytes(1_000_000))
    path = f"/api/candles?exchange={HOSTILE}&symbol={deployment.names[0]}&interval=1h&limit=900"  # no client has these

    def is_noticed() -> bool:
        with contextlib.suppress(ValueError):
            get(deployment.daemon.port, path)
        store = deployment.daemon.get("/health?verbose")["store"]
        return store["state"] != "ok" or store["readError"] is not None

    _until(is_noticed, "the overwritten file is not noticed")
    yield


@contextlib.contextmanager
def start_second(deployment: Deployment) -> Iterator[None]:
    """Start a second daemon on the same file."""
    directory = deployment.directory / "second"
    directory.mkdir()
    store = {"url": f"sqlite:///{deployment.directory / 'candled.db'}", "journal": ""}
    with deployment.make_daemon(directory, blocks=None, store=store) as second:
        _until(lambda: "another candled uses it" in second.log.read_text(), "the second daemon is not refused")
        yield


def _store_state(deployment: Deployment) -> str:
    return str(deployment.daemon.get("/health?verbose")["store"]["state"])


def _until(is_so: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + _NOTICED_S
    while not is_so():
        if time.monotonic() > until:
            raise RuntimeError(otherwise)
        time.sleep(_STEP_S)


FILES = {
    "a second daemon on the file": FileAct("both run", start_second),
    "the file moved": FileAct("pass for a minute, all gone at the stop", move),
    "the file overwritten": FileAct("every read 503, /health passes, no line in the log", overwrite, spoils=True),
}


# ---------------------------------------------------------------- Redis


class RedisDeployment(Deployment):
    """A process that ingests, Redis, PostgreSQL, and the process with the clients, which only serves."""

    redis: RedisServer
    started_ms = STARTED_MS + 120 * MINUTE_MS  # two hours of the week are read over REST

    def start_daemons(self, stack: contextlib.ExitStack) -> Daemon:
        postgres = own_postgres()
        stack.callback(postgres.remove)
        self.redis = stack.enter_context(own_redis())
        daemons = []
        for role in ("ingest", "serve"):
            directory = self.directory / role
            directory.mkdir()
            store = {
                "url": f"postgresql://candled@127.0.0.1:{postgres.port}/postgres",
                "journal": str(directory / "journal"),
            }
            more: dict[str, Any] = {"roles": [role], "store": store, "bus": {"url": self.redis.url}}
            daemons.append(
                stack.enter_context(
                    self.make_daemon(directory, blocks=self.blocks if role == "serve" else None, **more)
                )
            )
            daemons[-1].wait_until_answering(60.0)
        return daemons[-1]


@dataclass(frozen=True)
class Forgery:
    """Messages to a channel or a command for a key, many times a second, given the newest real message."""

    before: str
    make: Callable[[dict[str, Any]], tuple[Any, ...]]
    a_second: int = 20

    @contextlib.contextmanager
    def begin(self, deployment: Deployment) -> Iterator[None]:
        """Forge until the end of the block."""
        assert isinstance(deployment, RedisDeployment)
        ended = threading.Event()
        thread = threading.Thread(target=self._run, args=(deployment.redis, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _run(self, server: RedisServer, ended: threading.Event) -> None:
        with server.client() as client, client.pubsub() as listener:
            listener.subscribe(CANDLES)
            real: dict[str, Any] = {}
            while not ended.wait(_STEP_S):
                while message := listener.get_message(ignore_subscribe_messages=True):
                    with contextlib.suppress(ValueError):
                        found = json.loads(message["data"])
                        real = found if found.get("type") == "candle" and found.get("close") != FORGED else real
                if real:
                    pipeline = client.pipeline(transaction=False)
                    for _ in range(max(1, round(self.a_second * _STEP_S))):
                        pipeline.execute_command(*self.make(real))
                    pipeline.execute(raise_on_error=False)


_NAMES = Names("", HEALTHY, 1)
_MARKET = MarketKey(HEALTHY, Symbol("SYM000", "USDT"))
CANDLES = _NAMES.candles_channel(_MARKET)


def candle(real: dict[str, Any], **changes: Any) -> tuple[str, str, str]:
    """A candle with a forged price."""
    prices = dict.fromkeys(("open", "high", "low", "close"), FORGED)
    return "PUBLISH", CANDLES, json.dumps({**real, **prices, "seq": real["seq"] + 1, **changes})


def heartbeat(real: dict[str, Any], seq: int) -> tuple[str, str, str]:
    """A heartbeat that says how many messages there were."""
    text = json.dumps({"shard": 0, "epoch": real["epoch"], "seqs": {CANDLES: seq}})
    return "PUBLISH", _NAMES.heartbeat_channel(0), text


_FROZEN = "real messages are ignored, the forged price stays"

FORGERIES = {
    "Redis: seq + 10^6": Forgery(_FROZEN, lambda real: candle(real, seq=real["seq"] + 10**6)),
    "Redis: the year 9999": Forgery(_FROZEN, lambda real: candle(real, time=_FAR)),
    "Redis: a minute in an hour": Forgery(
        _FROZEN, lambda real: candle(real, time=RedisDeployment.started_ms // MINUTE_MS * MINUTE_MS + 60 * MINUTE_MS)
    ),
    "Redis: a token of 10^22": Forgery(
        "the lease is unsure until somebody deletes it",
        lambda _: ("SET", _NAMES.lease_key(0), f"{_HUGE} somebody", "PX", 6000),
        a_second=1,
    ),
    "Redis: heartbeats of more": Forgery("", lambda real: heartbeat(real, real["seq"] + 10**6)),
    "Redis: heartbeats of less": Forgery("", lambda real: heartbeat(real, 0)),
    "Redis: 5,000 messages a second that are no JSON": Forgery("", lambda _: ("PUBLISH", CANDLES, "{"), a_second=5000),
}
