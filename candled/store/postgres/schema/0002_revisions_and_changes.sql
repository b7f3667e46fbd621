-- How often a final minute was revised, and who stated its values (its number in the list of sources): NULL in rows from
-- before this step is 0, none and not known. Two statements without a default, as that is what compressed chunks take
-- without being rewritten.
ALTER TABLE candled.candles ADD COLUMN rev integer;
ALTER TABLE candled.candles ADD COLUMN src smallint;
ALTER TABLE candled.running ADD COLUMN rev integer;
ALTER TABLE candled.running ADD COLUMN src smallint;

-- Of a longer bar the sum over its minutes; its source is always the same, folding.
ALTER TABLE candled.rollups ADD COLUMN rev integer NOT NULL DEFAULT 0;

-- The feeds of each market, in the order of their numbers; `epoch` is the name a process gave one. `seen_at`: when
-- maintenance first met it.
CREATE TABLE candled.feeds (
    market integer NOT NULL,
    number integer NOT NULL,
    epoch text NOT NULL,
    seen_at timestamptz,
    PRIMARY KEY (market, number),
    UNIQUE (market, epoch)
);

-- Which stretches of the past changed with which message of a feed.
CREATE TABLE candled.changes (
    market integer NOT NULL,
    feed integer NOT NULL,
    seq bigint NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    PRIMARY KEY (market, feed, seq, start_time, end_time)
);
