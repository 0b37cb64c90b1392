"""Results that the jobs of a sweep replace (``resume=false``): until then, these jobs are not done."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from ecoflap.storage.files import write_json
from ecoflap.sweeps import rerun, status
from ecoflap.sweeps.jobs import Job, numbered
from ecoflap.sweeps.submitted import record_jobs
from tests.sweeps.report.conftest import write_run

OLD, NEW = "2026-01-01T00:00:00.000+00:00", "2026-01-02T00:00:00.000+00:00"
COMMAND = {"overrides": ["sparsity=0.6,0.7"], "config_dirs": [], "config_name": "config", "cwd": "/"}


def ran(folder: Path, number: int, finished: str, sparsity: float) -> None:
    write_run(folder, str(number), 70.0, record={"finished": finished}, sparsity=sparsity)
    write_json(folder / str(number) / "status.json", {"state": "done", "step": "done", "started": 0.0})


def submitted(folder: Path, *more: str) -> list[Job]:
    """Two jobs with other options than the runs in their folders, as a launcher records them."""
    jobs = numbered([["sparsity=0.6", *more], ["sparsity=0.7", *more]], 0, folder)
    record_jobs(folder, "none", [(job, None) for job in jobs], COMMAND)
    return jobs


def states(folder: Path) -> list[str]:
    return [line.state for line in status.read(folder)]


@pytest.mark.parametrize("anew", ["resume=False", "++resume=false"])
def test_a_job_is_not_done_before_it_has_replaced_a_result(tmp_path: Path, anew: str) -> None:
    for number in range(2):
        ran(tmp_path, number, OLD, 0.5)
    submitted(tmp_path, anew)
    assert states(tmp_path) == ["queued", "queued"]
    ran(tmp_path, 0, NEW, 0.6)
    assert states(tmp_path) == ["done", "queued"]
    assert status.read(tmp_path)[1].overrides == ["sparsity=0.7", anew]
    write_json(tmp_path / "1" / "status.json", {"state": "failed", "reason": "a NaN", "started": 0.0})
    assert states(tmp_path) == ["done", "failed"]


def test_jobs_that_were_to_replace_a_result_do_it_when_they_are_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command no longer has resume=false then, with which finished jobs would be repeated."""
    for number in range(2):
        ran(tmp_path, number, OLD, 0.5)
    submitted(tmp_path, "resume=False")
    ran(tmp_path, 0, NEW, 0.6)
    monkeypatch.setattr(rerun.subprocess, "run", lambda *_, **__: Namespace(returncode=0))
    assert rerun.rerun(tmp_path) == 0
    assert [path.parent.name for path in tmp_path.glob("*/result.json")] == ["0"]
    assert states(tmp_path) == ["done", "queued"]


def test_without_that_option_a_result_is_a_job_s_own(tmp_path: Path) -> None:
    ran(tmp_path, 0, OLD, 0.6)
    jobs = submitted(tmp_path, "resume=False", "resume=True")
    assert [job.replaces for job in jobs] == [None, None]
    assert states(tmp_path) == ["done", "queued"]
