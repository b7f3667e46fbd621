"""What TimescaleDB adds to the tables where it is there: chunks of the minutes, compressed and dropped when old."""

import logging
from dataclasses import dataclass

from candled.errors import StoreRejected, StoreUnavailable
from candled.model import iso_ms
from candled.store.postgres.pool import DatabaseConnection

logger = logging.getLogger(__name__)

# 7 days: with years of 1-day chunks every statement that is not bounded takes a lock on thousands of them.
CHUNK = "7 days"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timescale:
    """What this server and database offer.

    `version` is None without the extension; `hypertable` says whether the minutes are kept in chunks; `licensed`
    whether compression may be used (builds of the Apache licence refuse it); `remark` tells why something is missing.
    """

    version: str | None = None
    hypertable: bool = False
    licensed: bool = False
    remark: str = ""


def check_loaded(link: DatabaseConnection) -> None:
    """Refuse to touch tables that are TimescaleDB's already on a server that runs without it.

    It would do so with a part of each table only: a column added now would be missing in the compressed chunks.

    Raises:
        StoreUnavailable: that is so.
    """
    version, _, is_loaded = _find(link)
    if version is not None and not is_loaded:
        raise StoreUnavailable("the tables need TimescaleDB, which is not in the server's shared_preload_libraries")


def prepare(link: DatabaseConnection) -> Timescale:
    """Create the extension where that is possible, and chunks for the minutes while there are none yet."""
    version, is_available, is_loaded = _find(link)
    if version is None:
        if not is_available:
            return Timescale(remark="TimescaleDB is not installed on the server")
        if not is_loaded:
            return Timescale(remark="TimescaleDB is installed but not in the server's shared_preload_libraries")
        try:
            link.execute("CREATE EXTENSION timescaledb")
            link.commit()
        except StoreRejected as error:
            link.rollback()
            return Timescale(remark=f"TimescaleDB could not be enabled in this database: {error}")
    return _prepare_chunks(link)


def look(link: DatabaseConnection) -> Timescale:
    """Find out what there is, and change nothing."""
    version, is_available, _ = _find(link)
    if version is None:
        word = "not enabled in this database" if is_available else "not installed on the server"
        return Timescale(remark=f"TimescaleDB is {word}")
    [(license_name,)] = link.fetch_rows("SELECT current_setting('timescaledb.license')")
    is_hypertable = _is_hypertable(link)
    link.commit()
    remark = "" if is_hypertable else "the minutes are kept in an ordinary table"
    return Timescale(version=version, hypertable=is_hypertable, licensed=license_name == "timescale", remark=remark)


def _find(link: DatabaseConnection) -> tuple[str | None, bool, bool]:
    """The extension's version in this database, whether the server has it, and whether it has loaded it."""
    # CREATE EXTENSION ends the connection of whoever tries it on a server that has not preloaded the library. Its
    # loader's settings tell; the list of preloaded libraries is hidden from ordinary roles.
    [(version, is_available, is_loaded)] = link.fetch_rows(
        """SELECT (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'),
            EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb'),
            EXISTS (SELECT FROM pg_settings WHERE name LIKE 'timescaledb.%')"""
    )
    link.commit()
    return version, is_available, is_loaded


def _prepare_chunks(link: DatabaseConnection) -> Timescale:
    [(version, namespace, license_name)] = link.fetch_rows(
        """SELECT extversion, quote_ident(nspname), current_setting('timescaledb.license')
        FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'timescaledb'"""
    )
    licensed = license_name == "timescale"
    if not _is_hypertable(link):
        [(has_minutes,)] = link.fetch_rows("SELECT EXISTS (SELECT FROM candled.candles)")
        if has_minutes:  # moving them may take an hour under an exclusive lock: the operator says when
            link.commit()
            return Timescale(version=version, licensed=licensed, remark="the minutes were stored before TimescaleDB")
        link.fetch_rows(
            f"""SELECT {namespace}.create_hypertable('candled.candles', 'time',
            chunk_time_interval => interval '{CHUNK}', create_default_indexes => false)"""
        )
    link.commit()
    return Timescale(version=version, hypertable=True, licensed=licensed)


def _is_hypertable(link: DatabaseConnection) -> bool:
    return bool(
        link.fetch_rows(
            """SELECT FROM timescaledb_information.hypertables
            WHERE hypertable_schema = 'candled' AND hypertable_name = 'candles'"""
        )
    )


def compress(link: DatabaseConnection, before_ms: int) -> int:
    """Compress the chunks that end before a time (UTC epoch milliseconds), each in a transaction; return how many.

    Chunks that are compressed already are asked too: what was corrected in them meanwhile is then compressed again.
    By hand and on our own timer, as TimescaleDB's background jobs fail under some pairs of minor versions.
    """
    [(is_enabled,)] = link.fetch_rows(
        """SELECT compression_enabled FROM timescaledb_information.hypertables
        WHERE hypertable_schema = 'candled' AND hypertable_name = 'candles'"""
    )
    if not is_enabled:
        link.execute(
            """ALTER TABLE candled.candles SET (timescaledb.compress,
            timescaledb.compress_segmentby = 'market', timescaledb.compress_orderby = 'time DESC')"""
        )
    chunks = link.fetch_rows(
        """SELECT quote_ident(chunk_schema) || '.' || quote_ident(chunk_name), is_compressed
        FROM timescaledb_information.chunks
        WHERE hypertable_schema = 'candled' AND hypertable_name = 'candles' AND range_end <= %s::timestamptz
        ORDER BY range_start""",
        (iso_ms(before_ms),),
    )
    namespace = _namespace(link)
    link.commit()
    for chunk, _ in chunks:
        link.fetch_rows(f"SELECT {namespace}.compress_chunk(%s::regclass, if_not_compressed => true)", (chunk,))
        link.commit()
    return sum(not was_compressed for _, was_compressed in chunks)


def drop_chunks(link: DatabaseConnection, before_ms: int) -> int:
    """Drop the chunks that end before a time (UTC epoch milliseconds); return how many. The caller commits."""
    return len(
        link.fetch_rows(
            f"SELECT {_namespace(link)}.drop_chunks('candled.candles', older_than => %s::timestamptz)",
            (iso_ms(before_ms),),
        )
    )


def _namespace(link: DatabaseConnection) -> str:
    """Where the extension's functions live; a session need not have that on its search path."""
    [(namespace,)] = link.fetch_rows(
        """SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
        WHERE extname = 'timescaledb'"""
    )
    return str(namespace)
