"""The statements of the PostgreSQL store. Times are passed and returned as UTC epoch ms."""

from collections.abc import Sequence

from candled.model import MINUTE_MS
from candled.store.batch import SOURCES

_NUMBERS = ("open", "high", "low", "close", "volume", "quote_volume")
_BAR = (*_NUMBERS, "as_of", "rev")
_MINUTE = (*_BAR, "src")


def _time(ms: str) -> str:
    """Return SQL that converts milliseconds to a time. The planner takes it for a constant, unlike a sum."""
    return f"to_timestamp({ms} / 1000::float8)"


def _ms(time: str) -> str:
    return f"(date_part('epoch', {time}) * 1000)::bigint"


# The columns of a bar as they are read. The last one is constant for longer bars.
_READ = f"{_ms('time')}, {', '.join(_NUMBERS)}, {_ms('as_of')}"
_MINUTES = f"SELECT {_READ}, coalesce(rev, 0), coalesce(src, 0)"
_BARS = f"SELECT {_READ}, rev, {SOURCES.index('agg')}"
# Bars as one row with the JSON that `bar_texts` reads.
_AS_JSON = f"""SELECT '[' || coalesce(string_agg(concat('[', {_ms("time")}, ',"',
        concat_ws('","', open, high, low, close, volume), '",', coalesce('"' || quote_volume || '"', 'null'), ']'),
        ',' ORDER BY time), '') || ']'"""
_AT = _time("%s::bigint")


def _version(row: str) -> str:
    """Return SQL for the rule of `Candle.supersedes`: the version of a minute with the greater tuple wins.

    A version made after the end of the minute wins over any made before. After the end, the later one wins; before it,
    the one with the larger volume. The same version may come again with a larger `rev`.
    """
    is_over = f"{row}.as_of >= {row}.time + interval '1 minute'"
    return (
        f"({is_over}, CASE WHEN {is_over} THEN {row}.as_of ELSE '-infinity' END, {row}.volume, {row}.as_of, "
        f"coalesce({row}.quote_volume, -1), {row}.high, -{row}.low, {row}.close, {row}.open, coalesce({row}.rev, 0))"
    )


def _listed(columns: Sequence[str], row: str = "") -> str:
    return ", ".join(f"{row}.{column}" if row else column for column in columns)


def _all_new(columns: Sequence[str]) -> str:
    return ", ".join(f"{column} = excluded.{column}" for column in columns)


def _differ(columns: Sequence[str]) -> str:
    return f"({_listed(columns, 'old')}) IS DISTINCT FROM ({_listed(columns, 'excluded')})"


def _merge(revisions: str) -> str:
    """Return SQL for the rule of `Candle.merged_with`. `revisions` is added to `rev` if the values differ."""
    others = _differ(_NUMBERS)
    return f"""ON CONFLICT (market, time) DO UPDATE SET {_all_new((*_NUMBERS, "as_of"))},
            src = CASE WHEN {others} THEN excluded.src ELSE old.src END,
            rev = greatest(excluded.rev, coalesce(old.rev, 0) + CASE WHEN {others} THEN {revisions} ELSE 0 END)
            WHERE {_version("excluded")} > {_version("old")}"""


_BATCH = f"""
    SELECT market, {_time("time_ms")}, {_listed(_NUMBERS)}, {_time("as_of_ms")}, rev, src
    FROM unnest(%s::int[], %s::bigint[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[],
        %s::numeric[], %s::bigint[], %s::int[], %s::smallint[])
        AS batch (market, time_ms, {_listed(_NUMBERS)}, as_of_ms, rev, src)"""

# ---------------------------------------------------------------- markets

# The number of each market, locked against other writers until the end of the transaction. Rows are locked in the order
# of their numbers, so two writers never deadlock.
ADD_MARKETS = """INSERT INTO candled.markets (exchange, symbol)
    SELECT exchange, symbol FROM unnest(%s::text[], %s::text[]) AS batch (exchange, symbol)
        WHERE NOT EXISTS (SELECT FROM candled.markets AS known
            WHERE known.exchange = batch.exchange AND known.symbol = batch.symbol)
        ORDER BY exchange, symbol
    ON CONFLICT DO NOTHING"""
LOCK_MARKETS = """SELECT id, markets.exchange, markets.symbol
    FROM candled.markets JOIN unnest(%s::text[], %s::text[]) AS batch (exchange, symbol)
        ON markets.exchange = batch.exchange AND markets.symbol = batch.symbol
    ORDER BY id FOR NO KEY UPDATE OF markets"""
LOCK_MARKET = "SELECT FROM candled.markets WHERE id = %s FOR NO KEY UPDATE"
MARKETS = "SELECT exchange, symbol FROM candled.markets ORDER BY exchange, symbol"
LOCK_ALL_MARKETS = "SELECT FROM candled.markets ORDER BY id FOR NO KEY UPDATE"

# The first and the last minute of a market.
MARKET_SPAN = f"""SELECT id, {_ms("first_time")}, {_ms("last_time")} FROM candled.markets
    WHERE exchange = %s AND symbol = %s AND first_time IS NOT NULL"""
# The range of minutes that are kept. Older ones were dropped, or will be.
SPAN = f"""SELECT {_ms("greatest(first_time, kept_from)")}, {_ms("last_time")} FROM candled.markets, candled.state
    WHERE exchange = %s AND symbol = %s AND last_time >= kept_from"""
SPANS = (
    f"SELECT id, {_ms('first_time')}, {_ms('last_time')} FROM candled.markets WHERE first_time IS NOT NULL ORDER BY id"
)
NEWEST = f"SELECT symbol, {_ms('last_time')} FROM candled.markets WHERE exchange = %s AND last_time IS NOT NULL"
WIDEN_SPANS = f"""UPDATE candled.markets
    SET first_time = least(first_time, changed.first), last_time = greatest(last_time, changed.last)
    FROM (SELECT market, {_time("first_ms")} AS first, {_time("last_ms")} AS last
        FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) AS batch (market, first_ms, last_ms)) AS changed
    WHERE id = changed.market AND (first_time IS NULL OR first_time > changed.first OR last_time < changed.last)"""

# The time since which the history of a market is complete, and the gaps on the exchange's side.
COMPLETE_FROM = f"SELECT {_ms('complete_from')} FROM candled.markets WHERE exchange = %s AND symbol = %s"
# The start of the history to serve. Minutes older than the retention are not stored any more.
_OLDEST_KEPT = "CASE WHEN first_time IS NOT NULL THEN greatest(first_time, kept_from) END"
SERVED_FROM = f"""SELECT {_ms(f"least(complete_from, {_OLDEST_KEPT})")}
    FROM candled.markets, candled.state WHERE exchange = %s AND symbol = %s"""
SET_COMPLETE_FROM = f"UPDATE candled.markets SET complete_from = least(complete_from, {_AT}) WHERE id = %s"
# Gaps do not overlap: of those that begin before a range, only the last can reach into it.
KNOWN_GAPS = f"""WITH asked (market, start_time, end_time) AS (
        SELECT id, {_time("start_ms")}, {_time("end_ms")}
        FROM candled.markets JOIN (SELECT %s, %s, %s::bigint, %s::bigint) AS given (exchange, symbol, start_ms, end_ms)
            USING (exchange, symbol))
    SELECT {_ms("hole.start_time")}, {_ms("hole.end_time")}, reason, attempts, {_ms("retry_at")}
    FROM asked JOIN candled.holes AS hole USING (market)
    WHERE hole.start_time <= asked.end_time AND hole.end_time >= asked.start_time AND hole.start_time >= coalesce(
        (SELECT max(start_time) FROM candled.holes AS earlier
            WHERE earlier.market = asked.market AND earlier.start_time < asked.start_time),
        asked.start_time)
    ORDER BY hole.start_time"""
DROP_KNOWN_GAPS = f"""DELETE FROM candled.holes
    WHERE market = %s AND start_time IN (SELECT {_time("start_ms")} FROM unnest(%s::bigint[]) AS start_ms)"""
PUT_KNOWN_GAPS = f"""INSERT INTO candled.holes (market, start_time, end_time, reason, attempts, retry_at)
    SELECT %s, {_time("start_ms")}, {_time("end_ms")}, reason, attempts, {_time("retry_ms")}
    FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::int[], %s::bigint[])
        AS batch (start_ms, end_ms, reason, attempts, retry_ms)"""

# ---------------------------------------------------------------- minutes

# The minutes in a range, the same as JSON, and the last ones in it.
_MINUTES_OF_RANGE = f"FROM candled.candles WHERE market = %s AND time >= {_AT} AND time < {_AT}"
MINUTES_BETWEEN = f"{_MINUTES} {_MINUTES_OF_RANGE} ORDER BY time"
JSON_OF_MINUTES = f"{_AS_JSON} {_MINUTES_OF_RANGE}"
LAST_MINUTES = f"{_MINUTES} {_MINUTES_OF_RANGE} ORDER BY time DESC LIMIT %s"

# Store a batch of minutes, with one revision more if the stored version had other values. Return for each market with
# changes the range that changed, and the times and numbers of revisions of the changed minutes that were revised.
PUT_MINUTES = f"""WITH changed AS (
        INSERT INTO candled.candles AS old (market, time, {_listed(_MINUTE)})
        SELECT * FROM ({_BATCH}) AS batch (market, time, {_listed(_MINUTE)})
            WHERE time >= (SELECT kept_from FROM candled.state)
        {_merge("1")}
        RETURNING market, time, rev)
    SELECT market, {_ms("min(time)")}, {_ms("max(time)")},
        array_agg({_ms("time")}) FILTER (WHERE rev > 0), array_agg(rev) FILTER (WHERE rev > 0)
    FROM changed GROUP BY market ORDER BY market"""

# The ranges of stored minutes. Adjacent minutes have the same difference of time and position.
STORED_RANGES = f"""SELECT {_ms("min(time)")}, {_ms("max(time)")} + {MINUTE_MS} FROM (
        SELECT time, time - interval '1 minute' * row_number() OVER (ORDER BY time) AS stretch
        FROM candled.candles WHERE market = %s AND time >= {_AT} AND time < {_AT}
    ) AS there GROUP BY stretch ORDER BY 1"""

# ---------------------------------------------------------------- longer bars

_OF_MARKET = "market = (SELECT id FROM candled.markets WHERE exchange = %s AND symbol = %s)"
_BARS_OF_MARKET = f"FROM candled.rollups WHERE {_OF_MARKET} AND minutes = %s"
# The first and the last bar of an interval.
BARS_SPAN = f"SELECT {_ms('min(time)')}, {_ms('max(time)')} {_BARS_OF_MARKET}"
# The bars in a range, the same as JSON, and the last ones before a time.
_BARS_OF_RANGE = f"{_BARS_OF_MARKET} AND time >= {_AT} AND time < {_AT}"
BARS_BETWEEN = f"{_BARS} {_BARS_OF_RANGE} ORDER BY time"
JSON_OF_BARS = f"{_AS_JSON} {_BARS_OF_RANGE}"
BARS_BEFORE = f"{_BARS} {_BARS_OF_MARKET} AND time < {_AT} ORDER BY time DESC LIMIT %s"

# Store bars whose minutes are not kept.
PUT_BARS = f"""INSERT INTO candled.rollups (market, minutes, time, {_listed(_BAR)})
    SELECT market, %s, time, {_listed(_BAR)} FROM ({_BATCH}) AS batch (market, time, {_listed(_MINUTE)})
    ON CONFLICT (market, minutes, time) DO UPDATE SET {_all_new(_BAR)}"""


def _fold(source: str, condition: str) -> str:
    """Return SQL that folds parts into longer bars. The parts lie in ranges of complete bars of some markets.

    Buckets are those of `Interval.floor`: the origin is a Monday, 00:00 UTC. The outer limits of all ranges let
    TimescaleDB leave out chunks without parts. OFFSET 0 makes it one lookup per range: without it, the planner, which
    knows nothing of new tables, may compare every part with every range.
    """
    return f"""INSERT INTO candled.rollups AS old (market, minutes, time, {_listed(_BAR)})
    SELECT market, %s, bucket, (array_agg(open ORDER BY time))[1], max(high), min(low),
        (array_agg(close ORDER BY time DESC))[1], sum(volume),
        CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END, max(as_of), coalesce(sum(rev), 0)
    FROM (
        SELECT part.*, date_bin(%s * interval '1 minute', part.time, '1969-12-29 00:00:00+00') AS bucket
        FROM (SELECT market, {_time("start_ms")} AS start_time, {_time("end_ms")} AS end_time
            FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) AS batch (market, start_ms, end_ms)) AS touched
        CROSS JOIN LATERAL (SELECT * FROM {source} AS source WHERE source.market = touched.market
            AND source.time >= touched.start_time AND source.time < touched.end_time
            AND source.time >= {_AT} AND source.time < {_AT} {condition} OFFSET 0) AS part
    ) AS parts
    GROUP BY market, bucket
    ORDER BY market, bucket
    ON CONFLICT (market, minutes, time) DO UPDATE SET {_all_new(_BAR)} WHERE {_differ(_BAR)}"""


FOLD_MINUTES = _fold("candled.candles", "")
FOLD_BARS = _fold("candled.rollups", "AND source.minutes = %s")

# The known intervals, and whether they are folded.
INTERVALS = "SELECT name, folded FROM candled.intervals ORDER BY name"
ADD_INTERVALS = "INSERT INTO candled.intervals (name) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING"
SET_FOLDED = "UPDATE candled.intervals SET folded = true WHERE name = ANY(%s)"
DELETE_INTERVAL = "DELETE FROM candled.intervals WHERE name = %s"
DROP_BARS_BETWEEN = f"DELETE FROM candled.rollups WHERE market = %s AND minutes = %s AND time >= {_AT} AND time < {_AT}"
DROP_BARS = "DELETE FROM candled.rollups WHERE market = %s AND minutes = %s"

# ---------------------------------------------------------------- forming minutes

# Store minutes without a final version. The limits of the batch let TimescaleDB leave out all other chunks.
PUT_FORMING = f"""INSERT INTO candled.forming AS old (market, time, {_listed(_MINUTE)})
    SELECT * FROM ({_BATCH}) AS batch (market, time, {_listed(_MINUTE)})
        WHERE NOT EXISTS (SELECT FROM candled.candles AS final
            WHERE final.market = batch.market AND final.time = batch.time AND final.time BETWEEN {_AT} AND {_AT})
    {_merge("0")}"""
FORMING = f"{_MINUTES} FROM candled.forming WHERE {_OF_MARKET} ORDER BY time"
DROP_FORMING = f"""DELETE FROM candled.forming USING (SELECT market, {_time("time_ms")} AS time
        FROM unnest(%s::int[], %s::bigint[]) AS batch (market, time_ms)) AS ended
    WHERE forming.market = ended.market AND forming.time = ended.time"""
DROP_OLD_FORMING = """DELETE FROM candled.forming WHERE time <
    (SELECT max(time) FROM candled.forming AS newest WHERE newest.market = forming.market) - %s * interval '1 ms'"""

# ---------------------------------------------------------------- the log of changes

# The feeds of a market, and the changes after a message of one of them. A known feed yields at least one row, perhaps
# with NULL.
REGISTER_FEED = """INSERT INTO candled.feeds (market, number, epoch)
    SELECT market, 1 + coalesce((SELECT max(number) FROM candled.feeds WHERE feeds.market = batch.market), 0), %s
    FROM unnest(%s::int[]) AS batch (market)
    ON CONFLICT (market, epoch) DO NOTHING"""
FEED = """SELECT number FROM candled.feeds WHERE market = %s AND (epoch = %s OR %s::text IS NULL)
    ORDER BY number DESC LIMIT 1"""
DROP_UNPUBLISHED = f"""DELETE FROM candled.changes
    USING (SELECT seq, {_time("start_ms")} AS start_time, {_time("end_ms")} AS end_time
        FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS batch (seq, start_ms, end_ms)) AS published
    WHERE changes.market = %s AND changes.feed = %s AND changes.seq = %s AND published.seq < %s
        AND changes.start_time >= published.start_time AND changes.end_time <= published.end_time"""
LOG_CHANGES = f"""INSERT INTO candled.changes (market, feed, seq, start_time, end_time)
    SELECT %s, %s, seq, {_time("start_ms")}, {_time("end_ms")}
    FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS batch (seq, start_ms, end_ms)
    ON CONFLICT DO NOTHING"""
UNPUBLISHED = f"""SELECT symbol, {_ms("start_time")}, {_ms("end_time")}
    FROM candled.markets JOIN candled.changes ON changes.market = markets.id
    WHERE exchange = %s AND seq = %s
        AND feed = (SELECT max(number) FROM candled.feeds WHERE feeds.market = markets.id)
    ORDER BY symbol, start_time"""
CHANGES_SINCE = f"""SELECT {_ms("start_time")}, {_ms("end_time")}
    FROM (SELECT feeds.* FROM candled.markets JOIN candled.feeds ON market = id
            WHERE exchange = %s AND symbol = %s AND epoch = %s) AS feed
        LEFT JOIN candled.changes ON changes.market = feed.market AND (changes.feed, changes.seq) > (feed.number, %s)"""

FEED_LOG = f"""SELECT epoch, seq, {_ms("start_time")}, {_ms("end_time")}
    FROM candled.markets JOIN candled.feeds ON feeds.market = id
        LEFT JOIN candled.changes ON changes.market = feeds.market AND changes.feed = number
    WHERE exchange = %s AND symbol = %s ORDER BY number, seq, start_time, end_time"""

# Feeds that are new to `tidy_up`, and the oldest feed to keep per market. Once a feed is old enough, no client resumes
# from those before it. The newest is always kept.
SEE_FEEDS = f"UPDATE candled.feeds SET seen_at = {_AT} WHERE seen_at IS NULL"
DROP_FEEDS = f"""WITH kept AS (
        SELECT market, greatest(max(number) - %s + 1, max(number) FILTER (WHERE seen_at <= {_AT})) AS first
        FROM candled.feeds GROUP BY market),
    dropped AS (
        DELETE FROM candled.changes USING kept WHERE changes.market = kept.market AND changes.feed < kept.first)
    DELETE FROM candled.feeds USING kept WHERE feeds.market = kept.market AND feeds.number < kept.first"""

# ---------------------------------------------------------------- maintenance

# Register this process with its settings, and read the other processes that use the database.
CHECK_IN = """INSERT INTO candled.processes AS old (id, name, settings, seen_at) VALUES (%s, %s, %s, now())
    ON CONFLICT (id) DO UPDATE SET settings = excluded.settings, seen_at = excluded.seen_at"""
DELETE_OLD_PROCESSES = "DELETE FROM candled.processes WHERE seen_at < now() - interval '1 day'"
OTHERS = f"""SELECT name, settings FROM candled.processes
    WHERE id <> %s AND seen_at >= {_AT} AND seen_at > now() - interval '2 minutes' ORDER BY name"""
NOW = f"SELECT {_ms('now()')}"

# Only one process at a time prepares the tables, and only one maintains them. The locks end with the connection.
TRY_PREPARE = "SELECT pg_try_advisory_lock(hashtextextended('candled prepare', 0))"
PREPARE = "SELECT pg_advisory_lock(hashtextextended('candled prepare', 0))"
TRY_MAINTAIN = "SELECT pg_try_advisory_lock(hashtextextended('candled maintain', 0))"

# The time before which minutes are not kept, and the deletion of older ones.
SET_KEPT_FROM = f"UPDATE candled.state SET kept_from = {_AT} WHERE kept_from < {_AT}"
KEPT_FROM = f"SELECT {_ms('kept_from')} FROM candled.state WHERE kept_from > '-infinity'"
OLDEST_MINUTE = f"SELECT {_ms('min(time)')} FROM candled.candles WHERE market = %s"
# Delete single minutes. The span of a market may then be shorter.
DISCARD = {
    table: f"""DELETE FROM candled.{table}
        WHERE market = %s AND time IN (SELECT {_time("open_ms")} FROM unnest(%s::bigint[]) AS open_ms)"""
    for table in ("candles", "forming")
}
SET_SPAN = """UPDATE candled.markets SET
    first_time = (SELECT min(time) FROM candled.candles WHERE market = id),
    last_time = (SELECT max(time) FROM candled.candles WHERE market = id) WHERE id = %s"""
DELETE_MINUTES = f"DELETE FROM candled.candles WHERE market = %s AND time >= {_AT} AND time < {_AT}"
