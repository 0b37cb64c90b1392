"""One Slurm for all tests here; skipped, with the reason, where it can't be brought up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, text_file, text_run, tiny_llama, token_file  # noqa: F401 - fixtures
from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def undisturbed() -> dict[str, str]:
    """The weights' hash of a run that nobody stopped, once one has ended."""
    return {}


Sweep = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def sweep(slurm: Cluster, text_run: list[str], tmp_path: Path) -> Sweep:
    """Start ``main.py -m`` on the cluster, as it is typed; its folder is ``tmp_path / "sweep"``."""

    def start(*overrides: str, project: Path = ROOT) -> subprocess.Popen[str]:
        given = [
            override
            for override in text_run
            if override.split("=")[0] not in {one.split("=")[0] for one in overrides}
        ]
        setup = "hydra.launcher.setup=['export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1']"
        fixed = [
            "cluster=slurm",
            "hydra.launcher.mem_gb=1",
            "hydra.launcher.cpus_per_task=1",
            setup,
            f"hydra.sweep.dir={tmp_path / 'sweep'}",
        ]
        chosen = [
            one
            for one in fixed
            if one.split("=")[0] not in {override.split("=")[0] for override in overrides}
        ]
        command = [sys.executable, str(project / "main.py"), "-m", *given, *chosen, *overrides]
        environment = {**slurm.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


def ended(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """What a command printed, once it has ended."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()
