"""Metrics for Prometheus, read from the parts of the daemon when they are asked for."""
