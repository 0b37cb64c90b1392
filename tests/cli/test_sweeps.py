"""Sweeps as they are typed: in this process, as processes, by Optuna; what they refuse, and that they change
no result.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecoflap.storage.lease import Lease
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result
from ecoflap.sweeps import rerun
from tests.cli import forked
from tests.cli.conftest import ROOT


def sweep(*overrides: str) -> subprocess.CompletedProcess[str]:
    return forked.main(overrides, ROOT)


def layers(file: Path) -> dict[str, object]:
    result = Result.read(file)
    return {"metrics": result.metrics, "layers": result.sparsity["layers"]}


def test_one_load_for_many_runs_gives_the_results_of_separate_processes(
    text_run: list[str], tmp_path: Path
) -> None:
    axis = "pruner=sparsegpt,wanda"  # the first changes the weights that it keeps
    here = forked.new_process("-m", *text_run, axis, f"hydra.sweep.dir={tmp_path / 'here'}")
    assert here.returncode == 0, here.stderr
    assert here.stderr.count("is still in memory") == 1
    apart = sweep(
        "-m", *text_run, axis, "cache_mode=off", "cluster=local", f"hydra.sweep.dir={tmp_path / 'apart'}"
    )
    assert apart.returncode == 0, apart.stderr
    for number in range(2):
        assert layers(tmp_path / "here" / str(number) / "result.json") == layers(
            tmp_path / "apart" / str(number) / "result.json"
        )
    again = sweep(
        "-m", *text_run, axis, "cache_mode=off", "cluster=local", f"hydra.sweep.dir={tmp_path / 'apart'}"
    )
    assert again.returncode == 0
    assert "2 of 2 jobs have finished before" in again.stdout + again.stderr


def test_a_sweep_says_which_job_it_is_at_and_tables_once(text_run: list[str], tmp_path: Path) -> None:
    given = ["sparsity=0.4,0.5,0.6", "finetune.epochs=3", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = forked.new_process("-m", *text_run, *given)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("finetune.epochs=3 changes nothing: steps=") == 1
    for number, sparsity in enumerate((0.4, 0.5, 0.6)):
        assert re.search(rf"job {number} of 0-2: .*sparsity={sparsity}", done.stderr)
        assert Result.read(tmp_path / "sweep" / str(number) / "result.json").config["sparsity"] == sparsity
    assert done.stdout.count("left dense") == 1
    assert done.stdout.count("approximate peak memory") == 1
    assert done.stdout.count("sparsity (target") == 3
    jobs = json.loads((tmp_path / "sweep" / "jobs.json").read_text())["jobs"]
    assert [job["number"] for job in jobs] == [0, 1, 2]
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


@pytest.fixture
def broken_llama(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model of which only its weights show that it can't be pruned."""
    folder = shutil.copytree(tiny_llama, tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("cluster", ["none", "local"])
@pytest.mark.every_run("local")
def test_no_job_is_started_when_one_is_impossible(text_run: list[str], tmp_path: Path, cluster: str) -> None:
    folder = tmp_path / "sweep"
    done = sweep("-m", *text_run, "sparsity=0.5,2.0,1.5", f"cluster={cluster}", f"hydra.sweep.dir={folder}")
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert "job 1 (sparsity=2.0): sparsity=2.0 is outside" in said
    assert "job 2 (sparsity=1.5): sparsity=1.5 is outside" in said
    assert "2 of 3 jobs can't run" in said
    assert not list(folder.rglob("status.json"))
    assert not (folder / ".submitit").exists()


def test_a_refused_sweep_or_a_part_is_not_what_is_started_again(
    text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But the one whose jobs are in the folder."""
    folder, started = tmp_path / "sweep", list[list[str]]()
    given = ["-m", *text_run, "score=none", "pruner=magnitude", f"hydra.sweep.dir={folder}"]
    done = forked.main([*given, "sparsity=0.5,0.6"], tmp_path)
    assert done.returncode == 0, done.stderr
    (folder / "1" / "result.json").unlink()
    assert forked.main([*given, "sparsity=1.5,0.5"], tmp_path).returncode == 2
    assert forked.main([*given, "sparsity=0.5"], tmp_path).returncode == 0
    monkeypatch.setattr(
        rerun.subprocess, "run", lambda command, **_: started.append(command) or Namespace(returncode=0)
    )
    assert rerun.rerun(folder) == 0
    assert [one for one in started[0] if one.startswith("sparsity")] == ["sparsity=0.5,0.6"]


@pytest.mark.parametrize("cluster", ["none", "local"])
def test_two_sweeps_never_share_a_folder(text_run: list[str], tmp_path: Path, cluster: str) -> None:
    folder = tmp_path / "sweep"
    lease = Lease(folder / ".lease")
    assert lease.acquire()
    given = ["-m", *text_run, "sparsity=0.5,0.6", f"cluster={cluster}", f"hydra.sweep.dir={folder}"]
    refused = forked.main(given, tmp_path)
    lease.release()
    assert refused.returncode == 2
    owner = f"{socket.gethostname()}:{os.getpid()}"
    assert f"another sweep ({owner}) is active in {folder}" in refused.stderr
    assert not (folder / "jobs.json").exists()


def test_a_failing_run_does_not_stop_the_next(
    text_run: list[str], tiny_llama: Path, broken_llama: Path, tmp_path: Path
) -> None:
    given = [override for override in text_run if not override.startswith("model.path")]
    models = f"model.path={broken_llama},{tiny_llama}"
    done = sweep("-m", *given, models, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 2
    assert "checkpoint is damaged" in done.stderr
    assert [file.parent.name for file in (tmp_path / "sweep").glob("*/result.json")] == ["1"]


def test_a_failing_run_does_not_stop_the_next_batch(
    text_run: list[str], tiny_llama: Path, broken_llama: Path, tmp_path: Path
) -> None:
    given = [override for override in text_run if not override.startswith("model.path")]
    models = f"model.path={broken_llama},{tiny_llama}"
    batches = ["sparsity=0.4,0.5", "hydra.sweeper.max_batch_size=3"]
    done = forked.main(["-m", *given, models, *batches, f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path)
    assert done.returncode == 2
    assert "2 of 4 jobs failed (0, 1)" in done.stderr
    assert sorted(file.parent.name for file in (tmp_path / "sweep").glob("*/result.json")) == ["2", "3"]


def test_a_failing_process_does_not_stop_the_others(
    text_run: list[str], tiny_llama: Path, broken_llama: Path, tmp_path: Path
) -> None:
    given = [override for override in text_run if not override.startswith("model.path")]
    models = f"model.path={broken_llama},{tiny_llama}"
    done = sweep("-m", *given, models, "cluster=local", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 2
    assert "job 0" in done.stderr + done.stdout
    assert "checkpoint is damaged" in done.stderr + done.stdout
    assert [file.parent.name for file in (tmp_path / "sweep").glob("*/result.json")] == ["1"]
    assert json.loads((tmp_path / "sweep" / "0" / "status.json").read_text())["state"] == "failed"


def test_ctrl_c_ends_the_jobs_and_says_how_to_resume(text_run: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    given = ["sparsity=0.4,0.5,0.6", "cluster=local", f"hydra.sweep.dir={folder}"]
    command = [sys.executable, "main.py", "-m", *text_run, *given]
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    while started.poll() is None and not list(folder.glob(".submitit/*/*_log.err")):
        time.sleep(0.1)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does, to all processes
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 130, said
    assert f"to resume: ecoflap status {folder} --rerun-failed" in said
    assert "Traceback" not in said
    assert not (folder / "2").exists()


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_a_single_run_is_not_submitted(text_run: list[str], cluster: str) -> None:
    done = sweep(*text_run, f"cluster={cluster}")
    assert done.returncode == 2
    assert "add -m" in done.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [("partitio=x", "no option 'partitio'; did you mean partition?"), ("timeout_min=soon", "timeout_min")],
)
def test_wrong_slurm_options_fail_before_a_job_is_queued(
    text_run: list[str], override: str, words: str
) -> None:
    """Beside options that have no default, such as model.path, which are all right."""
    done = sweep("-m", "cluster=slurm", *text_run, f"hydra.launcher.{override}")
    assert done.returncode == 2
    assert words in done.stderr


def test_optuna_searches(text_run: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    fixed = [
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.direction=minimize",
        f"hydra.sweep.dir={tmp_path / 'search'}",
    ]
    done = sweep("-m", "+sweep=search", *text_run, *fixed)
    assert done.returncode == 0, done.stderr
    assert "Best value" in done.stdout + done.stderr
    assert len(list((tmp_path / "search").glob("*/result.json"))) == 2


def test_statistics_of_the_dense_model_are_measured_once(text_run: list[str], tmp_path: Path) -> None:
    axes = ["propagate=dense", "score=none", "sparsity=0.4,0.5,0.6"]
    given = [override for override in text_run if not override.startswith("score.")]
    done = sweep("-m", *given, *axes, f"hydra.sweep.dir={tmp_path / 'shared'}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("statistics: computing") == 1
    assert done.stderr.count("statistics: read from the store") == 2
    alone = sweep(
        *given,
        "propagate=dense",
        "score=none",
        "sparsity=0.6",
        "cache_mode=off",
        f"hydra.run.dir={tmp_path / 'alone'}",
    )
    assert alone.returncode == 0, alone.stderr
    assert layers(tmp_path / "shared" / "2" / "result.json") == layers(tmp_path / "alone" / "result.json")


def test_statistics_of_another_loss_are_others(run: Callable[..., Result], tmp_path: Path) -> None:
    """They are gathered in the passes that the loss makes, and matching makes another one with wrong
    partners.
    """
    plan = [
        "model=blip_retrieval_mini",
        "score=none",
        "steps=[calibrate,allocate,prune]",
        "propagate=dense",
        "calibration.samples=8",
    ]
    plan += ["model.save=true", "tracking=none", "device=cpu"]
    for name, more in (
        ("other", ["model.loss=match_and_contrastive", f"cache={tmp_path / 'cache'}"]),
        ("after", ["model.loss=match", f"cache={tmp_path / 'cache'}"]),
        ("alone", ["model.loss=match", "cache_mode=off"]),
    ):
        run([*plan, *more], name)
    other, after, alone = (
        load_masks(tmp_path / name / "checkpoint" / "masks.bits") for name in ("other", "after", "alone")
    )
    assert all(torch.equal(after[name], mask) for name, mask in alone.items())
    assert not all(torch.equal(other[name], mask) for name, mask in alone.items())


def test_statistics_and_allocations_of_other_tokens_are_others(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    """They are stored apart, and offloaded models measure the same ones."""
    plan = ["model=blip2_mini", "score=none", "allocation=owl", "allocation.scope=model"]
    plan += ["propagate=dense", "calibration.samples=8", "model.save=true", "tracking=none", "device=cpu"]
    plan += ["steps=[calibrate,allocate,prune]"]
    layers = {}
    for name, more in (
        ("other", ["tokens=all", f"cache={tmp_path / 'cache'}"]),
        ("after", ["tokens=atv", f"cache={tmp_path / 'cache'}"]),
        ("alone", ["tokens=atv", "cache_mode=off"]),
        ("disk", ["tokens=atv", "cache_mode=off", "runtime.offload=disk"]),
    ):
        layers[name] = run([*plan, *more], name).sparsity["layers"]
    assert layers["after"] == layers["alone"] != layers["other"]
    other, after, alone, disk = (
        load_masks(tmp_path / name / "checkpoint" / "masks.bits")
        for name in ("other", "after", "alone", "disk")
    )
    assert all(
        torch.equal(after[name], mask) and torch.equal(disk[name], mask) for name, mask in alone.items()
    )
    assert not all(torch.equal(other[name], mask) for name, mask in alone.items())
