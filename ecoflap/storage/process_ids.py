"""Whether the process that made a file has ended, as far as this machine can tell."""

from __future__ import annotations

import os
from pathlib import Path


def machine() -> str:
    """Identifies a running kernel and its namespace of process ids; empty where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def runs(pid: int) -> bool:
    """Whether a process exists on this host; zombies don't count."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return True
