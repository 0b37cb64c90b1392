"""The command ``ecoflap`` and its subcommands, as a person types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ecoflap.cli import command
from ecoflap.cli.arguments import prepared
from ecoflap.errors import UserError, typed_command
from tests.cli import forked
from tests.cli.conftest import ROOT
from tests.refusals.conftest import fresh_process  # noqa: F401 - a fixture

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_help_describes_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, subcommand in command.SUBCOMMANDS.items():
        assert f"ecoflap {name} " in shown
        assert subcommand.summary in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("name", [*command.SUBCOMMANDS, "report paired", "report recovery"])
@pytest.mark.usefixtures("fresh_process")
def test_each_subcommand_has_help(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")  # colours, from Python 3.14 on, are characters of a line too
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    try:
        code = command.main([*name.split(), "--help"])
    except SystemExit as stopped:  # argparse's
        code = int(str(stopped.code))
    assert code == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"ecoflap {name}" in said.out or name == "run"
    assert [line for line in said.out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", [*command.SUBCOMMANDS, "report paired", "report recovery"])
@pytest.mark.usefixtures("fresh_process")
def test_each_subcommand_refuses_a_wrong_flag_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = command.main([*name.split(), "--nonesuch"])
    except SystemExit as stopped:  # argparse's
        code = int(str(stopped.code))
    assert code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("command_line", ["cache ls --cache=~/it", "verify ~/it", "report ~/it"])
def test_a_tilde_that_the_shell_leaves_is_the_home(
    command_line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command.main(command_line.split()) == 2
    assert str(tmp_path / "it") in capsys.readouterr().err


@pytest.mark.parametrize("subcommand", ["", "status", "report", "cache", "convert"])
def test_help_loads_neither_torch_nor_hydra(subcommand: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ecoflap", *subcommand.split(), "--help"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert finished.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "ecoflap.cli.command" in imported
    assert imported.isdisjoint({"torch", "transformers", "hydra", "matplotlib"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("needs a subcommand", "run, plan, status")),
        (("stats", "outputs"), ("ecoflap stats", "did you mean status?")),
        (("sparsity=0.5",), ("no such subcommand", "ecoflap run sparsity=0.5")),
        (("-m", "seed=0,1"), ("no such subcommand", "ecoflap run -m seed=0,1")),
    ],
)
def test_what_is_no_subcommand(
    arguments: tuple[str, ...], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err


def test_ctrl_c_ends_any_subcommand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ecoflap.sweeps import status

    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "read", stop)
    assert command.main(["status", "outputs"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    ("program", "typed"),
    [
        ("main.py", "python main.py"),
        ("/checkout/main.py", "python main.py"),
        ("/site-packages/ecoflap/__main__.py", "python -m ecoflap run"),
        ("/usr/bin/ecoflap", "ecoflap run"),
        ("/site-packages/pytest/__main__.py", "ecoflap run"),
    ],
)
def test_messages_name_what_was_typed(program: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert typed_command() == typed


def test_both_ways_to_start_a_run_compose_the_same(tmp_path: Path) -> None:
    options = ["sparsity=0.7", "--cfg", "job"]
    ours = forked.python(["-m", "ecoflap", "run", *options], tmp_path)
    assert "sparsity: 0.7" in ours.stdout
    assert forked.main(options, tmp_path).stdout == ours.stdout


@pytest.mark.usefixtures("fresh_process")
def test_help_of_a_run_shows_its_own_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "--help", "pruner=sparsegpt", "sparsity=0.25"]) == 0
    shown = capsys.readouterr().out
    groups = shown.partition("== Options of each group")[2].partition("\n\n")[0]
    assert "\npruner: " in groups
    assert "\nexperiment/blip2: " in groups
    assert "hydra" not in shown
    assert "sparsity: 0.25" in shown
    assert "ecoflap.prune.sparsegpt.SparseGPT" in shown
    assert command.main(["run", "--help", "pruner=sparsgpt"]) == 2
    assert "did you mean sparsegpt?" in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_process")
class TestPlan:
    def test_shows_what_a_run_would_prune_and_writes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert command.main(["plan", "towers=[encoder]", "sparsity=0.5"]) == 0
        shown = capsys.readouterr().out
        assert "blip2_mini/wanda/in_context/s0.5/seed0" in shown
        assert "16,384 prunable" in shown
        assert "0-1.layer.1.DenseReluDense.wo.weight" in shown
        times = shown[shown.index("approximate time on") :]
        for step in ("evaluate_dense", "allocate", "prune", "evaluate", "total"):
            assert re.search(rf"^ +{step} +\d+ (s|min)", times, re.MULTILINE), times
        assert files(tmp_path) == []

    def test_a_sweep_is_planned_job_by_job(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert (
            command.main(["run", "plan=True", "-m", "model=t5_mini", "task.limit=4", "sparsity=0.5,0.6"]) == 0
        )
        shown = capsys.readouterr().out
        assert "2 jobs, which can all run" in shown
        assert "2 jobs like the first take about" in shown
        assert re.search(r"^ +1 +.*sparsity=0.6", shown, re.MULTILINE)
        assert "t5_mini/wanda/in_context/s0.5/seed0" in shown
        assert files(tmp_path) == []
        assert command.main(["plan", "-m", "model=t5_mini", "sparsity=0.5,1.6"]) == 2
        assert "job 1 (sparsity=1.6)" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "jobs"),
        [
            (["+sweep=ablation_eps", "+preset=[mini,debug]"], 4),
            (["model=t5_mini", "score=none", "sparsity=0.5,0.6", "task.limit=4", "cluster=local"], 2),
        ],
        ids=["named", "cluster"],
    )
    def test_a_sweep_that_only_multirun_starts_is_planned(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        options: list[str],
        jobs: int,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert command.main(["plan", "-m", *options]) == 0, capsys.readouterr().err
        shown = capsys.readouterr().out
        assert f"{jobs} jobs, which can all run" in shown
        assert f"{jobs} jobs like the first take about" in shown

    def test_times_a_loss_that_compares_samples(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Contrastive, which says nothing of one sample."""
        assert command.main(["plan", "model=clip_mini", "score=first_order", "task.limit=4"]) == 0
        times = capsys.readouterr().out.partition("approximate time on")[2]
        assert re.search(r"^ +score +\d+ (s|min)", times, re.MULTILINE), times

    @pytest.mark.parametrize("chosen", [["finetune=lora", "finetune.steps=9"], ["finetune=reconstruct"]])
    def test_times_a_training(self, capsys: pytest.CaptureFixture[str], chosen: list[str]) -> None:
        steps = "steps=[calibrate,score,allocate,prune,finetune,evaluate]"
        assert command.main(["plan", "model=t5_mini", "score=none", "task.limit=4", steps, *chosen]) == 0
        shown = capsys.readouterr().out
        times = shown.partition("approximate time on")[2]
        for step in ("prune", "evaluate", "finetune", "evaluate_finetuned"):
            assert re.search(rf"^ +{step} +\d+ (s|min)", times, re.MULTILINE), times
        assert "does not include" not in shown

    def test_without_weights_there_are_no_times(
        self, text_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "config_only"
        given = next(one for one in text_run if one.startswith("model.path=")).removeprefix("model.path=")
        shutil.copytree(given, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        assert command.main(["plan", *text_run, f"model.path={folder}"]) == 0
        shown = capsys.readouterr().out
        assert "no times: " in shown
        assert "all checks that need no weights passed" in shown

    def test_damaged_weights_are_refused(
        self, text_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = next(one for one in text_run if one.startswith("model.path=")).removeprefix("model.path=")
        folder = shutil.copytree(given, tmp_path / "damaged")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        assert command.main(["plan", *text_run, f"model.path={folder}"]) == 2
        shown = capsys.readouterr()
        assert "error: " in shown.err
        assert "model.safetensors is cut off" in shown.err
        assert "passed" not in shown.out

    @pytest.mark.parametrize("allocation", ["in_context", "water_filling"])
    def test_what_only_the_samples_show_is_refused(
        self, allocation: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["model=vit_mini", "tokens=text", "calibration.samples=4", "task.limit=4"]
        assert command.main(["plan", *options, f"allocation={allocation}", "score=none"]) == 2
        shown = capsys.readouterr()
        assert "error: tokens=text needs a pruned tower that reads text and visual tokens" in shown.err
        assert "vit_mini has none (pruned: vision); use tokens=all, or prune such a tower" in shown.err
        assert "no times" not in shown.out
        assert "all checks passed" not in shown.out

    def test_names_options_that_change_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["plan", "steps=[calibrate,score]", "propagate=dense"]) == 0
        assert "warning: propagate=dense changes nothing" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("allocation", "read"), [("in_context", True), ("er", False)], ids=["data", "shapes"]
    )
    def test_the_allocation_reads_options_of_the_fine_stage(
        self, capsys: pytest.CaptureFixture[str], allocation: str, read: bool
    ) -> None:
        steps = ["plan", "steps=[calibrate,allocate]", f"allocation={allocation}"]
        assert command.main([*steps, "pruner=sparsegpt", "batch_size=4"]) == 0
        shown = capsys.readouterr().err
        assert "pruner=sparsegpt changes nothing" not in shown
        assert ("batch_size=4 changes nothing" in shown) is not read

    def test_refuses_what_a_run_would_refuse(
        self, text_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        allocation = tmp_path / "allocation.json"
        allocation.write_text(json.dumps({}))
        options = [*text_run, "allocation=file", f"allocation.path={allocation}"]
        assert command.main(["plan", *options]) == 2
        planned = capsys.readouterr().err
        assert str(allocation) in planned
        places = [f"hydra.run.dir={tmp_path / 'run'}"]
        with pytest.raises(SystemExit, match="2"):
            command.main(["run", *options, *places])
        assert planned.strip() in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-m", "seed=0,1", "hydra.run.dir=a"],
            "hydra.run.dir=a: a sweep doesn't read it; write hydra.sweep.dir=a",
        ),
        (["hydra.mode=MULTIRUN", "hydra.run.dir=a"], "leave out -m"),
        (["hydra.sweep.dir=a"], "a single run doesn't read it; write hydra.run.dir=a, or add -m"),
    ],
)
def test_a_folder_that_nothing_would_read_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        prepared(arguments)
    prepared([*arguments, "hydra.run.dir=a", "hydra.sweep.dir=b"])


@pytest.mark.parametrize("argument", ["hydra.job.chdir=true", "++hydra.job.chdir=True"])
def test_runs_that_would_start_in_their_own_folders_are_refused(argument: str) -> None:
    with pytest.raises(UserError, match=f"{re.escape(argument.lstrip('+'))}: paths of options and the cache"):
        prepared([argument])
    prepared(["hydra.job.chdir=false"])
