"""Report which weights of a model are left dense, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ecoflap.models.core.layers import Layer, is_linear, is_plain, weights_of
from ecoflap.models.core.routers import selecting
from ecoflap.models.core.towers import Tower

MATCHED = "matches skip_layers"


@dataclass
class Skipped:
    """A weight of two or more dimensions that is not pruned, or not in all of its experts.

    Attributes:
        name: the parameter's name in the model.
        size: number of weights that are not pruned.
        reason: why it is not pruned.
    """

    name: str
    size: int
    reason: str


def skipped_weights(module: nn.Module, every: Sequence[Tower], chosen: Sequence[Tower]) -> list[Skipped]:
    """Each weight of two or more dimensions that is not pruned, with the reason.

    Args:
        module: the model.
        every: all of its towers.
        chosen: the towers to prune, without skipped layers.
    """
    pruned, of_layers = Counter[int](), Counter[int]()
    for sizes, towers in ((pruned, chosen), (of_layers, every)):
        for layer in (layer for tower in towers for layer in tower.layers):
            sizes[id(layer.parameter)] += layer.size
    tower_of = {id(layer.parameter): tower.name for tower in every for layer in tower.layers}
    chosen_names = {tower.name for tower in chosen}
    of_selecting = selecting(module)
    owners: dict[int, nn.Module] = {}
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            owners.setdefault(id(parameter), child)
    result = []
    for name, parameter in module.named_parameters():
        size = parameter.numel() - pruned[id(parameter)]
        if parameter.ndim < 2 or not size:
            continue
        tower, owner = tower_of.get(id(parameter)), owners[id(parameter)]
        if size < parameter.numel() and pruned[id(parameter)] == of_layers[id(parameter)]:
            reason = "experts that compute nothing"
        elif tower is not None:
            reason = MATCHED if tower in chosen_names else f"tower {tower} is left dense"
        else:
            reason = of_selecting.get(owner) or _no_layer(name, parameter, owner)
        result.append(Skipped(name, size, reason))
    return result


def _no_layer(name: str, parameter: nn.Parameter, owner: nn.Module) -> str:
    """Why a weight is not a layer of any tower.

    Args:
        name: the parameter's name in the model.
        parameter: the weight.
        owner: the module that it is a parameter of.
    """
    kind = type(owner).__name__
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "convolution"
    if is_linear(owner) and not is_plain(owner):
        return f"forward of {kind} isn't the plain product"
    if any(Layer(name, reader).parameter is parameter for reader in weights_of(owner).values()):
        return "outside the blocks"
    if name.endswith("_bias"):
        return "biases of experts"
    if parameter.ndim == 3 and "expert" in f"{name} {kind}".lower():
        return "experts in one 3-D tensor"
    return f"parameter of {kind}"
