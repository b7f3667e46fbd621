"""`candled init-db`: creates or upgrades the tables of the store, aggregates new intervals, and drops old ones."""

from collections.abc import Sequence
from contextlib import closing

from candled.config import Config, make_store
from candled.errors import ConfigError
from candled.model import MINUTE, Interval
from candled.store.interface import Store
from candled.store.sql_store import SqlStore

from .store_access import name_errors, open_store


def init_db(config: Config, unwanted: Sequence[Interval]) -> int:
    """Run `candled init-db`; return the exit status."""
    _check(unwanted, config)
    with name_errors("store"), closing(make_store(config, owns=True, upgrade=True)) as store:
        store.open()
        _drop(store, unwanted)
        facts = store.describe()
    print(f"{facts['kind']}: schema {facts['schema']} is ready, with bars of {', '.join(['1m', *facts['intervals']])}")
    return 0


def check_db(config: Config) -> int:
    """Run `candled init-db --check`; return 0 if nothing is pending, else 1."""
    store = _numbered_store(config)
    with name_errors("store"):
        version = store.read_schema()
        kind, newest = config.store.url.partition("://")[0], len(store.schema_steps)
        pending = [f"schema {number}: {store.schema_steps[number - 1]}" for number in range(version + 1, newest + 1)]
        if not pending:
            with open_store(config) as guest:
                fresh = sorted({*config.intervals} - {MINUTE, *guest.intervals()})
            pending = [f"bars of {interval}" for interval in fresh]
    print(f"{kind}: schema {version}, this program needs {newest}" + ("" if pending else ": ready"))
    for text in pending:
        print(f"pending: {text}")
    return 1 if pending else 0


def migrate_db(config: Config, version: int) -> int:
    """Run `candled init-db --to`; return the exit status."""
    store = _numbered_store(config)
    newest = len(store.schema_steps)
    with name_errors("store"):
        before = store.read_schema()
        least = max(1, min(before, newest - 1))
        if not least <= version <= newest:
            advice = "; restore a backup to go further back" if before else ""
            raise ConfigError(f"--to: expected a schema from {least} to {newest}, got {version}{advice}")
        store.migrate(version)
    print(f"{config.store.url.partition('://')[0]}: schema {before} before, schema {version} now")
    return 0


def _numbered_store(config: Config) -> SqlStore:
    store = make_store(config, owns=True, upgrade=True)
    if not isinstance(store, SqlStore):
        raise ConfigError("store.url: the schema of a plugin's store has no versions that candled knows")
    return store


def _check(unwanted: Sequence[Interval], config: Config) -> None:
    problems = [
        f"--drop-interval: {interval} is in the settings; take it out of intervals first"
        for interval in unwanted
        if interval in config.intervals
    ]
    if MINUTE in unwanted:
        problems = ["--drop-interval: minutes are the truth that all bars are folded from; they are never dropped"]
    if problems:
        raise ConfigError(problems)


def _drop(store: Store, unwanted: Sequence[Interval]) -> None:
    for interval in dict.fromkeys(unwanted):
        if interval not in store.intervals():
            print(f"{interval}: no bars of it are kept")
            continue
        print(f"{interval}: {store.drop_interval(interval):,} bars dropped")
