"""Layer pruners: (weight, statistic of the inputs, weights to keep) -> (pruned weight, mask)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from ecoflap.blocks.statistics import Gram, MeanSquare
from ecoflap.errors import UserError
from ecoflap.ops import solve_together, wanda_metric
from ecoflap.prune.masks import MaskRule


class Pruned(NamedTuple):
    """A pruned layer.

    Attributes:
        weight: [rows, cols], exactly zero where pruned.
        mask: [rows, cols], True where kept.
        note: something that a person should know, or null.
    """

    weight: Tensor
    mask: Tensor
    note: str | None = None


class LayerPruner(Protocol):
    """One way to remove weights from a layer."""

    name: str
    statistic: ClassVar[type[MeanSquare] | type[Gram] | None]

    @property
    def rule(self) -> MaskRule:
        """The mask rule."""

    def __call__(self, weight: Tensor, statistic: MeanSquare | Gram | None, keep: int) -> Pruned:
        """Prune a weight [rows, cols] to ``keep`` weights."""

    def together(
        self, weights: Sequence[Tensor], statistic: MeanSquare | Gram | None, keeps: Sequence[int]
    ) -> list[Pruned]:
        """Prune layers that read the same input."""


@dataclass(frozen=True)
class ByMetric(ABC):
    """A pruner that keeps the weights that matter most; it gains nothing from seeing the layers of one input
    together.

    Attributes:
        mask: matrix, row or N:M.
    """

    mask: str

    def __post_init__(self) -> None:
        _ = self.rule

    @property
    def rule(self) -> MaskRule:
        """The mask rule."""
        return MaskRule.parse(self.mask, ("row", "matrix"))

    @abstractmethod
    def metric(self, weight: Tensor, statistic: MeanSquare | Gram | None) -> Tensor:
        """How much each weight of [rows, cols] matters, [rows, cols]."""

    def __call__(self, weight: Tensor, statistic: MeanSquare | Gram | None, keep: int) -> Pruned:
        """Prune a weight [rows, cols]."""
        mask = self.rule.select(self.metric(weight, statistic), keep)
        return Pruned(weight * mask, mask)

    def together(
        self, weights: Sequence[Tensor], statistic: MeanSquare | Gram | None, keeps: Sequence[int]
    ) -> list[Pruned]:
        """Prune each by itself."""
        return [self(weight, statistic, keep) for weight, keep in zip(weights, keeps, strict=True)]


@dataclass(frozen=True)
class Magnitude(ByMetric):
    """Remove the smallest weights by absolute value; looks at no data.

    Attributes:
        mask: matrix, row or N:M.
        name: shown in logs and written to result files.
    """

    mask: str = "matrix"
    name: str = "magnitude"
    statistic: ClassVar[None] = None

    def metric(self, weight: Tensor, statistic: MeanSquare | Gram | None) -> Tensor:
        """``|w|``."""
        return weight.float().abs()


@dataclass(frozen=True)
class Wanda(ByMetric):
    """Remove the weights of smallest |w| times the norm of their input column (Sun et al. 2024).

    Attributes:
        mask: row (as published), matrix or N:M.
        name: shown in logs and written to result files.
    """

    mask: str = "row"
    name: str = "wanda"
    statistic: ClassVar[type[MeanSquare]] = MeanSquare

    def metric(self, weight: Tensor, statistic: MeanSquare | Gram | None) -> Tensor:
        """``|w| ||x||`` of its input column."""
        assert isinstance(statistic, MeanSquare)
        return wanda_metric(weight, statistic.value)


@dataclass(frozen=True)
class SparseGPT:
    """Remove weights and correct the ones that stay for the error (Frantar and Alistarh 2023).

    Attributes:
        mask: matrix (as published: chosen over all rows of each block of columns) or N:M.
        damping: share of the mean diagonal that is added to the Hessian's diagonal.
        block: columns per mask decision.
        name: shown in logs and written to result files.
    """

    mask: str = "matrix"
    damping: float = 0.01
    block: int = 128
    name: str = "sparsegpt"
    statistic: ClassVar[type[Gram]] = Gram

    def __post_init__(self) -> None:
        if self.damping < 0 or self.block < 1:
            raise UserError(
                f"pruner.damping={self.damping}, pruner.block={self.block}: damping is at least 0 and block"
                " at least 1 (published: 0.01 and 128)"
            )
        _ = self.rule

    @property
    def rule(self) -> MaskRule:
        """The mask rule."""
        return MaskRule.parse(self.mask, ("matrix",))

    def __call__(self, weight: Tensor, statistic: MeanSquare | Gram | None, keep: int) -> Pruned:
        """Prune a weight [rows, cols]."""
        return self.together([weight], statistic, [keep])[0]

    def together(
        self, weights: Sequence[Tensor], statistic: MeanSquare | Gram | None, keeps: Sequence[int]
    ) -> list[Pruned]:
        """Prune layers that read the same input as one matrix of all their rows."""
        assert isinstance(statistic, Gram)
        factor = statistic.factor(self.damping)
        n_of_m = self.rule.n_of_m
        solutions = solve_together(weights, factor, None if n_of_m else keeps, n_of_m, self.block)
        note = (
            f"damping raised from {self.damping:g} to {factor.damping:g}"
            if factor.damping > self.damping
            else None
        )
        return [Pruned(solution.weight, solution.mask, note) for solution in solutions]
