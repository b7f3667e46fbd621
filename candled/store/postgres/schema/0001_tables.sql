-- The candles of all markets. Numbers are NUMERIC, digit for digit as the exchange printed them. `time` is the start of
-- the minute or bar, `as_of` the exchange's clock when it sent the values (1970-01-01 if unknown).

-- One row: the number of the last migration, and the time before which minutes are no longer kept.
CREATE TABLE candled.state (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    schema integer NOT NULL,
    kept_from timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO candled.state (schema) VALUES (0);

-- `first_time` and `last_time` are the oldest and newest final minute ever stored; every scan is bounded by them.
-- The row of a market is also the lock that its writers take.
CREATE TABLE candled.markets (
    id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    exchange text NOT NULL,
    symbol text NOT NULL,
    first_time timestamptz,
    last_time timestamptz,
    complete_from timestamptz,
    UNIQUE (exchange, symbol)
) WITH (fillfactor = 50);

-- Final minutes, the source of truth. A second index or a foreign key would double the cost of writing.
CREATE TABLE candled.candles (
    market integer NOT NULL,
    time timestamptz NOT NULL,
    open numeric NOT NULL,
    high numeric NOT NULL,
    low numeric NOT NULL,
    close numeric NOT NULL,
    volume numeric NOT NULL,
    quote_volume numeric,
    as_of timestamptz NOT NULL,
    PRIMARY KEY (market, time)
);

-- Longer bars, folded from minutes in the transaction that changes those minutes. The newest bar changes every minute;
-- with free space on its page, such an update touches no index.
CREATE TABLE candled.rollups (
    market integer NOT NULL,
    minutes smallint NOT NULL,
    time timestamptz NOT NULL,
    open numeric NOT NULL,
    high numeric NOT NULL,
    low numeric NOT NULL,
    close numeric NOT NULL,
    volume numeric NOT NULL,
    quote_volume numeric,
    as_of timestamptz NOT NULL,
    PRIMARY KEY (market, minutes, time)
) WITH (fillfactor = 80);

-- The last state of the forming minute.
CREATE TABLE candled.running (
    market integer PRIMARY KEY,
    time timestamptz NOT NULL,
    open numeric NOT NULL,
    high numeric NOT NULL,
    low numeric NOT NULL,
    close numeric NOT NULL,
    volume numeric NOT NULL,
    quote_volume numeric,
    as_of timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Ranges of minutes that the exchange does not have.
CREATE TABLE candled.holes (
    market integer NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    reason text NOT NULL,
    attempts integer NOT NULL,
    retry_at timestamptz,
    PRIMARY KEY (market, start_time)
);

-- The longer intervals that every writer keeps up to date. `folded`: their past is folded too, so they can be read, and
-- be the parts of longer bars. `used_at`: when a process with this interval in its settings was last running.
CREATE TABLE candled.intervals (
    name text PRIMARY KEY,
    folded boolean NOT NULL DEFAULT false,
    used_at timestamptz
);
