"""Where the weights of blocks are while they are not in use: in place, on the CPU, or on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ecoflap.models.core.towers import Block

if TYPE_CHECKING:
    from ecoflap.models.core.prunable import PrunableModel

AT_A_TIME = 2  # blocks: the one that runs and the next, or in a backward pass the one before
WORK = "offload"  # folder inside a run's for pruned blocks and hidden states on the disk


class Placement:
    """The placement without offloading: all weights stay on the model's device.

    Attributes:
        kind: none, cpu or disk.
        device: the device that blocks run on; None for that of the weights.
        folder: folder for what doesn't fit into memory; None where everything does.
        reads_ahead: whether the next block is loaded while one runs.
        room: bytes of further hidden states that may stay on the device although the model is offloaded.
    """

    kind = "none"
    device: torch.device | None = None
    folder: Path | None = None
    reads_ahead: bool = True
    room: int = 0

    @contextmanager
    def using(self, block: Block) -> Iterator[None]:
        """Load a block's weights for this context; call ``changed`` in it to keep changes."""
        yield

    def changed(self, block: Block) -> None:
        """Keep the changes to a block's weights."""

    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor, Iterable[Tensor]]]:
        """The module's state dict: each name, a tensor of its shape and dtype, and its values in parts."""
        for name, tensor in module.state_dict().items():
            yield name, tensor, [tensor]

    @contextmanager
    def all_in_place(self) -> Iterator[None]:
        """Load the weights of all blocks for this context, as far as memory holds them."""
        yield

    def save(self, model: PrunableModel, folder: Path) -> None:
        """Write the model's checkpoint."""
        model.save(folder)


class Planned(Placement):
    """The placement of a model that has not been loaded yet, for plans of its memory."""

    def __init__(self, kind: str, device: torch.device) -> None:
        """Note where the weights will be.

        Args:
            kind: none, cpu or disk.
            device: the device that blocks will run on.
        """
        self.kind, self.device = kind, device


def block_bytes(blocks: Iterable[Block], width: int = 1) -> list[int]:
    """Bytes of each block's weights, at their own width or at ``width`` bytes per number if that is more."""
    return [_bytes(block.module, width) for block in blocks]


def bytes_outside(module: nn.Module, blocks: Iterable[Block], width: int = 1) -> int:
    """Bytes of the weights that belong to no block."""
    return _bytes(module, width) - sum(block_bytes(blocks, width))


def _bytes(module: nn.Module, width: int) -> int:
    return sum(parameter.numel() * max(parameter.dtype.itemsize, width) for parameter in module.parameters())


def placeholder(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A placeholder for an offloaded weight: the right shape, with one number of memory.

    The number is NaN, so that accidental use doesn't go unnoticed.
    """
    return torch.full((), float("nan"), dtype=dtype).expand(shape)


def is_placeholder(tensor: Tensor) -> bool:
    """Whether a tensor is the placeholder of an offloaded weight."""
    return tensor.numel() > 1 and not any(tensor.stride())


def own_parameters(module: nn.Module, blocks: list[Block]) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that belong to one block and to nothing else, as {block: {name: parameter}}.

    One that has two names in its block stays in memory, as a state dict shows it under both.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found: dict[str, dict[str, nn.Parameter]] = {}
    for block in blocks:
        prefix = f"{block.name}."
        found[block.name] = {
            prefix + name: parameter
            for name, parameter in block.module.named_parameters()
            if names[id(parameter)] == [prefix + name]
        }
    return found
