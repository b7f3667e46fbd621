"""Rooms: decide which subscriber receives which changed bar, and when."""
