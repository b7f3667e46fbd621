-- One row per market: its newest minute without a final version.
DELETE FROM candled.forming AS old USING candled.forming AS newer
    WHERE newer.market = old.market AND newer.time > old.time;
ALTER TABLE candled.forming RENAME TO running;
ALTER TABLE candled.running DROP CONSTRAINT forming_pkey, ADD PRIMARY KEY (market);
