"""`candled init-db`: create or upgrade the tables of the store, fold new intervals, and drop old ones."""

import argparse

from candled.config import Config, make_store
from candled.errors import ConfigError, StoreRejected, StoreUnavailable
from candled.model import MINUTE, Interval
from candled.store.interface import Store
from candled.tools import Commands

from . import store_access as stored

_HELP = """\
Does what the daemon does on start where store.init allows it: makes or upgrades the tables, and folds the stored
minutes into intervals that are new in the settings. No other command changes tables or intervals. An interval taken out
of the settings stays in the store and is kept up, until it is dropped here.
"""


def add(commands: Commands) -> None:
    """Add `init-db`."""
    parser = commands.add(
        "init-db",
        _run,
        help="create or upgrade the tables of the store, as the daemon does on start",
        description=_HELP,
    )
    parser.add_argument(
        "--drop-interval",
        action="append",
        type=stored.interval,
        default=[],
        metavar="I",
        help="drop the bars of an interval that is not in the settings; may be given more than once",
    )


def _run(options: argparse.Namespace, config: Config) -> int:
    unwanted: list[Interval] = options.drop_interval
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


def _check(unwanted: list[Interval], config: Config) -> None:
    problems = [
        f"--drop-interval: {interval} is in the settings; take it out of intervals first"
        for interval in unwanted
        if interval in config.intervals
    ]
    if MINUTE in unwanted:
        problems = ["--drop-interval: minutes are the truth that all bars are folded from; they are never dropped"]
    if problems:
        raise ConfigError(problems)


def _drop(store: Store, unwanted: list[Interval]) -> None:
    for interval in dict.fromkeys(unwanted):
        if interval not in store.intervals():
            print(f"{interval}: no bars of it are kept")
            continue
        print(f"{interval}: {store.drop_interval(interval):,} bars dropped")
