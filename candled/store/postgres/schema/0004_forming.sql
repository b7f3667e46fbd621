-- A market may have several minutes without a final version; before, it had one row.
ALTER TABLE candled.running RENAME TO forming;
ALTER TABLE candled.forming DROP CONSTRAINT running_pkey, ADD PRIMARY KEY (market, time);
DELETE FROM candled.forming USING candled.markets WHERE id = forming.market AND forming.time <= last_time;
