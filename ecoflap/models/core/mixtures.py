"""Mixtures of experts whose experts can be removed physically, with their rows of the router.

A mixture is a module that holds experts of transformers' interface and a router, ``gate`` or ``router``,
whose weight has a row per expert. Whatever the router owns beside it, a bias or a correction of the choice,
has an entry per expert as well. A router without the removed rows chooses as one whose logits are -inf there,
so removing experts is the same as never choosing them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.core.expert_slices import ExpertSlice, slices_of
from ecoflap.models.core.experts import open_experts, reads_choices
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel

ROUTERS = ("gate", "router")
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names of the number of experts in configs and modules."""


@dataclass(frozen=True)
class Mixture:
    """The experts and the router of one block.

    Attributes:
        name: path of the experts in the model.
        parent: the module that holds both.
        router: chooses the experts of each token.
        experts: the opened experts.
        count: number of experts.
        top_k: how many experts each token reaches.
        groups: number of groups of consecutive experts, of equal size; the router chooses groups first.
        chosen_groups: how many groups each token may reach.
    """

    name: str
    parent: nn.Module
    router: nn.Module
    experts: nn.Module
    count: int
    top_k: int
    groups: int
    chosen_groups: int

    @property
    def cost(self) -> int:
        """Number of prunable weights that one expert takes."""
        return sum(one.weight.numel() for one in slices_of(self.experts).values()) // self.count

    @property
    def least(self) -> int:
        """The fewest experts that the router can choose from; with groups, it compares their best two."""
        if self.groups == 1:
            return self.top_k
        return self.groups * max(2, math.ceil(self.top_k / self.chosen_groups))

    def cut(self, keep: Tensor) -> None:
        """Remove all experts but those at the indices ``keep`` [kept], in ascending order."""
        for one in slices_of(self.experts).values():
            one.release()  # or the memory of all experts would stay until the last mixture is cut
        for module in (self.router, self.experts):
            for owner, name in [one[:2] for one in _owned(module)]:
                tensor = getattr(owner, name)  # which frees the one before
                part = tensor.detach()[keep.to(tensor.device)]
                if isinstance(tensor, nn.Parameter):
                    part = nn.Parameter(part, requires_grad=tensor.requires_grad)
                setattr(owner, name, part)
        for module in (self.parent, *self.router.modules(), self.experts):
            _set_count(module, self.count, len(keep))
        open_experts(self.experts, again=True)


def find_mixtures(model: PrunableModel) -> list[Mixture]:
    """The mixtures of experts of a model.

    Raises:
        UserError: if there are none, a router is of another kind, the mixtures differ in their number of
            experts, or only a part of them is to be pruned.
    """
    found = []
    for path, parent in model.module.named_modules():
        for name, child in parent.named_children():
            if slices_of(child):
                found.append(_mixture(f"{path}.{name}".lstrip("."), parent, child))
    if not found:
        raise _refused("the model has no experts that share parameters, as they do since transformers 5")
    first, chosen = found[0], {id(layer.module) for layer in model.layers}
    for one in found:
        if (one.count, one.groups, one.least) != (first.count, first.groups, first.least):
            raise _refused(f"{one.name} has other numbers of experts than {first.name}")
        if any(id(part) not in chosen for part in slices_of(one.experts).values()):
            raise _refused(f"towers or skip_layers leave out experts of {one.name}")
    if not list(_configs(model.module, first.count)):
        raise _refused(f"the model's config has none of {', '.join(COUNTS)} with the value {first.count}")
    return found


def cut_experts(model: PrunableModel, mixtures: Sequence[Mixture], keep: Sequence[Tensor]) -> None:
    """Remove experts of each mixture, in the model, its config and its layers.

    Experts that stay are numbered anew, so that the layers are those of the saved model when it is loaded.

    Args:
        model: the model.
        mixtures: all of its mixtures.
        keep: the experts that stay in each, as many everywhere, [kept] in ascending order.
    """
    count = mixtures[0].count
    for one, indices in zip(mixtures, keep, strict=True):
        one.cut(indices)
    for config in list(_configs(model.module, count)):
        _set_count(config, count, len(keep[0]))
    _set_count(model.module, count, len(keep[0]))
    cut = {id(one.experts): slices_of(one.experts) for one in mixtures}
    blocks = [block for tower in (*model.every_tower, *model.towers) for block in tower.blocks]
    for block in blocks:
        block.layers = tuple(_remaining(block.layers, cut))
    parameters = dict(model.module.named_parameters())
    inside = {
        id(tensor) for one in mixtures for part in (one.router, one.experts) for tensor in part.parameters()
    }
    for skipped in model.skipped:
        if id(parameters[skipped.name]) in inside:
            skipped.size = parameters[skipped.name].numel()


def _remaining(layers: Sequence[Layer], cut: Mapping[int, Mapping[str, ExpertSlice]]) -> Iterator[Layer]:
    """The layers of a block, of cut experts those whose number is still in use, with their new slices."""
    for layer in layers:
        part = layer.module
        if not isinstance(part, ExpertSlice) or id(part.owner[0]) not in cut:
            yield layer
        elif (left := cut[id(part.owner[0])].get(f"{part.parameter}.{part.index}")) is not None:
            yield Layer(layer.name, left)


def _mixture(name: str, parent: nn.Module, experts: Any) -> Mixture:
    """The mixture of experts that are children of a module.

    Raises:
        UserError: if they are not called with each token's choices, or their router is of another kind.
    """
    router: Any = next((child for key, child in parent.named_children() if key in ROUTERS), None)
    weight = getattr(router, "weight", None)
    if not reads_choices(experts) or getattr(experts, "has_post_expert_norm", False):
        raise _refused(f"{name} ({type(experts).__name__}) are not plain experts of transformers' interface")
    count = len(next(iter(experts.parameters())))
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or isinstance(router, nn.Linear):
        raise _refused(f"no router with a weight [experts, features] is beside {name}")
    for part in (router, experts):
        for _, key, tensor in _owned(part):
            if not tensor.ndim or len(tensor) != count:
                raise _refused(f"{key} of {type(part).__name__} beside {name} has no entry per expert")
    _require_nothing_else(name, parent, router, experts, count)
    grouped = getattr(router, "topk_method", None) != "greedy"
    groups = (getattr(router, "num_group", None) or getattr(router, "n_group", None) or 1) if grouped else 1
    top_k = getattr(router, "top_k", None) or getattr(parent, "top_k", None)
    if top_k is None:
        raise _refused(f"neither the router beside {name} nor what holds it says how many experts it chooses")
    chosen = getattr(router, "topk_group", None) or groups
    return Mixture(name, parent, router, experts, count, int(top_k), int(groups), int(chosen))


def _require_nothing_else(
    name: str, parent: nn.Module, router: nn.Module, experts: nn.Module, count: int
) -> None:
    """Refuse other tensors with an entry per expert, which only the model's own code could interpret.

    Raises:
        UserError: if the module that holds router and experts, or a child of it that is not a linear layer,
            has such a tensor.
    """
    known = {id(tensor) for part in (router, experts) for _, _, tensor in _owned(part)}
    for owner, key, tensor in _owned(parent):
        if id(tensor) not in known and not isinstance(owner, nn.Linear) and count in tensor.shape:
            raise _refused(f"{key} of {type(owner).__name__} beside {name} may have an entry per expert")


def _owned(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """(owner, name, tensor) of every parameter and buffer in a module."""
    for owner in module.modules():
        for name, tensor in (
            *owner.named_parameters(recurse=False),
            *owner.named_buffers(recurse=False),
        ):
            yield owner, name, tensor


def _configs(module: Any, count: int) -> Iterator[Any]:
    """The model's config and that of its language model, as far as they have the number of experts."""
    config = module.config
    found = {id(one): one for one in (config, config.get_text_config())}
    yield from (one for one in found.values() if any(getattr(one, name, None) == count for name in COUNTS))


def _set_count(holder: Any, count: int, kept: int) -> None:
    """Set the number of experts wherever a module or config has it."""
    for name in COUNTS:
        if getattr(holder, name, None) == count:
            setattr(holder, name, kept)


def _refused(found: str) -> UserError:
    return UserError(
        f"whole experts can be removed where a plain router chooses among experts that share parameters, and"
        f" {found}; choose another pruner, such as wanda"
    )
