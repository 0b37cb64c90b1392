"""What main.py makes of errors that no command line causes by itself: a full disk, a job that fails late, a
bug, Ctrl-C.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors import SafetensorError

from ecoflap.cli import command
from ecoflap.cli import run as cli_run
from ecoflap.errors import NumericalError, UserError
from ecoflap.run import config as run_config
from ecoflap.run import pipeline
from ecoflap.run.new_folders import RunFolder, remove_empty_run, stays
from ecoflap.run.refusals import describe
from ecoflap.storage.file_names import BLOCKS, LEASE
from ecoflap.storage.installation import conf_folder
from tests.hydra_mode import mode_of_overrides

pytestmark = pytest.mark.long

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_process: None) -> Start:
    """Run main.py with runs that leave a file and raise what is given, by seed."""

    def begin(raised: dict[int, BaseException], *arguments: str, leaves: str = "started") -> int:
        def run(config: Any, folder: Path) -> None:
            (folder / leaves).touch()
            if config.seed in raised:
                raise raised[config.seed]

        monkeypatch.setattr(pipeline, "run", run)
        places = (
            f"hydra.run.dir={tmp_path / 'run'}",
            f"hydra.sweep.dir={tmp_path / 'sweep'}",
            f"cache={tmp_path / 'cache'}",
        )
        try:
            return command.main(
                ["run", *arguments, *places, "tracking=none", "score=none", "calibration.samples=4"]
            )
        except SystemExit as stopped:
            return int(str(stopped.code))

    return begin


@pytest.mark.parametrize(
    "overrides", [[], ["hydra.mode=RUN"], ["hydra.mode=MULTIRUN"], ["hydra.mode=BOTH"], ["+sweep=blip_table"]]
)
def test_these_tests_find_the_mode_that_hydra_finds(overrides: list[str]) -> None:
    run_config.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        assert mode_of_overrides(hydra, "config", overrides) == hydra.get_mode("config", overrides)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/checkpoint"),
            "no space is left on the disk of /a/checkpoint",
        ),
        (
            SafetensorError(
                'IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'
            ),
            "no space is left",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a"), "no space is left on the disk of /a"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a"),
            "/a: it may not be written or read by you",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "/a: the disk is read-only"),
        (MemoryError(), "the memory is full; use a smaller batch_size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes. Error"),
            "the memory is full; use a smaller batch_size",
        ),
        (UserError("one\n  line"), "one line"),
        (NumericalError("NaN in x"), "NaN in x"),
    ],
)
def test_what_the_machine_causes_is_one_line(error: Exception, words: str) -> None:
    told = describe(error)
    assert told is not None
    assert told.startswith(words)
    assert "\n" not in told


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError("x"), RuntimeError("x"), AssertionError(), OSError("x"), TypeError("x")],
)
def test_a_bug_is_not_described(error: Exception) -> None:
    assert describe(error) is None


def test_a_full_disk_ends_a_run_in_one_line(
    start: Start, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert start({0: OSError(errno.ENOSPC, "No space left on device", "/a/checkpoint")}) == 2
    said = capfd.readouterr()
    assert "error: no space is left on the disk of /a/checkpoint" in said.err
    assert "Traceback" not in said.out + said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("work", ["blocks", "predictions", "finetune"])
def test_work_outlives_a_late_error(
    start: Start, capfd: pytest.CaptureFixture[str], tmp_path: Path, work: str
) -> None:
    assert start({0: NumericalError("NaN in the loss")}, leaves=work) == 2
    assert (tmp_path / "run" / work).exists()
    assert (
        "error: NaN in the loss; to resume, change that and repeat the command with"
        f" hydra.run.dir={tmp_path / 'run'}" in capfd.readouterr().err
    )


@pytest.mark.parametrize("left", ["result.json", "checkpoint", ".lease"])
def test_a_result_and_the_run_of_another_process_stay(
    start: Start, capfd: pytest.CaptureFixture[str], tmp_path: Path, left: str
) -> None:
    """A tracker may fail behind the result; another process may have begun in the folder since."""
    assert start({0: OSError(errno.ENOSPC, "No space left on device")}, leaves=left) == 2
    assert (tmp_path / "run" / left).exists()
    assert "no space is left on the disk" in capfd.readouterr().err


def test_a_folder_that_was_there_stays(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert start({0: UserError("no")}) == 2
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "left", "kept"),
    [
        (UserError("no"), None, False),
        (UserError("no"), BLOCKS, True),
        (KeyError("bug"), None, True),
        (KeyboardInterrupt(), None, True),
    ],
)
def test_which_folders_stay(tmp_path: Path, error: BaseException, left: str | None, kept: bool) -> None:
    folder = tmp_path / "run"
    RunFolder().on_run_start(OmegaConf.create({"hydra": {"run": {"dir": str(folder)}}}))
    folder.mkdir()
    (folder / LEASE).touch()
    if left is not None:
        (folder / left).mkdir()
    assert stays(folder, error) is kept
    (tmp_path / "old").mkdir()
    assert stays(tmp_path / "old", error)


@pytest.mark.parametrize("shared", [False, True])
def test_new_folders_above_a_refused_run_go_too(tmp_path: Path, shared: bool) -> None:
    folder = tmp_path / "outputs" / "runs" / "now"
    RunFolder().on_run_start(OmegaConf.create({"hydra": {"run": {"dir": str(folder)}}}))
    folder.mkdir(parents=True)
    if shared:
        (tmp_path / "outputs" / "cache").mkdir()
    remove_empty_run(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == (["cache", "outputs"] if shared else [])


def test_a_bug_keeps_its_traceback(start: Start, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert start({0: KeyError("full_attention")}) == 1
    assert "KeyError: 'full_attention'" in capfd.readouterr().err
    assert (tmp_path / "run").exists()


def test_ctrl_c_is_no_error(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    assert start({0: KeyboardInterrupt()}) == 130
    assert "interrupted: no result was written" in capfd.readouterr().err


def test_a_closed_output_ends_the_run_and_says_how_to_resume(
    start: Start, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded: list[bool] = []
    monkeypatch.setattr(cli_run, "discard_output", lambda: discarded.append(True))
    assert start({0: BrokenPipeError()}) == 1
    said = capfd.readouterr().err
    assert "the reader of the output has closed it; to resume, repeat the command" in said
    assert "Error executing job" not in said
    assert discarded


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("the loss overflows"), 2), (KeyError("full_attention"), 1)]
)
def test_a_sweep_goes_on_behind_a_job_that_fails(
    start: Start, capfd: pytest.CaptureFixture[str], tmp_path: Path, error: Exception, code: int
) -> None:
    assert start({1: error}, "-m", "seed=0,1,2") == code
    said = capfd.readouterr().err
    assert [(tmp_path / "sweep" / str(number) / "started").exists() for number in range(3)] == [True] * 3
    assert said.count("1 of 3 jobs failed (1), for the reasons above") == 1
    assert "--rerun-failed" in said
    assert "Error executing job" not in said
    assert said.count(str(error)) == 1
    assert ("Traceback" in said) == (code == 1)


def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str) -> None:
    """A machine whose ``sbatch`` is this shell script."""
    folder.mkdir()
    for name, script in {"srun": "exit 0", "sbatch": sbatch}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


SLURM = ("-m", "cluster=slurm", "seed=0,1", "hydra.launcher.snapshot=false", "hydra.launcher.wait=false")


def test_jobs_that_slurm_does_not_take(
    start: Start, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(
        tmp_path / "bin", monkeypatch, "echo 'sbatch: error: invalid partition specified: gpu9' >&2; exit 1"
    )
    assert start({}, *SLURM, "hydra.launcher.partition=gpu9") == 2
    said = capfd.readouterr().err
    assert (
        "error: cluster=slurm: Slurm takes none of the 2 jobs (sbatch: error: invalid partition specified:"
        " gpu9)" in said
    )
    assert "Traceback" not in said


def test_jobs_behind_others_may_read_what_those_write(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(tmp_path / "bin", monkeypatch, "echo Submitted batch job 12")
    later = (*SLURM, "allocation=file", f"allocation.path={tmp_path}/later/allocation.json")
    assert start({}, *later) == 2
    assert start({}, *later, "hydra.launcher.dependency='afterok:11'") == 0


def test_a_group_of_ones_own(start: Start, tmp_path: Path) -> None:
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "sparse.yaml").write_text("# @package _global_\nsparsity: 0.9\n")
    assert start({}, "--config-dir", str(tmp_path / "conf"), "+study=sparse") == 0
    assert start({}, "--config-dir", str(tmp_path / "conf"), "+stduy=sparse") == 2
