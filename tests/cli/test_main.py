"""main.py as a person types it: exit codes, messages, files."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.cli import forked
from tests.cli.conftest import ROOT


def test_help_lists_the_groups_without_loading_torch() -> None:
    finished = forked.new_process("--help")
    assert finished.returncode == 0
    for group in ("model", "score", "pruner", "allocation", "blip2_mini", "zeroth_order", "sparsegpt"):
        assert group in finished.stdout
    probe = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "--cfg", "job"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "import time" in probe.stderr
    assert " torch\n" not in probe.stderr


def test_a_user_error_is_a_message_and_exit_code_2(tmp_path: Path) -> None:
    finished = forked.new_process("sparsity=1.5", f"hydra.run.dir={tmp_path}")
    assert finished.returncode == 2
    assert "sparsity=1.5" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_run_leaves_a_result_that_verifies(text_run: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    tracked = [override for override in text_run if override != "tracking=none"]
    started = datetime.now(timezone.utc)
    finished = forked.new_process(
        *tracked, "score=zeroth_order", "model.save=true", f"hydra.run.dir={folder}"
    )
    assert finished.returncode == 0, finished.stderr
    record = json.loads((folder / "result.json").read_text())
    assert record["schema"] == 1
    assert started < datetime.fromisoformat(record["finished"]) < datetime.now(timezone.utc)
    assert record["model"]["dtype"] == "float32"
    assert record["steps"].keys() >= {"load", "calibrate", "score", "allocate", "prune", "evaluate"}
    assert record["hardware"].keys() == {"device", "name", "threads", "processes"}
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/allocation_*.png"))
    assert "perplexity" in finished.stdout
    assert "language   block 1    sparsity" in finished.stderr
    verified = subprocess.run(
        [sys.executable, "-m", "ecoflap", "verify", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_sweep_runs_every_combination(text_run: list[str], tmp_path: Path) -> None:
    axes = ["sparsity=0.4,0.6", "seed=0,1"]
    finished = forked.main(["-m", *text_run, *axes, f"hydra.sweep.dir={tmp_path / 'sweep'}"], ROOT)
    assert finished.returncode == 0, finished.stderr
    records = [json.loads(file.read_text()) for file in (tmp_path / "sweep").glob("*/result.json")]
    assert sorted((record["config"]["sparsity"], record["config"]["seed"]) for record in records) == [
        (0.4, 0),
        (0.4, 1),
        (0.6, 0),
        (0.6, 1),
    ]
    command = [sys.executable, "-m", "ecoflap", "report", str(tmp_path / "sweep")]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.count("(n=2)") == 2
    page = (tmp_path / "sweep" / "report" / "index.html").read_text()
    assert "language, 2 blocks" in page
    assert "4 runs in" in page


def test_a_run_that_has_ended_is_not_resumed_by_another_config(text_run: list[str], tmp_path: Path) -> None:
    given = [*text_run, f"hydra.run.dir={tmp_path / 'out'}"]
    assert forked.main(given, tmp_path).returncode == 0
    refused = forked.main([*given, "sparsity=0.7"], tmp_path)
    assert refused.returncode == 2
    assert "holds the result of another config" in refused.stderr
    assert "to resume" not in refused.stderr


def test_a_refused_run_leaves_the_records_of_another_alone(text_run: list[str], tmp_path: Path) -> None:
    """So that they say of the result how it came about."""
    folder = tmp_path / "run"
    given = [*text_run, "score=none", "pruner=magnitude", f"hydra.run.dir={folder}"]
    assert forked.main([*given, "sparsity=0.5"], tmp_path).returncode == 0
    files = [folder / ".hydra" / f"{name}.yaml" for name in ("config", "hydra", "overrides")]
    before = [file.read_text() for file in files]
    assert "- sparsity=0.5" in before[2].splitlines()
    assert "sparsity: 0.5" in before[0].splitlines()
    for refused in (["sparsity=0.7"], ["sparsity=1.5", "resume=false"]):
        assert forked.main([*given, *refused], tmp_path).returncode == 2
        assert [file.read_text() for file in files] == before
    assert forked.main([*given, "sparsity=0.7", "resume=false"], tmp_path).returncode == 0
    assert "- sparsity=0.7" in files[2].read_text().splitlines()


def test_a_run_goes_on_once_the_option_that_stopped_it_is_changed(
    text_run: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "a folder, of one's own"
    trained = ["steps=[calibrate,allocate,prune,finetune,evaluate]", "finetune.steps=4", "finetune.clip=1e30"]
    given = [*text_run, *trained]
    stopped = forked.main([*given, f'hydra.run.dir="{folder}"', "finetune.learning_rate=1e30"], tmp_path)
    assert stopped.returncode == 2
    assert "finetune.learning_rate" in stopped.stderr
    _, found, place = stopped.stderr.partition("to resume, change that and repeat the command with ")
    assert found
    (option,) = shlex.split(place.splitlines()[0])
    assert forked.main([*given, option, "finetune.learning_rate=1e-5"], tmp_path).returncode == 0
    assert (folder / "result.json").exists()


def test_an_interrupted_run_leaves_nothing_that_looks_whole(text_run: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code = (
        "import sys, runpy; import ecoflap.run.outcome as o, ecoflap.storage.checkpoint as c\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "c.save_masks = stop\n"
        f"sys.argv = ['main.py', *{[*text_run, 'model.save=true', f'hydra.run.dir={folder}']!r}]\n"
        f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert finished.returncode == 130
    assert f"to resume, repeat the command with hydra.run.dir={folder}" in finished.stderr + finished.stdout
    assert not (folder / "result.json").exists()
    assert not (folder / "checkpoint").exists()


def test_several_tasks_are_all_measured(tmp_path: Path) -> None:
    short = [
        "task.tasks.easy_classification.limit=20",
        "task.tasks.easy_retrieval.limit=20",
        "tracking=none",
        "device=cpu",
        "cache_mode=off",
    ]
    tasks = ["model=clip_mini", "task=[easy_classification,easy_retrieval]", "steps=[evaluate]"]
    finished = forked.main([*tasks, *short, f"hydra.run.dir={tmp_path}"], ROOT)
    assert finished.returncode == 0, finished.stderr
    assert list(json.loads((tmp_path / "result.json").read_text())["metrics"]["dense"]) == [
        "easy_classification",
        "easy_retrieval",
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=blip2/wanda"], ["+experiment=blip2/wanda"]),
        (["-m", "sweep=blip2_table1"], ["+sweep=blip2_table1"]),
        (
            ["+experiment=blip2/ecoflap_first", "score=zeroth_order", "calibration=easy_vqa"],
            [
                "score.measure is not an option of this score",
                "+experiment=blip2/ecoflap_first sets it; leave it out with ~score.measure",
            ],
        ),
        (["score=zeroth_order", "+score.noise=2"], ["score.noise is not an option of this score", "noises"]),
        (["+score.noises=2"], ["score.noises is not an option of score=auto", "score=zeroth_order"]),
        (["+allocation.cap=1"], ["allocation.cap is not an option of allocation=auto"]),
    ],
)
def test_an_option_that_is_not_there(overrides: list[str], words: list[str], tmp_path: Path) -> None:
    given = [*overrides, "model=blip2_mini", "task=easy_vqa", "tracking=none", f"hydra.run.dir={tmp_path}"]
    finished = forked.main(given, ROOT)
    assert finished.returncode != 0
    for word in words:
        assert word in " ".join((finished.stderr + finished.stdout).split())
    assert "leave it out" not in finished.stderr or "+experiment" in overrides[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["-m", "task=[easy_classification,easy_retrieval],[easy_retrieval]"],
            ["task=[one,other] on the command line only"],
        ),
        (["task=[easy_suite,easy_vqa]"], ["easy_suite is a suite itself"]),
        (["task=suite"], ["task.tasks is empty"]),
        (["task=[easy_suit]"], ["no task 'easy_suit'"]),
    ],
)
def test_lists_of_tasks_that_are_refused(overrides: list[str], words: list[str], tmp_path: Path) -> None:
    folders = [f"hydra.run.dir={tmp_path}", f"hydra.sweep.dir={tmp_path}"]
    finished = forked.main([*overrides, "model=clip_mini", "tracking=none", *folders], ROOT)
    assert finished.returncode != 0
    for word in words:
        assert word in finished.stderr + finished.stdout


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    command = f"{sys.executable} {ROOT / 'main.py'} --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Prune vision-language models")
    assert done.stderr == ""
