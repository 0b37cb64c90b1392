"""Global pruning: all weights of the model, or of a tower, compete with each other; no block is told how many
to keep.

These are the paper's baselines. ``GlobalMagnitude`` compares absolute values (the authors' code compared
signed ones). ``GlobalGradient`` compares |w| times the mean |gradient|, in steps of rising sparsity p_i =
p^(T / i), measured anew on the pruned model at each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation, keep_total
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.console.progress import track
from ecoflap.data.batch import Batch, samples_in
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel, quiet_forward
from ecoflap.ops import select_globally
from ecoflap.prune.report import BlockReport, PruneReport
from ecoflap.score.first_order import differentiate, scales, streaming_gradients
from ecoflap.score.recompute import recomputing
from ecoflap.score.scores import depends_on_none

SCOPES = ("model", "tower")
OnBlock = Callable[[BlockReport], None]


@runtime_checkable
class WholeModelPruner(Protocol):
    """Prunes a model in place, and says afterwards what each layer kept."""

    name: str
    requires_calibration: ClassVar[bool]
    trains: ClassVar[bool]  # on the training split behind the calibration set, instead of looking at that

    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, on_block: OnBlock
    ) -> tuple[Allocation, PruneReport]:
        """Remove the share ``sparsity`` of the weights."""


@dataclass(frozen=True)
class GlobalMagnitude:
    """Remove the smallest weights by absolute value.

    Attributes:
        scope: model (one threshold) or tower (one each).
        name: shown in logs and written to result files.
    """

    scope: str = "model"
    name: str = "global_magnitude"
    requires_calibration: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_scope(self.scope)

    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, on_block: OnBlock
    ) -> tuple[Allocation, PruneReport]:
        """Prune in place.

        Raises:
            NumericalError: a weight is NaN or infinite.
        """
        masks = choose(model, self.scope, sparsity, lambda layer: layer.weight.detach().float().abs())
        return conclude(model, masks, sparsity, self.scope, on_block)


@dataclass(frozen=True)
class GlobalGradient:
    """Remove the weights of smallest |w| times mean |gradient| in several steps (global first-order pruning).

    Attributes:
        scope: model (one threshold) or tower (one each, the paper's).
        iterations: steps T.
        samples: how many samples of the calibration set are used, from the first.
        batch_size: samples whose mean loss is differentiated.
        name: shown in logs and written to result files.
    """

    scope: str = "tower"
    iterations: int = 3
    samples: int = 128
    batch_size: int = 1
    name: str = "global_gradient"
    requires_calibration: ClassVar[bool] = True
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_scope(self.scope)
        require_positive("pruner", self, "iterations", "samples", "batch_size")

    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, on_block: OnBlock
    ) -> tuple[Allocation, PruneReport]:
        """Prune in place.

        Raises:
            NumericalError: a loss, a gradient or a weight is NaN or infinite.
        """
        assert calibration is not None
        masks: dict[str, Tensor] = {}
        for step in range(1, self.iterations + 1):
            gradients = mean_gradients(
                model, loss_batches(model, calibration.take(self.samples), self.batch_size)
            )
            reached = sparsity if step == self.iterations else sparsity ** (self.iterations / step)

            def metric(
                layer: Layer, gradients: dict[str, Tensor] = gradients, removed: dict[str, Tensor] = masks
            ) -> Tensor:
                # One more than nothing for weights that are still there: a removed weight never comes back,
                # whatever its gradient.
                value = layer.weight.detach().float().cpu().abs() * gradients[layer.name]
                return (
                    value
                    if layer.name not in removed
                    else torch.where(removed[layer.name], value + TINY, 0.0)
                )

            masks = choose(model, self.scope, reached, metric)
            apply(model, masks)
        return conclude(model, masks, sparsity, self.scope, on_block)


TINY = torch.finfo(torch.float32).tiny


def check_scope(scope: str) -> None:
    """Refuse a scope that there isn't.

    Raises:
        UserError: if there is no such scope.
    """
    if scope not in SCOPES:
        raise UserError(f"pruner.scope={scope} is not known; choose {' or '.join(SCOPES)}")


def mean_gradients(model: PrunableModel, batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over samples of each batch's |gradient|, per layer as its parameter is stored, on the CPU in fp32.

    Raises:
        NumericalError: a loss is not finite.
        UserError: the losses depend on none of the layers.
    """
    sums = {layer.name: torch.zeros(layer.weight.shape) for layer in model.layers}
    total = sum(samples_in(batch) for batch in batches)
    with quiet_forward(model.module):
        for batch in track(batches, "gradients", total=len(batches)):
            gradients, scale = _gradients(model, batch)
            for name, gradient in gradients.items():
                sums[name].add_(gradient.float().abs(), alpha=samples_in(batch) / total / scale)
    if not any(bool(gradient.any()) for gradient in sums.values()):
        raise depends_on_none()
    return sums


def _gradients(model: PrunableModel, batch: Batch) -> tuple[dict[str, Tensor], float]:
    """The gradient of each layer that the loss of a batch depends on, in the layer's dtype, on the CPU; and
    by what it is too large.
    """
    found: dict[str, Tensor] = {}
    for scale in scales(model):
        found.clear()

        def keep(layer: Layer, gradient: Tensor) -> None:
            found[layer.name] = gradient.to(layer.weight.dtype).cpu()

        with streaming_gradients(model.layers, lambda _, gradient: gradient, keep), recomputing(model.blocks):
            differentiate(model, batch, scale)
        if all(bool(torch.isfinite(gradient).all()) for gradient in found.values()):
            break
    return found, scale


def choose(
    model: PrunableModel, scope: str, sparsity: float, metric: Callable[[Layer], Tensor]
) -> dict[str, Tensor]:
    """{layer: mask as its parameter is stored, on the CPU} of the best weights of the model or of each tower.

    Raises:
        NumericalError: the metric has no order.
    """
    masks: dict[str, Tensor] = {}
    for layers in (
        [model.layers] if scope == "model" else [tower.layers for tower in model.towers if tower.layers]
    ):
        keep = keep_total([layer.size for layer in layers], sparsity)
        try:
            chosen = select_globally([lambda layer=layer: metric(layer) for layer in layers], keep)  # type: ignore[misc]
        except ValueError as error:
            raise NumericalError(
                f"{layers[0].name} to {layers[-1].name}: {error}; use model.dtype=float32"
            ) from error
        masks |= {layer.name: mask.cpu() for layer, mask in zip(layers, chosen, strict=True)}
    return masks


@torch.no_grad()
def apply(model: PrunableModel, masks: dict[str, Tensor]) -> None:
    """Set the removed weights to zero."""
    for layer in model.layers:
        layer.weight.mul_(masks[layer.name].to(layer.weight.device))


def conclude(
    model: PrunableModel, masks: dict[str, Tensor], sparsity: float, scope: str, on_block: OnBlock
) -> tuple[Allocation, PruneReport]:
    """Apply the masks, and put into words what came out."""
    started = time.perf_counter()
    apply(model, masks)
    keep = {name: int(mask.sum()) for name, mask in masks.items()}
    allocation = Allocation(keep, {layer.name: layer.size for layer in model.layers}, sparsity, scope)
    report = PruneReport(masks, dict.fromkeys(masks))
    for tower in model.towers:
        for block in tower.blocks:
            names = [layer.name for layer in block.layers]
            realised = allocation.sparsity_of(names) if names else 0.0
            report.blocks.append(
                BlockReport(tower.name, block.name, realised, None, time.perf_counter() - started)
            )
            on_block(report.blocks[-1])
    return allocation, report
