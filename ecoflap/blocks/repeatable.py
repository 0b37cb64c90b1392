"""Copies of a batch in one pass, and the modules outside the blocks whose outputs can be copied as well."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch, first_samples
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.prunable import PrunableModel


def repeatable_modules(model: PrunableModel, batch: Batch) -> list[nn.Module]:
    """The modules outside the blocks whose outputs can be stored and repeated like a block's.

    They run before some block, and their outputs for two copies of a batch are twice those for one:
    embeddings, projections. Others, such as positions that all samples share, run in every pass.
    """
    batch = first_samples(batch, 2)
    blocks = {block.module for block in model.blocks}
    outside = _outside(model.module, blocks)
    once, twice = (_calls(model, repeated(batch, copies), copies, (*blocks, *outside)) for copies in (1, 2))
    for calls in (once, twice):
        while calls and calls[-1][0] not in blocks:  # logits, for one
            calls.pop()
    if [module for module, _ in once] != [module for module, _ in twice]:
        return []
    others = {module for (module, one), (_, two) in zip(once, twice, strict=True) if not _is_twice(one, two)}
    return [module for module in dict.fromkeys(module for module, _ in once) if module not in blocks | others]


@torch.no_grad()
def _calls(
    model: PrunableModel, batch: Batch, copies: int, modules: Iterable[nn.Module]
) -> list[tuple[nn.Module, Any]]:
    """The calls of some modules during a forward pass, in order, with their outputs."""
    calls: list[tuple[nn.Module, Any]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        calls.append((module, output))

    with hooks(module.register_forward_hook(note) for module in modules):
        model.loss(batch, copies)
    return calls


def _outside(module: nn.Module, blocks: Collection[nn.Module]) -> list[nn.Module]:
    """The largest modules that contain no block."""
    if module in blocks:
        return []
    if not any(child in blocks for child in module.modules()):
        return [module]
    return [found for child in module.children() for found in _outside(child, blocks)]


def _is_twice(one: Any, two: Any) -> bool:
    """Whether an output for two copies of a batch is twice that for one, up to rounding."""
    if not isinstance(one, Tensor) or not isinstance(two, Tensor) or not one.ndim:
        return False
    if two.shape != (2 * one.shape[0], *one.shape[1:]):
        return False
    scale = float(one.abs().max()) if one.numel() else 0.0
    return math.isfinite(scale) and torch.allclose(two, repeat(one, 2), rtol=1e-3, atol=1e-3 * scale)


def repeated(batch: Batch, copies: int) -> Batch:
    """Copies of a batch, one after the other."""
    return {name: repeat(tensor, copies) for name, tensor in batch.items()}


def repeat(tensor: Tensor, copies: int) -> Tensor:
    """Copies of a tensor, one after the other along its first dimension."""
    return tensor.repeat(copies, *[1] * (tensor.ndim - 1)) if copies > 1 else tensor
