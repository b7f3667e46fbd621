"""`candled backup` and `candled restore`: copies of a SQLite store."""

from pathlib import Path

from candled.config import Config
from candled.errors import ConfigError
from candled.store.sqlite.backup import copy_database, restore_database

from .store_access import name_errors

_PREFIX = "sqlite:///"


def back_up(config: Config, target: Path) -> int:
    """Run `candled backup`; return the exit status."""
    source = _file_of(config, "pg_dump")
    if not source.exists():
        raise ConfigError(f"store: {source} does not exist, so there is nothing to copy")
    if target.exists():
        raise ConfigError(f"{target}: exists already; expected the name of a new file")
    with name_errors("backup"):
        count = copy_database(source, target)
    print(f"{target}: {target.stat().st_size:,} bytes, {count} {'market' if count == 1 else 'markets'}")
    return 0


def restore(config: Config, source: Path) -> int:
    """Run `candled restore`; return the exit status."""
    target = _file_of(config, "pg_restore")
    if not source.exists():
        raise ConfigError(f"{source}: there is no such file")
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{source}: is the store of the settings; expected a file that candled backup wrote")
    with name_errors("restore"):
        former = restore_database(source, target)
    print(f"{target}: restored from {source}" + (f"; the former file is {former}" if former else ""))
    return 0


def _file_of(config: Config, program: str) -> Path:
    url = config.store.url
    if not url.startswith(_PREFIX):
        raise ConfigError(
            f"store.url: candled copies SQLite files; for PostgreSQL use {program} (docs/how-to/backup.md)"
        )
    return Path(url.removeprefix(_PREFIX))
