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
from hydra.core.utils import JobStatus

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
    ("visible", "asked", "seen"),
    [
        (None, None, {DEVICES: None}),
        ("2,3", None, {DEVICES: "2,3"}),
        ("2,3", 1, {DEVICES: "2"}),
        ("2,3", 0, {DEVICES: ""}),
        (None, 2, {}),
    ],
)
def test_jobs_see_the_devices_of_the_command(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: int | None, seen: dict[str, str | None]
) -> None:
    """Or the first of them that are asked for; of all, submitit takes the first ones itself."""
    monkeypatch.delenv(DEVICES, raising=False)
    if visible is not None:
        monkeypatch.setenv(DEVICES, visible)
    assert launcher_with(gpus_per_node=asked).variables() == seen


def test_a_job_sees_all_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where submitit would hide them all."""
    monkeypatch.delenv(DEVICES, raising=False)
    launcher = launcher_with(name="devices")
    cloudpickle.register_pickle_by_value(bootstrap)
    read = cloudpickle.dumps((os.getenv, (DEVICES, "not set")))
    job = bootstrap.Bootstrap(None, [], read, launcher.variables())
    assert launcher.executor(tmp_path).submit(job).result() == "not set"


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
    monkeypatch.setattr(local.LocalLauncher, "packed", lambda *_: [None])
    ended = launcher_with().submit([Job(0, ["seed=0"])], tmp_path, {})
    assert ended[0].status == JobStatus.FAILED
