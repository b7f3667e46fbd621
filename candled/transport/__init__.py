"""Connections to clients: sockets, queues, broadcasts and pings."""
