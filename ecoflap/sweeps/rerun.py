"""Start a sweep or a run again, in its folder, with the command that is recorded there.

``jobs.json`` has that of a sweep, and Hydra's ``hydra.yaml`` that of a run.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecoflap.errors import UserError, path_option
from ecoflap.storage.file_names import HYDRA, JOBS, STATUS
from ecoflap.storage.files import read_json, remove
from ecoflap.storage.installation import checkout
from ecoflap.storage.results.record import read_result
from ecoflap.sweeps.submitted import ALIVE, own_result, slurm_states, submitted_jobs

if TYPE_CHECKING:
    from omegaconf import DictConfig

RUN = Path(HYDRA, "hydra.yaml")
DEFAULT = "config"  # the name of the config without a recipe


def rerun(folder: Path) -> int:
    """Start a sweep or a run again, with its command in its working directory; returns the exit code.

    Raises:
        UserError: if the command is not recorded, the run is one of a sweep, or Slurm still has jobs
            of it.
    """
    is_sweep = (folder / JOBS).is_file()
    recorded = _recorded(folder, is_sweep)
    if alive := _in_slurm(folder):
        raise UserError(
            f"{folder}: Slurm has {len(alive)} of its jobs queued or running, such as {alive[0]}, which"
            " would be submitted twice; wait for them, or cancel them with scancel"
        )
    _discard_replaced(folder)
    command, started_in = _command(recorded, folder, is_sweep), Path(recorded["cwd"])
    print(json.dumps(command))
    return subprocess.run(command, cwd=started_in if started_in.is_dir() else None, check=False).returncode


def command_of(hydra: DictConfig) -> dict[str, Any]:
    """What Hydra's own config says of the command line: overrides, folders of configs, where it was typed.

    Overrides that refer to other options or the environment, such as ``${seed}``, stay as they were typed.
    """
    from omegaconf import OmegaConf

    given: Any = OmegaConf.to_container(hydra.overrides)
    return {
        "overrides": [str(one) for one in [*given["task"], *given["hydra"]]],
        "config_dirs": [
            str(source.path) for source in hydra.runtime.config_sources if source.provider == "command-line"
        ],
        "config_name": str(hydra.get("job", {}).get("config_name", DEFAULT)),
        "cwd": str(hydra.runtime.cwd),
    }


def recorded_command(folder: Path) -> dict[str, Any] | None:
    """The command of the sweep in a folder, as ``command_of`` says it; None if none is recorded."""
    command: dict[str, Any] | None = (read_json(folder / JOBS) or {}).get("command")
    return command


def _recorded(folder: Path, is_sweep: bool) -> dict[str, Any]:
    """The command that started a sweep or a run, as ``command_of`` says it.

    Raises:
        UserError: if none is recorded, the run is one of a sweep, or the command took a recipe.
    """
    from omegaconf import OmegaConf

    parent = folder.resolve().parent
    if not is_sweep and (parent / JOBS).is_file():
        raise UserError(f"{folder} is one run of a sweep; give {parent}, where finished runs are left alone")
    recorded = recorded_command(folder)
    if not is_sweep and (folder / RUN).is_file():
        recorded = command_of(OmegaConf.load(folder / RUN).hydra)
    if recorded is None:
        raise UserError(
            f"{folder} has no {JOBS} and no {RUN} with the command that started it, which is not known; give"
            " that command again"
        )
    if recorded["config_name"] != DEFAULT:
        raise UserError(
            f"{folder} was started from a recipe (--config FILE); give the same command again, with"
            f" {shlex.quote(path_option('hydra.run.dir', folder))}"
        )
    return recorded


def _command(recorded: Mapping[str, Any], folder: Path, is_sweep: bool) -> list[str]:
    """The recorded command, in its folder, without ``resume=false``, which would repeat finished runs."""
    place = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
    left_out = (place, "hydra.mode", "resume")
    given = [one for one in recorded["overrides"] if one.lstrip("+").partition("=")[0] not in left_out]
    folders = [f"--config-dir={config_dir}" for config_dir in recorded["config_dirs"]]
    mode = ["-m"] if is_sweep else []
    return [sys.executable, *_program(), *mode, *folders, *given, path_option(place, folder.resolve())]


def _program() -> list[str]:
    """Python's arguments to start a run: ``main.py`` of the checkout, or the installed package."""
    project = checkout()
    return ["-m", "ecoflap", "run"] if project is None else [str(project / "main.py")]


def _discard_replaced(folder: Path) -> None:
    """Remove the results that jobs were to replace and have not replaced yet: they would pass for theirs."""
    from ecoflap.run.folder import discard_products

    for job in submitted_jobs(folder):
        run = folder / str(job["number"])
        if own_result(run, job) is None and read_result(run) is not None:
            discard_products(run)
            remove(run / STATUS)


def _in_slurm(folder: Path) -> list[str]:
    """The ids of a sweep's jobs that wait in Slurm's queue or run."""
    states = slurm_states([job["id"] for job in submitted_jobs(folder) if job.get("id")])
    return [job for job, state in states.items() if state in ALIVE]
