"""Which sweeps and jobs may go into a folder where others are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ecoflap.errors import UserError
from ecoflap.storage.files import write_json
from ecoflap.storage.lease import Lease
from ecoflap.sweeps import claim
from ecoflap.sweeps.claim import claimed, command_to_record, require_free_places
from ecoflap.sweeps.jobs import Job
from ecoflap.sweeps.rerun import recorded_command
from ecoflap.sweeps.submitted import record_jobs, submitted_jobs


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path):
        with pytest.raises(
            UserError, match=r"another sweep \(.*\) is active in .*; wait for it, .* hydra\.sweep\.dir"
        ):
            claimed(tmp_path).__enter__()
        assert (tmp_path / ".lease").exists()
    with claimed(tmp_path):
        pass
    assert not (tmp_path / ".lease").exists()


def test_a_killed_sweep_holds_nothing(tmp_path: Path) -> None:
    take = "import sys; from ecoflap.storage.lease import Lease; Lease(sys.argv[1]).acquire()"
    subprocess.run([sys.executable, "-c", take, str(tmp_path / ".lease")], check=True)
    assert (tmp_path / ".lease").exists()
    with claimed(tmp_path):
        pass


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Two jobs that a sweep has recorded in the folder."""
    jobs = [Job(number, [f"sparsity=0.{number + 5}", "seed=0"]) for number in range(2)]
    listed = [{"number": job.number, "overrides": job.overrides, "id": f"7_{job.number}"} for job in jobs]
    write_json(tmp_path / "jobs.json", {"launcher": "slurm", "jobs": listed})
    return jobs


def test_a_job_that_runs_keeps_its_place(tmp_path: Path, jobs: list[Job]) -> None:
    lease = Lease(tmp_path / "1" / ".lease")
    assert lease.acquire()
    require_free_places(tmp_path, jobs)  # the same ones, which wait for those that run
    require_free_places(tmp_path, [Job(1, ["seed=0", "sparsity=0.6", "resume=false"])])
    require_free_places(tmp_path, [jobs[0], Job(2, ["sparsity=0.7", "seed=0"])])  # an axis goes on
    require_free_places(tmp_path, [Job(0, ["sparsity=0.9", "seed=0"])])  # the one that was there is dead
    with pytest.raises(UserError, match=r"job 1 \(sparsity=0\.6 seed=0\) has other options"):
        require_free_places(tmp_path, [Job(1, ["sparsity=0.9", "seed=0"])])
    lease.release()
    require_free_places(tmp_path, [Job(1, ["sparsity=0.9", "seed=0"])])


@pytest.mark.parametrize(
    ("state", "refused"), [("PENDING", True), ("RUNNING", True), ("CANCELLED by 0", False)]
)
def test_a_queued_job_keeps_its_place(
    tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch, state: str, refused: bool
) -> None:
    monkeypatch.setattr(claim, "slurm_states", lambda ids: dict.fromkeys(ids, state))
    require_free_places(tmp_path, jobs)
    other = [Job(0, ["sparsity=0.9", "seed=0"])]
    if not refused:
        require_free_places(tmp_path, other)
        return
    with pytest.raises(UserError, match=r"job 0 .* has other options"):
        require_free_places(tmp_path, other)


def sweep(folder: Path, sparsities: str, *more: str, id: str | None = None) -> list[int]:
    """Record a sweep over sparsities in a folder; returns the numbers of the jobs that are listed then."""
    overrides = {"task": [f"sparsity={sparsities}", *more], "hydra": []}
    hydra = OmegaConf.create({"overrides": overrides, "runtime": {"cwd": "/", "config_sources": []}})
    jobs = [Job(number, [f"sparsity={one}", *more]) for number, one in enumerate(sparsities.split(","))]
    command = command_to_record(hydra, folder, jobs)
    record_jobs(folder, "none", [(job, id) for job in jobs], command)
    return [job["number"] for job in submitted_jobs(folder)]


def typed(folder: Path) -> list[str]:
    command = recorded_command(folder)
    assert command is not None
    overrides: list[str] = command["overrides"]
    return overrides


def test_a_part_of_a_sweep_leaves_it_to_be_started_again(tmp_path: Path) -> None:
    assert sweep(tmp_path, "0.5,0.6,0.7") == [0, 1, 2]
    assert sweep(tmp_path, "0.5,0.6", "resume=false") == [0, 1, 2]
    assert typed(tmp_path) == ["sparsity=0.5,0.6,0.7"]
    assert sweep(tmp_path, "0.5,0.6,0.7", "resume=false") == [0, 1, 2]
    assert typed(tmp_path) == ["sparsity=0.5,0.6,0.7", "resume=false"]
    assert sweep(tmp_path, "0.5,0.6,0.7,0.8") == [0, 1, 2, 3]
    assert typed(tmp_path) == ["sparsity=0.5,0.6,0.7,0.8"]


@pytest.mark.parametrize("id", [None, "7_0"])
def test_jobs_that_nothing_will_start_are_not_listed(tmp_path: Path, id: str | None) -> None:
    """Of a sweep that was stopped, and replaced by another; what ran or was queued is."""
    sweep(tmp_path, "0.5,0.6,0.7,0.8", id=id)
    (tmp_path / "2").mkdir()
    assert sweep(tmp_path, "0.5,0.6", "pruner=sparsegpt") == ([0, 1, 2] if id is None else [0, 1, 2, 3])
    assert typed(tmp_path) == ["sparsity=0.5,0.6", "pruner=sparsegpt"]
