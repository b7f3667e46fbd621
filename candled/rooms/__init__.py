"""Changed bars → who gets what, and when."""
