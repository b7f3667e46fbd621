"""Free TCP ports for servers of tests, which no other worker of the run takes meanwhile.

They lie below the range from which the system picks ports of outgoing connections: one of those could take the port
between the probe and the server's start. Each worker of pytest-xdist has a thousand of its own.
"""

import os
import socket
from itertools import cycle

_FIRST = 10_000  # a Redis cluster takes a second port, 10,000 above: up to 30,000
_EACH = 1_000

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
_begin = os.getpid() * 37 % _EACH  # another run beside this one probably begins elsewhere
_ports = cycle(_FIRST + _worker * _EACH + (_begin + offset) % _EACH for offset in range(_EACH))


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on, a different one with each call."""
    for port in _ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("cycle() never ends")
