"""`candled init-db`: creates or upgrades the tables of the store, aggregates new intervals, and drops old ones."""

from collections.abc import Sequence

from candled.config import Config, make_store
from candled.errors import ConfigError, StoreRejected, StoreUnavailable
from candled.model import MINUTE, Interval
from candled.store.interface import Store


def init_db(config: Config, unwanted: Sequence[Interval]) -> int:
    """Run `candled init-db`; return the exit status."""
    _check(unwanted, config)
    store = make_store(config, owns=True, upgrade=True)
    try:
        store.open()
        _drop(store, unwanted)
        facts = store.describe()
    except (StoreUnavailable, StoreRejected) as error:
        raise ConfigError(f"store: {error}") from error
    finally:
        store.close()
    print(f"{facts['kind']}: schema {facts['schema']} is ready, with bars of {', '.join(['1m', *facts['intervals']])}")
    return 0


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
