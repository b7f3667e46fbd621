"""The tables in PostgreSQL, created and upgraded in numbered steps."""

import re
from pathlib import Path

from candled.errors import StoreRejected
from candled.store.postgres.pool import DatabaseConnection

_STEPS = {
    int(match[1]): path
    for path in sorted(Path(__file__).parent.glob("*.sql"))
    if (match := re.match(r"(\d{4})_", path.name))
}
SCHEMA = max(_STEPS)


def migrate_schema(connection: DatabaseConnection) -> None:
    """Apply the steps that are missing in the database, each in a transaction. The caller must have the lock for it.

    Raises:
        StoreRejected: the database has a newer schema than this program, or the role may not create tables.
    """
    version = _version(connection)
    _refuse_newer(version)
    for step in range(version + 1, SCHEMA + 1):
        connection.execute(_STEPS[step].read_text("utf-8"))
        connection.execute("UPDATE candled.state SET schema = %s", (step,))
        connection.commit()


def check_schema(connection: DatabaseConnection) -> None:
    """Check the schema without changing anything.

    Raises:
        StoreRejected: the database does not have this program's schema.
    """
    [(table,)] = connection.fetch_rows("SELECT to_regclass('candled.state')")
    version = 0 if table is None else _version(connection)
    connection.commit()
    _refuse_newer(version)
    if version < SCHEMA:
        raise StoreRejected(
            f"the database is at schema {version}, this program needs {SCHEMA}: run `candled init-db`, or let the "
            "daemon do it (store.init: true)"
        )


def _refuse_newer(version: int) -> None:
    if version > SCHEMA:
        raise StoreRejected(
            f"the database was written by a newer candled (schema {version}; this one knows up to {SCHEMA})"
        )


def _version(connection: DatabaseConnection) -> int:
    [(namespace, table)] = connection.fetch_rows("SELECT to_regnamespace('candled'), to_regclass('candled.state')")
    if namespace is None:
        connection.execute("CREATE SCHEMA candled")
    if table is None:
        return 0
    [(version,)] = connection.fetch_rows("SELECT schema FROM candled.state")
    return int(version)
