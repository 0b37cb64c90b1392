"""A layer: one prunable weight matrix as [rows, cols] = [outputs, inputs], however its module stores it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from ecoflap.models.core.attention import OpenAttention
from ecoflap.models.core.expert_slices import ExpertSlice, Routed, slices_of

# In the name of a layer of an expert that is a module of its own: ``experts.0.``, or ``experts.expert_0.``.
ROUTED = re.compile(r"(?<!shared_)experts\.(?:expert_)?\d+\.")


@dataclass(frozen=True)
class Layer:
    """One weight matrix inside a block.

    ``nn.Linear`` stores [rows, cols]; GPT-2's ``Conv1D`` stores the transpose. Everything above this class
    sees [rows, cols] only.

    Attributes:
        name: the parameter's name in the model; behind it, of experts that share one, the expert's number.
        module: the module that is called with the matrix's inputs.
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as the module stores it; of experts that share one, a view of this expert's part."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def is_expert(self) -> bool:
        """Whether it is a part of a parameter that experts share."""
        return isinstance(self.module, ExpertSlice)

    @property
    def is_routed(self) -> bool:
        """Whether it is a matrix of an expert, in either layout, and reads only the tokens routed to it."""
        return self.is_expert or ROUTED.search(self.name) is not None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter of the model that the weights are in: the weight itself, or that of all experts."""
        return self.module.whole if isinstance(self.module, ExpertSlice) else self.weight

    @property
    def parameter_name(self) -> str:
        """The name of ``parameter`` in the model."""
        return self.name.rpartition(".")[0] if self.is_expert else self.name

    def part(self, tensor: Tensor) -> Tensor:
        """The layer's part of a tensor of the shape of ``parameter``: a view, as the weight is stored."""
        return self.module.part(tensor) if isinstance(self.module, ExpertSlice) else tensor

    @property
    def expert(self) -> tuple[int, int]:
        """The number of the expert, and how many share the parameter; (0, 1) where none do."""
        return (self.module.index, self.module.experts) if isinstance(self.module, ExpertSlice) else (0, 1)

    @property
    def stage(self) -> tuple[int, bool]:
        """Layers of one stage are called one after the other, and none depends on what another puts out.

        These are the first matrices of all experts of a module, and the second ones; other layers are alone.
        """
        if isinstance(self.module, ExpertSlice):
            return id(self.module.owner[0]), self.module.second
        return id(self.module), False

    @property
    def routed(self) -> Routed | None:
        """The tokens that the present call of an expert reads."""
        return self.module.routed if isinstance(self.module, ExpertSlice) else None

    @property
    def transposed(self) -> bool:
        """Whether the module stores [cols, rows]."""
        if isinstance(self.module, ExpertSlice):
            return self.module.transposed
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

    def before_calls(self, note: Callable[[Tensor], None]) -> RemovableHandle:
        """Pass what each call of the module is about to read to ``note``."""

        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            note(read_by(arguments, keywords))

        return self.module.register_forward_pre_hook(hook, with_kwargs=True)


def read_by(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor:
    """What a call of a layer's module reads: its only argument, by position or by its name."""
    inputs: Tensor = arguments[0] if arguments else next(iter(keywords.values()))
    return inputs


def by_parameter(layers: Sequence[Layer]) -> Iterator[tuple[str, tuple[Layer, ...]]]:
    """The parameters that layers are in, by name, each with its layers: one, or some of its experts."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.parameter_name, []).append(layer)
    yield from ((name, tuple(parts)) for name, parts in found.items())


def whole_mask(layers: Sequence[Layer], masks: Mapping[str, Tensor]) -> Tensor:
    """The mask of the parameter that layers are in, on its device; experts that are not among them are kept.

    Args:
        layers: layers of one parameter.
        masks: {layer: bool mask as the weight is stored}.
    """
    parameter = layers[0].parameter
    if not layers[0].is_expert:
        return masks[layers[0].name].to(parameter.device)
    whole = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
    for layer in layers:
        layer.part(whole).copy_(masks[layer.name])
    return whole


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
        For each parameter name, the module that is called with that matrix's inputs. Of experts that share a
        parameter, the expert's number follows its name.
    """
    if isinstance(module, OpenAttention):
        return dict(module.projections)
    if slices := slices_of(module):
        return dict(slices)
    return {"weight": module} if is_layer(module) else {}
