"""Training with FSDP2: each process holds a share of the weights, their gradients and optimizer states.

A block of a tower is whole in a process only while it runs, and what is outside of blocks during the whole
pass. torch shards, and transformers' Trainer trains the shards like whole weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ecoflap.errors import UserError
from ecoflap.finetune.masked_parameters import vectors
from ecoflap.models.core.routers import routers
from ecoflap.models.core.towers import Block


def require_sharding() -> None:
    """Refuse a torch whose FSDP does not reduce the gradients of weights that a process did not use.

    Raises:
        UserError: if the installed one doesn't.
    """
    from torch.distributed import fsdp

    if not hasattr(getattr(fsdp, "FSDPModule", None), "set_reduce_scatter_unused_params"):
        raise UserError(
            f"finetune.shard=true needs a newer torch than {torch.__version__}, such as 2.13; install it, or"
            " set the option to false"
        )


@contextmanager
def sharded(module: nn.Module, blocks: Sequence[Block]) -> Iterator[None]:
    """Shard a module over the processes of the run in a context; afterwards, it is whole in each again.

    Its parameters are the same objects then. After an error their values are lost.

    Args:
        module: what is called, with the same weights in all processes.
        blocks: the blocks in it, each of which is sharded on its own.
    """
    from torch.distributed import fsdp

    # fully_shard takes no scalars.
    scalars = [parameter for parameter in module.parameters() if parameter.ndim == 0]
    with vectors(module, [(scalar, torch.ones_like(scalar, dtype=torch.bool)) for scalar in scalars]):
        parameters = dict(module.named_parameters())
        empty = [one for one in parameters.values() if one.requires_grad and not one.numel()]
        with _restored(module):
            for one in empty:
                one.requires_grad_(False)  # fully_shard reduces no empty gradients
            for block in _separate(module, blocks):
                fsdp.fully_shard(block)
                if any(routers(block)):  # another process may use experts that this one does not
                    block.set_reduce_scatter_unused_params(True)
            fsdp.fully_shard(module)
            for parameter in parameters.values():
                parameter.data = parameter.new_zeros(()).expand(parameter.shape)  # frees the whole weight
            yield
            reshard(module)
            values = {name: unsharded(value) for name, value in module.named_parameters()}
        for one in empty:
            one.requires_grad_(True)
        for name, parameter in parameters.items():
            parameter.data, parameter.grad = values[name], None


def is_sharded(module: nn.Module) -> bool:
    """Whether a module is sharded."""
    return hasattr(module, "reshard")


def reshard(module: nn.Module) -> None:
    """Free the weights that a forward pass has left whole, so that the parameters are shards."""
    children: list[Any] = [child for child in module.modules() if is_sharded(child)]
    for child in children:
        child.reshard()


def unsharded(value: Tensor) -> Tensor:
    """The whole tensor, without gradient, gathered from all processes if it is sharded."""
    from torch.distributed.tensor import DTensor

    whole: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach()


def copy_whole(whole: Tensor, value: Tensor) -> None:
    """Copy a tensor that all processes have into a parameter, which may be sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(value, DTensor):
        whole = distribute_tensor(whole.to(value.device), value.device_mesh, value.placements)
    value.copy_(whole)


def save_states(module: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Save an optimizer's states in a folder; each process writes its shards."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    checkpoint.save(get_optimizer_state_dict(module, optimizer), checkpoint_id=folder)


def load_states(module: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Load what ``save_states`` has saved, into an optimizer that has not stepped."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    states = get_optimizer_state_dict(module, optimizer)
    checkpoint.load(states, checkpoint_id=folder)
    set_optimizer_state_dict(module, optimizer, states)


def _separate(module: nn.Module, blocks: Sequence[Block]) -> list[Any]:
    """The blocks that share no parameter with what is outside of them, inner ones first."""
    owners = _owners(module)
    return [
        block.module
        for block in sorted(blocks, key=lambda block: -block.name.count("."))
        if all(owners[one] == count for one, count in _owners(block.module).items())
    ]


def _owners(module: nn.Module) -> Counter[nn.Parameter]:
    """How many modules own each parameter."""
    return Counter(one for child in module.modules() for _, one in child.named_parameters(recurse=False))


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Restore the classes, parameters, hooks and attributes of all modules at the end of a context."""
    before = [(child, child.__class__, _held(child)) for child in module.modules()]
    try:
        yield
    finally:
        for child, kind, held in before:
            child.__class__ = kind
            for name in vars(child).keys() - held.keys():
                del vars(child)[name]
            for name, table in held.items():
                if table is not None:
                    vars(child)[name].clear()
                    vars(child)[name].update(table)


def _held(module: nn.Module) -> dict[str, dict[Any, Any] | None]:
    """The names of a module's attributes, and copies of the tables among them, such as that of parameters."""
    return {name: dict(value) if isinstance(value, dict) else None for name, value in vars(module).items()}
