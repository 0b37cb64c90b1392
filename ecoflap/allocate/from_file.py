"""A saved allocation instead of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ecoflap.allocate.allocation import Allocation, read_allocation, read_file
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

    def check(self, sparsity: float) -> None:
        """Refuse a file that isn't there or has another target, before any work is done.

        Raises:
            UserError: so it is.
        """
        target = read_file(self.path).target
        if abs(target - sparsity) > 1e-9:
            raise UserError(
                f"allocation.path={self.path} was made for sparsity={target}, and sparsity={sparsity} was asked for; set sparsity={target}"
            )

    def __call__(self, towers: tuple[Tower, ...], scores: Scores | None, sparsity: float) -> Allocation:
        """Read and check the counts.

        Raises:
            UserError: the file isn't there or does not fit the model.
        """
        return read_allocation(self.path, towers)
