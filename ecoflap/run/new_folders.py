"""The new folders of runs and sweeps: which there are, and which are removed if their run is refused."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ecoflap.run.refusals import describe
from ecoflap.storage.file_names import BLOCKS, CHECKPOINT, FINETUNE, LEASE, PREDICTIONS, RESULT, TRAINING

RESUMABLE = (BLOCKS, PREDICTIONS, FINETUNE, TRAINING)
"""Products of a stopped run that save work when the same command is started again in its folder."""
_made: dict[Path, list[Path]] = {}
"""{new folder of a run or a sweep: the folders above it that are new too, the nearest first}."""


class RunFolder(Callback):
    """Hydra's callback that notes which folders of runs and sweeps are new, before Hydra makes them."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note whether the folder of this run is new."""
        self._note(config.hydra.run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note whether the folder of this sweep is new."""
        self._note(config.hydra.sweep)

    def _note(self, place: DictConfig) -> None:
        try:
            folder = Path(str(place.dir)).absolute()
            if not folder.exists():
                _made[folder] = [parent for parent in folder.parents if not parent.exists()]
        except (OSError, OmegaConfBaseException):
            return  # Hydra raises the same error next; from a callback it would only be a warning


def is_resumable(folder: Path) -> bool:
    """Whether a stopped run has left products in its folder from which it can be resumed."""
    return any((folder / name).exists() for name in RESUMABLE)


def remove_empty_run(folder: Path) -> None:
    """Remove the folder of a run that has done nothing: if it is new, and holds nothing of use.

    The result or the model of a run that failed behind them is of use; a lease is that of another process,
    which has begun a run there since.
    """
    if _is_empty_run(folder) and not (folder / LEASE).exists():
        _remove(folder.absolute())


def stays(folder: Path, error: BaseException) -> bool:
    """Whether the folder of a run that fails with this error will stay, as that of a refused one doesn't."""
    return describe(error) is None or not _is_empty_run(folder)


def _is_empty_run(folder: Path) -> bool:
    used = is_resumable(folder) or any((folder / name).exists() for name in (RESULT, CHECKPOINT))
    return folder.absolute() in _made and not used


def remove_refused_sweeps() -> None:
    """Remove the new folders of sweeps that were refused before their first job."""
    for folder in _made:
        if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {"multirun.yaml"}:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a new folder, and the new ones above it that are empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        for parent in _made[folder]:
            parent.rmdir()
