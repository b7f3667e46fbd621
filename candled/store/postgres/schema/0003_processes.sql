-- The daemons that use the database, with their settings for it, so that different ones can be reported.
CREATE TABLE candled.processes (
    id text PRIMARY KEY,
    name text NOT NULL,
    settings jsonb NOT NULL,
    seen_at timestamptz NOT NULL
);

-- Intervals are only dropped by command, so the time of their last use is not needed.
ALTER TABLE candled.intervals DROP COLUMN used_at;
