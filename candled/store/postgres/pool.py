"""Connections to PostgreSQL for worker threads: borrowed and returned, never lost, and always with a time limit."""

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn

from candled.errors import ConfigError, StoreRejected, StoreUnavailable

T = TypeVar("T")

# libpq's own protection against connections that die silently. An address may override these values.
# Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_PARAMETERS = {
    "application_name": "candled",
    "client_encoding": "utf8",
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "8000",
}

_EXPECTED = "expected postgresql://user:password@host:port/database"

# - Timeouts: a connection may die silently between two statements of a transaction. The server then gives it up when
#   this side does. Otherwise it would keep row locks for hours.
# - Plans: every statement of the store is an index lookup. New tables have no statistics, and a plan that was made for
#   yesterday's 100 rows must not scan today's million. To compile such statements (JIT) costs more than to run them.
# - TimescaleDB: the size of a batch limits corrections of compressed minutes. Its own limit would refuse some of them
#   permanently.
_SESSION = """SET TimeZone = 'UTC'; SET client_min_messages = 'warning'; SET jit = off;
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET statement_timeout = {0};
    SET idle_in_transaction_session_timeout = {0};
    SELECT set_config(name, '0', false) FROM pg_settings
        WHERE name = 'timescaledb.max_tuples_decompressed_per_dml_transaction'"""

_IDLE_S = 3600.0

# States that end by themselves although psycopg2 does not treat them as operational errors: a standby becomes the
# primary, or a restored backup brings its tables. Source:
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_TRANSIENT = frozenset({"25006", "42P01", "3F000"})


def parse_address(url: str) -> dict[str, Any]:
    """Parse `postgresql://user:password@host:port/database?option=value` and add the default parameters.

    Raises:
        ConfigError: the address is invalid. The text does not repeat it, because it may contain a password.
    """
    try:
        given = parse_dsn(url)
    except psycopg2.ProgrammingError as error:
        problem = "an option that PostgreSQL does not know" if "query parameter" in str(error) else "a mistake in it"
        raise ConfigError(f"{_EXPECTED}, got {problem}") from None
    if not given.get("port", "1").replace(",", "").isdigit():
        raise ConfigError(f"{_EXPECTED}, got a port that is no number")
    return {**_PARAMETERS, **given}


@contextmanager
def errors_translated() -> Iterator[None]:
    """Translate psycopg2's errors to those of `Store`, in one line."""
    try:
        yield
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        raise StoreUnavailable(_line(error)) from error
    except psycopg2.Error as error:
        raise (StoreUnavailable if error.pgcode in _TRANSIENT else StoreRejected)(_line(error)) from error


def _line(error: psycopg2.Error) -> str:
    return next(iter(str(error).strip().splitlines()), "") or f"PostgreSQL: {type(error).__name__}"


class Watchdog:
    """A thread that shuts the sockets of calls that take too long.

    libpq waits forever if the other side's kernel still acknowledges, for example behind a proxy that hangs. Neither
    keepalives nor the server's own timeouts end such a call.
    """

    def __init__(self) -> None:
        self._deadlines: dict[socket.socket, float] = {}
        self._changed = threading.Condition()
        self._wakes_at = 0.0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run_thread, name="store-watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watch_call(self, line: socket.socket, limit_s: float) -> Iterator[None]:
        """Shut the socket `line` if the block takes longer than `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        with self._changed:
            self._deadlines[line] = deadline
            if deadline < self._wakes_at:  # otherwise the thread wakes up in time anyway
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._deadlines.pop(line, None)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run_thread(self) -> None:
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                self._shut_overdue(now)
                self._wakes_at = min(self._deadlines.values(), default=now + _IDLE_S)
                self._changed.wait(self._wakes_at - now)

    def _shut_overdue(self, now: float) -> None:
        for line in [line for line, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[line]
            with suppress(OSError):  # closed by the other side in the meantime
                line.shutdown(socket.SHUT_RDWR)


class DatabaseConnection:
    """One connection. Each call ends within `limit_s` seconds: by a response, by the server's timeout, or by force.

    Every method raises `StoreUnavailable` and `StoreRejected` as `Store` does. `is_lost` becomes True if the connection
    ends during a call.
    """

    def __init__(self, parameters: Mapping[str, Any], watchdog: Watchdog, *, limit_s: float, autocommit: bool) -> None:
        self._parameters = parameters
        self._watchdog = watchdog
        self._limit_s = limit_s
        self.is_lost = False
        with errors_translated():
            self._connection: Connection = psycopg2.connect(**parameters)
        # A second handle of the same socket, so that the watchdog never touches libpq's own.
        self._line = socket.socket(fileno=os.dup(self._connection.fileno()))
        try:
            self._connection.autocommit = True
            # the server's limit comes first, which leaves the connection usable
            self.execute(_SESSION.format(round(limit_s * 800)))
            self._connection.autocommit = autocommit
        except BaseException:
            self.close()
            raise

    @property
    def server_version(self) -> int:
        """The server's version as a number: 150018 is 15.18."""
        return int(self._connection.server_version)

    def fetch_rows(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows."""
        with self._translated_call(), self._connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall()

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> int:
        """Execute a statement and return the number of rows it changed."""
        with self._translated_call(), self._connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.rowcount

    def commit(self) -> None:
        """Commit. If this raises `StoreUnavailable`, the transaction may or may not have been committed."""
        with self._translated_call():
            self._connection.commit()

    def rollback(self) -> None:
        """Roll back the transaction, if there is one."""
        with self._translated_call():
            self._connection.rollback()

    def cancel_call(self) -> None:
        """Ask the server to end the call in progress on another thread. This may take as long as a new connection.

        psycopg2's own `cancel` is not used: it waits for the server with the interpreter's lock and stops every thread.
        """
        with suppress(psycopg2.Error), closing(psycopg2.connect(**self._parameters)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_cancel_backend(%s)", (self._connection.info.backend_pid,))

    def is_stale(self) -> bool:
        """Return whether data arrived, or the socket was closed, while the connection was idle.

        A server that shuts down sends a message or closes the socket.
        """
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the connection; safe in any state."""
        with suppress(psycopg2.Error):
            self._connection.close()
        self._line.close()

    @contextmanager
    def _translated_call(self) -> Iterator[None]:
        with errors_translated(), self._watchdog.watch_call(self._line, self._limit_s):
            try:
                yield
            except psycopg2.Error:
                self.is_lost = bool(self._connection.closed)
                raise


class _ConnectionLost(Exception):
    """A connection ended during a read."""


class Pool:
    """`size` slots for connections, which `connect` creates when first needed and again after they break.

    psycopg2's own pool keeps only its minimum, raises instead of waiting when all connections are in use, and loses a
    slot permanently when a backend dies inside a transaction.
    """

    def __init__(self, connect: Callable[[], DatabaseConnection], size: int, *, wait_s: float) -> None:
        self._connect = connect
        self._wait_s = wait_s
        self._size = size
        self._is_closed = False
        self._readers: dict[int, DatabaseConnection] = {}  # keys are the reading threads
        self._lock = threading.Lock()
        # The slot used last is lent first: its connection is warm, and the others may never be needed.
        self._free: list[DatabaseConnection | None] = [None] * size
        # A returned slot goes to the thread that has waited longest. `queue.Queue` gives it to the thread that comes
        # first, which on a busy machine is again the one that returned it, and others get none for seconds.
        self._waiting: deque[Future[DatabaseConnection | None]] = deque()

    @contextmanager
    def borrow_connection(self) -> Iterator[DatabaseConnection]:
        """Lend a connection. After an error its transaction is rolled back; a broken one is replaced at its next use.

        Raises:
            StoreUnavailable: none became free in time, or the server cannot be reached.
        """
        connection = self._take_slot()
        try:
            if connection is not None and connection.is_stale():
                connection.close()
                connection = None
            if connection is None:
                connection = self._connect()
            yield connection
        except BaseException:
            if connection is not None and not _recovered(connection):
                connection = None
            raise
        finally:
            if connection is not None and self._is_closed:
                connection.close()
                connection = None
            self._return_slot(connection)

    def _take_slot(self) -> DatabaseConnection | None:
        with self._lock:
            if self._free:
                return self._free.pop()
            turn: Future[DatabaseConnection | None] = Future()
            self._waiting.append(turn)
        try:
            return turn.result(self._wait_s)
        except TimeoutError:
            if turn.cancel():
                raise StoreUnavailable(f"all {self._size} connections were busy for {self._wait_s:.0f} s") from None
            return turn.result()

    def _return_slot(self, connection: DatabaseConnection | None) -> None:
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(connection)
                    return
            self._free.append(connection)

    def run_read(self, work: Callable[[DatabaseConnection], T]) -> T:
        """Run a read on a connection. If the connection is lost in the middle, run it once more on a new one.

        It is not repeated if it took long: the network may be failing, and the caller has waited long enough.
        """
        started = time.monotonic()
        with suppress(_ConnectionLost), self._borrow_to_read() as connection:
            try:
                return work(connection)
            except StoreUnavailable as error:
                if connection.is_lost and time.monotonic() - started < self._wait_s / 2:
                    raise _ConnectionLost from error
                raise
        with self._borrow_to_read() as connection:
            return work(connection)

    def cancel_query(self, thread: int) -> None:
        """Have the server end the read in progress on another thread, if there is one."""
        connection = self._readers.get(thread)
        if connection is not None:
            connection.cancel_call()

    @contextmanager
    def _borrow_to_read(self) -> Iterator[DatabaseConnection]:
        thread = threading.get_ident()
        with self.borrow_connection() as connection:
            self._readers[thread] = connection
            try:
                yield connection
            finally:
                del self._readers[thread]

    @contextmanager
    def begin_transaction(self) -> Iterator[DatabaseConnection]:
        """Lend a connection and commit at the end; an error commits nothing."""
        with self.borrow_connection() as connection:
            yield connection
            connection.commit()

    def free_slots(self) -> int:
        """Return the number of slots that are free at this moment."""
        return len(self._free)

    def close(self) -> None:
        """Close the free connections now, and the others when they are returned."""
        self._is_closed = True
        with self._lock:
            free, self._free = self._free, [None] * len(self._free)
        for connection in free:
            if connection is not None:
                connection.close()


def _recovered(connection: DatabaseConnection) -> bool:
    """Return whether the connection can be used again; if not, close it."""
    try:
        connection.rollback()
    except (StoreUnavailable, StoreRejected):
        connection.close()
        return False
    return True
