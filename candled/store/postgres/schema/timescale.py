"""TimescaleDB's additions to the tables, if available: chunks of minutes, compressed and dropped when old."""

import logging
from dataclasses import dataclass, replace

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import iso_ms
from candled.store.postgres.pool import DatabaseConnection

logger = logging.getLogger(__name__)

# 7 days: with years of 1-day chunks, every statement without time limits locks thousands of them.
CHUNK = "7 days"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timescale:
    """The TimescaleDB features of this server and database.

    `version` is None without the extension. `hypertable` is True if the minutes are stored in chunks. `licensed` is
    True if compression may be used (builds under the Apache licence refuse it). `remark` gives the reason if something
    is missing.
    """

    version: str | None = None
    hypertable: bool = False
    licensed: bool = False
    remark: str = ""


def check_loaded(connection: DatabaseConnection) -> None:
    """Refuse tables that belong to TimescaleDB if the server runs without it.

    Changes would then apply to only a part of each table: a new column would be missing in the compressed chunks.

    Raises:
        StoreUnavailable: the tables need TimescaleDB and the server has not loaded it.
    """
    version, _, is_loaded = _find(connection)
    if version is not None and not is_loaded:
        raise StoreUnavailable("the tables need TimescaleDB, which is not in the server's shared_preload_libraries")


def prepare_extension(connection: DatabaseConnection) -> Timescale:
    """Create the extension if possible, and chunks for the minutes if there are no minutes yet."""
    version, is_available, is_loaded = _find(connection)
    if version is None:
        if not is_available:
            return Timescale(remark="TimescaleDB is not installed on the server")
        if not is_loaded:
            return Timescale(remark="TimescaleDB is installed but not in the server's shared_preload_libraries")
        try:
            connection.execute("CREATE EXTENSION timescaledb")
            connection.commit()
        except StoreRejected as error:
            connection.rollback()
            return Timescale(remark=f"TimescaleDB could not be enabled in this database: {error}")
    if _is_compressed(connection) is None:
        [(has_minutes,)] = connection.fetch_rows("SELECT EXISTS (SELECT FROM candled.candles)")
        # moving them may take an hour under an exclusive lock, so the operator decides when
        if has_minutes:
            return replace(find_features(connection), remark="the minutes were stored before TimescaleDB")
        connection.fetch_rows(
            f"""SELECT {_namespace(connection)}.create_hypertable('candled.candles', 'time',
            chunk_time_interval => interval '{CHUNK}', create_default_indexes => false)"""
        )
    return find_features(connection)


def find_features(connection: DatabaseConnection) -> Timescale:
    """Find out which features exist, without changing anything."""
    version, is_available, _ = _find(connection)
    if version is None:
        word = "not enabled in this database" if is_available else "not installed on the server"
        return Timescale(remark=f"TimescaleDB is {word}")
    [(license_name,)] = connection.fetch_rows("SELECT current_setting('timescaledb.license')")
    is_hypertable = _is_compressed(connection) is not None
    connection.commit()
    remark = "" if is_hypertable else "the minutes are kept in an ordinary table"
    return Timescale(version=version, hypertable=is_hypertable, licensed=license_name == "timescale", remark=remark)


def _find(connection: DatabaseConnection) -> tuple[str | None, bool, bool]:
    """Return the extension's version in this database, whether the server has it, and whether it is loaded."""
    # On a server that has not preloaded the library, CREATE EXTENSION ends the connection. The loader's settings show
    # whether it is preloaded; the list of preloaded libraries is hidden from ordinary roles.
    [(version, is_available, is_loaded)] = connection.fetch_rows(
        """SELECT (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'),
            EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb'),
            EXISTS (SELECT FROM pg_settings WHERE name LIKE 'timescaledb.%')"""
    )
    connection.commit()
    return version, is_available, is_loaded


def _is_compressed(connection: DatabaseConnection) -> bool | None:
    """Return whether chunks of minutes may be compressed; None if the minutes are not in chunks."""
    rows = connection.fetch_rows(
        """SELECT compression_enabled FROM timescaledb_information.hypertables
        WHERE hypertable_schema = 'candled' AND hypertable_name = 'candles'"""
    )
    return rows[0][0] if rows else None


def compress(connection: DatabaseConnection, before_ms: int) -> int:
    """Compress the chunks that end before a time (UTC epoch ms), each in a transaction; return the number of new ones.

    Compressed chunks are included, so that corrections in them are compressed again. candled's own timer runs this,
    because TimescaleDB's background jobs fail under some pairs of minor versions.
    """
    if not _is_compressed(connection):
        connection.execute(
            """ALTER TABLE candled.candles SET (timescaledb.compress,
            timescaledb.compress_segmentby = 'market', timescaledb.compress_orderby = 'time DESC')"""
        )
    chunks = connection.fetch_rows(
        """SELECT quote_ident(chunk_schema) || '.' || quote_ident(chunk_name), is_compressed
        FROM timescaledb_information.chunks
        WHERE hypertable_schema = 'candled' AND hypertable_name = 'candles' AND range_end <= %s::timestamptz
        ORDER BY range_start""",
        (iso_ms(before_ms),),
    )
    namespace = _namespace(connection)
    connection.commit()
    for chunk, _ in chunks:
        connection.fetch_rows(f"SELECT {namespace}.compress_chunk(%s::regclass, if_not_compressed => true)", (chunk,))
        connection.commit()
    return sum(not was_compressed for _, was_compressed in chunks)


def drop_chunks(connection: DatabaseConnection, before_ms: int) -> int:
    """Drop the chunks that end before a time (UTC epoch milliseconds); return their number. The caller commits."""
    return len(
        connection.fetch_rows(
            f"SELECT {_namespace(connection)}.drop_chunks('candled.candles', older_than => %s::timestamptz)",
            (iso_ms(before_ms),),
        )
    )


def _namespace(connection: DatabaseConnection) -> str:
    """Return the schema of the extension's functions, which may not be on a session's search path."""
    [(namespace,)] = connection.fetch_rows(
        """SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
        WHERE extname = 'timescaledb'"""
    )
    return str(namespace)
