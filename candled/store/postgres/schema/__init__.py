"""The tables in PostgreSQL, created and upgraded in numbered steps."""

import re
from pathlib import Path

from candled.errors import StoreNotReady, StoreRejected
from candled.store.postgres.pool import DatabaseConnection

_STEPS = {
    int(match[1]): path
    for path in sorted(Path(__file__).parent.glob("*.sql"))
    if (match := re.match(r"(\d{4})_", path.name))
}
SCHEMA = max(_STEPS)
STEP_NAMES = tuple(path.stem.partition("_")[2].replace("_", " ") for path in _STEPS.values())
_UNDO_LAST_STEP = Path(__file__).with_name(f"undo_{SCHEMA:04}.sql")


def migrate_schema(connection: DatabaseConnection, wanted: int = SCHEMA) -> None:
    """Apply the steps that are missing in the database, each in a transaction. The caller has the lock `PREPARE`.

    If `wanted` is the version before that of the database, undo the last step.

    Raises:
        StoreRejected: the database has a newer schema than this program, or the role may not create tables.
    """
    version = read_version(connection)
    if connection.fetch_rows("SELECT to_regnamespace('candled')") == [(None,)]:
        connection.execute("CREATE SCHEMA candled")
    steps = {step: _STEPS[step] for step in range(version + 1, wanted + 1)}
    if wanted < version:
        steps = {wanted: _UNDO_LAST_STEP}
    for step, path in steps.items():
        connection.execute(path.read_text("utf-8"))
        connection.execute("UPDATE candled.state SET schema = %s", (step,))
        connection.commit()


def check_schema(connection: DatabaseConnection) -> None:
    """Check the schema without changing anything.

    Raises:
        StoreRejected: the database does not have this program's schema.
    """
    version = read_version(connection)
    if version < SCHEMA:
        raise StoreNotReady(
            f"the database is at schema {version}, this program needs {SCHEMA}: run `candled init-db`, or let the "
            "daemon do it (store.init: true)"
        )


def read_version(connection: DatabaseConnection) -> int:
    """Return the version of the tables without changing anything; 0 if there are none.

    Raises:
        StoreRejected: the database has a newer schema than this program.
    """
    [(table,)] = connection.fetch_rows("SELECT to_regclass('candled.state')")
    version = 0 if table is None else int(connection.fetch_rows("SELECT schema FROM candled.state")[0][0])
    connection.commit()
    if version > SCHEMA:
        raise StoreRejected(
            f"the database was written by a newer candled (schema {version}; this one knows up to {SCHEMA})"
        )
    return version
