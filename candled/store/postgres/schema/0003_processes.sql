-- The daemons that use the database, with those of their settings that concern it: two that differ are named.
CREATE TABLE candled.processes (
    id text PRIMARY KEY,
    name text NOT NULL,
    settings jsonb NOT NULL,
    seen_at timestamptz NOT NULL
);

-- An interval is dropped by an explicit act only, so that nobody need know when it was used.
ALTER TABLE candled.intervals DROP COLUMN used_at;
