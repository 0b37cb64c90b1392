"""REAP (Lasby et al., Cerebras, 2025): whole experts are removed, those that add least to the output.

An expert j is scored by the mean, over the set T_j of calibration tokens that the router sends it, of the
router's weight g times the norm of the expert's output f:

    S_j = 1/|T_j|  sum over t in T_j of  g_j(t) ||f_j(x_t)||_2

In every mixture of experts, the same number of experts of the smallest scores is removed, with their rows of
the router. An expert that no token reached has score 0. Of equal scores, the one of the smaller number goes
first. All scores are of the dense model; g is the weight that the model itself multiplies the output with.

With groups of experts (DeepSeek-V3), each group loses the same number, so that it remains a group.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.allocate.allocation import UNITS, Allocation, as_written
from ecoflap.blocks.footprint import Footprint
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.mixtures import Mixture, cut_experts, find_mixtures
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.expert_scores import belongs, score_experts
from ecoflap.prune.options import REAPOptions
from ecoflap.prune.protocol import ModelPruner
from ecoflap.prune.report import PruneReport
from ecoflap.storage.masks import PackedMasks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class REAP(REAPOptions, ModelPruner):
    """Score every expert, then remove the lowest of each mixture."""

    removes_units: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("pruner", self, "batch_size")

    @property
    @override
    def footprint(self) -> Footprint:
        """One block's activations; the experts that stay, beside all that share their parameter."""
        return Footprint("blocks", parameters=1, batch_size=self.batch_size)

    @override
    def check_model(self, model: PrunableModel, sparsity: float) -> None:
        """Refuse a model without such experts, and a sparsity that their number rules out.

        Raises:
            UserError: if the experts or their router are of another kind, or the sparsity would remove none
                or leave too few.
        """
        removed_experts(model, find_mixtures(model), sparsity)

    @override
    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, seed: int = 0
    ) -> tuple[Allocation, PruneReport]:
        """Score, then remove experts; refuse what ``check_model`` refuses."""
        assert calibration is not None
        mixtures = find_mixtures(model)
        count = removed_experts(model, mixtures, sparsity)
        scores = score_experts(model, mixtures, calibration, self.batch_size)
        keep = [kept_experts(scores[one.name].mean, count, one.groups) for one in mixtures]
        sizes = model.sizes
        counts = {layer.name: layer.size if _stays(layer, mixtures, keep) else 0 for layer in model.layers}
        details = {
            one.name: {
                "kept": indices.tolist(),
                "scores": scores[one.name].mean.tolist(),
                "tokens": scores[one.name].tokens.tolist(),
            }
            for one, indices in zip(mixtures, keep, strict=True)
        }
        cut_experts(model, mixtures, keep)
        log.info("removed %d of %d experts in each of %d layers", count, mixtures[0].count, len(mixtures))
        masks = PackedMasks()
        for layer in model.layers:
            masks[layer.name] = torch.ones(layer.weight.shape, dtype=torch.bool)
        allocation = Allocation(counts, sizes, sparsity, "model", UNITS, {"experts": details})
        return allocation, PruneReport(masks)


def removed_experts(model: PrunableModel, mixtures: Sequence[Mixture], sparsity: float) -> int:
    """The number of experts to remove in each mixture: the largest whose weights don't exceed the target.

    Raises:
        UserError: if that would be none, or leave fewer than the router chooses from.
    """
    first, total = mixtures[0], sum(layer.size for layer in model.layers)
    cost = sum(one.cost for one in mixtures)
    step = first.groups
    count = int(as_written(sparsity) * total / (cost * step)) * step
    largest = (first.count - first.least) // step * step
    if count > largest or (count == 0 and sparsity > 0):
        found = f"remove {count} of the {first.count} experts of each layer"
        possible = f"the largest possible is sparsity={_rounded_up(largest * cost / total)}"
        if count == 0:
            found = f"remove no expert, as {step} of each layer's {first.count} are more weights than that"
            possible = f"the smallest possible is sparsity={_rounded_up(step * cost / total)}"
        if largest <= 0:
            possible = "choose another pruner, such as wanda"
        raise UserError(
            f"sparsity={sparsity} would {found}, and a router needs {first.least} to choose"
            f" {first.top_k} from; {possible}"
        )
    return count


def _rounded_up(share: float) -> float:
    """A share with four decimals that is not below it."""
    return math.ceil(share * 10**4) / 10**4


def kept_experts(scores: Tensor, removed: int, groups: int = 1) -> Tensor:
    """The experts that stay when those of the smallest scores go, as many of each group.

    Args:
        scores: [experts].
        removed: how many go, a multiple of the number of groups.
        groups: number of groups of consecutive experts.

    Returns:
        Their numbers in ascending order, [experts - removed].
    """
    grouped = scores.view(groups, -1)
    order = grouped.argsort(dim=1, stable=True)[:, removed // groups :].sort(dim=1).values
    return (order + torch.arange(groups)[:, None] * grouped.shape[1]).flatten()


def _stays(layer: Layer, mixtures: Sequence[Mixture], keep: Sequence[Tensor]) -> bool:
    """Whether a layer is not a matrix of an expert that is removed."""
    kept = (indices for one, indices in zip(mixtures, keep, strict=True) if belongs(layer, one))
    return all(layer.expert[0] in indices for indices in kept)
