"""Ports that nobody listens on, for servers that tests start."""

import os
import socket
from contextlib import suppress


def free_ports(count: int) -> list[int]:
    """So many ports in a row that nobody listens on.

    They lie below those that a system gives to outgoing connections, one of which could take a port
    between this look at it and the server's start.

    Raises:
        RuntimeError: if there are none.
    """
    for first in range(17000 + os.getpid() % 1000 * 10, 32000, 10):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return list(range(first, first + count))
    raise RuntimeError("no free ports")
