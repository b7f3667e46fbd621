"""Help for the authors of plugins: recordings of exchanges, and tests that play them."""

from .plugin_tests import exchange_tests

__all__ = ["exchange_tests"]
