"""A small site of several daemons: one ingests, others serve, with a real Redis and a real PostgreSQL between them."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.redis_servers import own_redis
from tests.servers import own_postgres
from tests.system.daemon import Daemon


class Several:
    """One `ingest` process on the replay exchange and as many `serving` ones as wanted; a context manager.

    `more` are further sections of the settings of all. With an environment, they are programs of their own. With
    `shares_port`, the serving processes share `ws_port`, and the port of each is its internal one.
    """

    def __init__(
        self,
        directory: Path,
        serving: int,
        env: dict[str, str] | None = None,
        *,
        shares_port: bool = False,
        **more: Any,
    ) -> None:
        self._env = env
        self.ws_port = free_port() if shares_port else 0
        self._directory = directory
        self._more = more
        self._serving = serving
        self._stack = ExitStack()
        self._url = self._bus = ""
        self.ingest: Daemon
        self.serving: list[Daemon] = []

    def __enter__(self) -> "Several":
        try:
            postgres = own_postgres()
            self._stack.callback(postgres.remove)
            self._url = f"postgresql://candled@127.0.0.1:{postgres.port}/postgres"
            self._bus = self._stack.enter_context(own_redis()).url
            self.ingest = self._start("ingest", ["ingest"])
            self.serving = [self._start(f"serve{number}", ["serve"]) for number in range(self._serving)]
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, daemon: Daemon, roles: Sequence[str] = ("serve",)) -> None:
        """Start a daemon, again or for the first time."""
        config = {
            "roles": list(roles),
            "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
            "ingest": {"backfill": "1h"},
            "store": {"url": self._url, "journal": str(daemon.directory / "journal")},
            "bus": {"url": self._bus},
            **self._more,
        }
        if self.ws_port and "serve" in roles:
            shared = {"port": self.ws_port, "reuse_port": True, "internal_port": daemon.port}
            config["server"] = {**self._more.get("server", {}), **shared}
        daemon.start(config, within_s=40, env=self._env)

    def _start(self, name: str, roles: Sequence[str]) -> Daemon:
        directory = self._directory / name
        directory.mkdir()
        daemon = self._stack.enter_context(Daemon(directory, is_forked=self._env is None))
        self.start(daemon, roles)
        return daemon
