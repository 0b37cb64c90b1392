"""Train only the weights that a mask keeps.

A pruned weight matrix is replaced by the vector of its kept values, from which it is built whenever it is
read. Removed weights then have no storage of their own: no optimiser can change them, decay them or hold a
state for them, and no file of the training can hold anything but zero there.

This is exact for every optimiser that treats weights one by one (SGD, Adam, AdamW, Lion), which does what it
would do to the whole matrix with a masked gradient. Optimisers that use the rows and columns of a matrix
(Adafactor's factored moments, Shampoo, Muon) treat it as a vector here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ecoflap.models.core.layers import Layer, by_parameter, whole_mask


class MaskedParameter(nn.Module):
    """Builds a matrix, zero where the mask is not set, from the vector of its kept values."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        """``mask``: bool, as the parameter is stored, True where a weight is kept."""
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Values [kept] -> the weights, in the mask's shape."""
        if hasattr(values, "full_tensor"):  # a shard, where the model looks at a weight before its block runs
            values = values.full_tensor()
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weights, in the mask's shape -> their kept values, [kept]."""
        return weight[self.mask]


@contextmanager
def masked_parameters(module: nn.Module, layers: list[Layer], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace each masked weight of a module by the vector of its kept values, and restore it afterwards.

    The restored weight is the same parameter object.

    Args:
        module: the whole model, in which a weight may have several owners.
        layers: the layers whose weights are replaced.
        masks: {layer: bool mask as the parameter is stored}.
    """
    held = [(parts[0].parameter, whole_mask(parts, masks)) for _, parts in by_parameter(layers)]
    with vectors(module, held):
        yield


@contextmanager
def vectors(module: nn.Module, held: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Replace parameters of a module by the vectors of what their masks keep, and restore them afterwards.

    Args:
        module: the whole model, in which a parameter may have several owners.
        held: each parameter with its mask, bool, of the same shape.
    """
    owners = _owners(module, [weight for weight, _ in held])
    orders = {owner: list(owner._parameters) for known in owners.values() for owner, _ in known}
    for weight, mask in held:
        dense = weight.detach().clone()
        for owner, name in owners[id(weight)]:
            weight.data = dense  # the first owner's turn has made it a vector
            parametrize.register_parametrization(owner, name, MaskedParameter(mask))
    try:
        yield
    finally:
        for weight, mask in held:
            dense = MaskedParameter(mask)(weight.detach())
            for owner, name in owners[id(weight)]:
                parametrize.remove_parametrizations(owner, name, leave_parametrized=False)
                _reorder(owner, orders[owner])
            weight.data, weight.grad = dense, None


def _owners(module: nn.Module, weights: list[nn.Parameter]) -> dict[int, list[tuple[nn.Module, str]]]:
    """{id of a weight: (module, name) of all modules that own it as a parameter}."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {id(weight): [] for weight in weights}
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if id(parameter) in owners:
                owners[id(parameter)].append((child, name))
    return owners


def _reorder(owner: nn.Module, names: list[str]) -> None:
    """Restore the order of a module's parameters, which files and hashes depend on."""
    for name in names:
        if name in owner._parameters:  # others of the module may not be restored yet
            owner._parameters[name] = owner._parameters.pop(name)


def count_trained(module: nn.Module) -> int:
    """Number of values that an optimiser would change."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
