"""A saved allocation instead of scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ecoflap.allocate.allocation import Allocation, fitted, read_file
from ecoflap.errors import UserError
from ecoflap.models.towers import Tower
from ecoflap.score.scores import Scores


@dataclass(frozen=True)
class FromFile:
    """Take the counts of an ``allocation.json`` that an earlier run wrote; nothing is scored.

    Attributes:
        path: that file.
        name: for people and result files.
    """

    path: str
    name: str = "file"
    needs_scores: ClassVar[bool] = False

    @cached_property
    def allocation(self) -> Allocation:
        """What the file says, read once: a run into the folder of the run that wrote it replaces the file."""
        return read_file(self.path)

    def check(self, sparsity: float) -> None:
        """Refuse a file that isn't there or has another target, before any work is done.

        Raises:
            UserError: so it is.
        """
        target = self.allocation.target
        if abs(target - sparsity) > 1e-9:
            raise UserError(
                f"allocation.path={self.path} was made for sparsity={target}, and sparsity={sparsity} was asked for; set sparsity={target}"
            )

    def __call__(self, towers: tuple[Tower, ...], scores: Scores | None, sparsity: float) -> Allocation:
        """Check the counts against the model.

        Raises:
            UserError: they do not fit.
        """
        return fitted(self.allocation, towers, self.path)
