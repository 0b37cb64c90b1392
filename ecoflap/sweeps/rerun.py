"""Start a sweep or a run again, in its folder, with the command that Hydra recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError
from ecoflap.storage.installation import checkout
from ecoflap.sweeps.submitted import WAITING, slurm_states, submitted_jobs

SWEEP = "multirun.yaml"
RUN = Path(".hydra", "hydra.yaml")


def rerun(folder: Path) -> int:
    """Start a sweep or a run again, with its command in its working directory; returns the exit code.

    Raises:
        UserError: if Hydra did not record the command, the run is one of a sweep, or Slurm still has jobs
            of it.
    """
    is_sweep = (folder / SWEEP).is_file()
    hydra = _recorded(folder, is_sweep)
    if alive := _in_slurm(folder):
        raise UserError(
            f"{folder}: Slurm has {len(alive)} of its jobs in the queue or at work, such as {alive[0]}, which"
            " would be submitted twice; wait for them, or cancel them with scancel"
        )
    command, started_in = _command(hydra, folder, is_sweep), Path(hydra.runtime.cwd)
    print(json.dumps(command))
    return subprocess.run(command, cwd=started_in if started_in.is_dir() else None, check=False).returncode


def _recorded(folder: Path, is_sweep: bool) -> Any:
    """What Hydra recorded of the command that started a sweep or a run.

    Raises:
        UserError: if it recorded nothing, the run is one of a sweep, or the command took a recipe.
    """
    from omegaconf import OmegaConf

    file = folder / (SWEEP if is_sweep else RUN)
    if not file.is_file():
        raise UserError(f"{folder} has no {SWEEP} and no {RUN}, so the command that started it is not known")
    parent = folder.resolve().parent
    if not is_sweep and (parent / SWEEP).is_file():
        raise UserError(f"{folder} is one run of a sweep; give {parent}, where finished runs are left alone")
    hydra = OmegaConf.load(file).hydra
    if OmegaConf.select(hydra, "job.config_name", default="config") != "config":
        raise UserError(
            f"{folder} was started from a recipe (--config FILE); give the same command again, with"
            f" hydra.run.dir={folder}"
        )
    return hydra


def _command(hydra: Any, folder: Path, is_sweep: bool) -> list[str]:
    """The recorded command, in its folder, without ``resume=false``, which would repeat finished runs."""
    place = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
    given = [
        str(one)
        for one in [*hydra.overrides.task, *hydra.overrides.hydra]
        if not str(one).startswith((place, "hydra.mode", "resume="))
    ]
    folders = [
        f"--config-dir={source.path}"
        for source in hydra.runtime.config_sources
        if source.provider == "command-line"
    ]
    mode = ["-m"] if is_sweep else []
    return [sys.executable, *_program(), *mode, *folders, *given, f"{place}={folder.resolve()}"]


def _program() -> list[str]:
    """Python's arguments to start a run: ``main.py`` of the checkout, or the installed package."""
    project = checkout()
    return ["-m", "ecoflap", "run"] if project is None else [str(project / "main.py")]


def _in_slurm(folder: Path) -> list[str]:
    """The ids of a sweep's jobs that wait in Slurm's queue or run."""
    states = slurm_states([job["id"] for job in submitted_jobs(folder) if job.get("id")])
    return [job for job, state in states.items() if state in (*WAITING, "CONFIGURING", "RUNNING")]
