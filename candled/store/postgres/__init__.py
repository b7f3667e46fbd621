"""The PostgreSQL and TimescaleDB store."""
