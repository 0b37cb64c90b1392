"""Sweeps on a real Slurm: work that is shared, jobs that fail, code that is edited meanwhile."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ecoflap.storage.files import read_json
from ecoflap.storage.results import Result, verify
from ecoflap.sweeps import status
from ecoflap.sweeps.snapshot import PARTS
from tests.cli.conftest import ROOT
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.conftest import Sweep, ended


def logs(folder: Path) -> str:
    """What all jobs of a sweep have printed."""
    return "".join(file.read_text() for file in sorted(folder.glob(".submitit/*/*_log.*")))


def results(folder: Path) -> dict[int, Result]:
    """{job: result} of a sweep."""
    return {int(file.parent.name): Result.read(file) for file in folder.glob("*/result.json")}


def wait_until_ended(slurm: Cluster, ids: list[str]) -> None:
    """Results are there a moment before Slurm knows."""
    over = {"COMPLETED", "FAILED", "CANCELLED"}
    wait_for(
        f"the end of {ids}",
        lambda: len(known := slurm.accounting(",".join(ids))) >= len(ids) and set(known.values()) <= over,
        120,
    )


def states(slurm: Cluster, folder: Path) -> list[str]:
    """Slurm's state of each job of a sweep, in order."""
    ids = [job["id"] for job in read_json(folder / "jobs.json")["jobs"]]
    wait_until_ended(slurm, ids)
    known = slurm.accounting(",".join(ids))
    return [known[one] for one in ids]


@pytest.mark.variant
def test_twelve_jobs_at_once_score_once(
    slurm: Cluster, sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    printed = ended(
        sweep(
            "sparsity=0.4,0.5,0.6",
            "pruner=wanda,sparsegpt",
            "allocation=water_filling",
            "allocation.granularity=layer,block",
        )
    )
    found = results(folder)
    assert sorted(found) == list(range(12)), printed
    assert (
        len(
            {
                (
                    run.config["sparsity"],
                    run.config["pruner"]["name"],
                    run.config["allocation"]["granularity"],
                )
                for run in found.values()
            }
        )
        == 12
    )
    assert states(slurm, folder) == ["COMPLETED"] * 12
    text = logs(folder)
    for stage in ("calibration", "dense_metrics", "scores"):
        assert text.count(f"{stage}: computing") == 1, stage
        assert text.count(f"{stage}: read from the store") == 11, stage
    assert status.main([str(folder)]) == 0
    assert "12 done" in capsys.readouterr().out
    report = subprocess.run(
        [sys.executable, "-m", "ecoflap", "report", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 0, report.stderr
    assert (folder / "report" / "index.html").is_file()


def test_scores_first(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    printed = ended(sweep("sparsity=0.4,0.5", "score=none,first_order", "hydra.launcher.scores_first=true"))
    assert sorted(results(folder)) == [0, 1, 2, 3], printed
    assert "1 jobs compute scores first" in printed
    text = logs(folder)
    assert (folder / "scores" / "0" / "scores.json").is_file()
    assert text.count("scores: computing") == 1
    assert text.count("scores: read from the store") == 2


def test_a_sweep_that_goes_on_queues_only_what_is_not_there(
    slurm: Cluster, sweep: Sweep, tmp_path: Path
) -> None:
    """The jobs of the first are held in the queue until the second, with one job more, waits for them."""
    folder, hold = tmp_path / "sweep", "+hydra.launcher.additional_parameters.hold=true"
    first = sweep("score=none", "sparsity=0.4,0.5", "hydra.launcher.wait=false", hold)
    printed = ended(first)
    assert first.returncode == 0, printed
    held = [job["id"] for job in read_json(folder / "jobs.json")["jobs"]]
    second = sweep("score=none", "sparsity=0.4,0.5,0.6")
    wait_for("the third job", lambda: len(read_json(folder / "jobs.json")["jobs"]) == 3, 300)
    slurm.run("scontrol", "release", held[0].split("_")[0])
    printed = ended(second)
    assert second.returncode == 0, printed
    assert f"2 jobs are in Slurm already, such as {held[0]}" in printed
    assert sorted(results(folder)) == [0, 1, 2], printed
    assert [job["id"] for job in read_json(folder / "jobs.json")["jobs"]][:2] == held
    assert states(slurm, folder) == ["COMPLETED"] * 3


def test_one_job_of_a_sweep_fails(
    slurm: Cluster, sweep: Sweep, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["lm_head.weight"][0, 0] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    process = sweep(f"model.path={tiny_llama},{broken}", "sparsity=0.4")
    printed = ended(process)
    assert process.returncode == 2
    assert "job 1" in printed
    assert "checkpoint is damaged" in printed
    assert sorted(results(folder)) == [0]
    assert states(slurm, folder) == ["COMPLETED", "FAILED"]
    own = next(file for file in folder.glob(".submitit/*/*_log.err") if "Traceback" in file.read_text())
    assert "checkpoint is damaged" in own.read_text()
    capsys.readouterr()
    assert status.main([str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "1 done, 1 failed" in shown
    assert "checkpoint is damaged" in shown


def test_nothing_is_queued_when_one_job_is_impossible(slurm: Cluster, sweep: Sweep, tmp_path: Path) -> None:
    process = sweep("sparsity=0.4,2.0")
    printed = ended(process)
    assert process.returncode == 2
    assert "job 1 (sparsity=2.0): sparsity=2.0 is outside" in printed
    assert not (tmp_path / "sweep" / ".submitit").exists()


def test_code_that_is_edited_meanwhile_changes_no_queued_job(
    slurm: Cluster, sweep: Sweep, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, project / part, symlinks=True)
        else:
            shutil.copy2(ROOT / part, project / part)
    before = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 600").stdout.strip()
    process = sweep(
        "sparsity=0.5",
        f"hydra.launcher.dependency=afterany:{before}",
        "hydra.launcher.wait=false",
        project=project,
    )
    printed = ended(process)
    assert process.returncode == 0, printed
    (project / "ecoflap" / "pipeline.py").write_text("raise RuntimeError('edited')\n")
    (project / "conf" / "config.yaml").write_text("edited: true\n")
    slurm.run("scancel", before)
    folder = tmp_path / "sweep"
    (job,) = json.loads((folder / "jobs.json").read_text())["jobs"]
    wait_until_ended(slurm, [job["id"]])
    assert sorted(results(folder)) == [0], logs(folder)
    assert (next(folder.glob("code-*")) / "snapshot.json").is_file()


def test_gpus_and_wrong_options(slurm: Cluster, sweep: Sweep, tmp_path: Path) -> None:
    process = sweep("sparsity=0.5", "hydra.launcher.partitio=main")
    assert "no option 'partitio'; did you mean partition?" in ended(process)
    assert process.returncode == 2
    assert not (tmp_path / "sweep" / "jobs.json").exists()
    printed = ended(sweep("sparsity=0.5", "hydra.launcher.gres=gpu:1", "hydra.launcher.partition=main"))
    assert sorted(results(tmp_path / "sweep")) == [0], printed
    (job,) = json.loads((tmp_path / "sweep" / "jobs.json").read_text())["jobs"]
    assert "gres/gpu=1" in slurm.run("sacct", "-X", "-n", "-P", "-o", "AllocTRES", "-j", job["id"]).stdout


def test_the_processes_of_a_job_train_together(sweep: Sweep, tmp_path: Path) -> None:
    """As torchrun's would; one of them writes."""
    steps = "steps=[calibrate,score,allocate,prune,finetune,evaluate]"
    train = [steps, "score=none", "model.save=true", "finetune.steps=4", "finetune.batch_size=1"]
    printed = ended(sweep(*train, "hydra.launcher.tasks_per_node=2"))
    folder = tmp_path / "sweep" / "0"
    assert (folder / "result.json").exists(), printed + logs(tmp_path / "sweep")
    assert read_json(folder / "finetune" / "identity.json")["processes"] == 2
    assert not (folder / "processes").exists()
    assert verify(folder) == []
