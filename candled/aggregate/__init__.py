"""1-minute candles → bars of every interval, in memory."""
