"""One model on several nodes: the result of one process, also when one is killed or all are preempted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ecoflap.storage.files import read_json
from ecoflap.storage.results import verify
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Sweep, ended
from tests.slurm.test_interruptions import SLOW, check, run_status, started
from tests.slurm.test_sweeps import logs

TOGETHER = ("hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=1")


@pytest.mark.variant
def test_one_process_is_killed(
    slurm: Cluster, sweep: Sweep, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """All of the job end, with a word about it; started again in one process, the run goes on."""
    folder = tmp_path / "sweep"
    process = sweep(*SLOW, *TOGETHER)
    started(process, folder)
    second = read_json(folder / "0" / "processes" / "1" / "status.json")["pid"]
    os.kill(second, signal.SIGKILL)
    assert "failed" in ended(process)
    assert process.returncode != 0
    assert "another process of the run has ended" in logs(folder)
    assert run_status(folder)["state"] == "failed"
    check(folder, undisturbed, ended(sweep(*SLOW)), 2)


@pytest.mark.variant
def test_preempted_on_two_nodes(
    slurm: Cluster, sweep: Sweep, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    folder = tmp_path / "sweep"
    process = sweep(*SLOW, *TOGETHER, "hydra.launcher.partition=main")
    started(process, folder)
    slurm.run("srun", "-p", "urgent", "-N4", "--exclusive", "sleep", "2", timeout=120)
    check(folder, undisturbed, ended(process), 2)
    assert verify(folder / "0") == []
    assert not (folder / "0" / "processes").exists()
    (job,) = read_json(folder / "jobs.json")["jobs"]
    assert len(list(folder.glob(f".submitit/{job['id']}*/*_1_log.out"))) == 1, "a process on the second node"
