"""Aggregation of 1-minute candles into bars of every interval, in memory."""
