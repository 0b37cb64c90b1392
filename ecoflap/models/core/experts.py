"""Experts that share one parameter, as modules of their own, so that each of their matrices is a layer.

Since its fifth release, transformers stores the experts of a layer together: ``gate_up_proj`` [experts, 2 x
hidden units, features] and ``down_proj`` [experts, features, hidden units]. Its forward passes read these
parameters whole, where no hook sees what an expert reads. Those of ``expert_forwards`` compute the same,
expert by expert, with a module that is called for each matrix. They replace those of existing modules in
place; parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ecoflap.models.core.expert_forwards import dbrx, ergo, interface, llama4, longcat, parallel
from ecoflap.models.core.expert_slices import OPENED, ExpertSlice

SHARED_SINCE = 5  # release of transformers


class Opening(NamedTuple):
    """What turns experts into modules.

    Attributes:
        module: the module that holds the experts.
        forward: its forward pass from then on.
        slices: the slices of each of its parameters.
    """

    module: nn.Module
    forward: Callable[..., Tensor]
    slices: dict[str, list[ExpertSlice]]

    def apply(self) -> None:
        """Open the module, unless it is open."""
        if OPENED not in vars(self.module):
            vars(self.module)[OPENED] = self.slices
            # A partial, as a bound method is pickled by its name, which the class doesn't have.
            self.module.forward = partial(_forward, self.forward, self.module)  # type: ignore[method-assign]


def reads_choices(module: nn.Module) -> bool:
    """Whether opened experts read tokens, the experts of each and their weights: transformers' interface."""
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and interface in forward.args


def open_experts(module: nn.Module, again: bool = False) -> None:
    """Make experts that share a parameter call a module for each of their matrices, in place.

    These are the classes of transformers that compute through its interface for experts, and those of
    Llama 4, DBRX, LongCat-Flash and JetMoE. Before its fifth release, nearly all experts are modules already,
    and nothing is done.

    Args:
        module: the model, or a part of it.
        again: whether open experts get new slices, for parameters of other shapes.
    """
    if int(transformers.__version__.split(".")[0]) < SHARED_SINCE:
        return
    for child in list(module.modules()):
        if again and vars(child).pop(OPENED, None) is not None:
            del child.forward
        if OPENED not in vars(child) and (found := _opening(child)) is not None:
            opening = Opening(child, *found)
            for one in chain(*opening.slices.values()):
                one.opened = (opening,)
            opening.apply()


def reopen(slices: Iterable[ExpertSlice]) -> None:
    """Open the experts that slices were made for again, where their modules have been restored since."""
    for one in slices:
        for opening in one.opened:
            opening.apply()


def _opening(module: Any) -> tuple[Callable[..., Any], dict[str, list[ExpertSlice]]] | None:
    """The forward pass that opens a module, and its slices; None if no experts of it share a parameter."""
    kind, both = type(module).__name__, ("gate_up_proj", "down_proj")
    if kind == "Llama4TextExperts":
        return llama4, _slices(module, both, module.num_experts, (True, True))
    if kind == "DbrxExperts":
        slices = _slices(module.mlp, ("w1", "v1", "w2"), module.num_experts, (False, False, True))
        return dbrx, {f"mlp.{name}": found for name, found in slices.items()}
    if kind == "LongcatFlashExperts" and getattr(module, "num_routed_experts", None):  # until 5.24
        return longcat, _slices(module, both, module.num_routed_experts, (False, False))
    if kind.endswith("ParallelExperts"):
        return parallel, _slices(module, ("weight",), module.num_experts, (False,))
    if kind == "ErgoExperts":
        return ergo, _slices(module, ("up_proj", "down_proj"), module.num_experts, (True, True))
    if not hasattr(module, "_apply_gate") or not _computes_through_interface(type(module)):
        return None
    names = ("gate_up_proj" if getattr(module, "has_gate", True) else "up_proj", "down_proj")
    if any(getattr(module, name, None) is None or getattr(module, name).ndim != 3 for name in names):
        return None
    transposed = getattr(module, "is_transposed", False)
    return interface, _slices(module, names, module.num_experts, (transposed, transposed))


def _computes_through_interface(kind: type[nn.Module]) -> bool:
    """Whether the forward pass of a class is that of transformers' interface, and not its own around it."""
    owner: Any = next(one for one in kind.__mro__ if "forward" in vars(one))
    return hasattr(owner.forward, "__wrapped__") or "_apply_gate" in vars(owner)


def _slices(
    owner: nn.Module, names: Sequence[str], experts: int, transposed: Sequence[bool]
) -> dict[str, list[ExpertSlice]]:
    """The slices of some parameters, of which the last one reads hidden units."""
    found: dict[str, list[ExpertSlice]] = {}
    for name, flag in zip(names, transposed, strict=True):
        shape = getattr(owner, name).shape
        parts = shape[0] if len(shape) == 3 else experts
        found[name] = [
            ExpertSlice(owner, name, index, parts, flag, name == names[-1]) for index in range(experts)
        ]
    return found


def _are_trained(module: nn.Module) -> bool:
    """Whether gradients must reach the parameters themselves, which slices would keep them from."""
    opened: dict[str, list[ExpertSlice]] = vars(module)[OPENED]
    for first, *_ in opened.values():
        if parametrize.is_parametrized(first.owner[0], first.parameter):
            return True
        if torch.is_grad_enabled() and first.whole.requires_grad:
            return True
    return False


def _forward(opened: Callable[..., Any], module: Any, *arguments: Any, **keywords: Any) -> Any:
    """The opened forward pass of a module; the published one where its parameters are trained."""
    forward = type(module).forward if _are_trained(module) else opened
    return forward(module, *arguments, **keywords)
