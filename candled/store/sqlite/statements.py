"""The tables and statements of the SQLite store."""

from collections.abc import Mapping

from candled.model import END_OF_TIME_MS, MINUTE_MS
from candled.store.batch import SOURCES
from candled.store.interface import Table

# `src` is the number of a source, see `batch.SOURCES`; it is the same for all longer bars.
_BAR = "time_ms, open, high, low, close, volume, quote_volume, as_of_ms, rev"
_MINUTE = f"{_BAR}, src"
_FOLDED = f"{_BAR}, {SOURCES.index('agg')} AS src"
_VALUE_COLUMNS = """
    time_ms INTEGER NOT NULL,
    open TEXT NOT NULL,
    high TEXT NOT NULL,
    low TEXT NOT NULL,
    close TEXT NOT NULL,
    volume TEXT NOT NULL,
    quote_volume TEXT,
    as_of_ms INTEGER NOT NULL
"""

# The steps that create a new file. An older file does not have the later ones. Never change a released step.
_FIRST_TABLES = (
    """CREATE TABLE markets (
        id INTEGER PRIMARY KEY,
        exchange TEXT NOT NULL,
        symbol TEXT NOT NULL,
        complete_from_ms INTEGER,
        UNIQUE (exchange, symbol)
    )""",
    f"CREATE TABLE candles (market INTEGER NOT NULL, {_VALUE_COLUMNS}, PRIMARY KEY (market, time_ms)) WITHOUT ROWID",
    f"""CREATE TABLE rollups (market INTEGER NOT NULL, interval_ms INTEGER NOT NULL, {_VALUE_COLUMNS},
        PRIMARY KEY (market, interval_ms, time_ms)) WITHOUT ROWID""",
    f"CREATE TABLE running (market INTEGER PRIMARY KEY, {_VALUE_COLUMNS})",
    """CREATE TABLE holes (
        market INTEGER NOT NULL,
        start_ms INTEGER NOT NULL,
        end_ms INTEGER NOT NULL,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        retry_ms INTEGER,
        PRIMARY KEY (market, start_ms)
    ) WITHOUT ROWID""",
    "CREATE TABLE intervals (interval_ms INTEGER PRIMARY KEY)",
)

# Revisions and sources, and the log of changes: the `feeds` of a market by number (`seen_ms` is when `tidy_up` first
# saw one), and the ranges of the past that changed with each message of a feed.
_REVISIONS_AND_CHANGES = (
    "ALTER TABLE candles ADD COLUMN rev INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE candles ADD COLUMN src INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE rollups ADD COLUMN rev INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE running ADD COLUMN rev INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE running ADD COLUMN src INTEGER NOT NULL DEFAULT 0",
    """CREATE TABLE feeds (
        market INTEGER NOT NULL,
        number INTEGER NOT NULL,
        epoch TEXT NOT NULL,
        seen_ms INTEGER,
        PRIMARY KEY (market, number),
        UNIQUE (market, epoch)
    ) WITHOUT ROWID""",
    """CREATE TABLE changes (
        market INTEGER NOT NULL,
        feed INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        start_ms INTEGER NOT NULL,
        end_ms INTEGER NOT NULL,
        PRIMARY KEY (market, feed, seq, start_ms, end_ms)
    ) WITHOUT ROWID""",
)

# `folded`: the past is folded too, so the bars can be read and be the source of longer ones.
_INTERVALS_BEING_FOLDED = ("ALTER TABLE intervals ADD COLUMN folded INTEGER NOT NULL DEFAULT 1",)

# Several minutes of a market without a final version. `running` had one row per market.
_FORMING_MINUTES = (
    f"""CREATE TABLE forming (market INTEGER NOT NULL, {_VALUE_COLUMNS},
        rev INTEGER NOT NULL, src INTEGER NOT NULL, PRIMARY KEY (market, time_ms)) WITHOUT ROWID""",
    f"""INSERT INTO forming (market, {_MINUTE}) SELECT market, {_MINUTE} FROM running
        WHERE time_ms > coalesce((SELECT max(time_ms) FROM candles WHERE candles.market = running.market), -1)""",
    "DROP TABLE running",
)
# The time before which minutes were dropped, or will be: one row.
_RETENTION = (
    "CREATE TABLE retention (kept_from_ms INTEGER NOT NULL)",
    "INSERT INTO retention (kept_from_ms) VALUES (0)",
)
STEPS = (_FIRST_TABLES, _REVISIONS_AND_CHANGES, _INTERVALS_BEING_FOLDED, _FORMING_MINUTES, _RETENTION)
STEP_NAMES = ("tables", "revisions and changes", "intervals being folded", "forming minutes", "retention")
UNDO_LAST_STEP = ("DROP TABLE retention",)

# The number of a market, and all markets.
MARKET_ID = "SELECT id FROM markets WHERE exchange = ? AND symbol = ?"
MARKETS = "SELECT exchange, symbol FROM markets ORDER BY exchange, symbol"
MARKET_IDS = "SELECT id FROM markets ORDER BY id"
ADD_MARKET = "INSERT INTO markets (exchange, symbol) VALUES (?, ?) ON CONFLICT DO NOTHING"

# The minutes in a range, and the last ones before a time.
MINUTES_BETWEEN = f"SELECT {_MINUTE} FROM candles WHERE market = ? AND time_ms >= ? AND time_ms < ? ORDER BY time_ms"
MINUTES_BEFORE = f"SELECT {_MINUTE} FROM candles WHERE market = ? AND time_ms < ? ORDER BY time_ms DESC LIMIT ?"
PUT_MINUTE = f"REPLACE INTO candles (market, {_MINUTE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

# The same for longer bars.
BARS_BETWEEN = f"""SELECT {_FOLDED} FROM rollups
    WHERE market = ? AND interval_ms = ? AND time_ms >= ? AND time_ms < ? ORDER BY time_ms"""
BARS_BEFORE = f"""SELECT {_FOLDED} FROM rollups
    WHERE market = ? AND interval_ms = ? AND time_ms < ? ORDER BY time_ms DESC LIMIT ?"""
# All rows as JSON in a single row: after each row, a thread may have to wait for the interpreter's lock.
_AS_JSON = "SELECT json_group_array(json_array({})) FROM ({})"
MINUTES_AS_JSON, BARS_AS_JSON = (_AS_JSON.format(_MINUTE, rows) for rows in (MINUTES_BETWEEN, BARS_BETWEEN))
# The same in the form that `bar_texts` reads.
_TEXTS = "time_ms, open, high, low, close, volume, quote_volume"
JSON_OF_MINUTES, JSON_OF_BARS = (_AS_JSON.format(_TEXTS, rows) for rows in (MINUTES_BETWEEN, BARS_BETWEEN))
PUT_BAR = f"REPLACE INTO rollups (market, interval_ms, {_BAR}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
DROP_BARS_BETWEEN = "DELETE FROM rollups WHERE market = ? AND interval_ms = ? AND time_ms >= ? AND time_ms < ?"
DROP_BARS = "DELETE FROM rollups WHERE market = ? AND interval_ms = ?"


def of_rows(statement: str, count: int) -> str:
    """Return a statement that writes `count` rows, given one that writes a single row."""
    head, values, row = statement.partition("VALUES ")
    return head + values + ", ".join([row] * count)


# Minutes without a final version, and those too old to become final.
FORMING = f"SELECT {_MINUTE} FROM forming WHERE market = ? ORDER BY time_ms"
PUT_FORMING = f"REPLACE INTO forming (market, {_MINUTE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
DROP_FORMING = "DELETE FROM forming WHERE market = ? AND time_ms = ?"
DROP_OLD_FORMING = """DELETE FROM forming WHERE time_ms <
    (SELECT max(time_ms) FROM forming AS newest WHERE newest.market = forming.market) - ?"""
IS_FINAL = "SELECT 1 FROM candles WHERE market = ? AND time_ms = ?"

# The first and the last minute or bar of a market: one lookup at either end of the key, not a scan.
_WITHIN_TIME = f"market = asked.id AND time_ms >= 0 AND time_ms < {END_OF_TIME_MS}"
SPAN = f"""SELECT (SELECT min(time_ms) FROM candles WHERE {_WITHIN_TIME}),
    (SELECT max(time_ms) FROM candles WHERE {_WITHIN_TIME}) FROM (SELECT ? AS id) AS asked"""
BARS_SPAN = (
    SPAN.replace("candles", "rollups")
    .replace("asked.id", "asked.id AND interval_ms = asked.length_ms")
    .replace("? AS id", "? AS id, ? AS length_ms")
)
NEWEST = f"""SELECT symbol, newest FROM (
        SELECT symbol, (SELECT max(time_ms) FROM candles WHERE market = id AND time_ms < {END_OF_TIME_MS}) AS newest
        FROM markets WHERE exchange = ?
    ) WHERE newest IS NOT NULL"""


_NOWHERE = f"(typeof(time_ms) <> 'integer' OR time_ms < 0 OR time_ms >= {END_OF_TIME_MS})"


def _suspect(table: str, interval_ms: str, columns: str) -> str:
    """Return a query for the rows of a range with unusual values, which `rows.problem` must check.

    The file checks no types, so a column may contain anything.
    """
    signs = [
        f"typeof({name}) <> 'text' OR {name} GLOB '*[^0-9.]*' OR {name} GLOB '*.*.*' OR {name} IN ('', '.')"
        for name in ("open", "high", "low", "close", "volume")
    ]
    signs.append(signs[0].replace("open", "quote_volume").join(("quote_volume IS NOT NULL AND (", ")")))
    signs += [f"typeof({name}) <> 'integer'" for name in ("as_of_ms", "rev", "src") if name in columns]
    signs += [f"src NOT BETWEEN 0 AND {len(SOURCES) - 1}"] if "src" in columns else []
    return f"""SELECT {interval_ms}, {columns} FROM {table}
        WHERE market = ? AND time_ms >= ? AND time_ms < ? AND NOT {_NOWHERE} AND ({" OR ".join(signs)})"""


# Of each table: the length of a row's bar, its columns, and a condition, because only bars of kept intervals count.
_KINDS: Mapping[Table, tuple[str, str, str]] = {
    "candles": (str(MINUTE_MS), _MINUTE, ""),
    "rollups": ("interval_ms", _FOLDED, "AND interval_ms IN (SELECT interval_ms FROM intervals)"),
    "forming": (str(MINUTE_MS), _MINUTE, ""),
}
# Rows of a range that may not be valid bars, rows without a valid time, and the deletion of one.
SUSPECTS = {table: f"{_suspect(table, ms, columns)} {kept}" for table, (ms, columns, kept) in _KINDS.items()}
WITHOUT_TIME = {
    table: f"SELECT {ms}, {columns} FROM {table} WHERE market = ? AND {_NOWHERE} {kept}"
    for table, (ms, columns, kept) in _KINDS.items()
}
DISCARD = {
    table: f"DELETE FROM {table} WHERE market = ? AND {ms} = ? AND time_ms IS ?" for table, (ms, *_) in _KINDS.items()
}

# The ranges of stored minutes. Adjacent minutes have the same difference of time and position.
STORED_RANGES = f"""SELECT min(time_ms), max(time_ms) + {MINUTE_MS} FROM (
        SELECT time_ms, time_ms - {MINUTE_MS} * row_number() OVER (ORDER BY time_ms) AS stretch
        FROM candles WHERE market = ? AND time_ms >= ? AND time_ms < ?
    ) GROUP BY stretch ORDER BY 1"""

# The time since which a market is complete, and the gaps on the exchange's side.
COMPLETE_FROM = "SELECT complete_from_ms FROM markets WHERE id = ?"
# The start of the history to serve. `min` of two values is NULL if one of them is.
SERVED_FROM = """SELECT min(coalesce(complete_from_ms, oldest), coalesce(oldest, complete_from_ms)) FROM
    (SELECT complete_from_ms,
            (SELECT min(time_ms) FROM candles WHERE market = id AND time_ms >= (SELECT kept_from_ms FROM retention))
                AS oldest
        FROM markets WHERE id = ?)"""
SET_COMPLETE_FROM = "UPDATE markets SET complete_from_ms = min(coalesce(complete_from_ms, ?), ?) WHERE id = ?"
# Gaps do not overlap: of those that begin before a range, only the last can reach into it.
KNOWN_GAPS = """SELECT holes.start_ms, holes.end_ms, reason, attempts, retry_ms
    FROM (SELECT ? AS id, ? AS start_ms, ? AS end_ms) AS asked CROSS JOIN holes ON market = asked.id
    WHERE holes.start_ms >= coalesce(
            (SELECT max(start_ms) FROM holes WHERE market = asked.id AND start_ms < asked.start_ms), asked.start_ms)
        AND holes.start_ms <= asked.end_ms AND holes.end_ms >= asked.start_ms
    ORDER BY holes.start_ms"""
DROP_KNOWN_GAP = "DELETE FROM holes WHERE market = ? AND start_ms = ?"
PUT_KNOWN_GAP = "INSERT INTO holes (market, start_ms, end_ms, reason, attempts, retry_ms) VALUES (?, ?, ?, ?, ?, ?)"

# Intervals whose bars every writer updates, and those for which all bars are stored.
INTERVALS = "SELECT interval_ms, folded FROM intervals"
FOLDED = "SELECT interval_ms FROM intervals WHERE folded"
UNFOLDED = "SELECT interval_ms FROM intervals WHERE NOT folded"
ADD_INTERVAL = "INSERT INTO intervals (interval_ms, folded) VALUES (?, 0) ON CONFLICT DO NOTHING"
SET_FOLDED = "UPDATE intervals SET folded = 1 WHERE interval_ms = ?"
DROP_INTERVAL = "DELETE FROM intervals WHERE interval_ms = ?"

# The time before which minutes are not stored, and the deletion of older ones.
KEPT_FROM = "SELECT max(kept_from_ms) FROM retention"
SET_KEPT_FROM = "UPDATE retention SET kept_from_ms = max(kept_from_ms, ?)"
OLDEST_MINUTE = "SELECT min(time_ms) FROM candles WHERE market = ?"
DELETE_MINUTES = "DELETE FROM candles WHERE market = ? AND time_ms < ?"

# The feeds of a market, and the changes after a message of one of them. A known feed yields at least one row, perhaps
# with NULL.
REGISTER_FEED = """INSERT INTO feeds (market, number, epoch)
    SELECT id, 1 + coalesce((SELECT max(number) FROM feeds WHERE market = id), 0), epoch
    FROM (SELECT ? AS id, ? AS epoch) WHERE true
    ON CONFLICT (market, epoch) DO NOTHING"""
FEED = "SELECT number FROM feeds WHERE market = ? AND epoch = coalesce(?, epoch) ORDER BY number DESC LIMIT 1"
DROP_UNPUBLISHED = "DELETE FROM changes WHERE market = ? AND feed = ? AND seq = ? AND start_ms >= ? AND end_ms <= ?"
LOG_CHANGE = "INSERT INTO changes (market, feed, seq, start_ms, end_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
UNPUBLISHED = """SELECT symbol, start_ms, end_ms FROM markets JOIN changes ON changes.market = id
    WHERE exchange = ? AND feed = (SELECT max(number) FROM feeds WHERE feeds.market = id) AND seq = ?
    ORDER BY symbol, start_ms"""
CHANGES_SINCE = """SELECT start_ms, end_ms
    FROM (SELECT market, number FROM feeds WHERE market = ? AND epoch = ?) AS feed
    LEFT JOIN changes ON changes.market = feed.market AND (changes.feed, changes.seq) > (feed.number, ?)"""
FEED_LOG = """SELECT epoch, seq, start_ms, end_ms FROM feeds LEFT JOIN changes
        ON changes.market = feeds.market AND changes.feed = feeds.number
    WHERE feeds.market = ? ORDER BY number, seq, start_ms, end_ms"""

# Feeds that are new to `tidy_up`, and the oldest feed to keep per market. Once a feed is old enough, no client resumes
# from those before it. The newest is always kept.
SEE_FEEDS = "UPDATE feeds SET seen_ms = ? WHERE seen_ms IS NULL"
OLD_FEEDS = """SELECT market,
        max(max(number) - ? + 1, coalesce(max(CASE WHEN seen_ms <= ? THEN number END), 0)) AS kept
    FROM feeds GROUP BY market HAVING min(number) < kept"""
DROP_CHANGES = "DELETE FROM changes WHERE market = ? AND feed < ?"
DROP_FEEDS = "DELETE FROM feeds WHERE market = ? AND number < ?"
