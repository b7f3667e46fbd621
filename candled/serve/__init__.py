"""Rooms and history → clients."""
