"""How far what layers read in the pruned model is from what they read in the dense one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ecoflap.blocks.gram import STRIP, TOKENS_AT_ONCE
from ecoflap.blocks.statistics import Statistic, place_of_sums
from ecoflap.distributed.collectives import summed
from ecoflap.models.core.layers import Layer


class Readings(NamedTuple):
    """What layers of a block read in one batch.

    Attributes:
        inputs: their inputs, [tokens, cols].
        residuals: of those that write into a residual stream, the stream before that, [tokens, rows].
    """

    inputs: dict[Layer, Tensor]
    residuals: dict[Layer, Tensor]


class Drifts(NamedTuple):
    """The drifts at layers that read the same input x~ of the pruned model.

    Attributes:
        inputs: mean of (x - x~) x~^T, [cols, cols], with x of the dense model.
        residuals: mean of (s - s~) x~^T, [rows, cols], of the layers that are added to a residual stream s.
    """

    inputs: Tensor
    residuals: Mapping[Layer, Tensor]


class SharedInput(NamedTuple):
    """Layers of one block that read the same input.

    Attributes:
        layers: the layers.
        statistic: of the input; None for a pruner that uses no data.
        drifts: of the input and of residual streams from those in the dense model, for which the weights are
            compensated first, see ``ecoflap.ops.compensation``; None to leave them as they are.
    """

    layers: tuple[Layer, ...]
    statistic: Statistic | None
    drifts: Drifts | None = None


class Drift:
    """Mean of (d - d~) x~^T over tokens, of what the dense and the pruned model have beside an input x~.

    Attributes:
        device: of the inputs.
        sum: summed over tokens, [rows, cols], fp64; see ``place_of_sums``.
        tokens: how many there were.
    """

    def __init__(self, rows: int, cols: int, device: torch.device) -> None:
        self.device = device
        self.sum = torch.zeros(rows, cols, dtype=torch.float64, device=place_of_sums(device))
        self.tokens = 0

    def update(self, dense: Tensor | None, pruned: Tensor, inputs: Tensor) -> None:
        """Add a batch; what is not known of the dense model counts as what the pruned one has.

        Args:
            dense: [tokens, rows].
            pruned: [tokens, rows].
            inputs: of the layer in the pruned model, [tokens, cols].
        """
        self.tokens += len(inputs)
        if dense is None or dense.shape != pruned.shape or len(pruned) != len(inputs):
            return
        parts = (one.split(TOKENS_AT_ONCE) for one in (dense, pruned, inputs))
        for before, after, read in zip(*parts, strict=True):
            drift, wide = (before.float() - after.float()).t(), read.float()
            for start in range(0, len(drift), STRIP):
                product = drift[start : start + STRIP] @ wide
                self.sum[start : start + STRIP].add_(product.to(self.sum.device))

    def combine(self) -> None:
        """Add up the sums that the processes of the run have gathered, each over its samples."""
        self.sum = summed(self.sum)
        self.tokens = int(summed(torch.tensor(self.tokens)))

    @property
    def value(self) -> Tensor:
        """The mean, [rows, cols], fp32."""
        return (self.sum / self.tokens).float().to(self.device)


class GroupDrift:
    """The drifts of layers that read the same input, gathered batch by batch."""

    def __init__(self, layers: Sequence[Layer], writers: Iterable[Layer], device: torch.device) -> None:
        """Begin with no tokens.

        Args:
            layers: read the same input.
            writers: layers that write into a residual stream.
            device: of their inputs.
        """
        cols = layers[0].shape[1]
        self.leader, self._inputs = layers[0], Drift(cols, cols, device)
        own = [layer for layer in layers if layer in set(writers)]
        self._residuals = {layer: Drift(layer.shape[0], cols, device) for layer in own}

    def update(self, dense: Readings, inputs: Tensor, residuals: Mapping[Layer, Tensor]) -> None:
        """Add a batch.

        Args:
            dense: what the layers read in the dense model.
            inputs: what they read in the pruned one, [tokens, cols].
            residuals: the residual streams there, [tokens, rows].
        """
        self._inputs.update(dense.inputs.get(self.leader), inputs, inputs)
        for layer, drift in self._residuals.items():
            drift.update(dense.residuals.get(layer), residuals.get(layer, inputs), inputs)

    def combine(self) -> None:
        """Add up the sums that the processes of the run have gathered, each over its samples."""
        for drift in (self._inputs, *self._residuals.values()):
            drift.combine()

    @property
    def value(self) -> Drifts:
        """The means."""
        return Drifts(self._inputs.value, {layer: one.value for layer, one in self._residuals.items()})
