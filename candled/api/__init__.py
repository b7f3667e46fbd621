"""Bars over HTTP, in three dialects: candled's own REST API, TradingView's UDF and Binance's klines."""
