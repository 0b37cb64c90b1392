"""Allocate from a file instead of scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ecoflap.allocate.allocation import Allocation, fitted, read_file
from ecoflap.allocate.options import FromFileOptions
from ecoflap.allocate.protocol import Allocator, Context, Requires
from ecoflap.errors import UserError, require_choices
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.protocol import LayerPruner
from ecoflap.score.scores import Scores


@dataclass(frozen=True)
class FromFile(FromFileOptions, Allocator):
    """Take the counts of an ``allocation.json`` that an earlier run wrote; nothing is scored."""

    def __post_init__(self) -> None:
        require_choices("allocation", self)

    @property
    def requires(self) -> Requires:
        """No scores."""
        return Requires("none")

    @property
    def in_trials(self) -> bool:
        """Whether pruning in trials decided on the counts of the file."""
        return self.allocation.in_trials

    @cached_property
    def allocation(self) -> Allocation:
        """The contents of the file, read once, as a run in the same folder replaces the file."""
        return read_file(self.path)

    def check(self, sparsity: float) -> None:
        """Refuse a missing file or another target before any work is done.

        Raises:
            UserError: if the file is missing or has another target.
        """
        target = self.allocation.target
        if abs(target - sparsity) > 1e-9:
            raise UserError(
                f"allocation.path={self.path} was made for sparsity={target}, and sparsity={sparsity} was"
                f" asked for; set sparsity={target}, or make an allocation for {sparsity}"
            )

    def check_pruner(self, pruner: LayerPruner) -> None:
        """Refuse counts or weights of rows that the pruner's mask can't have, before any work is done.

        Raises:
            UserError: if the file has some, and the pruner has another mask or can't weigh rows.
        """
        pruner.check_rows(self.allocation)

    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        """Check the counts of the file against the model and return them.

        Raises:
            UserError: if they were made for other layers, or miss the target.
        """
        return fitted(self.allocation, model.towers, self.path, self.total)
