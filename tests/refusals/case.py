"""One bad command line, and what the program has to say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LLAMA = ("model=causal_lm", "model.path={tmp}/llama")
ONLY = ("score=none", "steps=[calibrate]")  # no task
DENSE = ("score=none", "pruner=magnitude", "steps=[allocate,prune,evaluate]")  # no calibration set
DATA = "calibration.path={tmp}/data"
TASK_DATA = "task.path={tmp}/data"


@dataclass(frozen=True)
class Case:
    """One bad command line.

    Attributes:
        overrides: the arguments; ``{tmp}`` stands for a temporary folder.
        says: what the one line of complaint holds: what was asked, what was found, what to change. ``{tmp}``
            as above.
        prepare: fills the temporary folder.
        code: the exit code.
        after_load: the model may be loaded before it is found out.
        warns: the run goes on, and the line is a warning.
        subcommand: of ``ecoflap``.
    """

    overrides: tuple[str, ...]
    says: tuple[str, ...]
    prepare: Callable[[Path], None] | None = None
    code: int = 2
    after_load: bool = False
    warns: bool = False
    subcommand: str = "run"

    def __str__(self) -> str:
        """A name for pytest."""
        return (
            " ".join((*([] if self.subcommand == "run" else [self.subcommand]), *self.overrides)) or "nothing"
        )
