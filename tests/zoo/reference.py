"""Statistics, masks and scores the slow and obvious way.

Plain forward passes of the whole model, weights moved for real, plain autograd: nothing here runs a block by
itself, replays one, or leaves one out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch, Sample
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import gaussian, inverse_factor, sparsegpt_solve
from tests.experts import as_published, noting_inputs
from tests.ops import reference as ops


@torch.no_grad()
def grams(model: PrunableModel, layers: Sequence[Layer], samples: Iterable[Sample]) -> dict[Layer, Tensor]:
    """Mean of x x^T of what each layer reads, [cols, cols], fp64; no entry for a layer that never runs.

    An expert that no token reaches counts as if each column had been read once, alone.
    """
    seen: dict[Layer, list[Tensor]] = {}

    def reading(layer: Layer) -> Any:
        def hook(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            inputs = arguments[0] if arguments else keywords["input"]
            seen.setdefault(layer, []).append(inputs.detach().reshape(-1, layer.shape[1]).double())

        return hook

    by_module = {layer.module: layer for layer in layers}

    def note(expert: nn.Module, inputs: Tensor) -> None:
        if expert in by_module:
            seen.setdefault(by_module[expert], []).append(inputs)

    plain = [layer for layer in layers if not layer.is_expert]
    handles = [layer.module.register_forward_pre_hook(reading(layer), with_kwargs=True) for layer in plain]
    with noting_inputs(model.module, note):
        for sample in samples:
            model.loss({name: tensor[None] for name, tensor in sample.items()})
    for handle in handles:
        handle.remove()
    for layer in layers:
        if layer.is_expert and layer not in seen:
            seen[layer] = [torch.eye(layer.shape[1], dtype=torch.float64)]
    inputs = {layer: torch.cat(parts) for layer, parts in seen.items()}
    return {layer: rows.t() @ rows / max(len(rows), 1) for layer, rows in inputs.items()}


def wanda_mask(weight: Tensor, gram: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """(mask, metric): |w| times the norm of its input column, the highest of each row."""
    metric = weight.double().abs() * gram.diagonal().sqrt()
    return ops.row_mask(metric, keep), metric


def sparsegpt(weight: Tensor, gram: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """(weight, mask) of the package's solver, which is tested elsewhere, on inputs that were gathered
    here.
    """
    solution = sparsegpt_solve([weight], inverse_factor(gram.float(), 0.01), [keep], "matrix")[0]
    return solution.weight, solution.mask


@torch.no_grad()
def zeroth_order(model: PrunableModel, batch: Batch, eps: float, seed: int) -> dict[str, float]:
    """|L(W + eps z) - L(W - eps z)| / 2 eps of each layer, with its weight moved."""
    with as_published(model.module):
        return _moved(model, batch, eps, seed)


def _moved(model: PrunableModel, batch: Batch, eps: float, seed: int) -> dict[str, float]:
    scores = {}
    for layer in model.layers:
        dense = layer.matrix().clone()
        step = eps * gaussian(layer.shape, "zeroth_order", seed, 0, layer.name, 0)
        losses = []
        for moved in (dense + step, dense - step):
            layer.write(moved)
            losses.append(float(model.loss(batch).double().mean()))
        layer.write(dense)
        scores[layer.name] = abs(losses[0] - losses[1]) / (2 * eps)
    return scores


def first_order(model: PrunableModel, batch: Batch) -> dict[str, float]:
    """The sum of the absolute gradient of each layer; 0 where the loss doesn't depend on it."""
    return {name: float(gradient.abs().sum()) for name, gradient in gradients(model, batch).items()}


def gradients(model: PrunableModel, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the mean loss for each layer, [rows, cols]; 0 where the loss doesn't depend on it."""
    with as_published(model.module):
        weights = {id(layer.parameter): layer.parameter.requires_grad_(True) for layer in model.layers}
        found = torch.autograd.grad(model.loss(batch).mean(), list(weights.values()), allow_unused=True)
    of = dict(zip(weights, found, strict=True))
    return {
        layer.name: torch.zeros(layer.shape)
        if (gradient := of[id(layer.parameter)]) is None
        else layer.oriented(layer.part(gradient))
        for layer in model.layers
    }
