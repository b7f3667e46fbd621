"""Candles ↔ database: what every store can do, and the threads that do it."""
