"""Where the weights of a model's blocks are while they are not in use: in place, on the CPU, or on the disk.

A block's weights are loaded when the block runs or is worked on, and the least recently used block is
released in exchange. Two blocks are loaded at a time, because a backward pass still computes the gradients of
one while it recomputes the block before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ecoflap.errors import NumericalError
from ecoflap.models.core.expert_slices import refresh
from ecoflap.models.core.towers import Block

AT_A_TIME = 2
WORK = "offload"  # folder inside a run's for pruned blocks and hidden states on the disk


class Saves(Protocol):
    """A model that can write a checkpoint of itself while its weights are in place."""

    @property
    def module(self) -> nn.Module:
        """The transformers model."""

    @property
    def processor(self) -> Any:
        """Its tokenizer or processor."""

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""


class Placement:
    """The placement without offloading: all weights stay on the model's device.

    Attributes:
        kind: none, cpu or disk.
        device: the device that blocks run on; None for that of the weights.
        folder: folder for what doesn't fit into memory; None where everything does.
    """

    kind = "none"
    device: torch.device | None = None
    folder: Path | None = None

    @contextmanager
    def using(self, block: Block) -> Iterator[None]:
        """Load a block's weights for this context; call ``changed`` before its end to keep changes."""
        yield

    def changed(self, block: Block) -> None:
        """Store the weights of a block as they are now."""

    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor, Iterable[Tensor]]]:
        """The module's state dict: each name, a tensor of its shape and dtype, and its values in parts."""
        for name, tensor in module.state_dict().items():
            yield name, tensor, [tensor]

    @contextmanager
    def all_in_place(self) -> Iterator[None]:
        """Load the weights of all blocks for this context, as far as memory holds them."""
        yield

    def save(self, model: Saves, folder: Path) -> None:
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


class Source(Protocol):
    """Storage of the weights of offloaded blocks."""

    def read(self, names: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        """Weights by name, on the CPU in the given dtypes."""

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace the weights of a block."""


class Offloaded(Placement):
    """Blocks are stored in a source, and loaded to the device while in use."""

    def __init__(
        self,
        kind: str,
        module: nn.Module,
        blocks: list[Block],
        source: Source,
        device: torch.device,
        folder: Path,
    ) -> None:
        """Offload the blocks; from now on their ``forward`` loads their weights.

        Args:
            kind: cpu or disk.
            module: the model.
            blocks: its blocks.
            source: storage of their weights.
            device: the device that blocks run on.
            folder: folder for what doesn't fit into memory.
        """
        self.kind, self.source, self.device, self.folder = kind, source, device, folder
        self.parameters = own_parameters(module, blocks)
        self.dtypes = {
            block: {name: parameter.dtype for name, parameter in mine.items()}
            for block, mine in self.parameters.items()
        }
        self._modules = {block.name: block.module for block in blocks}
        self._loaded: list[str] = []  # names of blocks, least recently used first
        self._checked: set[str] = set()
        for block in blocks:
            block.module.forward = self._entering(block, block.module.forward)

    def _entering(self, block: Block, forward: Callable[..., Any]) -> Callable[..., Any]:
        def enter(*arguments: Any, **keywords: Any) -> Any:
            self._load(block.name)
            return forward(*arguments, **keywords)

        return enter

    def _load(self, name: str) -> None:
        if name in self._loaded:
            self._loaded.remove(name)
        else:
            while len(self._loaded) >= AT_A_TIME:
                self._release(self._loaded.pop(0))
            mine = self.parameters[name]
            for full, tensor in self.source.read(self.dtypes[name]).items():
                if name not in self._checked and not torch.isfinite(tensor).all():
                    raise NumericalError(
                        f"{full} holds NaN or infinite weights; the checkpoint is damaged, nothing was pruned"
                    )
                # In the parameter's dtype, as a scorer may hold half-precision weights in fp32.
                mine[full].data = tensor.to(self.device, mine[full].dtype)
            self._checked.add(name)
        self._loaded.append(name)

    def _release(self, name: str) -> None:
        for parameter in self.parameters[name].values():
            parameter.data = placeholder(parameter.shape, parameter.dtype)
        refresh(self._modules[name])

    @contextmanager
    def using(self, block: Block) -> Iterator[None]:
        """Load a block's weights for this context."""
        self._load(block.name)
        yield

    def changed(self, block: Block) -> None:
        """Write the block's weights as they are now to the source."""
        weights = {name: weight.detach().cpu() for name, weight in self.parameters[block.name].items()}
        self.source.write(block.name, weights)

    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor, Iterable[Tensor]]]:
        """The entries of the module's state dict; those of blocks are read one at a time."""
        offloaded = {name: dtype for mine in self.dtypes.values() for name, dtype in mine.items()}
        for name, tensor in module.state_dict().items():
            is_offloaded = name in offloaded
            values = self.source.read({name: offloaded[name]})[name] if is_offloaded else tensor
            yield name, tensor, [values]


class OnCpu(Offloaded):
    """Blocks are stored in the CPU's memory."""

    @contextmanager
    def all_in_place(self) -> Iterator[None]:
        """Load all blocks on the CPU for this context."""
        self._loaded.clear()
        for name, mine in self.parameters.items():
            for full, tensor in self.source.read(self.dtypes[name]).items():
                mine[full].data = tensor
        try:
            yield
        finally:
            for name in self.parameters:
                self._release(name)


class InMemory:
    """A source that holds the tensors themselves."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def read(self, names: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        """The tensors; those that have the dtype already are not copied."""
        return {name: self.tensors[name].to(dtype) for name, dtype in names.items()}

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace some tensors."""
        self.tensors.update(tensors)


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
    """The parameters that belong to one block and to nothing else, as {block: {name: parameter}}."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found: dict[str, dict[str, nn.Parameter]] = {}
    for block in blocks:
        prefix = f"{block.name}."
        found[block.name] = {
            prefix + name: parameter
            for name, parameter in block.module.named_parameters()
            if all(full.startswith(prefix) for full in names[id(parameter)])
        }
    return found
