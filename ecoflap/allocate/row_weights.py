"""Row weights: how strongly the loss reacts to each row of a layer, and the counts that rows get by it.

With G_j the gradient of the loss with respect to row j of a layer [rows, cols], in the pruned models of all
steps so far,

    f_j = (mean over steps of (||G_j||^2 / mean_i ||G_i||^2) + FLOOR)^(power / 2)

Rows of a layer read the same input x, so that ||G_j||^2 is in proportion to the squared gradient of the loss
in output j, a diagonal of the empirical Fisher matrix. With power 1, removing weight w_ji then costs about
f_j^2 w_ji^2 E[x_i^2] to second order. For a mask by rows, the weights of all rows are ranked by the root of
that, f_j |w_ji| ||x_i||; a row's count is how many of its weights are among those that the layer keeps, and
the pruner chooses which. Where the weights of all rows compete in the pruner, it prunes diag(f) W. The more
weights a row has lost, the less the others can make up for the next, so that the rows of a pruner that
corrects weights differ less: its power is CORRECTED. Derivation: docs/in_context.md; figures:
docs/in_context_ablations.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.ops import Keep, select_in_matrix, wanda_metric

FLOOR = 0.1
"""Added to the squared weights, whose mean is 1: a row that no sample has used yet may matter to others."""

CORRECTED = 0.5
"""The power of row weights for a pruner that corrects weights, by the loss on fresh calibration samples."""


class RowWeights:
    """The row weights of all layers; none before the first step, and none of a layer without any gradient."""

    def __init__(self, power: float = 1.0) -> None:
        """Begin with no steps.

        Args:
            power: 1, or ``CORRECTED`` for a pruner that corrects weights.
        """
        self._power = power
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    @property
    def known(self) -> bool:
        """Whether any layer's rows have weights."""
        return bool(self._sums)

    def add(self, squares: Mapping[str, Sequence[float] | Tensor]) -> None:
        """Add one step.

        Args:
            squares: {layer: the squared norm of the gradient of each row, [rows]}.
        """
        for layer, found in squares.items():
            of_rows = torch.as_tensor(found, dtype=torch.float64)
            if of_rows.any():  # an expert that no sample of the step reached says nothing of its rows
                self._sums[layer] = self._sums.get(layer, 0) + of_rows / of_rows.mean()
                self._steps[layer] = self._steps.get(layer, 0) + 1

    def of(self, layer: str) -> Tensor | None:
        """The weights f of a layer's rows, in thousandths, [rows] fp64; None if nothing is known of them."""
        if layer not in self._sums:
            return None
        weights = (self._sums[layer] / self._steps[layer] + FLOOR) ** (self._power / 2)
        return (weights * 1000).round() / 1000

    def counts(self, layer: str, dense: Tensor, statistic: Statistic | None, keep: int) -> Keep:
        """How many weights each row of a layer keeps, [rows] int64; ``keep`` itself if nothing is known.

        Args:
            layer: its name.
            dense: its dense weight, [rows, cols].
            statistic: of its input; without one, weights are ranked by f_j |w_ji|.
            keep: the number of weights that the whole layer keeps.
        """
        weights = self.of(layer)
        if weights is None:
            return keep
        if isinstance(statistic, MeanSquare | Gram):
            sizes = wanda_metric(dense, statistic.mean_square)
        else:
            sizes = dense.float().abs()
        return select_in_matrix(sizes * weights.float().to(sizes.device).unsqueeze(1), keep).sum(dim=1).cpu()

    def digest(self) -> str:
        """Names the weights in a key."""
        found = hashlib.sha256(f"{self._power}".encode())
        for layer, total in self._sums.items():
            found.update(f"{layer} {self._steps[layer]} ".encode() + total.numpy().tobytes())
        return found.hexdigest()
