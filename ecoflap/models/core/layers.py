"""A layer: one prunable weight matrix as [rows, cols] = [outputs, inputs], however its module stores it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ecoflap.models.core.attention import OpenAttention


@dataclass(frozen=True)
class Layer:
    """One weight matrix inside a block.

    ``nn.Linear`` stores [rows, cols]; GPT-2's ``Conv1D`` stores the transpose. Everything above this class
    sees [rows, cols] only.

    Attributes:
        name: the parameter's name in the model.
        module: the module that is called with the matrix's inputs.
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
        """Convert a tensor between the stored orientation and [rows, cols], in either direction."""
        return stored.t() if self.transposed else stored

    @torch.no_grad()
    def write(self, matrix: Tensor) -> None:
        """Replace the weights by ``matrix`` [rows, cols], cast to the stored dtype."""
        self.weight.copy_(self.oriented(matrix))


# Classes that override ``forward`` and still compute the plain product.
PLAIN = ("transformers.models.falcon.modeling_falcon.FalconLinear", "timm.layers.linear.Linear")


def is_layer(module: nn.Module) -> bool:
    """Whether a module holds one weight matrix and returns the product with it, as pruners assume."""
    has_weight = isinstance(getattr(module, "weight", None), nn.Parameter)
    return is_linear(module) and is_plain(module) and has_weight


def is_linear(module: nn.Module) -> bool:
    """Whether a module is of a linear class, whatever its ``forward`` computes."""
    return isinstance(module, nn.Linear | Conv1D)


def is_plain(module: nn.Module) -> bool:
    """Whether the ``forward`` of a linear class is the plain product.

    A ``forward`` set on the instance, such as an offloading hook, is assumed to call that of the class.
    """
    kind = type(module)
    known = kind.forward in (nn.Linear.forward, Conv1D.forward)
    return known or f"{kind.__module__}.{kind.__qualname__}" in PLAIN


def weights_of(module: nn.Module) -> dict[str, nn.Module]:
    """The prunable matrices that a module itself owns.

    Returns:
        For each parameter name, the module that is called with that matrix's inputs.
    """
    if isinstance(module, OpenAttention):
        return dict(module.projections)
    return {"weight": module} if is_layer(module) else {}
