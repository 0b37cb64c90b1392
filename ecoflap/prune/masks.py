"""Which weights compete for the places of a layer: those of a row, of the whole matrix, or every m columns of
a row.
"""

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
        name: as it was written: row, matrix or n:m.
        n_of_m: (n, m) of an n:m rule: n of every m consecutive weights of a row stay.
    """

    name: str
    n_of_m: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str, unstructured: Sequence[str]) -> MaskRule:
        """Read a rule.

        Args:
            text: what was asked for.
            unstructured: the names beside n:m that this pruner knows.

        Raises:
            UserError: it is none of them.
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
            sparsity: that is asked for.
            uneven: layers get sparsities of their own.

        Raises:
            UserError: the n:m rule removes another share, or layers shall differ.
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
        """Refuse an n:m rule that doesn't divide a layer's columns.

        Raises:
            UserError: it doesn't.
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
        """The mask [rows, cols], True where a weight stays, of the best ``keep`` weights under the rule."""
        if self.n_of_m is not None:
            return select_n_of_m(metric, *self.n_of_m)
        return select_in_rows(metric, keep) if self.name == "row" else select_in_matrix(metric, keep)
