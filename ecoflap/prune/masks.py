"""Mask rules: which weights of a layer compete: those of a row, of the matrix, or of m columns of a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.ops import select_in_matrix, select_in_rows, select_n_of_m


@dataclass(frozen=True)
class MaskRule:
    """A parsed ``pruner.mask``.

    Attributes:
        name: the rule as it was written: row, matrix or n:m.
        n_of_m: (n, m) of an n:m rule, which keeps n of every m consecutive weights of a row; None for others.
    """

    name: str
    n_of_m: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str, unstructured: Sequence[str]) -> MaskRule:
        """Parse a rule.

        Args:
            text: the rule as it was written.
            unstructured: the rules beside n:m that the pruner supports.

        Raises:
            UserError: if it is none of them.
        """
        if text in unstructured:
            return cls(text)
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match is None or not 0 < int(match[1]) < int(match[2]):
            raise UserError(
                f"pruner.mask={text} is not known; choose {', '.join(unstructured)}, or N:M such as 2:4 (N of"
                " every M weights stay)"
            )
        return cls(text, (int(match[1]), int(match[2])))

    def check(self, sparsity: float, uneven: bool) -> None:
        """Refuse a sparsity that an n:m rule contradicts, before any work is done.

        Args:
            sparsity: the requested sparsity.
            uneven: whether layers get sparsities of their own.

        Raises:
            UserError: if the n:m rule removes another share, or layers get sparsities of their own.
        """
        if self.n_of_m is None:
            return
        n, m = self.n_of_m
        if abs(sparsity - (1 - n / m)) > 1e-9:
            raise UserError(
                f"pruner.mask={self.name} removes {1 - n / m:.10g} of every row, and sparsity={sparsity} was"
                f" asked for; set sparsity={1 - n / m:.10g}"
            )
        if uneven:
            raise UserError(
                f"pruner.mask={self.name} fixes every layer's sparsity: there is nothing to allocate; use"
                " score=none and allocation=water_filling"
            )

    def check_layers(self, layers: Sequence[Layer]) -> None:
        """Refuse layers whose columns an n:m rule does not divide.

        Raises:
            UserError: if there is such a layer.
        """
        if self.n_of_m is None:
            return
        for layer in layers:
            if layer.shape[1] % self.n_of_m[1]:
                raise UserError(
                    f"pruner.mask={self.name}: {layer.name} has {layer.shape[1]} columns, which"
                    f" {self.n_of_m[1]} does not divide; leave it out with skip_layers"
                )

    def select(self, metric: Tensor, keep: int) -> Tensor:
        """The mask [rows, cols], True where kept, of the ``keep`` largest metrics under the rule.

        Args:
            metric: [rows, cols].
            keep: the number of weights to keep; an n:m rule fixes it.
        """
        if self.n_of_m is not None:
            return select_n_of_m(metric, *self.n_of_m)
        return select_in_rows(metric, keep) if self.name == "row" else select_in_matrix(metric, keep)
