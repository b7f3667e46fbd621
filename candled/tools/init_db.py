"""`candled init-db`: create or upgrade the tables of the store, and fold newly configured intervals."""

import argparse

from candled.config import Config
from candled.tools import Commands

from .stored import open_store


def add(commands: Commands) -> None:
    """Add `init-db`."""
    commands.add("init-db", _run, help="create or upgrade the tables of the store, as the daemon does on start")


def _run(_: argparse.Namespace, config: Config) -> int:
    with open_store(config) as store:
        facts = store.describe()
    print(f"{facts['kind']}: schema {facts['schema']} is ready")
    return 0
