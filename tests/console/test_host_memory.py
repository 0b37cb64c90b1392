"""The free memory is what the tightest control group leaves, of either version."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ecoflap.console import host_memory
from ecoflap.console.host_memory import VERSIONS, Version, free_host_memory
from ecoflap.console.telemetry import free_memory

GIB = 2**30
SECOND, FIRST = VERSIONS


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the control groups of both versions are mounted, on a host with 100 GiB free."""
    mounted = [version._replace(root=tmp_path / f"of{version.controller}") for version in VERSIONS]
    monkeypatch.setattr(host_memory, "VERSIONS", mounted)
    monkeypatch.setattr(host_memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * GIB))
    return tmp_path


def limit(root: Path, version: Version, path: str, limit: str, used: float, cached: float) -> None:
    folder = root / f"of{version.controller}" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / version.limit).write_text(f"{limit}\n")
    (folder / version.usage).write_text(f"{int(used * GIB)}\n")
    half = int(cached * GIB) // 2
    names = {"anon": GIB, f"{version.prefix}active_file": half, f"{version.prefix}inactive_file": half}
    (folder / "memory.stat").write_text("".join(f"{name} {size}\n" for name, size in names.items()))


def in_groups(root: Path, *lines: str) -> None:
    (root / "cgroup").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(("version", "line"), [(SECOND, "0::/slurm/job_7"), (FIRST, "4:memory:/slurm/job_7")])
def test_the_limit_of_a_job_of_slurm(root: Path, version: Version, line: str) -> None:
    in_groups(root, "1:cpu,cpuacct:/other", line)
    limit(root, version, "slurm/job_7", str(16 * GIB), used=6, cached=2)
    assert free_host_memory() == free_memory(torch.device("cpu")) == 12 * GIB


@pytest.mark.parametrize(("version", "line"), [(SECOND, "0::/a/b/c"), (FIRST, "4:memory:/a/b/c")])
def test_the_tightest_group_decides(root: Path, version: Version, line: str) -> None:
    in_groups(root, line)
    limit(root, version, "a/b/c", "max" if version is SECOND else str(2**63 - 4096), used=1, cached=0)
    limit(root, version, "a/b", str(50 * GIB), used=10, cached=0)
    limit(root, version, "a", str(8 * GIB), used=3, cached=0)
    assert free_host_memory() == 5 * GIB


def test_a_group_over_its_limit_leaves_nothing(root: Path) -> None:
    in_groups(root, "0::/")
    limit(root, SECOND, ".", str(GIB), used=1.5, cached=0)
    assert free_host_memory() == 0


def test_in_a_container_the_path_is_that_of_the_host(root: Path) -> None:
    in_groups(root, "4:memory:/docker/0123")
    limit(root, FIRST, ".", str(4 * GIB), used=1, cached=0)
    assert free_host_memory() == 3 * GIB


@pytest.mark.parametrize("lines", [None, [], ["0::/"], ["0::/a", "4:memory:/b"]])
def test_without_limits_the_host_decides(root: Path, lines: list[str] | None) -> None:
    if lines is not None:
        in_groups(root, *lines)
    limit(root, SECOND, "a", "max", used=1, cached=0)
    assert free_host_memory() == 100 * GIB


def test_processes_of_a_host_share_its_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them hold a copy of weights that are offloaded, and hidden states of their samples."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert free_host_memory() == 12.5 * GIB
    in_groups(root, "0::/slurm/job_7")
    limit(root, SECOND, "slurm/job_7", str(16 * GIB), used=6, cached=2)
    assert free_host_memory() == 1.5 * GIB
