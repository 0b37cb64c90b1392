"""Whether a model still is what its pruning left."""

from __future__ import annotations

from torch import Tensor

from ecoflap.api.result import PruneResult
from ecoflap.errors import UserError
from ecoflap.models.core.expert_slices import ExpertSlice
from ecoflap.storage.results.sparsity import read_layers
from ecoflap.storage.saved_model import usual_dtype


def require_masked(result: PruneResult) -> None:
    """Refuse a result whose model has changed since, so that its masks and its record are of another one.

    Raises:
        UserError: if a layer was replaced, experts were removed, a weight that the masks remove is not zero,
            or more are zero than were counted.
    """
    layers = result.prunable.layers
    lost = set(result.masks).difference(layer.name for layer in layers)
    if lost or any(isinstance(layer.module, ExpertSlice) and layer.module.is_cut for layer in layers):
        raise UserError(
            "experts were removed from the model after it was pruned; save the result of the last pruning"
        )
    counted = read_layers(result.record.sparsity)
    present = {id(parameter) for parameter in result.model.parameters()}
    for layer in layers:
        if id(layer.parameter) not in present:
            raise UserError(
                f"{layer.name} is not in the model any more, as its module was replaced after it was pruned;"
                " put it back, or give result.prunable for a checkpoint without masks and record"
            )
        mask, weight = result.masks.get(layer.name), layer.weight.detach()
        if mask is not None and not weight.is_meta and weight[~mask.to(weight.device)].any():
            raise UserError(
                f"{layer.name} has weights other than zero where the masks remove them, so the model was"
                " changed after it was pruned; set them to zero again, or give result.prunable for a"
                " checkpoint without masks and record"
            )
        if layer.name in counted and not weight.is_meta and zeros_of(weight) > counted[layer.name].zeros:
            raise UserError(
                f"{layer.name} has more zeros than this result counted, so the model was pruned"
                f" further{_or_cast(result)}; save the result of the last pruning, or result.prunable without"
                " masks and record"
            )


def _or_cast(result: PruneResult) -> str:
    """The other cause of zeros, if the model has another dtype than it was pruned in."""
    dtype, pruned_in = usual_dtype(result.model.parameters()), result.record.model["dtype"]
    if dtype == pruned_in:
        return ""
    lost = "in which its smallest weights are zero (cast it before pruning)"
    return f", or cast from {pruned_in} to {dtype}, {lost}"


def zeros_of(weight: Tensor) -> int:
    """How many numbers of a tensor are zero."""
    return weight.numel() - int(weight.count_nonzero())
