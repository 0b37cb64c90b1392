"""Ports that nobody listens on, for servers that tests start."""

import os
import random
import socket
from contextlib import suppress


def free_ports(count: int) -> list[int]:
    """So many ports in a row that nobody listens on.

    They lie below those that a system gives to outgoing connections, one of which could take a port
    between this look at it and the server's start. Processes of pytest look in ranges of their own, as
    another one's server could start in between, too.

    Raises:
        RuntimeError: if there are none.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw2").removeprefix("gw")) % 3
    firsts = range(17000 + number * 5000, 22000 + number * 5000, 10)
    for first in random.SystemRandom().sample(firsts, len(firsts)):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
            return list(range(first, first + count))
    raise RuntimeError("no free ports")
