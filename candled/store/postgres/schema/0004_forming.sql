-- Several minutes of a market without a final version, where there was one row a market.
ALTER TABLE candled.running RENAME TO forming;
ALTER TABLE candled.forming DROP CONSTRAINT running_pkey, ADD PRIMARY KEY (market, time);
DELETE FROM candled.forming USING candled.markets WHERE id = forming.market AND forming.time <= last_time;
