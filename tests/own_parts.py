"""Parts as a user has them outside of the package: they derive from the protocols and add what differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.protocol import Allocator, Context, Requires
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.statistics import Statistic
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.protocol import LayerPruner, Pruned
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Scores


@dataclass(frozen=True)
class BlockNorms(Scorer):
    """The norm of each block's weights."""

    samples: int = 4
    batch_size: int = 2
    name: str = "block_norms"
    granularity: ClassVar[str] = "block"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        norms = {
            block.name: float(torch.stack([layer.matrix().norm() for layer in block.layers]).norm())
            for block in model.blocks
            if block.layers
        }
        return Scores(self.name, norms, dict.fromkeys(norms, 0.0), {}, self.granularity)


@dataclass(frozen=True)
class LayerNorms(Scorer):
    """The norm of each layer's weights, which is said to be no importance."""

    samples: int = 4
    batch_size: int = 2
    name: str = "layer_norms"
    kind: ClassVar[str] = "norms"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        norms = {layer.name: float(layer.matrix().norm()) for layer in model.layers}
        return Scores(self.name, norms, dict.fromkeys(norms, 0.0), {}, kind=self.kind)


@dataclass(frozen=True)
class ByNorms(Allocator):
    """Uniform, but only on the norms of layers."""

    name: str = "by_norms"

    @property
    def requires(self) -> Requires:
        return Requires(kind="norms")

    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        assert scores is not None
        return WaterFilling("model")(model, None, sparsity)


@dataclass(frozen=True)
class FirstWeights(LayerPruner):
    """Keep the first weights of a layer."""

    name: str = "first_weights"

    def __call__(self, weight: Tensor, statistic: Statistic | None, keep: int) -> Pruned:
        mask = (torch.arange(weight.numel()) < keep).view(weight.shape)
        return Pruned(weight * mask, mask)


@dataclass(frozen=True)
class Unfinished(LayerPruner):
    """Has no way to prune."""

    name: str = "unfinished"


@dataclass(frozen=True)
class Bare:
    """An allocator that derives from nothing and says nothing."""

    name: str = "bare"

    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        return WaterFilling("model")(model, None, sparsity)


@dataclass(frozen=True)
class Unsaved:
    """A loader that does not say whether to save."""

    name: str = "unsaved"

    def load(self, device: Any, selection: Any) -> PrunableModel:
        raise NotImplementedError


@dataclass(frozen=True)
class Unlimited:
    """A calibration set that does not say how many samples it draws."""

    name: str = "unlimited"

    def load(self, model: PrunableModel, seed: int) -> Any:
        raise NotImplementedError
