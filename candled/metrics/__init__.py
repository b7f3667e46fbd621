"""Metrics for Prometheus, read from the parts of the daemon at each scrape."""
