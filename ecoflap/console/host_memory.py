"""The free memory of the host, within the limits of Linux's control groups.

Slurm (``--mem``), Docker and Kubernetes limit the memory of a process by its control group and end it at the
limit, however much the host has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GROUPS = Path("/proc/self/cgroup")
"""The control groups of this process; see cgroups(7)."""


class Version(NamedTuple):
    """How a version of control groups shows its memory.

    Attributes:
        controller: the name of its controller in a line of ``GROUPS``; version 2 has none.
        root: where its groups are mounted.
        limit: the file with the limit in bytes, or ``max``.
        usage: the file with the bytes in use, the page cache included.
        prefix: of names in ``memory.stat`` that include the groups inside.
    """

    controller: str
    root: Path
    limit: str
    usage: str
    prefix: str


VERSIONS = (
    Version("", Path("/sys/fs/cgroup"), "memory.max", "memory.current", ""),
    Version(
        "memory", Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
    ),
)
PAGE_CACHE = ("active_file", "inactive_file")
"""Memory in use that the system takes back when it is needed."""


def free_host_memory() -> int:
    """Bytes that this process can still take: the host's, or what its tightest control group leaves.

    The processes that torchrun starts on a host share them equally.
    """
    import psutil

    free = min([int(psutil.virtual_memory().available), *_left()])
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _left() -> Iterator[int]:
    """Bytes that each control group leaves, of those that this process is in and that have a limit."""
    try:
        lines = GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for version in VERSIONS:
            if version.controller in controllers.split(","):
                group = version.root / path.lstrip("/")
                inside = (one for one in (group, *group.parents) if one.is_relative_to(version.root))
                for folder in inside:  # in a container, the path may be the host's: only the root is there
                    yield from _left_in(folder, version)


def _left_in(folder: Path, version: Version) -> Iterator[int]:
    """Bytes that one control group leaves; none if it has no limit."""
    try:
        limit = int((folder / version.limit).read_text())  # ``max`` is no number
        used = int((folder / version.usage).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return
    shares = {name: int(size) for name, _, size in (line.partition(" ") for line in lines)}
    yield max(0, limit - used + sum(shares.get(version.prefix + name, 0) for name in PAGE_CACHE))
