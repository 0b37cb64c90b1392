"""Jobs that Slurm stops: they go on by themselves, or when they are started again, and end with the same
weights.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ecoflap.storage.files import read_json
from ecoflap.sweeps import status
from tests.cli.conftest import ROOT
from tests.cli.test_resume import weights
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.conftest import Sweep, ended

SLOW = (
    "model.loss=tests.slurm.slow.slow_loss",
    "score=zeroth_order",
    "score.batch_size=1",
    "score.samples=6",
    "model.save=true",
    "sparsity=0.5",
)


def run_status(folder: Path) -> dict[str, Any]:
    return read_json(folder / "0" / "status.json") or {}


def started(process: subprocess.Popen[str], folder: Path) -> str:
    """The job's id, once it is at its first long step."""
    wait_for(
        "the job's coarse stage",
        lambda: process.poll() is not None or run_status(folder).get("step") == "score",
        120,
    )
    (job,) = (read_json(folder / "jobs.json") or {"jobs": []})["jobs"]
    return str(job["id"])


def check(folder: Path, undisturbed: dict[str, str], printed: str, starts: int) -> None:
    """The run has ended, was started so often at least, and has the weights that every other one has."""
    assert (folder / "0" / "result.json").is_file(), printed
    assert run_status(folder)["state"] == "done"
    assert run_status(folder)["starts"] >= starts
    assert undisturbed.setdefault("weights", weights(folder / "0")) == weights(folder / "0")


def test_nobody_stops_it(sweep: Sweep, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    check(tmp_path / "sweep", undisturbed, ended(sweep(*SLOW)), 1)


@pytest.mark.variant
def test_slurms_signal_queues_it_again(
    slurm: Cluster, sweep: Sweep, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    folder = tmp_path / "sweep"
    process = sweep(*SLOW, "hydra.launcher.max_num_timeout=3")
    job = started(process, folder)
    slurm.run("scancel", "-s", "USR2", job)
    check(folder, undisturbed, ended(process), 2)


def test_preempted_by_a_more_urgent_job(
    slurm: Cluster, sweep: Sweep, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    folder = tmp_path / "sweep"
    process = sweep(*SLOW, "hydra.launcher.partition=main")
    job = started(process, folder)
    slurm.run("srun", "-p", "urgent", "-N4", "--exclusive", "sleep", "2", timeout=120)
    printed = ended(process)
    wait_for(f"the end of {job}", lambda: slurm.run("squeue", "-h", "-j", job, check=False).stdout == "", 120)
    check(folder, undisturbed, printed, 2)


@pytest.mark.variant
def test_cancelled_and_started_again(
    slurm: Cluster, sweep: Sweep, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sweep"
    process = sweep(*SLOW)
    slurm.run("scancel", started(process, folder))
    ended(process)
    assert process.returncode == 1
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert status.main([str(folder)]) == 1
    again = subprocess.run(
        [sys.executable, "-m", "ecoflap", "status", str(folder), "--rerun-failed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert status.main([str(folder)]) == 0
    check(folder, undisturbed, again.stdout, 2)


def test_out_of_time(sweep: Sweep, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """A time limit of a minute, of which Slurm's signal leaves most: the second start needs it on a busy
    machine.
    """
    folder = tmp_path / "sweep"
    endless = ["model.loss=tests.slurm.slow.endless_at_first", *SLOW[1:]]
    printed = ended(sweep(*endless, "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10"), 400)
    logs = "".join(file.read_text() for file in folder.glob(".submitit/*/*_log.*"))
    assert (folder / "0" / "result.json").is_file(), printed + logs
    assert run_status(folder)["starts"] >= 2
