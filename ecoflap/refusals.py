"""Whatever a person can cause, in one line, and nothing left of a run that was refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ecoflap.errors import NumericalError, UserError

_made: set[Path] = set()


class RunFolder(Callback):
    """Hydra's callback that sees a run's folder before Hydra makes it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keep in mind whether this run makes its folder."""
        folder = Path(str(config.hydra.run.dir)).absolute()
        if not folder.exists():
            _made.add(folder)


def leave_nothing(folder: Path) -> None:
    """Remove the folder of a single run that was refused, if the run has made it."""
    if folder.absolute() in _made:
        shutil.rmtree(folder, ignore_errors=True)


def describe(error: BaseException, arguments: list[str] | None = None) -> str | None:
    """What is wrong, in one line; null for a bug of ours, whose traceback is wanted."""
    if isinstance(error, UserError | NumericalError):
        return " ".join(str(error).split())
    return None
