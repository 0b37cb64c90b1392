"""A layer: one prunable weight matrix, seen as [rows, cols] = [outputs, inputs] however its module stores
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ecoflap.models.core.attention import OpenAttention


@dataclass(frozen=True)
class Layer:
    """One weight matrix inside a block, named by its parameter name.

    ``nn.Linear`` stores [rows, cols]; GPT-2's ``Conv1D`` stores the transpose. Everything above this class
    sees [rows, cols] only.
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as the module stores it."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def transposed(self) -> bool:
        """Whether the module stores [cols, rows]."""
        return isinstance(self.module, Conv1D)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        first, second = self.weight.shape
        return (second, first) if self.transposed else (first, second)

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weight.numel()

    def matrix(self) -> Tensor:
        """A view of the weights, [rows, cols], without gradient."""
        return self.oriented(self.weight.detach())

    def oriented(self, stored: Tensor) -> Tensor:
        """Turn a tensor between the stored orientation and [rows, cols]; its own inverse."""
        return stored.t() if self.transposed else stored

    @torch.no_grad()
    def write(self, matrix: Tensor) -> None:
        """Replace the weights by ``matrix`` [rows, cols], cast to the stored dtype."""
        self.weight.copy_(self.oriented(matrix))


# Classes with a ``forward`` of their own that is the plain product all the same.
PLAIN = ("transformers.models.falcon.modeling_falcon.FalconLinear", "timm.layers.linear.Linear")


def is_layer(module: nn.Module) -> bool:
    """Whether the module holds one weight matrix and puts out the product with it, which a pruner
    understands.
    """
    return (
        is_linear(module) and is_plain(module) and isinstance(getattr(module, "weight", None), nn.Parameter)
    )


def is_linear(module: nn.Module) -> bool:
    """Whether the module is of a linear class, whatever its ``forward`` makes of the weights."""
    return isinstance(module, nn.Linear | Conv1D)


def is_plain(module: nn.Module) -> bool:
    """Whether the ``forward`` of a linear class is the plain product.

    What is set on an instance, such as an offloader's hook, is taken to run the class's.
    """
    kind = type(module)
    known = kind.forward in (nn.Linear.forward, Conv1D.forward)
    return known or f"{kind.__module__}.{kind.__qualname__}" in PLAIN


def weights_of(module: nn.Module) -> dict[str, nn.Module]:
    """The prunable matrices that a module itself owns: {parameter: the module that is called with that
    matrix's inputs}.
    """
    if isinstance(module, OpenAttention):
        return dict(module.projections)
    return {"weight": module} if is_layer(module) else {}
