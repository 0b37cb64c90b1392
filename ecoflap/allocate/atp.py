"""ATP (Huang et al., ICML 2025): sparsities that grow from block to block by the same step.

Block b of the B blocks of a tower has the sparsity s + beta (b - (B + 1) / 2). The authors choose beta by the
perplexity on the test set of WikiText-2; here it is chosen by the loss on the calibration set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from ecoflap.allocate.groups import blocks_of, parts, size_of, split_all
from ecoflap.allocate.options import ATPOptions
from ecoflap.allocate.parametric import Parametric, Values
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower
from ecoflap.ops import shift_to_total

TRIALS = 10


@dataclass(frozen=True)
class ATP(ATPOptions, Parametric):
    """Sparsities that grow from block to block by the same step."""

    parameter: ClassVar[str] = "beta"
    reads_weights: ClassVar[bool] = False

    @override
    def candidates(self, model: PrunableModel, sparsity: float) -> Sequence[float]:
        """Even steps up to the largest beta that leaves no sparsity of any block outside of 0 to 1."""
        steps = max(len(blocks_of(towers)) for towers in parts(model, self.scope)) - 1
        largest = min(2 * sparsity, 2 * (1 - sparsity)) / max(steps, 1)
        return [round(largest * trial / TRIALS, 6) for trial in range(TRIALS + 1)]

    @override
    def counts(self, towers: Sequence[Tower], values: Values, total: int, parameter: float) -> dict[str, int]:
        groups = [block.layers for block in blocks_of(towers)]
        shares = [-parameter * place for place in range(len(groups))]
        return split_all(groups, shift_to_total([size_of(layers) for layers in groups], shares, total))
