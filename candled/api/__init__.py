"""Bars over HTTP, in the dialects that charts and bots speak: our own REST, TradingView's UDF, Binance's klines."""
