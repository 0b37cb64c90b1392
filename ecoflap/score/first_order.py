"""First-order scores: one backward pass per batch, in which each gradient is reduced to a number and freed.

The backward pass recomputes blocks instead of keeping their activations, so it needs little more memory than
a forward pass.

With g_b the gradient of the mean loss of batch b with respect to a layer W, and sums over its weights w:

    gradient_norm           mean_b ||g_b||
    gradient                mean_b sum |g_b|
    weight_gradient         mean_b sum |w| |g_b|
    weight_gradient_square  mean_b sum w^2 g_b^2
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.console.progress import track
from ecoflap.data.batch import Batch, samples_in
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import share
from ecoflap.errors import NumericalError, UserError, require_choices, require_positive
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layer_names import first_and_count, skip_layers_advice
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.score.options import FirstOrderOptions
from ecoflap.score.protocol import Scorer
from ecoflap.score.recompute import recomputing
from ecoflap.score.scores import Average, Scores, collect, combine, zero_independent

MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradient_norm": lambda w, g: g.norm(),
    "gradient": lambda w, g: g.abs().sum(),
    "weight_gradient": lambda w, g: (w * g).abs().sum(),
    "weight_gradient_square": lambda w, g: (w * g).square().sum(),
}

WITHOUT_GRADIENTS = "use score=zeroth_order score.probe=layer, which needs no gradients"
"""What to do where a model has none."""
# Factors of an fp16 loss, tried in turn until no gradient overflows; fp16 rounds small gradients to zero.
SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)


@dataclass(frozen=True)
class FirstOrder(FirstOrderOptions, Scorer):
    """Score every layer from its gradient."""

    def __post_init__(self) -> None:
        require_choices("score", self)
        require_positive("score", self, "samples", "batch_size")

    @property
    @override
    def footprint(self) -> Footprint:
        """A backward pass, which reduces the gradient of one layer at a time."""
        return Footprint("backward", layers=3)

    @override
    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": 2,
            "measure": self.measure,
            "samples": self.samples,
            "batch_size": self.batch_size,
        }

    @override
    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        """Score the layers; refuse a loss that depends on none of them."""
        of_weight = MEASURES[self.measure]

        def measure(layer: Layer, gradient: Tensor) -> Tensor:
            return of_weight(layer.weight.detach().float(), gradient)

        averages = {layer.name: Average() for layer in model.layers}
        batches = loss_batches(model, calibration.take(self.samples), self.batch_size)
        with quiet_forward(model.module):
            own = share(list(enumerate(batches)))
            for index, batch in track(own, "score", total=len(own)):
                count = samples_in(batch)
                values = measure_gradients(model, batch, measure, self.recompute)
                for layer in model.layers:  # the gradient of an expert that the batch doesn't reach is zero
                    averages[layer.name].add(
                        float(values.get(layer, 0.0)), count, f"{layer.name} (batch {index})", index
                    )
        combine(averages)
        zero_independent(averages)
        samples = min(self.samples, len(calibration))
        return collect(self.name, averages, {**self.identity(), "samples": samples, "batches": len(batches)})


def measure_gradients(
    model: PrunableModel, batch: Batch, measure: Callable[[Layer, Tensor], Tensor], recompute: bool
) -> dict[Layer, Tensor]:
    """Measure the gradient of a batch's mean loss for each layer that the loss depends on.

    Args:
        model: the model as it is.
        batch: the samples.
        measure: called with a layer, whose weight is in place, and its gradient in fp32, as the parameter is
            stored; returns a small tensor of any shape.
        recompute: recompute the activations of blocks in the backward pass instead of storing them.

    Returns:
        {layer: what ``measure`` returns}, on the CPU.

    Raises:
        NumericalError: if the loss is not finite.
    """
    return scaled_gradients(
        model, batch, lambda layer, gradient, scale: measure(layer, gradient / scale), recompute
    )[0]


def scaled_gradients(
    model: PrunableModel, batch: Batch, reduce: Callable[[Layer, Tensor, float], Tensor], recompute: bool
) -> tuple[dict[Layer, Tensor], float]:
    """Reduce the gradients of a batch's scaled mean loss, at the first loss scale at which all are finite.

    Like ``measure_gradients``, but ``reduce`` is also called with the loss scale, by which the gradient is
    multiplied, and the loss scale is returned too.
    """
    found: dict[Layer, Tensor] = {}
    # Offloaded blocks are always recomputed: their weights are released after the forward pass, and
    # recomputing a block loads them again.
    recomputed = model.blocks if recompute or model.placement.kind != "none" else ()
    half = any(layer.weight.dtype == torch.float16 for layer in model.layers)
    for scale in SCALES if half else (1.0,):
        found.clear()

        def keep(layer: Layer, gradient: Tensor, scale: float = scale) -> None:
            found[layer] = reduce(layer, gradient, scale)

        with streaming_gradients(model.layers, keep), recomputing(recomputed):
            differentiate(model, batch, scale)
        # Copying after the pass spares the host from waiting for the accelerator at every layer.
        found.update({layer: value.cpu() for layer, value in found.items()})
        if all(bool(value.isfinite().all()) for value in found.values()):
            break
    return found, scale


def differentiate(model: PrunableModel, batch: Batch, scale: float = 1.0) -> None:
    """Run the backward pass of a batch's mean loss, unless the loss depends on none of the layers.

    Args:
        model: the model, whose layers require gradients.
        batch: the samples.
        scale: factor of the loss.

    Raises:
        UserError: if the model writes into what the backward pass needs.
        NumericalError: if the loss is not finite.
    """
    try:
        loss = model.loss(batch).mean()
        if not torch.isfinite(loss):
            raise NumericalError(
                f"the loss of a calibration batch is {loss.item()}; the model or the data are damaged, or the"
                " dtype overflows"
            )
        if loss.requires_grad:
            (loss * scale).backward()
    except RuntimeError as error:
        if not re.search("in-?place", str(error)):
            raise
        raise UserError(
            f"{model.name} writes into tensors that a backward pass needs, so its loss can't be"
            f" differentiated; {WITHOUT_GRADIENTS}"
        ) from error


@contextmanager
def streaming_gradients(layers: list[Layer], reduce: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Reduce and free the gradient of each layer as soon as the backward pass has computed it.

    Args:
        layers: their weights require gradients in this context.
        reduce: called with the layer and its gradient in fp32, as the parameter is stored.

    Raises:
        UserError: if the model runs a layer under ``torch.no_grad``, so that it gets no gradient.
    """
    unrecorded: set[str] = set()  # layers that were called without recording what a gradient needs
    known: set[str] = set()  # layers that have a gradient, or would have one if the loss depended on them

    def hook(layer: Layer) -> Callable[[Tensor], None]:
        def accumulate(weight: Tensor) -> None:
            assert weight.grad is not None
            known.add(layer.name)
            reduce(layer, weight.grad.float())
            weight.grad = None

        return accumulate

    def watch(layer: Layer) -> Callable[[Tensor], None]:
        return lambda _: (known if torch.is_grad_enabled() else unrecorded).add(layer.name)

    for layer in layers:
        layer.weight.requires_grad_(True)
    try:
        with (
            hooks(layer.weight.register_post_accumulate_grad_hook(hook(layer)) for layer in layers),
            hooks(layer.before_calls(watch(layer)) for layer in layers),
        ):
            yield
    finally:
        for layer in layers:
            layer.weight.grad = None
    if silent := unrecorded - known:
        raise _without_record(silent, [layer.name for layer in layers])


def _without_record(silent: set[str], names: Sequence[str]) -> UserError:
    """The error of layers that the model runs without recording gradients."""
    advice = f"{skip_layers_advice(silent, names)}, or " if len(silent) < len(names) else ""
    return UserError(
        f"the model runs {first_and_count(silent, names)} without recording gradients (torch.no_grad), so a"
        f" backward pass says nothing of them; {advice}{WITHOUT_GRADIENTS}"
    )
