"""Refuse layers whose weights lie in the memory of another parameter: pruning one would change the other.

One parameter in several places is tied, and is one layer. Two parameters over the same numbers look like two
layers, and would be pruned one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer


def refuse_shared_memory(module: nn.Module, layers: Iterable[Layer]) -> None:
    """Refuse layers in the memory of another parameter; parts of one tensor that lie apart are taken.

    Args:
        module: the model.
        layers: its layers to prune.

    Raises:
        UserError: if there is one.
    """
    pruned = {id(layer.parameter) for layer in layers}
    spans = sorted(
        (parameter.data_ptr(), name, parameter)
        for name, parameter in module.named_parameters()
        if parameter.numel() and parameter.data_ptr()  # not on the meta device
    )
    reaching: list[tuple[str, nn.Parameter]] = []  # to the present one, or behind it
    for start, name, parameter in spans:
        reaching = [(other, before) for other, before in reaching if _end(before) > start]
        for other, before in reaching:
            if not pruned.isdisjoint((id(parameter), id(before))) and share_memory(before, parameter):
                raise UserError(
                    f"{other} and {name} are two parameters in the same memory, so pruning one would change"
                    " the other; give each a .clone() of its own, or leave them dense with skip_layers"
                )
        reaching.append((name, parameter))


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype have a number in the same place of one device."""
    if not (one.data_ptr() and other.data_ptr()) or (one.dtype, one.device) != (other.dtype, other.device):
        return False
    start, end = min(one.data_ptr(), other.data_ptr()), max(_end(one), _end(other))
    if end - start >= _span(one) + _span(other):
        return False
    size = one.element_size()
    taken = torch.zeros((end - start) // size, dtype=torch.bool, device="cpu")
    taken.as_strided(one.shape, one.stride(), (one.data_ptr() - start) // size).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), (other.data_ptr() - start) // size).any())


def _end(tensor: Tensor) -> int:
    """The address behind its last number."""
    return tensor.data_ptr() + _span(tensor)


def _span(tensor: Tensor) -> int:
    """Bytes from its first number to behind its last one."""
    steps = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()
