"""The launcher of processes of this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import submitit
import torch
from hydra.core.utils import JobStatus

from ecoflap.errors import UserError
from ecoflap.sweeps import bootstrap, local
from ecoflap.sweeps.ended import completed
from ecoflap.sweeps.jobs import Job
from ecoflap.sweeps.launcher import logs_in
from ecoflap.sweeps.launcher_options import LocalOptions

DEVICES = "CUDA_VISIBLE_DEVICES"


def launcher_with(**options: Any) -> local.LocalLauncher:
    """The launcher with its defaults but for these options."""
    given = {**vars(LocalOptions()), **options}
    del given["_target_"]  # as Hydra does
    return local.LocalLauncher(**given)


@pytest.mark.parametrize(
    ("visible", "asked", "shares"),
    [
        (None, None, [None, None]),
        ("2,3", None, ["2,3", "2,3"]),
        ("2,3", 1, ["2", "3"]),
        ("GPU-a,GPU-b,GPU-c", 2, ["GPU-a,GPU-b"]),
        ("2,3", 0, ["", ""]),
        (None, 1, ["0", "1"]),
        (None, 2, ["0,1", "2,3"]),
        (None, 3, ["0,1,2"]),
    ],
)
def test_each_job_sees_the_devices_of_the_command_or_a_share_of_its_own(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: int | None, shares: list[str | None]
) -> None:
    """Of two jobs at a time, or one where the four devices of the machine aren't enough for two."""
    monkeypatch.delenv(DEVICES, raising=False)
    if visible is not None:
        monkeypatch.setenv(DEVICES, visible)
    found = 4 if visible is None else len(visible.split(","))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert local.shares_of_devices(asked, parallel=2) == shares


@pytest.mark.parametrize(("asked", "told"), [(None, True), (1, False)])
def test_jobs_that_crowd_on_the_first_device_are_told_how_to_spread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asked: int | None, told: bool
) -> None:
    """Where the machine has several."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with caplog.at_level("INFO"):
        local.shares_of_devices(asked, parallel=2)
    assert ("the first of 4 GPUs; hydra.launcher.gpus_per_node=1" in caplog.text) is told


def test_more_devices_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of jobs on the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="gpus_per_node=2: torch sees 1 GPUs here"):
        local.shares_of_devices(2, parallel=1)


def test_a_job_sees_all_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where submitit would hide them all."""
    monkeypatch.delenv(DEVICES, raising=False)
    assert seen_by_jobs(tmp_path, monkeypatch) == ["not set"] * 3


def test_jobs_at_one_time_see_different_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a later one those of a job that has ended."""
    monkeypatch.setenv(DEVICES, "4,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, second, third = seen_by_jobs(tmp_path, monkeypatch, gpus_per_node=1)
    assert {first, second} == {"4", "7"}
    assert third in {"4", "7"}


@pytest.mark.parametrize(("processes", "threads"), [(1, "6"), (2, "3"), (4, "1"), (8, "1")])
def test_jobs_at_one_time_share_the_threads(
    monkeypatch: pytest.MonkeyPatch, processes: int, threads: str
) -> None:
    """Of as many cores as this process uses."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert local.share_of_threads(None, processes) == {"OMP_NUM_THREADS": threads}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_of_threads_from_outside_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """For each job, unless the launcher is asked for another."""
    monkeypatch.setenv(name, "5")
    assert local.share_of_threads(None, 2) == {}
    assert local.share_of_threads(4, 2) == {"OMP_NUM_THREADS": "4"}


def test_jobs_run_with_their_share_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three jobs, two at a time."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert seen_by_jobs(tmp_path, monkeypatch, "OMP_NUM_THREADS") == ["3"] * 3


def seen_by_jobs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str = DEVICES, **options: Any
) -> list[Any]:
    """The value of a variable of the environment in each of three jobs, two at a time."""
    cloudpickle.register_pickle_by_value(bootstrap)
    read = cloudpickle.dumps((os.getenv, (variable, "not set")))
    jobs = [Job(number, [f"seed={number}"]) for number in range(3)]
    launcher = launcher_with(name="devices", **options)
    monkeypatch.setattr(launcher, "packed", lambda *_: [bootstrap.Bootstrap(None, [], read) for _ in jobs])
    monkeypatch.setattr(local, "collect", lambda submitted, _: [one.handle.result() for one in submitted])
    return launcher.submit(jobs, folder, {})  # type: ignore[return-value]


def test_a_killed_job_does_not_end_with_the_result_of_an_earlier_one_of_its_process_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit names files by it, and a container counts from the same one whenever it is started."""
    logs = tmp_path / ".submitit" / "7"
    logs.mkdir(parents=True)
    (logs / "7_0_result.pkl").write_bytes(cloudpickle.dumps(("success", completed(1.0))))

    def submit(_: object) -> submitit.LocalJob[Any]:
        return submitit.LocalJob(logs_in(tmp_path), "7", process=subprocess.Popen(["false"]))

    monkeypatch.setattr(submitit.LocalJob, "_results_timeout_s", 0)
    monkeypatch.setattr(local.LocalLauncher, "executor", lambda *_: SimpleNamespace(submit=submit))
    monkeypatch.setattr(local.LocalLauncher, "packed", lambda *_: [SimpleNamespace(variables={})])
    ended = launcher_with().submit([Job(0, ["seed=0"])], tmp_path, {})
    assert ended[0].status == JobStatus.FAILED
