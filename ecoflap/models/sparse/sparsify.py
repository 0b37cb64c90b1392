"""Replace the linear layers of a model that have enough zeros by sparse ones."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from ecoflap.errors import UserError
from ecoflap.models.sparse.library import products
from ecoflap.models.sparse.linear import SparseLinear
from ecoflap.storage.results.sparsity import LEAST_SPARSITY, LEAST_WEIGHTS

log = logging.getLogger(__name__)


class _Place(NamedTuple):
    """A linear layer, and the module that has it under a name."""

    parent: nn.Module
    name: str
    linear: nn.Linear


def sparsify(module: nn.Module) -> int:
    """Store the linear layers of a model on the CPU without their zeros, in place.

    Layers stay dense that are small, have few zeros, have hooks or a forward of their own, or whose weight
    the module around them reads itself, as T5 does. Weights and biases of those that are replaced get no
    gradients any more.

    Returns:
        The number of layers that were replaced.

    Raises:
        UserError: if this machine can't multiply them; the model is as before.
    """
    places = list(_places(module))
    for dtype in {place.linear.weight.dtype for place in places}:
        products(dtype)
    for parent, name, dense in places:
        setattr(parent, name, SparseLinear(dense))
    return len(places)


def sparsify_if_possible(module: nn.Module) -> None:
    """As ``sparsify``; a model that stays dense is a warning."""
    try:
        if not sparsify(module):
            log.warning(
                "no linear layer has %s weights and %.0f %% zeros; the weights stay dense",
                f"{LEAST_WEIGHTS:,}",
                100 * LEAST_SPARSITY,
            )
    except UserError as error:
        log.warning("%s; the weights stay dense", error)


def _places(module: nn.Module) -> Iterator[_Place]:
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is not nn.Linear or _is_changed(child) or _reads_weight(parent, name):
                continue
            if _has_enough_zeros(child):
                yield _Place(parent, name, child)


def _is_changed(linear: nn.Linear) -> bool:
    """Whether a layer has hooks, or a forward of its own, which another layer would be without."""
    hooks = (
        linear._forward_hooks,
        linear._forward_pre_hooks,
        linear._backward_hooks,
        linear._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(linear)


def _has_enough_zeros(linear: nn.Linear) -> bool:
    weight = linear.weight.detach()
    if weight.device.type != "cpu" or weight.numel() < LEAST_WEIGHTS:
        return False
    return weight.numel() - int(torch.count_nonzero(weight)) >= LEAST_SPARSITY * weight.numel()


def _reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether a module's code names the weight of its child."""
    try:
        return f".{name}.weight" in inspect.getsource(type(parent))
    except (OSError, TypeError):  # a class without a source
        return False
