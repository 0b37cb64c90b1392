"""Pruning the slow and obvious way: one layer at a time, each with plain forward passes of the whole model,
one sample at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

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


@torch.no_grad()
def plain_passes(
    model: PrunableModel, calibration: CalibrationSet, batches: list[Batch] | None = None
) -> None:
    """Forward passes of the whole model, one sample at a time unless other batches are given."""
    torch.backends.mha.set_fastpath_enabled(False)  # PyTorch's fused encoder layer would call no layer
    for batch in batches or [
        {name: tensor[None] for name, tensor in sample.items()} for sample in calibration.samples
    ]:
        model.loss(batch)
    torch.backends.mha.set_fastpath_enabled(True)


def inputs_of_each(
    model: PrunableModel,
    layers: Sequence[Layer],
    calibration: CalibrationSet,
    batches: list[Batch] | None = None,
) -> dict[Layer, Tensor]:
    """Everything that each of the layers reads in the same plain passes, [tokens, cols].

    What experts read is found from the model's own forward pass; one that reads nothing counts as if it had
    read each column once, alone.
    """
    seen: dict[nn.Module, list[Tensor]] = {layer.module: [] for layer in layers}
    of = {layer.module: layer for layer in layers}

    def note(module: nn.Module, inputs: Tensor) -> None:
        if module in seen:
            cols, dtype = of[module].shape[1], of[module].weight.dtype
            seen[module].append(inputs.reshape(-1, cols).to(dtype, copy=True))

    experts = [layer for layer in layers if layer.is_expert]
    handles = [
        layer.module.register_forward_pre_hook(lambda module, arguments: note(module, arguments[0]))
        for layer in layers
        if not layer.is_expert
    ]
    with noting_inputs(model.module, note) if experts else nullcontext():
        plain_passes(model, calibration, batches)
    for handle in handles:
        handle.remove()
    return {
        layer: torch.cat(seen[layer.module]) if seen[layer.module] else torch.eye(layer.shape[1])
        for layer in layers
        if seen[layer.module] or layer.is_expert
    }


def inputs_of(
    model: PrunableModel, layer: Layer, calibration: CalibrationSet, batches: list[Batch] | None = None
) -> Tensor:
    """Everything that the layer reads in plain passes, [tokens, cols]."""
    return inputs_of_each(model, [layer], calibration, batches)[layer]


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
            for layer, inputs in inputs_of_each(model, block.layers, calibration, batches).items():
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
            dense = list(block.layers)
            while dense:
                with calls_of(block, dense) as calls:
                    if any(layer.is_expert for layer in dense):  # their modules are called in other passes
                        plain_passes(model, calibration, batches)
                    else:
                        inputs = inputs_of_each(model, dense, calibration, batches)
                layer = first_of(calls) or dense[0]  # an expert that no call reaches may come at any time
                if any(layer.is_expert for layer in dense):
                    inputs = inputs_of_each(model, [layer], calibration, batches)
                weight, masks[layer.name] = prune_layer(
                    layer.matrix().clone(), inputs[layer], keep[layer.name]
                )
                layer.write(weight)
                dense.remove(layer)
    return {layer.name: masks[layer.name] for layer in model.layers}


@contextmanager
def calls_of(block: Block, layers: Iterable[Layer]) -> Iterator[list[list[Layer]]]:
    """Which of the layers each call of the block reaches meanwhile, in order."""
    calls: list[list[Layer]] = []
    handles = [block.module.register_forward_pre_hook(lambda *_: calls.append([]))]
    for layer in layers:
        handles.append(
            layer.module.register_forward_pre_hook(lambda *_, layer=layer: calls[-1].append(layer))
        )
    yield calls
    for handle in handles:
        handle.remove()


def first_of(calls: list[list[Layer]]) -> Layer | None:
    """A layer that no call reaches behind another one; None if no call reaches any."""
    return next(
        (layer for call in calls for layer in call[:1] if all(layer not in other[1:] for other in calls)),
        None,
    )
