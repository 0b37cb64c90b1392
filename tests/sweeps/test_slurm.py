"""The launcher of Slurm, with a queue that is imagined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
from submitit.core.utils import UncompletedJobError

from ecoflap.storage.files import write_json
from ecoflap.sweeps import ended, slurm
from ecoflap.sweeps.ended import Submitted, completed
from ecoflap.sweeps.jobs import Job
from ecoflap.sweeps.launcher_options import SlurmOptions
from ecoflap.sweeps.submitted import submitted_jobs

COMMAND: dict[str, Any] = {"overrides": ["seed=0,1,2"]}


def launcher_with(**options: bool) -> slurm.SlurmLauncher:
    """The launcher with its defaults but for these options."""
    return slurm.SlurmLauncher(**{**vars(SlurmOptions()), **options})


@pytest.mark.parametrize(
    ("states", "queued"),
    [
        ({"7_0": "SUSPENDED", "7_1": "STOPPED"}, [2]),
        ({"7_0": "RUNNING", "7_1": "PENDING"}, [2]),
        ({"7_0": "COMPLETED", "7_1": "REQUEUED"}, [0, 2]),
        ({"7_0": "CANCELLED by 0", "7_1": "TIMEOUT"}, [0, 1, 2]),
        ({"7_0": "RUNNING", "7_1": "PENDING", "7_2": "PENDING"}, []),
    ],
)
@pytest.mark.parametrize("wait", [True, False])
def test_jobs_in_the_queue_are_not_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: dict[str, str], queued: list[int], wait: bool
) -> None:
    jobs = [Job(number, [f"seed={number}"]) for number in range(3)]
    listed = [job._asdict() | {"id": f"7_{job.number}"} for job in jobs if f"7_{job.number}" in states]
    write_json(tmp_path / "jobs.json", {"launcher": "slurm", "command": COMMAND, "jobs": listed})
    asked: list[int] = []
    waited_for: list[str] = []

    def job_of(folder: Path, job_id: str) -> SimpleNamespace:
        assert folder == tmp_path / ".submitit" / "%j"
        return SimpleNamespace(job_id=job_id, results=lambda: waited_for.append(job_id) or [completed(1.0)])

    def queue(self: Any, jobs: Sequence[Job], folder: Path, dependency: str | None) -> list[Submitted]:
        asked.extend(job.number for job in jobs)
        return [Submitted(job, job_of(folder / ".submitit" / "%j", f"8_{job.number}")) for job in jobs]

    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "slurm_states", lambda ids: {id: states[id] for id in ids})
    monkeypatch.setattr(slurm.SlurmLauncher, "_queue", queue)
    monkeypatch.setattr(submitit, "SlurmJob", job_of)
    returns = launcher_with(wait=wait).submit(jobs, tmp_path, COMMAND)
    assert asked == queued
    assert sorted(returns) == [0, 1, 2]
    ids = [f"{8 if number in queued else 7}_{number}" for number in range(3)]
    assert [job["id"] for job in submitted_jobs(tmp_path)] == ids
    assert sorted(waited_for) == (sorted(ids) if wait else [])


def test_scores_are_computed_for_the_jobs_that_are_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Job(number, [f"seed={number}"]) for number in range(2)]
    write_json(tmp_path / "jobs.json", {"jobs": [{"number": 0, "overrides": ["seed=0"], "id": "7_0"}]})
    asked: list[tuple[list[int], str | None]] = []

    def queue(self: Any, jobs: Sequence[Job], folder: Path, dependency: str | None) -> list[Submitted]:
        asked.append(([job.number for job in jobs], dependency))
        return [Submitted(job, SimpleNamespace(job_id=f"{len(asked)}_0")) for job in jobs]

    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "slurm_states", lambda ids: dict.fromkeys(ids, "RUNNING"))
    monkeypatch.setattr(slurm.SlurmLauncher, "_queue", queue)
    monkeypatch.setattr(slurm, "scoring_jobs", lambda context, config, jobs: [Job(-1, jobs[0].overrides)])
    launcher = launcher_with(wait=False, scores_first=True)
    launcher.setup(hydra_context=None, task_function=None, config=None)
    assert sorted(launcher.submit(jobs, tmp_path, COMMAND)) == [0, 1]
    assert asked == [([-1], None), ([1], "afterany:1")]


def test_jobs_stay_in_the_queue_when_the_wait_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def queue_all(self: Any, jobs: Sequence[Job], folder: Path, command: Any) -> list[Submitted]:
        return [
            Submitted(job, SimpleNamespace(job_id=f"8_{job.number}", results=interrupted)) for job in jobs
        ]

    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm.SlurmLauncher, "_queue_all", queue_all)
    with pytest.raises(KeyboardInterrupt):
        launcher_with(wait=True).submit([Job(number, []) for number in range(2)], tmp_path, COMMAND)
    assert f"the jobs stay in Slurm; ecoflap status {tmp_path} shows them, scancel 8 ends them" in caplog.text


@pytest.mark.parametrize(("then", "status"), [("SUSPENDED", "COMPLETED"), ("NODE_FAIL", "FAILED")])
def test_a_suspended_job_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, status: str
) -> None:
    """submitit takes it to have ended without a result."""
    states, asked = iter(["SUSPENDED", then]), list[str]()

    def results() -> list[Any]:
        if len(asked) < 2:
            raise UncompletedJobError("it has not produced any output")
        return [completed(1.0)]

    def slurm_states(ids: list[str]) -> dict[str, str]:
        asked.extend(ids)
        return {ids[0]: next(states)}

    monkeypatch.setattr(slurm, "slurm_states", slurm_states)
    monkeypatch.setattr(ended, "POLL", 0.0)
    handle = SimpleNamespace(job_id="7_0", results=results, paths=SimpleNamespace(stderr=tmp_path / "log"))
    found = ended.collect([Submitted(Job(0, ["seed=0"]), handle)], tmp_path, slurm._is_alive)
    assert found[0].status.name == status
    assert asked == ["7_0", "7_0"]
