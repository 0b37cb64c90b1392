"""Train only the weights that a mask keeps.

A pruned weight matrix is replaced by the vector of its kept values, from which it is built whenever it is
read. Removed weights then have no storage of their own: no optimiser can change them, decay them or hold a
state for them, and no file of the training can hold anything but zero there.

This is exact for every optimiser that treats weights one by one (SGD, Adam, AdamW, Lion), which does what it
would do to the whole matrix with a masked gradient. Optimisers that use the rows and columns of a matrix
(Adafactor's factored moments, Shampoo, Muon) treat it as a vector here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

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
        values = gathered_whole(values)
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
    try:
        with parametrized(module, [(weight, partial(MaskedParameter, mask)) for weight, mask in held]):
            yield
    finally:
        for weight, mask in held:
            weight.data, weight.grad = MaskedParameter(mask)(weight.detach()), None


@contextmanager
def parametrized(
    module: nn.Module, made: Sequence[tuple[nn.Parameter, Callable[[], nn.Module]]]
) -> Iterator[None]:
    """Compute parameters of a module from others whenever they are read, and own them as before afterwards.

    Args:
        module: the whole model, in which a parameter may have several owners.
        made: each parameter, and what makes its parametrization for one owner.
    """
    owners = _owners(module, [weight for weight, _ in made])
    orders = {owner: list(owner._parameters) for known in owners.values() for owner, _ in known}
    for weight, parametrization in made:
        dense = weight.detach().clone()
        for owner, name in owners[id(weight)]:
            weight.data = dense  # the first owner's turn may have changed its shape
            parametrize.register_parametrization(owner, name, parametrization())
    try:
        yield
    finally:
        for weight, _ in made:
            for owner, name in owners[id(weight)]:
                parametrize.remove_parametrizations(owner, name, leave_parametrized=False)
                _reorder(owner, orders[owner])


def gathered_whole(values: Tensor) -> Tensor:
    """Gather a shard, which the model meets where it looks at a weight before its block runs."""
    whole: Tensor = values.full_tensor() if hasattr(values, "full_tensor") else values
    return whole


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
