"""Mask rules: which weights of a layer compete: those of a row, of the matrix, or of m columns of a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.ops import Keep, Part, Pattern, select
from ecoflap.prune.whole_groups import in_whole_groups

OWN_ROWS = {
    "row": ("a count", "pruner=wanda, ria, admm or magnitude"),
    "matrix": ("a weight", "pruner=sparsegpt, wanda, admm or magnitude"),
}
"""What an allocation can give each row under a rule, and pruners that have the rule."""


@dataclass(frozen=True)
class MaskRule:
    """A parsed ``pruner.mask``.

    Attributes:
        name: the rule as it was written, such as row, matrix, 2:4 or n:4.
        n_of_m: (n, m) of a rule that keeps n of every m consecutive weights of a row; None for others.
        varying: m of a rule such as n:4, where each layer has an n of its own; None for others.
    """

    name: str
    n_of_m: tuple[int, int] | None = None
    varying: int | None = None

    @property
    def group(self) -> int | None:
        """The columns of a group of an n:m rule, fixed or varying; None for others."""
        return self.varying if self.n_of_m is None else self.n_of_m[1]

    @property
    def unstructured(self) -> bool:
        """Whether no N:M rule fixes the counts of rows."""
        return self.group is None

    @property
    def by_row(self) -> bool:
        """Whether the weights of each row compete by themselves."""
        return self.name == "row"

    @classmethod
    def parse(cls, text: str, unstructured: Sequence[str]) -> MaskRule:
        """Parse a rule.

        Args:
            text: the rule as it was written.
            unstructured: the rules beside N:M that the pruner supports.

        Raises:
            UserError: if it is none of them.
        """
        if text in unstructured:
            return cls(text)
        match = re.fullmatch(r"(\d+|n):(\d+)", text)
        n, m = (match[1], int(match[2])) if match else ("0", 0)
        if not 0 < int(n.replace("n", "1")) < m:
            raise UserError(
                f"pruner.mask={text} is not known; choose {', '.join(unstructured)}, or N:M such as 2:4 (N of"
                " every M weights stay) or n:4 (N differs from layer to layer)"
            )
        return cls(text, varying=m) if n == "n" else cls(text, (int(n), m))

    def check(self, sparsity: float, uneven: bool) -> None:
        """Refuse a sparsity that an N:M rule contradicts, before any work is done.

        Args:
            sparsity: the requested sparsity.
            uneven: whether layers get sparsities of their own.

        Raises:
            UserError: if the N:M rule removes another share, or layers get sparsities of their own.
        """
        if self.n_of_m is None:
            if self.varying is not None and sparsity > 1 - 1 / self.varying + 1e-9:
                raise UserError(
                    f"pruner.mask={self.name} keeps at least one of every {self.varying} weights, and"
                    f" sparsity={sparsity} was asked for; set at most sparsity={1 - 1 / self.varying:.10g}"
                )
            return
        n, m = self.n_of_m
        if abs(sparsity - (1 - n / m)) > 1e-9:
            raise UserError(
                f"pruner.mask={self.name} removes {1 - n / m:.10g} of every row, and sparsity={sparsity} was"
                f" asked for; set sparsity={1 - n / m:.10g}, or pruner.mask=n:{m} for any sparsity"
            )
        if uneven:
            self.require_uneven()

    def require_uneven(self) -> None:
        """Refuse an N:M rule that leaves layers no sparsities of their own.

        Raises:
            UserError: if it is such a rule.
        """
        if self.n_of_m is not None:
            raise UserError(
                f"pruner.mask={self.name} fixes every layer's sparsity: there is nothing to allocate; use"
                f" allocation=auto score=auto, which are uniform then, or pruner.mask=n:{self.n_of_m[1]}"
            )

    def check_layers(self, layers: Sequence[Layer]) -> None:
        """Refuse layers whose columns an N:M rule does not divide.

        Raises:
            UserError: if there is such a layer.
        """
        for layer in layers:
            if self.group is not None and layer.shape[1] % self.group:
                raise UserError(
                    f"pruner.mask={self.name}: {layer.name} has {layer.shape[1]} columns, which {self.group}"
                    " does not divide; leave it out with skip_layers"
                )

    def require(self, name: Literal["row", "matrix"]) -> None:
        """Refuse another rule than the one under which rows can have counts (row) or weights (matrix).

        Raises:
            UserError: if it is another.
        """
        if self.name != name:
            own, pruners = OWN_ROWS[name]
            raise UserError(
                f"the allocation gives each row {own} of its own, and pruner.mask={self.name} decides"
                " otherwise; allocate for the pruner that is used, or with allocation.granularity=layer"
                f" allocation.rows=even, or use pruner.mask={name} ({pruners})"
            )

    def fitted(self, allocation: Allocation) -> Allocation:
        """The allocation with counts that the rule can have: for N:M, N of every M weights of each layer.

        Raises:
            UserError: if a fixed N:M differs from the counts by more than their rounding, or n:M needs layers
                without any weight.
        """
        if self.varying is not None:
            return in_whole_groups(allocation, self.varying)
        if self.n_of_m is None:
            return allocation
        n, m = self.n_of_m
        keep = {name: size * n // m for name, size in allocation.sizes.items()}
        for name, count in keep.items():
            if abs(count - allocation.keep[name]) > 1:
                raise UserError(
                    f"pruner.mask={self.name} keeps {count:,} of the {allocation.sizes[name]:,} weights of"
                    f" {name}, and the allocation says {allocation.keep[name]:,}; use pruner.mask=n:{m}, or"
                    " allocation=water_filling score=none"
                )
        return replace(allocation, keep=keep)

    def pattern(self, size: int, keep: Keep) -> Pattern:
        """Which weights of a layer compete.

        Args:
            size: weights of the layer.
            keep: weights that it keeps; an N:M rule fixes it.

        Raises:
            ValueError: if the rule can't have this count.
        """
        if self.n_of_m is not None:
            return self.n_of_m
        if self.varying is None or isinstance(keep, Tensor):
            return cast("Literal['row', 'matrix']", self.name)
        n, rest = divmod(keep * self.varying, size)
        if rest:
            raise ValueError(
                f"a mask {self.name} keeps the same number of every {self.varying} weights; asked to keep"
                f" {keep} of {size}"
            )
        return (n, self.varying) if n else "matrix"

    def patterns(
        self, weights: Sequence[Tensor], keeps: Sequence[Keep], parts: Sequence[Part]
    ) -> list[Pattern]:
        """Which weights of each of some layers compete; see ``pattern``.

        Args:
            weights: some rows of each layer, or all of them, [rows, cols].
            keeps: weights that each whole layer keeps, or each of its rows.
            parts: which rows they are.
        """
        sizes = [part.rows * weight.shape[1] for weight, part in zip(weights, parts, strict=True)]
        return list(map(self.pattern, sizes, keeps))

    def select(self, metric: Tensor, keep: Keep) -> Tensor:
        """The mask [rows, cols], True where kept, of the ``keep`` largest metrics under the rule.

        Args:
            metric: [rows, cols].
            keep: the number of weights to keep, or that of each row; an N:M rule fixes it.

        Raises:
            ValueError: if the rule can't have this count.
        """
        return select(metric, keep, self.pattern(metric.numel(), keep))
