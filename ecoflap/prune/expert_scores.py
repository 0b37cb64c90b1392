"""Scores of experts: the mean of router weight times norm of the output, over the tokens that reach each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.blocks.input_statistics import counted_inputs
from ecoflap.blocks.walk import Visit, walk
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import summed
from ecoflap.errors import NumericalError
from ecoflap.models.core.expert_slices import ExpertSlice
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.mixtures import Mixture
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class ExpertScores:
    """What the tokens that reached each expert of a mixture add up to, on the CPU.

    Attributes:
        sum: of router weight times norm of the expert's output, [experts], fp64.
        tokens: how many there were, [experts].
    """

    sum: Tensor
    tokens: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over tokens; 0 for an expert that none reached, [experts]."""
        return self.sum / self.tokens.clamp_min(1)


@torch.no_grad()
def score_experts(
    model: PrunableModel, mixtures: Sequence[Mixture], calibration: CalibrationSet, batch_size: int
) -> dict[str, ExpertScores]:
    """Score every expert of a dense model, block by block.

    Padding does not count.

    Args:
        model: dense.
        mixtures: its mixtures of experts.
        calibration: the samples.
        batch_size: samples per forward pass.

    Raises:
        NumericalError: if a score is NaN or infinite.
    """
    scores = {
        one.name: ExpertScores(
            torch.zeros(one.count, dtype=torch.float64), torch.zeros(one.count, dtype=torch.long)
        )
        for one in mixtures
    }
    towers = [
        tower
        for tower in model.towers
        if any(belongs(layer, one) for layer in tower.layers for one in mixtures)
    ]
    with quiet_forward(model.module):
        for visit in walk(model, towers, calibration.batches(batch_size), "score experts"):
            inside = [one for one in mixtures if one.name.startswith(f"{visit.block.name}.")]
            _score_block(visit, inside, scores)
    for name, found in scores.items():
        found.sum.copy_(summed(found.sum))
        found.tokens.copy_(summed(found.tokens))
        if not found.sum.isfinite().all():
            raise NumericalError(
                f"an output of {name} is NaN or infinite; use model.dtype=float32 or bfloat16"
            )
    return scores


def belongs(layer: Layer, mixture: Mixture) -> bool:
    """Whether a layer is a matrix of one of a mixture's experts."""
    return isinstance(layer.module, ExpertSlice) and layer.module.owner[0] is mixture.experts


def _score_block(visit: Visit, mixtures: Sequence[Mixture], scores: dict[str, ExpertScores]) -> None:
    """Run a block over all batches, add to the scores of its experts, and leave it."""
    for stream, counted in zip(visit.flow.streams, visit.counted, strict=True):
        call = stream.call(visit.index)

        def note(name: str, layer: Layer, values: Tensor, counted: tuple[Tensor, ...] = counted) -> None:
            real = counted_inputs(layer, values[:, None], counted, ())
            scores[name].sum[layer.expert[0]] += float(real.sum())
            scores[name].tokens[layer.expert[0]] += len(real)

        with _watching(visit.block.layers, mixtures, note):
            output = call.run(visit.block.module, stream.hidden)
        stream.leave(output, call)


@contextmanager
def _watching(
    layers: Sequence[Layer], mixtures: Sequence[Mixture], note: Callable[[str, Layer, Tensor], None]
) -> Iterator[None]:
    """Call ``note`` in this context for each expert that is run.

    Args:
        layers: the layers of the block.
        mixtures: the mixtures in the block.
        note: called with the name of the mixture, the expert's second matrix as a layer, and of each token
            that it read, the router's weight times the norm of the output, fp32 [routed].
    """
    choices: dict[str, tuple[Tensor, Tensor]] = {}

    def enter(one: Mixture) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), arguments, strict=False))
            named |= keywords
            choices[one.name] = named["top_k_index"], named["top_k_weights"]

        return hook

    def leave(one: Mixture, layer: Layer) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            assert layer.routed is not None
            index, weights = (tensor[layer.routed.positions] for tensor in choices[one.name])
            gate = (weights.float() * (index == layer.expert[0])).sum(dim=1)
            note(one.name, layer, gate * output.float().norm(dim=1))

        return hook

    entering = (one.experts.register_forward_pre_hook(enter(one), with_kwargs=True) for one in mixtures)
    leaving = (
        layer.module.register_forward_hook(leave(one, layer))
        for one in mixtures
        for layer in layers
        if belongs(layer, one) and layer.stage[1]
    )
    with hooks(entering), hooks(leaving):
        yield
