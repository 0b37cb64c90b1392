"""What is said of the runs of a sweep, whatever became of them."""

from __future__ import annotations

import json
import os
import re
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ecoflap.run.folder import Status, claimed, finished
from ecoflap.storage.files import write_json
from ecoflap.storage.lease import Lease
from ecoflap.sweeps import rerun, status
from ecoflap.sweeps.submitted import slurm_states
from tests.sweeps.report.conftest import write_run


def write(folder: Path, **values: Any) -> None:
    """The status of a run, and if it is done, its result."""
    now = time.time()
    if values.get("state") == "done":
        write_run(folder.parent, folder.name, 70.0)
    write_json(folder / "status.json", {**vars(Status()), "started": now - 100, "updated": now, **values})


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    jobs = [{"number": number, "overrides": [f"sparsity=0.{number}"], "id": None} for number in range(5)]
    write_json(tmp_path / "jobs.json", {"launcher": "local", "jobs": jobs})
    write(tmp_path / "0", state="done", step="done")
    write(tmp_path / "1", state="failed", reason="no such file")
    write(tmp_path / "2", state="running", step="prune", done=3, total=12)
    write(tmp_path / "3", state="running", step="score")
    return tmp_path


def test_every_state(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lease = Lease(sweep / "2" / ".lease")
    assert lease.acquire()
    assert status.main([str(sweep)]) == 1
    lease.release()
    shown = capsys.readouterr().out
    assert "1 done, 1 failed, 1 running, 1 died, 1 queued" in shown
    assert "prune 3 of 12" in shown
    assert "no such file" in shown
    assert "sparsity=0.4" in shown
    assert "left" in shown


def test_what_all_runs_share_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [
        {"number": number, "overrides": ["model=clip_mini", f"seed={number}", "task.limit=4"], "id": None}
        for number in range(3)
    ]
    write_json(tmp_path / "jobs.json", {"launcher": "local", "jobs": jobs})
    assert status.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{tmp_path}: all with model=clip_mini task.limit=4\n")
    assert shown.count("model=clip_mini") == 1
    assert re.search(r"^ +1 +queued .*seed=1$", shown, re.MULTILINE)


def test_the_time_left_of_a_single_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the pace of its step so far, which began long after the run."""
    now = time.time()
    write(tmp_path, state="running", step="score", done=3, total=12, started=now - 5000, since=now - 300)
    lease = Lease(tmp_path / ".lease")
    assert lease.acquire()
    (line,) = status.read(tmp_path)
    assert line.left == pytest.approx(900, abs=5)
    assert status.main([str(tmp_path)]) == 0
    assert re.search("14 min 5. s|15 min 0. s", capsys.readouterr().out)
    write(tmp_path, state="running", step="score", done=0, total=12, since=now)
    assert status.read(tmp_path)[0].left is None
    write(tmp_path, state="running", step="score", done=3, total=12)  # of a release before this
    assert status.read(tmp_path)[0].left is None
    lease.release()


def test_slurm_knows_what_a_killed_job_could_not_write(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = json.loads((sweep / "jobs.json").read_text())
    for job in jobs["jobs"]:
        job["id"] = f"7_{job['number']}"
    write_json(sweep / "jobs.json", jobs)
    monkeypatch.setattr(
        status,
        "slurm_states",
        lambda ids: {"7_2": "PENDING", "7_3": "OUT_OF_MEMORY", "7_4": "CANCELLED by 0"},
    )
    found = {line.name: line for line in status.read(sweep)}
    assert [found[name].state for name in "01234"] == ["done", "failed", "queued", "died", "died"]
    assert "OUT_OF_MEMORY" in found["3"].reason
    for state, shown in (("SUSPENDED", "running"), ("RUNNING", "running"), ("COMPLETED", "died")):
        monkeypatch.setattr(status, "slurm_states", lambda _, state=state: {"7_2": state})
        assert status.read(sweep)[2].state == shown, "it was suspended, or is about to go on"
    write(sweep / "2", state="stopped", reason="ended from outside")
    again = {f"7_{number}": "PENDING" for number in range(4)}
    monkeypatch.setattr(status, "slurm_states", lambda ids: again)
    assert [line.state for line in status.read(sweep)] == ["done", "queued", "queued", "queued", "queued"]


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(11):
        write(tmp_path / str(number), state="done", step="done")
    assert status.main([str(tmp_path)]) == 0
    assert "11 done" in capsys.readouterr().out
    assert [line.name for line in status.read(tmp_path)] == [str(number) for number in range(11)]


def test_one_run(tmp_path: Path) -> None:
    with claimed(tmp_path, {"sparsity": 0.5}, resume=True):
        (line,) = status.read(tmp_path)
        assert line.state == "running"
        write_run(tmp_path.parent, tmp_path.name, 70.0)
        assert status.read(tmp_path)[0].state == "running", "it has yet to close"
    (line,) = status.read(tmp_path)
    assert line.state == "done"


@pytest.mark.parametrize("text", [None, "{"])
def test_a_run_with_a_result_is_done_whatever_its_status(sweep: Path, text: str | None) -> None:
    """As for one that is started again, which leaves it alone."""
    for number in range(4):
        write_run(sweep, str(number), 70.0)
        if text is None:
            (sweep / str(number) / "status.json").unlink()
        else:
            (sweep / str(number) / "status.json").write_text(text)
    assert [line.state for line in status.read(sweep)] == ["done"] * 4 + ["queued"]
    assert [(line.state, line.where) for line in status.read(sweep / "0")] == [("done", "done")]
    write(sweep / "2", state="failed", step="track", reason="the tracker is gone")
    assert status.read(sweep)[2].state == "done"


@pytest.mark.parametrize("text", [None, "{"])
def test_a_run_whose_result_is_lost_is_not_done(
    sweep: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is run again, as one that was stopped."""
    result = sweep / "0" / "result.json"
    if text is None:
        result.unlink()
    else:
        result.write_text(text)
    line = status.read(sweep)[0]
    assert (line.state, line.where) == ("stopped", "")
    assert finished(sweep / "0", {}) is None
    assert status.main([str(sweep)]) == 1
    assert "its result.json is missing or damaged; --rerun-failed" in capsys.readouterr().out


def test_an_interrupted_run_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path, {}, resume=True):
        raise KeyboardInterrupt
    assert status.main([str(tmp_path)]) == 0
    assert status.read(tmp_path)[0].state == "stopped"


def test_wrong_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([str(tmp_path / "nowhere")]) == 2
    assert status.main([str(tmp_path), "--rerun-failed"]) == 2
    assert "outputs/" in capsys.readouterr().err


def test_a_sweep_is_started_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the same place, with the same folders of configs, whatever folder the status is asked for in."""
    sources = [
        {"path": "/project/conf", "provider": "main"},
        {"path": "/mine/conf", "provider": "command-line"},
    ]
    overrides = {
        "task": ["model=mine", "sparsity=0.5,0.6", "resume=false"],
        "hydra": ["hydra.mode=MULTIRUN", "hydra.sweep.dir=outputs/sweep"],
    }
    kept = {"hydra": {"overrides": overrides, "runtime": {"cwd": str(tmp_path), "config_sources": sources}}}
    (tmp_path / "sweep" / "0" / ".hydra").mkdir(parents=True)
    OmegaConf.save(kept, tmp_path / "sweep" / "0" / ".hydra" / "hydra.yaml")
    started: list[Any] = []
    monkeypatch.setattr(
        rerun.subprocess,
        "run",
        lambda command, **how: started.append((command[2:], how["cwd"])) or Namespace(returncode=0),
    )
    monkeypatch.chdir("/")
    command = rerun.command_of(OmegaConf.create(kept).hydra)
    jobs = [{"number": 0, "overrides": [], "id": "7_0"}]
    write_json(tmp_path / "sweep" / "jobs.json", {"command": command, "jobs": jobs})
    monkeypatch.setattr(rerun, "slurm_states", lambda ids: dict.fromkeys(ids, "PENDING"))
    assert status.main([str(tmp_path / "sweep"), "--rerun-failed"]) == 2
    assert "1 of its jobs queued or running, such as 7_0" in capsys.readouterr().err
    monkeypatch.setattr(rerun, "slurm_states", lambda ids: dict.fromkeys(ids, "FAILED"))
    assert status.main([str(tmp_path / "sweep"), "--rerun-failed"]) == 0
    expected = [
        "-m",
        "--config-dir=/mine/conf",
        "model=mine",
        "sparsity=0.5,0.6",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    assert started == [(expected, tmp_path)]
    assert status.main([str(tmp_path / "sweep" / "0"), "--rerun-failed"]) == 2
    assert f"one run of a sweep; give {tmp_path / 'sweep'}" in capsys.readouterr().err


def test_the_options_of_a_finished_run_are_those_of_its_result(tmp_path: Path) -> None:
    """Whatever a later command has left there; a group and a list stay as they were typed."""
    typed = ["model=tiny", "sparsity=0.7", "+score.samples=8", "towers=[text]", "model.save=true"]
    jobs = [{"number": number, "overrides": typed, "id": None} for number in range(2)]
    write_json(tmp_path / "jobs.json", {"launcher": "none", "jobs": jobs})
    write(tmp_path / "0", state="done", step="done")
    done, queued = status.read(tmp_path)
    assert done.overrides == [
        "model=tiny",
        "sparsity=0.5",
        "+score.samples=32",
        "towers=[text]",
        "model.save=false",
    ]
    assert queued.overrides == typed


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_finished_jobs_are_left_alone_however_they_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    """And options whose names only begin like those that are left out are kept."""
    given = ["seed=0,1", f"{sign}resume=false", f"{sign}hydra.sweep.dir=there", "+hydra.sweep.dirs=x"]
    recorded = {"overrides": given, "config_dirs": [], "config_name": "config", "cwd": str(tmp_path)}
    write_json(tmp_path / "jobs.json", {"launcher": "none", "command": recorded, "jobs": []})
    started: list[list[str]] = []
    monkeypatch.setattr(
        rerun.subprocess, "run", lambda command, **_: started.append(command) or Namespace(returncode=0)
    )
    assert rerun.rerun(tmp_path) == 0
    assert started[0][2:] == ["-m", "seed=0,1", "+hydra.sweep.dirs=x", f"hydra.sweep.dir={tmp_path}"]


@pytest.mark.parametrize("name", ["a b", "a,b", "josé", "sweep (old)", 'a "b"', "a#1=2"])
def test_a_folder_of_any_name_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorded = {"overrides": ["seed=0,1"], "config_dirs": [], "config_name": "config", "cwd": str(tmp_path)}
    write_json(tmp_path / name / "jobs.json", {"launcher": "none", "command": recorded, "jobs": []})
    started: list[list[str]] = []
    monkeypatch.setattr(
        rerun.subprocess, "run", lambda command, **_: started.append(command) or Namespace(returncode=0)
    )
    assert rerun.rerun(tmp_path / name) == 0
    place = OverridesParser.create().parse_override(started[0][-1])
    assert (place.key_or_group, place.value()) == ("hydra.sweep.dir", str(tmp_path / name))


def test_options_that_refer_to_others_stay_as_they_were_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is around them: the options of a run, its own config and the environment are not."""
    typed = ["seed=3", "calibration.samples=${batch_size}", "sparsity=${oc.env:ECOFLAP_NOWHERE}"]
    hydra = {"overrides": {"task": typed, "hydra": ["hydra.run.dir=${oc.env:ECOFLAP_NOWHERE}"]}}
    kept = {"hydra": {**hydra, "runtime": {"cwd": str(tmp_path), "config_sources": []}}}
    write(tmp_path, state="failed", reason="no such file")
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(typed), tmp_path / ".hydra" / "overrides.yaml")
    OmegaConf.save(kept, tmp_path / ".hydra" / "hydra.yaml")
    assert status.read(tmp_path)[0].overrides == typed
    started: list[list[str]] = []
    monkeypatch.setattr(
        rerun.subprocess, "run", lambda command, **_: started.append(command) or Namespace(returncode=0)
    )
    assert rerun.rerun(tmp_path) == 0
    assert started[0][2:] == [*typed, f"hydra.run.dir={tmp_path}"]


def test_without_slurm_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert slurm_states(["1", "2"]) == {}
