"""The bus over Redis pub/sub."""
