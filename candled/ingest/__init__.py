"""Exchange → candles: connections, order, finality and the repair of gaps."""
