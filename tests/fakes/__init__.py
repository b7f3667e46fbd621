"""Counterparts for tests that speak an exchange's real protocol over real sockets."""
