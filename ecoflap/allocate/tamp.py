"""TAMP's sparsities (Lee et al., ACL Findings 2025): layers whose output tokens are diverse keep more.

With v, t and c the mean cosines between a layer's output tokens, among visual ones, among those of text, and
across the two, its importance is

    (1 - v) + (1 - t) + (1 - c),

a mean over samples. It is fed to ECoFLaP's allocation by layer, in the towers that read both kinds of tokens;
the layers of other towers share one sparsity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from ecoflap.allocate.groups import layers_of, split
from ecoflap.allocate.options import TAMPOptions
from ecoflap.allocate.parametric import Parametric, Values
from ecoflap.allocate.protocol import Context, Requires
from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.token_choice import Masks, require_kinds, without_padding
from ecoflap.blocks.walk import Visit, walk
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import gathered
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower
from ecoflap.ops import water_fill
from ecoflap.score.scores import LAYER

CANDIDATES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2)
"""The margins that ``auto`` tries."""


@dataclass(frozen=True)
class TAMP(TAMPOptions, Parametric):
    """Layers whose output tokens are diverse keep more."""

    parameter: ClassVar[str] = "margin"
    scope = "tower"  # cosines of towers that read one kind of tokens don't exist

    @property
    @override
    def sparsity_per(self) -> str:
        return LAYER

    @property
    @override
    def requires(self) -> Requires:
        """No scores, but samples."""
        return Requires("none", weights=True, calibration=True)

    @property
    @override
    def footprint(self) -> Footprint | None:
        """Hidden states of all samples; for ``auto``, a forward pass beside the dense weights."""
        return super().footprint or Footprint("blocks")

    @override
    def check_samples(self, model: PrunableModel, samples: CalibrationSet, batch_size: int) -> None:
        """Refuse a model without a tower that reads text and visual tokens."""
        _mixed_towers(model, samples.batches(batch_size))

    @override
    def candidates(self, model: PrunableModel, sparsity: float) -> Sequence[float]:
        return CANDIDATES

    @override
    def counts(self, towers: Sequence[Tower], values: Values, total: int, parameter: float) -> dict[str, int]:
        """Share ``total``; refuse a margin that no integer counts satisfy."""
        layers = layers_of(towers)
        if layers[0].name not in values:
            return split(layers, total)
        sizes = [layer.size for layer in layers]
        cap = min(1.0, 1 - total / sum(sizes) + parameter)
        try:
            kept = water_fill(sizes, [values[layer.name] for layer in layers], total, cap)
        except ValueError as error:
            raise UserError(f"allocation.margin={parameter:g}: {error}") from None
        return {layer.name: count for layer, count in zip(layers, kept, strict=True)}

    @override
    def _measured(self, model: PrunableModel, context: Context | None) -> dict[str, float]:
        assert context is not None
        return measure_diversity(model, context)


@torch.no_grad()
def measure_diversity(model: PrunableModel, context: Context) -> dict[str, float]:
    """{layer: its importance}, of the towers that read both kinds of tokens.

    Args:
        model: dense.
        context: its calibration set runs through the model.

    Raises:
        UserError: if there are no such towers, or a layer reads other tokens than its tower's sequence.
        NumericalError: if an importance is not finite.
    """
    batches = context.samples.batches(context.batch_size)
    require_calls(model, batches, every_layer=True)
    mixed = _mixed_towers(model, batches)
    found: dict[str, float] = {}
    with quiet_forward(model.module):
        for visit in walk(model, mixed, batches, "allocate"):
            own = {layer.name: values for layer, values in _of_block(visit).items()}
            of_all = gathered(own)  # each process has its share of the samples
            found |= {name: fmean(value for one in of_all for value in one[name]) for name in own}
    for name, value in found.items():
        if not value < float("inf"):
            raise NumericalError(
                f"{name}: the cosines of its output tokens are not finite; check the weights, and the"
                " activations on the calibration data"
            )
    return found


def _mixed_towers(model: PrunableModel, batches: Sequence[Batch]) -> list[Tower]:
    """The pruned towers that read text and visual tokens."""
    return require_kinds(model, [one for one in model.towers if one.layers], batches, "allocation=tamp")


def _of_block(visit: Visit) -> dict[Layer, list[float]]:
    """The importance of the layers of a block for each sample; the block is left."""
    found: dict[Layer, list[float]] = {layer: [] for layer in visit.block.layers}
    for stream in visit.flow.streams:
        kinds = stream.kinds
        if kinds is None:
            raise UserError(
                f"allocation=tamp: for some batches, the loss doesn't say which tokens of tower"
                f" {visit.tower.name} are visual; choose another allocation"
            )
        with hooks(
            layer.module.register_forward_hook(_watch(layer, kinds.visual, stream.counted, values))
            for layer, values in found.items()
        ):
            call = stream.call(visit.index)
            stream.leave(call.run(visit.block.module, stream.hidden), call)
    return found


def _watch(
    layer: Layer, visual: Tensor, counted: Masks, values: list[float]
) -> Callable[[nn.Module, Any, Tensor], None]:
    """A hook that adds the importance of a layer for each sample of a batch, whose padding is left out."""
    real = without_padding(torch.ones_like(visual), counted)

    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        if output.shape[:-1].numel() != visual.numel() or layer.is_routed:
            raise UserError(
                f"allocation=tamp: {layer.name} reads other tokens than those of its tower; leave it out with"
                " skip_layers, or choose another allocation"
            )
        samples = zip(output.float().view(*visual.shape, -1), visual, real, strict=True)
        values.extend(diversity(one[kept], seen[kept]) for one, seen, kept in samples)

    return hook


def diversity(outputs: Tensor, visual: Tensor) -> float:
    """The importance of one layer for one sample: (1 - v) + (1 - t) + (1 - c).

    Means within a kind are over the positive cosines of different tokens, as released; they are 0 where there
    are none, and so is c without tokens of one kind.

    Args:
        outputs: [tokens, rows].
        visual: whether a token is visual, [tokens].
    """
    directions = normalize(outputs, dim=1)
    seen, text = directions[visual], directions[~visual]
    within = [one @ one.t() for one in (seen, text)]
    pairs = [one.triu(1)[one.triu(1) > 0] for one in within] + [(seen @ text.t()).flatten()]
    means = torch.stack([one.mean() if len(one) else one.new_zeros(()) for one in pairs])
    return float((1 - means).sum().abs())
