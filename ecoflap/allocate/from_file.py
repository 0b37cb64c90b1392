"""Allocate from a file instead of scores."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from typing_extensions import override

from ecoflap.allocate.allocation import EXACT, GROUPS, Allocation, check_counts, check_total
from ecoflap.allocate.options import FromFileOptions
from ecoflap.allocate.protocol import Allocator, Context, Requires
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.protocol import LayerPruner
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Scores


@dataclass(frozen=True)
class FromFile(FromFileOptions, Allocator):
    """Take the counts of an ``allocation.json`` that an earlier run wrote; nothing is scored."""

    @property
    @override
    def requires(self) -> Requires:
        """No scores."""
        return Requires("none")

    @property
    @override
    def in_trials(self) -> bool:
        """Whether pruning in trials decided on the counts of the file."""
        return self.allocation.in_trials

    @cached_property
    def allocation(self) -> Allocation:
        """The contents of the file, read once, as a run in the same folder replaces the file."""
        return _read(self.path)

    @override
    def uneven(self, scores: Scores | Scorer | None) -> bool:
        """Whether the layers of the file have sparsities of their own."""
        return self.allocation.uneven

    @override
    def check(self, sparsity: float) -> None:
        """Refuse a missing file or another target before any work is done.

        Raises:
            UserError: if the file is missing or has another target.
        """
        target = self.allocation.target
        if not abs(target - sparsity) <= 1e-9:  # also of a target that is no number
            raise UserError(
                f"allocation.path={self.path} was made for sparsity={target}, and sparsity={sparsity} was"
                f" asked for; set sparsity={target}, or make an allocation for {sparsity}"
            )

    @override
    def check_pruner(self, pruner: LayerPruner) -> None:
        """Refuse counts or weights of rows that the pruner's mask can't have, before any work is done.

        Raises:
            UserError: if the file has some, and the pruner has another mask or can't weigh rows.
        """
        pruner.check_rows(self.allocation)

    @override
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        """Return the counts of the file in the model's order; refuse those of other layers or targets."""
        given, sizes = self.allocation, model.sizes
        check_counts(given, model.layers, f"allocation.path={self.path}")
        found = replace(
            given,
            keep={name: given.keep[name] for name in sizes},
            sizes=sizes,
            total=given.total if self.total == EXACT else self.total,
        )
        if self.total == EXACT:
            towers = [tower.layers for tower in model.towers]
            check_total(found, towers, f"allocation.path={self.path}", "allocation.total=as_given")
        return found


def _read(path: str) -> Allocation:
    """Read an allocation that a run saved.

    Raises:
        UserError: if there is no such file, or it holds no allocation.
    """
    file = Path(path).expanduser()
    try:
        value = json.loads(file.read_text())
        return Allocation(
            dict(value["keep"]),
            {name: int(size) for name, size in value["sizes"].items()},
            float(value["target"]),
            value["granularity"],
            GROUPS if value.get("total") == GROUPS else EXACT,
            in_trials=bool(value.get("in_trials", False)),
            rows=dict(value.get("rows", {})),
            row_weights=dict(value.get("row_weights", {})),
        )
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"allocation.path={path}: there is no such file; each run with the allocate step writes"
            " allocation.json into its folder"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"allocation.path={path} is not an allocation file ({type(error).__name__}: {error})"
        ) from None
