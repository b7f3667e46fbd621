-- `rev`: how often a final minute was revised. `src`: the number of the source of its values. NULL, in rows from before
-- this migration, means 0 and unknown. A column without a default needs no rewriting of compressed chunks.
ALTER TABLE candled.candles ADD COLUMN rev integer;
ALTER TABLE candled.candles ADD COLUMN src smallint;
ALTER TABLE candled.running ADD COLUMN rev integer;
ALTER TABLE candled.running ADD COLUMN src smallint;

-- The sum over the minutes of a bar. Longer bars have no source, because all of them are folded.
ALTER TABLE candled.rollups ADD COLUMN rev integer NOT NULL DEFAULT 0;

-- The feeds of each market, in the order of their numbers. `epoch` is the name of a feed. `seen_at`: when maintenance
-- first found it.
CREATE TABLE candled.feeds (
    market integer NOT NULL,
    number integer NOT NULL,
    epoch text NOT NULL,
    seen_at timestamptz,
    PRIMARY KEY (market, number),
    UNIQUE (market, epoch)
);

-- The ranges of the past that changed, each with the number of the feed's message about the change.
CREATE TABLE candled.changes (
    market integer NOT NULL,
    feed integer NOT NULL,
    seq bigint NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    PRIMARY KEY (market, feed, seq, start_time, end_time)
);
