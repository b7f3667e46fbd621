"""Help for the authors of plugins: recordings of exchanges, and tests that play them."""
