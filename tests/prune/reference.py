"""Pruning the slow and obvious way: one layer at a time, each with plain forward passes of the whole model,
one sample at a time.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block
from tests.experts import noting_inputs
from tests.ops import reference as ops

ADMM_STEPS = (12, 10, 1.8)  # iterations, those that choose a mask, relaxation
PruneLayer = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def magnitude(weight: Tensor, _: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    mask = ops.matrix_mask(weight.abs(), keep)
    return weight * mask, mask


def wanda(weight: Tensor, inputs: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    mask = ops.row_mask(weight.abs() * inputs.double().norm(dim=0), keep)
    return weight * mask, mask


def wanda_2_4(weight: Tensor, inputs: Tensor, _: int) -> tuple[Tensor, Tensor]:
    mask = ops.n_of_m_mask(weight.abs() * inputs.double().norm(dim=0), 2, 4)
    return weight * mask, mask


def ria(weight: Tensor, inputs: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    size = weight.double().abs()
    relative = size / size.sum(dim=0) + size / size.sum(dim=1)[:, None]
    mask = ops.matrix_mask(relative * inputs.double().norm(dim=0).sqrt(), keep)
    return weight * mask, mask


def gram(inputs: Tensor) -> Tensor:
    """The mean of x x^T."""
    return inputs.double().t() @ inputs.double() / len(inputs)


def sparsegpt(weight: Tensor, inputs: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    return ops.sparsegpt(weight, gram(inputs), [weight.numel() - keep])


def sparsegpt_4_8(weight: Tensor, inputs: Tensor, _: int) -> tuple[Tensor, Tensor]:
    return ops.sparsegpt(weight, gram(inputs), n_of_m=(4, 8))


def admm(weight: Tensor, inputs: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    return ops.admm(weight, gram(inputs), keep, "row", *ADMM_STEPS)


def admm_2_4(weight: Tensor, inputs: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    return ops.admm(weight, gram(inputs), keep, (2, 4), *ADMM_STEPS)


def wanda_repaired(weight: Tensor, inputs: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    _, mask = wanda(weight, inputs, keep)
    return ops.admm(weight, gram(inputs), keep, "row", *ADMM_STEPS, mask=mask)


def inputs_of(
    model: PrunableModel, layer: Layer, calibration: CalibrationSet, batches: list[Batch] | None = None
) -> Tensor:
    """Everything that the layer reads, [tokens, cols], one sample at a time unless other batches are
    given.
    """
    seen: list[Tensor] = []

    def note(expert: nn.Module, inputs: Tensor) -> None:
        if expert is layer.module:
            seen.append(inputs.to(layer.weight.dtype))

    handle = layer.module.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0].reshape(-1, layer.shape[1]).clone())
    )
    if layer.is_expert:  # as found from the model's own forward pass instead
        handle.remove()
    torch.backends.mha.set_fastpath_enabled(False)  # PyTorch's fused encoder layer would call no layer
    with noting_inputs(model.module, note) if layer.is_expert else nullcontext():
        run(model, calibration, batches)
    torch.backends.mha.set_fastpath_enabled(True)
    handle.remove()
    if layer.is_expert and not seen:  # each column read once, alone
        return torch.eye(layer.shape[1])
    return torch.cat(seen)


def run(model: PrunableModel, calibration: CalibrationSet, batches: list[Batch] | None = None) -> None:
    """Forward passes over the batches, or one sample at a time."""
    for batch in batches or [
        {name: tensor[None] for name, tensor in sample.items()} for sample in calibration.samples
    ]:
        model.loss(batch)


@torch.no_grad()
def prune(
    model: PrunableModel,
    calibration: CalibrationSet,
    prune_layer: PruneLayer,
    keep: dict[str, int],
    batches: list[Batch] | None = None,
) -> dict[str, Tensor]:
    """Prune in place and return the masks [rows, cols]: a layer's inputs come from pruned earlier blocks and
    towers and its own block dense.
    """
    masks = {}
    for tower in model.towers:
        for block in tower.blocks:
            weights = {}
            for layer in block.layers:
                inputs = inputs_of(model, layer, calibration, batches)
                weights[layer], masks[layer.name] = prune_layer(
                    layer.matrix().clone(), inputs, keep[layer.name]
                )
            for layer, weight in weights.items():
                layer.write(weight)
    return masks


@torch.no_grad()
def prune_layer_by_layer(
    model: PrunableModel,
    calibration: CalibrationSet,
    prune_layer: PruneLayer,
    keep: dict[str, int],
    batches: list[Batch] | None = None,
) -> dict[str, Tensor]:
    """Prune in place and return the masks [rows, cols]: a layer's inputs come from the model with everything
    pruned that is called before it.
    """
    masks = {}
    for tower in model.towers:
        for block in tower.blocks:
            dense = set(block.layers)
            while dense:
                layer = next_of(model, block, dense, calibration, batches)
                inputs = inputs_of(model, layer, calibration, batches)
                weight, masks[layer.name] = prune_layer(layer.matrix().clone(), inputs, keep[layer.name])
                layer.write(weight)
                dense.remove(layer)
    return {layer.name: masks[layer.name] for layer in model.layers}


def next_of(
    model: PrunableModel,
    block: Block,
    dense: set[Layer],
    calibration: CalibrationSet,
    batches: list[Batch] | None = None,
) -> Layer:
    """A dense layer that no call of the block reaches behind another dense one."""
    calls: list[list[Layer]] = []
    handles = [block.module.register_forward_pre_hook(lambda *_: calls.append([]))]
    for layer in dense:
        handles.append(
            layer.module.register_forward_pre_hook(lambda *_, layer=layer: calls[-1].append(layer))
        )
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        run(model, calibration, batches)
    torch.backends.mha.set_fastpath_enabled(True)
    for handle in handles:
        handle.remove()
    first = (layer for call in calls for layer in call[:1] if all(layer not in other[1:] for other in calls))
    # An expert that no call reaches may come at any time.
    return next(first, next(layer for layer in block.layers if layer in dense))
